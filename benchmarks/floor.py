"""What a call can't be faster than on this machine, from constants measured in the same run.

    floor = products + passes × max(meetings × exchange, meetings × re-read, operations ÷ rate)

* products: those that need no loop, timed alone on random tensors of the case's shapes: W_ih x of
  the first layer, for training its dx, and dW_ih and dW_hh of every layer. On a CPU the faster of
  `torch.matmul` and oneDNN counts, for neither is so on every processor.
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

On a CPU nothing is exchanged. Where the native engine is there, it measures what bounds float32:

    floor = operations of the other products ÷ peak
            + passes × max(operations of the loop ÷ peak, L·T·directions × W_hh ÷ bandwidth)

* peak: multiply-adds in registers, each two operations, of all threads at once; or the large square
  product where that is faster, as it is if the engine is held to an older instruction set.
* bandwidth: of all threads reading a buffer as large as W_hh that they share, again and again: from
  their caches while these hold it, else from memory; interpolated between powers of two.

Without the engine, and in 16 bits, the loop takes operations ÷ rate, or as long as reading W_hh at
every step at the best rate of a copy, from what a core's cache holds upwards. Launches, gate maths
and gaps count nothing: time beyond this floor is what can be gained with weights divided in this
way.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.cpu.library import library
from rnnkit_kernels.recurrence.plan import Device, Plan, plan

from .cases import DTYPES, Case
from .clock import fastest_of
from .work import products_in

MEETINGS = ("counter", "data")
PROGRAMS = (1, 8, 16, 32, 64, 128)
# What the engine's `rate` takes, and sizes of buffers, from a part of the nearest cache to memory.
FLOAT32, READING = 0, 2
BYTES = [2**k for k in range(13, 28)]


def product_seconds(rows: int, depth: int, columns: int, dtype: str, device: torch.device) -> float:
    """Seconds of (rows, depth) @ (depth, columns) on random numbers."""
    kind, _ = DTYPES[dtype]
    with products_in(dtype):
        a = torch.randn(rows, depth, device=device).to(kind)
        b = torch.randn(depth, columns, device=device).to(kind)
        out = torch.empty(rows, columns, dtype=kind, device=device)
        taken = fastest_of(lambda: torch.matmul(a, b, out=out), device)
        mkldnn: Any = torch.backends.mkldnn
        if device.type == "cpu" and kind == torch.float32 and mkldnn.is_available():
            # torch's products are MKL's, its LSTM is oneDNN's.
            operands = a.to_mkldnn(), b.t().contiguous().to_mkldnn()
            call = torch._C._nn.mkldnn_linear
            taken = min(taken, fastest_of(lambda: call(*operands, None), device))
        return taken


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
        "gemm", operations per second by dtype, and "copy", bytes per second. On a CPU with the
        native engine also "peak", operations per second by dtype, and "read", bytes per second by
        size (as text). On CUDA also "reread", bytes per second, and "exchange", seconds per step by
        way and number (as text) of programs.

    Raises:
        RuntimeError: programs that meet waited for each other in vain.
    """
    constants: dict[str, Any] = {"gemm": {}}
    side = 8192 if device.type == "cuda" else 1024
    for dtype in DTYPES:
        progress(f"floor: a large product in {dtype}")
        seconds = product_seconds(side, side, side, dtype, device)
        constants["gemm"][dtype] = 2 * side**3 / seconds
    progress("floor: a copy")
    constants["copy"] = copy_rate(device)
    engine = library() if device.type == "cpu" else None
    if engine is not None:
        threads = torch.get_num_threads()
        progress("floor: the native engine's multiply-adds")
        constants["peak"] = {"fp32": engine.rate(FLOAT32, 0, threads)}
        progress("floor: reading weights")
        read = {str(size): engine.rate(READING, size, threads) for size in BYTES}
        constants["read"] = {size: rate for size, rate in read.items() if rate > 0}
    if device.type == "cuda":
        from .floor_kernels import reread_rate, step_seconds  # imports triton

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


def interpolated(table: dict[str, float], number: int) -> float:
    """Of so many programs or bytes; beyond the first and last measured, what these had."""
    points = sorted((int(key), value) for key, value in table.items())
    for (low, before), (high, after) in itertools.pairwise(points):
        if number <= high:
            share = max(0, number - low) / (high - low)
            return before + share * (after - before)
    return points[-1][1]


def peak(dtype: str, constants: dict[str, Any]) -> float | None:
    """Operations per second that nothing exceeds, where the native engine measured them."""
    found: float = constants.get("peak", {}).get(dtype, 0.0)
    return max(found, constants["gemm"][dtype]) if found else None


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
    most = peak(dtype, constants)
    bounds: list[float] = [operations / (most or constants["gemm"][dtype])]
    weights = gates * hidden * hidden * kind.itemsize
    if gpu is None:
        read = constants.get("read") if most else None
        rate = interpolated(read, weights) if read else constants["copy"]
        bounds.append(steps * layers * case.directions * weights / rate)
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
    """What a call can't be faster than; without a peak its products are timed here.

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
    most = peak(dtype, constants)
    if most:
        return loop + sum(2 * a * b * c * n for (a, b, c), n in shapes.items()) / most
    return loop + sum(n * product_seconds(*shape, dtype, device) for shape, n in shapes.items())
