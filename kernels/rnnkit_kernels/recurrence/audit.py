"""Ahead-of-time compilation of a plan's kernels, without a GPU: registers, spills, memory."""

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rnnkit_kernels.cells import Cell
from rnnkit_kernels.recurrence import backward, forward
from rnnkit_kernels.recurrence.plan import Plan

_TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes.

    Attributes:
        kernel: its name, with the stage in launch mode.
        registers: per thread.
        stack: bytes per thread of local memory; anything above zero is a spill.
        shared_memory: bytes per program.
        tensor_core_instructions: wgmma, tcgen05 and mma in the PTX.
    """

    kernel: str
    registers: int
    stack: int
    shared_memory: int
    tensor_core_instructions: int


def compile_kernel(
    function: Any,
    constants: dict[str, Any],
    dtype: torch.dtype,
    capability: int,
    options: dict[str, int],
    name: str,
) -> Resources:
    """Compile one kernel for `capability` as its launcher would, and read what it takes."""
    in_float32 = ("cell_state", "carry_gradient", "c0", "states")
    in_int64 = ("batch_sizes", "offsets")
    in_int32 = ("counters", "error")
    integers = ("first_member", "reverse", "begin", "end", "steps", "batch", "budget")
    signature: dict[str, str] = {}
    for argument in function.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in integers:
            signature[argument] = "i32"
        elif argument in in_int64:
            signature[argument] = "*i64"
        elif argument in in_int32:
            signature[argument] = "*i32"
        else:
            signature[argument] = "*fp32" if argument in in_float32 else _TYPES[dtype]
    positions = {argument: i for i, argument in enumerate(function.arg_names)}
    source = ASTSource(
        function,
        signature,
        {(positions[argument],): value for argument, value in constants.items()},
        attrs={
            (positions[argument],): [["tt.divisibility", 16]]
            for argument, kind in signature.items()
            if kind.startswith("*")
        },
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        binary = os.path.join(folder, "kernel.cubin")
        Path(binary).write_bytes(compiled.asm["cubin"])
        usage = subprocess.run(
            [cuobjdump, "-res-usage", binary], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {usage!r}")
    ptx = compiled.asm["ptx"]
    return Resources(
        name,
        int(found[1]),
        int(found[2]),
        compiled.metadata.shared,
        len(re.findall(r"\b(?:wgmma\.mma_async|tcgen05\.mma|mma\.sync)", ptx)),
    )


def compile_plan(
    cell: Cell,
    plan: Plan,
    hidden: int,
    dtype: torch.dtype,
    capability: int,
    ragged: bool = True,
    members: int = 1,
    zoneout: bool = False,
) -> list[Resources]:
    """Compile every kernel that `plan` launches for training.

    Args:
        cell: the cell.
        plan: mode and tiles.
        hidden: H.
        dtype: of inputs and weights.
        capability: 80, 90, 100, ...
        ragged: whether sequences differ in length.
        members: directions in one launch.
        zoneout: whether states are kept in part.

    Returns:
        One entry a kernel.
    """
    found = []
    for direction, module in (("forward", forward), ("backward", backward)):
        constants = constants_of(cell, plan, hidden, dtype, direction, ragged, members, zoneout)
        kind = "resident" if plan.mode == "resident" else "stepping"
        function = getattr(module, f"{kind}_{direction}")
        stages = len(cell.forward)
        runs: list[tuple[int, int] | None] = [(0, stages)]
        if plan.mode == "launch":
            runs = [(stage, stage + 1) for stage in range(stages)]
        for run in [None] if plan.mode == "resident" else runs:
            name = f"{plan.mode}_{direction}" + (f"[{run[0]}]" if run and len(runs) > 1 else "")
            of_run = constants if run is None else {**constants, "STAGES": run}
            options = plan.options(direction)
            found.append(compile_kernel(function, of_run, dtype, capability, options, name))
    return found


def constants_of(
    cell: Cell,
    plan: Plan,
    hidden: int,
    dtype: torch.dtype,
    direction: Literal["forward", "backward"],
    ragged: bool,
    members: int,
    zoneout: bool,
) -> dict[str, Any]:
    """A training kernel's compile-time arguments, absent tensors among them."""
    sizes = (hidden, dtype.itemsize, members, ragged)
    if direction == "forward":
        constants = forward.forward_constants(cell, plan, *sizes, save=True, zoneout=zoneout)
    else:
        constants = backward.backward_constants(cell, plan, *sizes, zoneout=zoneout)
    absent = [] if ragged else ["batch_sizes", "offsets"]
    absent += [] if zoneout else ["zoneout"]
    if direction == "backward" and not cell.has_cell_state:
        absent.append("c0")
    if plan.mode == "launch":
        absent += ["counters", "error"]
    return constants | dict.fromkeys(absent)
