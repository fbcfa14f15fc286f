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
    in_int32 = ("t", "steps", "batch")
    signature: dict[str, str] = {}
    for argument in function.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in in_int32:
            signature[argument] = "i32"
        elif argument in in_int64:
            signature[argument] = "*i64"
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
    reverse: bool = False,
) -> list[Resources]:
    """Compile every kernel that `plan` launches for training.

    Args:
        cell: the cell.
        plan: mode and tiles.
        hidden: H.
        dtype: of inputs and weights.
        capability: 80, 90, 100, ...
        ragged: whether sequences differ in length.
        reverse: the direction.

    Returns:
        One entry a kernel.
    """
    found = []
    launches: list[tuple[Literal["forward", "backward"], Any, dict[str, Any]]] = [
        (
            "forward",
            forward,
            forward.forward_constants(
                cell, plan, hidden, dtype.itemsize, reverse, ragged, save=True
            ),
        ),
        (
            "backward",
            backward,
            backward.backward_constants(cell, plan, hidden, dtype.itemsize, reverse, ragged),
        ),
    ]
    for direction, module, constants in launches:
        name = f"{plan.mode}_{direction}"
        if not ragged:
            constants |= {"batch_sizes": None, "offsets": None}
        for stage in range(len(cell.forward)) if plan.mode == "launch" else [None]:
            of_stage = constants if stage is None else {**constants, "STAGE": stage}
            found.append(
                compile_kernel(
                    getattr(module, name),
                    of_stage,
                    dtype,
                    capability,
                    plan.options(direction),
                    name if stage is None else f"{name}[{stage}]",
                )
            )
    return found
