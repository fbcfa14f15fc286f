"""The kernels whose speed bounds every step: an empty exchange, and weights read again.

See `floor.py`, which measures them on a GPU.
"""

# Triton's functions take no annotations, and its decorators have none; kernels grow tuples.
# mypy: disable-error-code="assignment"
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rnnkit_kernels.recurrence import exchange
from rnnkit_kernels.recurrence.exchange import arrive, fetch, publish, wait
from rnnkit_kernels.recurrence.plan import Device
from rnnkit_kernels.recurrence.products import resident_product

from .clock import REPEATS, timed

BLOCK = tl.constexpr(16)  # units of a program and sequences of a tile, as the plans have them
FEW_STEPS, MANY_STEPS = 200, 1200  # the difference of the two is free of the launch


@triton.jit(do_not_specialize=["steps", "budget"])
def empty_exchange(
    y, last, counter, error, steps, budget, WIDTH: tl.constexpr, MEETING: tl.constexpr
):
    """Programs that meet to compute next to nothing: y_{t+1} = y_0 / 2 + mean over units(y_t) / 4.

    The mean needs what every program published, and what is published next needs the mean: no load
    can be dropped and no step begin early. Grid: WIDTH / 16. y (steps + 1, 16, WIDTH) holds its
    first row; `last` (programs, 16) takes the last means that each program saw.
    """
    CHUNK: tl.constexpr = 256 if WIDTH > 256 else WIDTH  # as forward's, and all at once as there
    lane = tl.arange(0, BLOCK)
    unit = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = lane[None, :] * WIDTH + unit[:, None]
    own = tl.load(y + here).to(tl.float32) / 2
    mean = tl.zeros((BLOCK,), tl.float32)
    for step in tl.range(0, steps, disable_licm=True):
        row = y + step * tl.full((), BLOCK * WIDTH, tl.int64)
        budget = wait(counter, step * tl.num_programs(0), budget, MEETING)
        pointers = ()
        masks = ()
        for j in tl.static_range(WIDTH // CHUNK):
            k = j * CHUNK + tl.arange(0, CHUNK)
            pointers = pointers + (row + lane[None, :] * WIDTH + k[:, None],)
            masks = masks + ((lane < BLOCK)[None, :] & (k < WIDTH)[:, None],)
        tiles, budget = fetch(pointers, masks, False, budget, MEETING)
        total = tl.zeros((CHUNK, BLOCK), tl.float32)
        for i in tl.static_range(len(tiles)):
            total += tiles[i].to(tl.float32)
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
    return {
        **constants,
        "num_warps": 4 if "WIDTH" in constants else 8,
        "num_stages": 1,
        "maxnreg": 255,
    }


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
