"""What a call can't be faster than on this machine, from constants measured in the same run.

    floor = products + passes × max(meetings × exchange, meetings × re-read, operations ÷ rate)

* products: those that need no loop, timed alone as `torch.matmul` on random tensors of the case's
  shapes: W_ih x of the first layer, for training its dx, and dW_ih and dW_hh of every layer.
* passes: one, for training two.
* meetings: step t of layer l needs step t − 1 of its own and step t of the layer below, so layers
  side by side take T + L − 1, whether in one direction or one layer in both. Layers of both
  directions have to wait for all of the one below: L·T.
* exchange: a step that only publishes a tile and fetches the tiles of all, by the better way to
  meet, of as many programs as hold the weights: ⌈H/16⌉, or ⌈H/8⌉ where 16 units do not fit one.
  Zero where one program holds them all.
* re-read: a step that reads the recurrent weights of one program from its shared memory.
* operations ÷ rate: the products inside the loop, those of W_ih above the first layer among them,
  as fast as a large square product in this dtype.

On a CPU nothing is exchanged: the loop takes operations ÷ rate, or as long as reading W_hh at every
step at the best rate of a copy, from what a core's cache holds upwards. Launches, gate maths and
gaps count nothing: time beyond this floor is what can be gained with weights divided in this way.
"""

# Triton's functions take no annotations, and its decorators have none.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import itertools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.recurrence import exchange
from rnnkit_kernels.recurrence.exchange import arrive, fetch, publish, wait
from rnnkit_kernels.recurrence.plan import Device, Plan, plan
from rnnkit_kernels.recurrence.products import resident_product

from .cases import DTYPES, Case
from .work import products_in

MEETINGS = ("counter", "data")
PROGRAMS = (1, 8, 16, 32, 64, 128)
BLOCK = tl.constexpr(16)  # units of a program and sequences of a tile, as the plans have them
FEW_STEPS, MANY_STEPS = 200, 1200  # the difference of the two is free of the launch
REPEATS = 5


