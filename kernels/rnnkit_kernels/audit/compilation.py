"""Plans compiled ahead of time: what each kernel takes, and which rules it breaks."""

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rnnkit_kernels.audit.assembly import (
    broken_rules,
    longest_loop,
    poll_bits,
    tensor_core_instructions,
)
from rnnkit_kernels.audit.cases import DEVICES, DTYPES, Case
from rnnkit_kernels.cells import CELLS, Cell
from rnnkit_kernels.crf import kernels as crf_kernels
from rnnkit_kernels.recurrence import backward, forward, resident, stepping
from rnnkit_kernels.recurrence.plan import Device, Fallback, Plan

AMD = GPUTarget("hip", "gfx942", 64)
_POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
_POINTER_TYPES = {
    **dict.fromkeys(("cell_state", "carry_gradient", "c0", "states"), "*fp32"),
    **dict.fromkeys(("batch_sizes", "offsets", "seed", "order"), "*i64"),
    **dict.fromkeys(("counters", "error"), "*i32"),
}


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes, and does wrong.

    Attributes:
        kernel: its name, with the stage in launch mode.
        registers: per thread.
        stack: bytes per thread of local memory; anything above zero is a spill.
        shared_memory: bytes per program.
        tensor_core_instructions: wgmma, tcgen05 and mma in the PTX.
        poll_bits: widths of the loads that poll for data, falling.
        step_instructions: of the longest loop, a time step unless launched for each, what one of
            the four schedulers of a multiprocessor issues for all its warps.
        step_barriers: barriers of that loop.
        faults: spills, too much of anything, and the rules of `assembly.py` that it breaks.
    """

    kernel: str
    registers: int
    stack: int
    shared_memory: int
    tensor_core_instructions: int
    poll_bits: tuple[int, ...]
    step_instructions: int
    step_barriers: int
    faults: tuple[str, ...]


def source_of(
    function: Any,
    constants: dict[str, Any],
    dtype: torch.dtype,
    pointer_types: dict[str, str] | None = None,
) -> ASTSource:
    """A kernel with the argument types that its launcher hands over."""
    types = _POINTER_TYPES if pointer_types is None else pointer_types
    signature: dict[str, str] = {}
    for parameter in function.params:
        if parameter.name in constants:
            signature[parameter.name] = "constexpr"
        elif parameter.do_not_specialize:
            signature[parameter.name] = parameter.annotation_type or "i32"
        else:
            signature[parameter.name] = types.get(parameter.name, _POINTERS[dtype])
    positions = {name: i for i, name in enumerate(function.arg_names)}
    return ASTSource(
        function,
        signature,
        {(positions[name],): value for name, value in constants.items()},
        attrs={
            (positions[name],): [["tt.divisibility", 16]]
            for name, kind in signature.items()
            if kind.startswith("*")
        },
    )


def cuobjdump(cubin: bytes, what: str) -> str:
    """What the tool that comes with Triton prints of a compiled kernel."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        binary = os.path.join(folder, "kernel.cubin")
        Path(binary).write_bytes(cubin)
        done = subprocess.run([tool, what, binary], capture_output=True, text=True, check=True)
    return done.stdout


