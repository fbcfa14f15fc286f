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
from rnnkit_kernels.recurrence.arguments import Layer
from rnnkit_kernels.recurrence.backward import backward_constants
from rnnkit_kernels.recurrence.forward import forward_constants
from rnnkit_kernels.recurrence.plan import Device, Fallback, Plan
from rnnkit_kernels.recurrence.resident_backward import resident_backward
from rnnkit_kernels.recurrence.resident_forward import resident_forward
from rnnkit_kernels.recurrence.stepping_backward import stepping_backward
from rnnkit_kernels.recurrence.stepping_forward import stepping_forward

AMD = GPUTarget("hip", "gfx942", 64)
_POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
# Of the kernels' arguments, those in bundles by their path; all others are of the compute dtype.
_POINTER_TYPES = {
    **dict.fromkeys(("initial.c", "gradients.carry", "storage.states"), "*fp32"),
    **dict.fromkeys(("rows.batch_sizes", "rows.offsets", "dropout.seed", "dropout.order"), "*i64"),
    **dict.fromkeys(("meeting.counters", "meeting.error"), "*i32"),
}
_KERNELS = {
    (False, "forward"): stepping_forward,
    (False, "backward"): stepping_backward,
    (True, "forward"): resident_forward,
    (True, "backward"): resident_backward,
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
    """A kernel with the argument types that its launcher hands over.

    Args:
        function: the kernel. A parameter annotated with a class of `arguments.py` is a bundle.
        constants: values by name, "bundle.field" for one of a bundle.
        dtype: of pointers that `pointer_types` does not name.
        pointer_types: Triton's names of types, by the same names.
    """
    types = _POINTER_TYPES if pointer_types is None else pointer_types
    found: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}

    def kind(name: str, path: tuple[int, ...], otherwise: str) -> str:
        if name in constants:
            found[path] = constants[name]
            return "constexpr"
        if otherwise.startswith("*"):
            attributes[path] = [["tt.divisibility", 16]]
        return otherwise

    signature: dict[str, Any] = {}
    for i, (parameter, stated) in enumerate(
        zip(function.params, function.signature.parameters.values(), strict=True)
    ):
        name, bundle = parameter.name, stated.annotation
        if hasattr(bundle, "_fields"):
            paths = {f"{name}.{field}": (i, j) for j, field in enumerate(bundle._fields)}
            signature[name] = bundle(
                *(kind(p, at, types.get(p, _POINTERS[dtype])) for p, at in paths.items())
            )
        elif parameter.do_not_specialize:
            signature[name] = kind(name, (i,), parameter.annotation_type or "i32")
        else:
            signature[name] = kind(name, (i,), types.get(name, _POINTERS[dtype]))
    return ASTSource(function, signature, found, attributes)


def argument_names(source: ASTSource) -> list[str]:
    """The arguments that are left in a compiled kernel, in order; "bundle.field" in bundles."""
    names = []
    for name, kind in source.signature.items():
        if isinstance(kind, tuple):
            fields = type(kind)._fields  # type: ignore[attr-defined]
            pairs = [(f"{name}.{field}", k) for field, k in zip(fields, kind, strict=True)]
        else:
            pairs = [(name, kind)]
        names += [path for path, k in pairs if k != "constexpr"]
    return names


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
    layer = Layer.of(cell, hidden, dtype.itemsize, members, ragged, zoneout)
    stack = {"wavefront": wavefront, "dropout": wavefront}
    if direction == "forward":
        constants = forward_constants(cell, plan, layer, save=True, **stack)
        unused = []
    else:
        constants = backward_constants(cell, plan, layer, **stack)
        unused = ["weights.bias_hh"]
        unused += [] if cell.has_cell_state else ["initial.c"]
        unused += ["stack.bias_ih", "stack.dropped"]
    unused += [] if ragged else ["rows.batch_sizes", "rows.offsets"]
    unused += [] if zoneout else ["zoneout"]
    if not wavefront:
        unused += ["stack.weight_ih", "stack.bias_ih", "stack.dropped"]
        unused += ["dropout.seed", "dropout.order"]
    if plan.mode == "launch":
        unused += ["meeting.counters", "meeting.error"]
    return constants | dict.fromkeys(unused)


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
        function = _KERNELS[plan.mode == "resident", direction]
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
        source = source_of(function, constants, dtype)
        compiled = triton.compile(
            source, target=GPUTarget("cuda", device.capability, 32), options=options
        )
        ttgir, ptx = compiled.asm["ttgir"], compiled.asm["ptx"]
        cores = dtype != torch.float32 or plan.precision != "ieee"
        faults = broken_rules(plan.mode, polled, held, cores, ttgir, ptx, argument_names(source))
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
