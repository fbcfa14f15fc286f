"""Compile the kernels ahead of time, without a GPU, and judge what comes out.

    python -m rnnkit_kernels.audit --out kernels/audit.md    # all plans of the benchmarks
    python -m rnnkit_kernels.audit --quick                   # those that the test suite compiles

A plan passes if no kernel of it spills, all fit the GPU and keep the rules of `assembly.py`.
"""

import argparse
import hashlib
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
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
from rnnkit_kernels.cells import CELLS, Cell
from rnnkit_kernels.crf import kernels as crf_kernels
from rnnkit_kernels.ops.stack import wavefront_plan
from rnnkit_kernels.recurrence import backward, forward, resident, stepping
from rnnkit_kernels.recurrence.plan import A100, B200, H200, Device, Fallback, Mode, Plan, plan

DEVICES = {"sm_80": A100, "sm_90": H200, "sm_100": B200}
# torch's dtype and the precision of its products.
DTYPES = {
    "bf16": (torch.bfloat16, "ieee"),
    "fp16": (torch.float16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "tf32x3": (torch.float32, "tf32x3"),
    "fp32": (torch.float32, "ieee"),
}
AMD = GPUTarget("hip", "gfx942", 64)
_POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
_POINTER_TYPES = {
    **dict.fromkeys(("cell_state", "carry_gradient", "c0", "states"), "*fp32"),
    **dict.fromkeys(("batch_sizes", "offsets", "seed", "order"), "*i64"),
    **dict.fromkeys(("counters", "error"), "*i32"),
}
CRF_TAGS = (9, 32, 50, 64)  # every tile, filled and not


@dataclass(frozen=True)
class Case:
    """One plan to compile.

    Attributes:
        cell: a key of `CELLS`.
        hidden: H.
        dtype: a key of `DTYPES`.
        target: a key of `DEVICES`.
        mode: of `Plan`, or None for what the rule chooses.
        batch: B.
        members: directions, or with `wavefront` layers.
        ragged: whether sequences differ in length.
        zoneout: whether states are kept in part.
        wavefront: whether the members are layers, with dropout between them.
    """

    cell: str
    hidden: int
    dtype: str = "bf16"
    target: str = "sm_90"
    mode: Mode | None = None
    batch: int = 1
    members: int = 1
    ragged: bool = True
    zoneout: bool = False
    wavefront: bool = False

    def plan(self) -> Plan | Fallback:
        """The rule's answer."""
        dtype, precision = DTYPES[self.dtype]
        if self.wavefront:
            return wavefront_plan(
                CELLS[self.cell],
                self.hidden,
                self.members,
                dtype,
                DEVICES[self.target],
                precision,  # type: ignore[arg-type]
                self.mode or "data",
            )
        return plan(
            CELLS[self.cell],
            self.hidden,
            dtype,
            DEVICES[self.target],
            precision,  # type: ignore[arg-type]
            self.mode,
            self.batch,
            self.members,
        )


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


def crf_cases() -> list[tuple[str, int, str]]:
    """(target, K, dtype) of the CRF's kernels: every tile everywhere."""
    dtypes = ("bf16", "fp16", "fp32")
    return [
        (target, tags, dtypes[(i + j) % 3])
        for i, target in enumerate(DEVICES)
        for j, tags in enumerate(CRF_TAGS)
    ]


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


def quick_cases() -> list[Case]:
    """A fixed list of at most 40 plans: every mode and cell, the limits, every precision."""
    cells = [cell for cell in CELLS if cell != "lstm"]
    return [
        *(Case("lstm", hidden, mode="data") for hidden in (200, 300, 650, 1024, 1150, 1500, 1728)),
        *(Case("lstm", hidden, mode="counter", members=2) for hidden in (200, 1024)),
        *(Case(cell, 512, mode="data") for cell in cells),
        *(Case(cell, 512, mode="counter") for cell in ("gru_reset_before", "lstm_peephole")),
        *(Case("lstm", hidden, "tf32", mode="data") for hidden in (300, 650, 1024)),
        Case("lstm", 256, "tf32x3", mode="data"),
        Case("gru", 1024, "fp16", mode="data", batch=256, members=2),
        Case("lstm", 650, mode="data", zoneout=True, ragged=False),
        Case("lstm", 650, members=2, mode="data", wavefront=True),
        Case("gru", 512, members=2, mode="counter", wavefront=True),
        *(Case("lstm", 650, target=target, mode="data") for target in ("sm_80", "sm_100")),
        Case("gru", 1024, target="sm_80", mode="counter"),
        Case("lstm", 144, mode="resident"),
        Case("lstm", 128, "fp16", mode="resident", members=2, ragged=False),
        Case("gru_reset_before", 128, target="sm_80", mode="resident"),
        Case("lstm_peephole", 128, target="sm_100", mode="resident"),
        Case("gru", 64, "tf32", mode="resident"),
        Case("lstm", 32, "fp32", mode="resident"),
        Case("lstm", 1500, mode="launch", members=2),
        Case("gru_reset_before", 650, "tf32", mode="launch", zoneout=True),
        Case("gru", 1150, "fp32", target="sm_80", mode="launch"),
        Case("lstm_peephole", 1150, "tf32", mode="launch", members=2, zoneout=True),
    ]


def all_cases() -> list[Case]:
    """What the benchmark cases reach: their sizes, and one of each other cell."""
    sizes = (50, 64, 168, 200, 256, 300, 500, 512, 650, 768, 1024, 1150, 1500)
    found = list(quick_cases())
    for target, dtype, cell, hidden in itertools.product(
        DEVICES, ("bf16", "tf32"), ("lstm", "gru"), sizes
    ):
        # Hopper is what the plans are made for; of the others a sample.
        if target == "sm_90" or hidden in (200, 650, 1024):
            found.append(Case(cell, hidden, dtype, target))
            counter = Case(cell, hidden, dtype, target, "counter")
            chosen = found[-1].plan()
            if isinstance(chosen, Plan) and chosen.mode == "data":
                found += [counter] if isinstance(counter.plan(), Plan) else []
    # One launch a step is nearly one kernel for every H; rows of 1,150 units are the worst aligned.
    found += [
        Case(cell, 1150, dtype, target, "launch")
        for target, dtype, cell in itertools.product(DEVICES, ("bf16", "tf32", "fp32"), CELLS)
    ]
    # float16 compiles to the code of bfloat16 but for the conversions.
    found += [Case(cell, hidden, "fp16") for cell in ("lstm", "gru") for hidden in (200, 768, 1024)]
    found += [Case(cell, 512, members=2) for cell in CELLS]
    return list(dict.fromkeys(found))


def source_hash() -> str:
    """Of all that the kernels are compiled from."""
    folder = Path(__file__).parents[1]
    files = [*folder.glob("cells/*.py"), *folder.glob("recurrence/*.py")]
    files += [
        folder / f"{name}.py" for name in ("random/philox", "crf/kernels", "vocabulary/tiles")
    ]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


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


def report(
    rows: list[tuple[Case, Plan | Fallback, list[Resources]]],
    amd: dict[Case, str],
    crf: list[tuple[tuple[str, int, str], list[Resources]]],
) -> str:
    """The tables, as Markdown."""
    lines = [
        "# What the compiled kernels take",
        "",
        f"`python -m rnnkit_kernels.audit`, triton {triton.__version__}, source `{source_hash()}`.",
        "Registers a thread; stack in bytes a thread, above zero a spill; shared memory in bytes",
        "a program; tensor-core instructions in the PTX; widths of the loads that poll, in bits;",
        "of a step the instructions that one of four schedulers issues for all its warps, with one",
        "vain look at memory, and its barriers; gfx942: whether Triton's AMD backend compiles the",
        "plan and how much of that GPU's local memory it takes, tried for a few.",
        "",
        "| target | cell | H | dtype | B | members | kernel | registers | stack | shared memory "
        "| tensor cores | polls | instructions | barriers | gfx942 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, _, resources in sorted(rows, key=lambda row: str(row[0])):
        members = f"{case.members}{' layers' if case.wavefront else ''}"
        members += " zoneout" if case.zoneout else ""
        for i, found in enumerate(resources):
            polls = " ".join(str(bits) for bits in sorted(set(found.poll_bits), reverse=True))
            cells = (
                case.target, case.cell, case.hidden, case.dtype, case.batch, members, found.kernel,
                found.registers, found.stack, found.shared_memory, found.tensor_core_instructions,
                polls, found.step_instructions, found.step_barriers,
                amd.get(case, "") if i == 0 else "",
            )  # fmt: skip
            lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    lines += [
        "",
        "The CRF's kernels, by the number of tags.",
        "",
        "| target | K | emissions | kernel | registers | stack | shared memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for of_case, resources in crf:
        for found in resources:
            numbers = (found.kernel, found.registers, found.stack, found.shared_memory)
            lines.append("| " + " | ".join(str(cell) for cell in (*of_case, *numbers)) + " |")
    return "\n".join(lines) + "\n"


def progress(done: int, total: int, since: float) -> None:
    """One line that says how far the compilation is and how long it will take."""
    if sys.stderr.isatty():
        rest = (time.monotonic() - since) / max(done, 1) * (total - done)
        bar = "#" * (30 * done // total)
        sys.stderr.write(f"\r[{bar:<30}] {done}/{total} plans, {rest:4.0f} s left ")
        sys.stderr.write("\n" if done == total else "")
        sys.stderr.flush()


def main(arguments: list[str] | None = None) -> int:
    """Compile, print and write the table; 1 if a kernel spills, does not fit or breaks a rule."""
    parser = argparse.ArgumentParser(
        prog="python -m rnnkit_kernels.audit",
        description="Compile the kernels' plans ahead of time; no GPU is needed.",
    )
    parser.add_argument(
        "--targets", nargs="+", choices=DEVICES, default=list(DEVICES), help="default: all"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--out", type=Path, help="where the table goes, such as kernels/audit.md")
    parser.add_argument("--quick", action="store_true", help="only what the test suite compiles")
    given = parser.parse_args(arguments)
    cases = [
        case
        for case in (quick_cases() if given.quick else all_cases())
        if case.target in given.targets
    ]
    rows, amd, since = [], {}, time.monotonic()
    with ProcessPoolExecutor(given.jobs) as pool:
        try:
            tried = [case for case in quick_cases()[:3] if not given.quick]
            columns = {pool.submit(amd_column, case): case for case in tried}
            crf = [
                pool.submit(compile_crf, case) for case in crf_cases() if case[0] in given.targets
            ]
            running = [pool.submit(compile_case, case) for case in cases]
            for done, future in enumerate(as_completed(running), 1):
                rows.append(future.result())
                progress(done, len(cases), since)
            amd = {case: future.result() for future, case in columns.items()}
            crf_rows = [future.result() for future in crf]
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    table = report(rows, amd, crf_rows)
    if given.out:
        given.out.write_text(table)
    else:
        print(table)
    faults = [
        f"{case.target} {case.cell} H={case.hidden} {case.dtype} {found.kernel}: {fault}"
        for case, _, resources in rows
        for found in resources
        for fault in found.faults
    ]
    faults += [
        f"{target} crf K={tags} {dtype} {found.kernel}: {fault}"
        for (target, tags, dtype), resources in crf_rows
        for found in resources
        for fault in found.faults
    ]
    missing = [f"{case}: {plan.reason}" for case, plan, _ in rows if isinstance(plan, Fallback)]
    print(*(faults + missing), sep="\n", file=sys.stderr)
    print(f"{len(rows)} plans and {len(crf_rows)} CRFs, {len(faults)} faults", file=sys.stderr)
    return 1 if faults or missing else 0


if __name__ == "__main__":
    sys.exit(main())