def registers_and_stack(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory per thread."""
    usage = cuobjdump(cubin, "-res-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {usage!r}")
    return int(found[1]), int(found[2])


def constants_of(
    cell: Cell,
    plan: Plan,
    hidden: int,
    dtype: torch.dtype,
    direction: Literal["forward", "backward"],
    ragged: bool,
    members: int,
    zoneout: bool = False,
    wavefront: bool = False,
) -> dict[str, Any]:
    """A training kernel's compile-time arguments, absent tensors among them."""
    sizes = (hidden, dtype.itemsize, members, ragged)
    stack = {"wavefront": wavefront, "dropout": wavefront}
    if direction == "forward":
        constants = forward.forward_constants(
            cell, plan, *sizes, save=True, zoneout=zoneout, **stack
        )
    else:
        constants = backward.backward_constants(cell, plan, *sizes, zoneout=zoneout, **stack)
    absent = [] if ragged else ["batch_sizes", "offsets"]
    absent += [] if zoneout else ["zoneout"]
    if direction == "backward" and not cell.has_cell_state:
        absent.append("c0")
    if plan.mode != "resident" and not wavefront:
        absent += ["weight_above", "seed", "order"]
        absent += ["bias_above", "dropped"] if direction == "forward" else []
    if plan.mode == "launch":
        absent += ["counters", "error"]
    return constants | dict.fromkeys(absent)


def kernels_of(
    cell: Cell, plan: Plan, hidden: int, dtype: torch.dtype, **options: Any
) -> list[tuple[str, Any, dict[str, Any], dict[str, int], tuple[int, int]]]:
    """Every kernel that `plan` launches for training.

    Returns:
        Of each its name, the function, its constants and compiler options, and how many tiles of
        the exchange it polls at every step and how many tiles of weights it holds.
    """
    found = []
    directions: tuple[Literal["forward", "backward"], ...] = ("forward", "backward")
    for direction in directions:
        constants = constants_of(cell, plan, hidden, dtype, direction, **options)
        module = resident if plan.mode == "resident" else stepping
        kind = "resident" if plan.mode == "resident" else "stepping"
        function = getattr(module, f"{kind}_{direction}")
        tiles = plan.forward if direction == "forward" else plan.backward
        products = tiles.chunks * (2 if options.get("wavefront") else 1)
        held = sum(len(chunks) for chunks in products)
        if plan.mode == "resident":
            # Forward the gates of a stage lie in one tile, backward each gate has its own.
            per_pair = len(cell.gates) if direction == "forward" else cell.gates_at[-1]
            held = len(tiles.chunks[0]) ** 2 * per_pair
        polled = held if plan.mode == "data" else 0
        counts = (polled, 0 if plan.mode == "launch" else held)
        stages = len(cell.forward)
        runs = [(0, stages)]
        if plan.mode == "launch":
            runs = [(stage, stage + 1) for stage in range(stages)]
        for run in runs:
            name = f"{plan.mode}_{direction}" + (f"[{run[0]}]" if len(runs) > 1 else "")
            of_run = constants if plan.mode == "resident" else {**constants, "STAGES": run}
            found.append((name, function, of_run, plan.options(direction), counts))
    return found


def compile_plan(
    cell: Cell,
    plan: Plan,
    hidden: int,
    dtype: torch.dtype,
    device: Device,
    ragged: bool = True,
    members: int = 1,
    zoneout: bool = False,
    wavefront: bool = False,
) -> list[Resources]:
    """Compile every kernel that `plan` launches for training.

    Args:
        cell: the cell.
        plan: mode and tiles.
        hidden: H.
        dtype: of inputs and weights.
        device: the GPU.
        ragged: whether sequences differ in length.
        members: directions in one launch, or layers.
        zoneout: whether states are kept in part.
        wavefront: whether the members are layers, with dropout between them.

    Returns:
        One entry a kernel.
    """
    found = []
    kernels = kernels_of(
        cell, plan, hidden, dtype, ragged=ragged, members=members, zoneout=zoneout,
        wavefront=wavefront,
    )  # fmt: skip
    for name, function, constants, options, (polled, held) in kernels:
        compiled = triton.compile(
            source_of(function, constants, dtype),
            target=GPUTarget("cuda", device.capability, 32),
            options=options,
        )
        ttgir, ptx = compiled.asm["ttgir"], compiled.asm["ptx"]
        cores = dtype != torch.float32 or plan.precision != "ieee"
        faults = broken_rules(plan.mode, polled, held, cores, ttgir, ptx)
        found.append(resources_of(name, compiled, device, options["num_warps"], faults))
    return found


def resources_of(
    name: str, compiled: Any, device: Device, warps: int, faults: Sequence[str] = ()
) -> Resources:
    """What a compiled kernel takes, and its faults beside those already found."""
    faults = list(faults)
    registers, stack = registers_and_stack(compiled.asm["cubin"])
    if stack:
        faults.append(f"spills {stack} bytes")
    shared_memory = compiled.metadata.shared
    if shared_memory > device.shared_memory:
        faults.append(f"{shared_memory:,} bytes of shared memory do not fit {device.name}")
    # Allocated by the eight; 65,536 registers a multiprocessor on all of these.
    if -(-registers // 8) * 8 * 32 * warps > 65_536:
        faults.append(f"{registers} registers in {warps} warps can't launch")
    ptx = compiled.asm["ptx"]
    step = longest_loop(cuobjdump(compiled.asm["cubin"], "-sass"))
    return Resources(
        name,
        registers,
        stack,
        shared_memory,
        tensor_core_instructions(ptx),
        poll_bits(ptx),
        len(step) * warps // 4,
        sum(" BAR." in f" {instruction}" for instruction in step),
        tuple(faults),
    )


def compile_crf(
    case: tuple[str, int, str],
) -> tuple[tuple[str, int, str], list[Resources]]:
    """The CRF's two kernels for a GPU, K tags and emissions of a dtype."""
    target, tags, name = case
    device, dtype = DEVICES[target], DTYPES[name][0]
    options = crf_kernels.options(tags)
    warps = options.pop("num_warps")
    types = dict.fromkeys((p.name for p in crf_kernels.partition_backward.params), "*fp32")
    types |= dict.fromkeys((p.name for p in crf_kernels.partition_forward.params), "*fp32")
    types |= {"emissions": _POINTERS[dtype], "d_emissions": _POINTERS[dtype], "lengths": "*i64"}
    found = []
    for function in (crf_kernels.partition_forward, crf_kernels.partition_backward):
        compiled = triton.compile(
            source_of(function, options, dtype, types),
            target=GPUTarget("cuda", device.capability, 32),
            options={"num_warps": warps},
        )
        found.append(resources_of(function.__name__, compiled, device, warps))
    return case, found


def compile_case(case: Case) -> tuple[Case, Plan | Fallback, list[Resources]]:
    """The plan of a case and what its kernels take; nothing where there is no plan."""
    found = case.plan()
    if isinstance(found, Fallback):
        return case, found, []
    dtype, _ = DTYPES[case.dtype]
    resources = compile_plan(
        CELLS[case.cell],
        found,
        case.hidden,
        dtype,
        DEVICES[case.target],
        case.ragged,
        case.members,
        case.zoneout,
        case.wavefront,
    )
    return case, found, resources


def amd_column(case: Case) -> str:
    """Whether Triton's AMD backend makes code of a plan; a report, no promise."""
    found = case.plan()
    if isinstance(found, Fallback):
        return found.reason
    dtype, _ = DTYPES[case.dtype]
    shape = {"ragged": case.ragged, "members": case.members}
    needed = 0
    try:
        for _, function, constants, options, _ in kernels_of(
            CELLS[case.cell], found, case.hidden, dtype, **shape
        ):
            compiled = triton.compile(
                source_of(function, constants, dtype),
                target=AMD,
                options={"num_warps": options["num_warps"], "num_stages": options["num_stages"]},
            )
            needed = max(needed, compiled.metadata.shared)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:60]}"
    return f"compiles, {needed} of 65536 bytes"