@triton.jit(do_not_specialize=["steps", "budget"])
def empty_exchange(
    y, last, counter, error, steps, budget, WIDTH: tl.constexpr, MEETING: tl.constexpr
):
    """Programs that meet to compute next to nothing: y_{t+1} = y_0 / 2 + mean over units(y_t) / 4.

    The mean needs what every program published, and what is published next needs the mean: no load
    can be dropped and no step begin early. Grid: WIDTH / 16. y (steps + 1, 16, WIDTH) holds its
    first row; `last` (programs, 16) takes the last means that each program saw.
    """
    CHUNK: tl.constexpr = 512 if WIDTH > 512 else WIDTH  # as large as forward's
    lane = tl.arange(0, BLOCK)
    unit = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = lane[None, :] * WIDTH + unit[:, None]
    own = tl.load(y + here).to(tl.float32) / 2
    mean = tl.zeros((BLOCK,), tl.float32)
    for step in tl.range(0, steps, disable_licm=True):
        row = y + step * tl.full((), BLOCK * WIDTH, tl.int64)
        budget = wait(counter, step * tl.num_programs(0), budget, MEETING)
        total = tl.zeros((CHUNK, BLOCK), tl.float32)
        for j in tl.static_range(WIDTH // CHUNK):
            k = j * CHUNK + tl.arange(0, CHUNK)
            tile, budget = fetch(
                row + lane[None, :] * WIDTH + k[:, None],
                (lane < BLOCK)[None, :] & (k < WIDTH)[:, None],
                False,
                budget,
                MEETING,
            )
            total += tile.to(tl.float32)
        mean = tl.sum(total, axis=0) / WIDTH
        inside = (lane < BLOCK)[None, :] & (unit < WIDTH)[:, None]
        publish(row + BLOCK * WIDTH + here, own + mean[None, :] / 4, inside, MEETING)
        arrive(counter, MEETING)
    tl.store(last + tl.program_id(0) * BLOCK + lane, mean)
    tl.store(error, 1, mask=budget <= 0)


@triton.jit(do_not_specialize=["steps"])
def read_again(weight, x, last, steps, SIDE: tl.constexpr):
    """x_{t+1} = W x_t, W (SIDE, SIDE) held as the resident kernels hold theirs: read at every step.

    x has to be staged at every step, as in every real one. All programs do the same, to load the
    GPU as real ones do. x (SIDE, 16), `last` one x each.
    """
    row, lane = tl.arange(0, SIDE), tl.arange(0, BLOCK)
    here = row[:, None] * BLOCK + lane[None, :]
    held = (tl.load(weight + row[:, None] * SIDE + row[None, :]),)
    operand = tl.load(x + here)
    for _ in tl.range(0, steps, disable_licm=True):
        product = tl.zeros((SIDE, BLOCK), tl.float32)
        product = resident_product(product, held, 0, (operand,), "ieee")
        operand = product.to(x.dtype.element_ty)
    tl.store(last + tl.program_id(0) * (SIDE * BLOCK) + here, operand)


def options_of(**constants: Any) -> dict[str, Any]:
    """Compile-time arguments and compiler options, those of the plans."""
    few = constants.get("WIDTH", 512) <= 256
    return {**constants, "num_warps": 4 if few else 8, "num_stages": 1, "maxnreg": 255}


def run_exchange(meeting: str, first: Tensor, steps: int) -> tuple[float, Tensor, Tensor]:
    """One empty exchange whose first row is `first` (16, H).

    Returns:
        Seconds; y (steps + 1, 16, H); and the last means that each program saw, (H / 16, 16).

    Raises:
        RuntimeError: the programs waited for each other in vain, or don't fit the GPU.
    """
    width, device = first.shape[1], first.device
    y = exchange.blank_exchange((steps + 1, *first.shape), None, first.dtype, device)
    y[0] = first
    programs = width // BLOCK.value
    last = torch.zeros(programs, BLOCK.value, device=device)
    counters = torch.zeros(exchange.COUNTER_STRIDE.value + 1, dtype=torch.int32, device=device)
    error = counters[-1:]
    given = (y, last, counters, error, steps, exchange.MAX_POLLS)
    launch = (empty_exchange, (programs, 1, 1), given, options_of(WIDTH=width, MEETING=meeting))
    taken = timed(lambda: exchange.cooperate(*launch), device)
    if bool(error):
        raise RuntimeError(f"{programs} programs that meet by {meeting} waited in vain")
    return taken, y, last


def of_a_step(fastest: Callable[[int], float]) -> float:
    """Seconds of a step, from the seconds of few and of many."""
    return (fastest(MANY_STEPS) - fastest(FEW_STEPS)) / (MANY_STEPS - FEW_STEPS)


def step_seconds(meeting: str, programs: int, device: torch.device) -> float:
    """Seconds of one step of an empty exchange; raises as `run_exchange` does."""
    shape = (BLOCK.value, programs * BLOCK.value)
    first = torch.randn(shape, device=device).to(torch.bfloat16)
    return of_a_step(
        lambda steps: min(run_exchange(meeting, first, steps)[0] for _ in range(REPEATS))
    )


def reread_rate(device: torch.device) -> float:
    """Bytes per second with which one program reads its weights from shared memory."""
    gpu = Device.of(device)
    side = 256 if gpu.shared_memory > 160_000 else 128
    # Orthogonal, so that x neither vanishes nor overflows.
    weight = torch.linalg.qr(torch.randn(side, side))[0].to(device, torch.bfloat16).contiguous()
    x = torch.randn(side, BLOCK.value, device=device).to(torch.bfloat16)
    last = torch.empty(gpu.multiprocessors, *x.shape, dtype=x.dtype, device=device)

    def fastest(steps: int) -> float:
        def launch() -> None:
            read_again[(gpu.multiprocessors,)](weight, x, last, steps, **options_of(SIDE=side))

        return min(timed(launch, device) for _ in range(REPEATS))

    return float(weight.nbytes) / of_a_step(fastest)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, by events on CUDA."""
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def fastest_of(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of several calls; on CUDA in a graph, which no host holds up."""
    if device.type != "cuda":
        samples, since = [timed(call, device)], time.perf_counter()
        # Often, for a CPU is seldom alone.
        while len(samples) < 2 or (len(samples) < 200 and time.perf_counter() - since < 0.25):
            samples.append(timed(call, device))
        return min(samples)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph, calls = torch.cuda.CUDAGraph(), 10
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    return min(timed(graph.replay, device) for _ in range(REPEATS)) / calls


def product_seconds(rows: int, depth: int, columns: int, dtype: str, device: torch.device) -> float:
    """Seconds of (rows, depth) @ (depth, columns) on random numbers."""
    kind, _ = DTYPES[dtype]
    with products_in(dtype):
        a = torch.randn(rows, depth, device=device).to(kind)
        b = torch.randn(depth, columns, device=device).to(kind)
        out = torch.empty(rows, columns, dtype=kind, device=device)
        return fastest_of(lambda: torch.matmul(a, b, out=out), device)


def copy_rate(device: torch.device) -> float:
    """Bytes per second, read and written; on a CPU the best from 64 KiB to 64 MiB."""
    sizes = [2**30] if device.type == "cuda" else [2**k for k in range(16, 27, 2)]

    def rate(size: int) -> float:
        source = torch.randn(size // 4, device=device)
        target = torch.empty_like(source)
        return 2 * size / fastest_of(lambda: target.copy_(source), device)

    return max(rate(size) for size in sizes)


def measure(device: torch.device, progress: Callable[[str], None]) -> dict[str, Any]:
    """The machine's constants, ready for JSON.

    Args:
        device: the GPU or CPU.
        progress: is told what is measured next.

    Returns:
        "gemm", operations per second by dtype, and "copy", bytes per second. On CUDA also "reread",
        bytes per second, and "exchange", seconds per step by way and number (as text) of programs.

    Raises:
        RuntimeError: programs that meet waited for each other in vain.
    """
    constants: dict[str, Any] = {"gemm": {}}
    side = 8192 if device.type == "cuda" else 512
    for dtype in DTYPES:
        progress(f"floor: a large product in {dtype}")
        seconds = product_seconds(side, side, side, dtype, device)
        constants["gemm"][dtype] = 2 * side**3 / seconds
    progress("floor: a copy")
    constants["copy"] = copy_rate(device)
    if device.type == "cuda":
        progress("floor: weights read again")
        constants["reread"] = reread_rate(device)
        constants["exchange"] = {}
        counts = [count for count in PROGRAMS if count <= Device.of(device).multiprocessors]
        for meeting in MEETINGS:
            table = constants["exchange"][meeting] = {}
            for count in counts:
                progress(f"floor: an empty exchange of {count} by {meeting}")
                table[str(count)] = step_seconds(meeting, count, device)
    return constants


def interpolated(table: dict[str, float], programs: int) -> float:
    """Seconds of a step of so many programs; beyond the last measured, the last."""
    points = sorted((int(count), seconds) for count, seconds in table.items())
    for (low, before), (high, after) in itertools.pairwise(points):
        if programs <= high:
            share = max(0, programs - low) / (high - low)
            return before + share * (after - before)
    return points[-1][1]


def products_apart(case: Case, cell: str, mode: str) -> list[tuple[int, int, int]]:
    """(rows, depth, columns) of the products that need no loop."""
    rows, gates = sum(case.lengths()), CELLS[cell].gates_at[-1]
    width = case.directions * case.hidden
    depths = [case.features, *[width] * (case.layers - 1)]
    # Layers that run side by side multiply their inputs as they come.
    apart = depths[:1] if case.directions == 1 else depths
    found = [(rows, depth, gates * width) for depth in apart]
    if mode == "train":
        found += [(rows, gates * width, depth) for depth in apart]
        found += [(gates * width, rows, depth) for depth in depths]
        each = (gates * case.hidden, rows, case.hidden)
        found += [each] * (case.layers * case.directions)
    return found


def loop_seconds(
    case: Case, cell: str, dtype: str, mode: str, constants: dict[str, Any], gpu: Device | None
) -> float:
    """The part of the floor inside the loop, by the formula above; `gpu` is None for a CPU."""
    kind, precision = DTYPES[dtype]
    steps, layers, hidden = case.steps, case.layers, case.hidden
    gates = CELLS[cell].gates_at[-1]
    operations = case.operations(cell, "inference")
    apart = products_apart(case, cell, "inference")
    operations -= sum(2 * rows * depth * columns for rows, depth, columns in apart)
    bounds: list[float] = [operations / constants["gemm"][dtype]]
    weights = gates * hidden * hidden * kind.itemsize
    if gpu is None:
        bounds.append(steps * layers * case.directions * weights / constants["copy"])
    else:
        meetings = steps + layers - 1 if case.directions == 1 else steps * layers
        given = (CELLS[cell], hidden, kind, gpu, precision)
        alone = plan(*given)  # type: ignore[arg-type]
        if not (isinstance(alone, Plan) and alone.mode == "resident"):
            shared = plan(*given, "data")  # type: ignore[arg-type]
            units = shared.forward.block_h if isinstance(shared, Plan) else 16
            programs = -(-hidden // units)
            ways = constants["exchange"].values()
            bounds.append(meetings * min(interpolated(table, programs) for table in ways))
            weights = gates * units * hidden * kind.itemsize
        bounds.append(meetings * weights / constants["reread"])
    return max(bounds) * (2 if mode == "train" else 1)


def seconds(
    case: Case, cell: str, dtype: str, mode: str, constants: dict[str, Any], device: torch.device
) -> float:
    """What a call can't be faster than; its products are timed here.

    Args:
        case: the shape.
        cell: a key of `CELLS` that torch has too.
        dtype: a key of `cases.DTYPES`.
        mode: a key of `cases.MODES`.
        constants: of `measure`, on the same machine.
        device: where.
    """
    gpu = Device.of(device) if device.type == "cuda" else None
    loop = loop_seconds(case, cell, dtype, mode, constants, gpu)
    shapes = Counter(products_apart(case, cell, mode))
    return loop + sum(n * product_seconds(*shape, dtype, device) for shape, n in shapes.items())
