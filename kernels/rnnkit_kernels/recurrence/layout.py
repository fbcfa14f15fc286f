"""Where tiles lie: the rows of a step, the gates of a unit, padded and aligned memory.

Tiles are units × sequences throughout. Triton wants the bounds of unrolled loops as constants, and
reads them off tuples only inside the `constexpr_function`s below.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad


@triton.constexpr_function
def entry_of(values, i):
    """Entry i of a tuple, as a constant."""
    return values[i]


@triton.constexpr_function
def start_of(at, stage):
    """First gate, saved value or column of a stage, from the running sums `at`."""
    return at[stage]


@triton.constexpr_function
def end_of(at, stage):
    """One past the last of them."""
    return at[stage + 1]


@triton.constexpr_function
def count_of(at, stage):
    """How many there are."""
    return at[stage + 1] - at[stage]


@triton.constexpr_function
def size_of(chunks, i):
    """Units in chunk i, of (first unit, size) pairs."""
    return chunks[i][1]


@triton.constexpr_function
def chunks_of(tiles, product):
    """The chunks that cover the depth of a product."""
    return tiles.chunks[product]


@triton.constexpr_function
def padded_gates(at, stage):
    """Gates of a stage, rounded up to a power of two."""
    return triton.next_power_of_2(at[stage + 1] - at[stage])


@triton.constexpr_function
def product_of(gates_at, stage):
    """The product that feeds a stage: the last stage is fed by the first of the step after it."""
    return (stage + 1) % (len(gates_at) - 1)


@triton.jit
def step_rows(t, steps, batch, rows, RAGGED: tl.constexpr):
    """First row (int64) and number of rows of step t; none outside [0, steps)."""
    inside = (t >= 0) & (t < steps)
    if RAGGED:
        count = tl.load(rows.batch_sizes + t, mask=inside, other=0).to(tl.int32)
        first = tl.load(rows.offsets + t, mask=inside, other=0)
    else:
        count = tl.where(inside, batch, 0)
        first = tl.where(inside, t, 0).to(tl.int64) * batch
    return first, count


@triton.jit
def gate_rows(unit_start, GATES: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, HIDDEN):
    """Rows of `weight_hh` for a block of units, their gates side by side, and which rows exist."""
    stacked = tl.arange(0, PADDED * BLOCK)
    unit = unit_start + stacked // PADDED
    gate = stacked % PADDED
    return gate * HIDDEN + unit, (gate < GATES) & (unit < HIDDEN)


@triton.jit
def unstack(stacked, PADDED: tl.constexpr, BLOCK: tl.constexpr, BLOCK_B: tl.constexpr):
    """Take (BLOCK·PADDED, BLOCK_B) apart into PADDED tiles (BLOCK, BLOCK_B), one a gate."""
    if PADDED == 1:
        return (stacked,)
    elif PADDED == 2:
        first, second = tl.split(tl.permute(tl.reshape(stacked, (BLOCK, 2, BLOCK_B)), (0, 2, 1)))
        return first, second
    else:
        tile = tl.permute(tl.reshape(stacked, (BLOCK, 2, 2, BLOCK_B)), (0, 3, 1, 2))
        even, odd = tl.split(tile)
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        return first, second, third, fourth


@triton.jit
def unit_values(values, unit, START: tl.constexpr, END: tl.constexpr, HIDDEN: tl.constexpr):
    """Rows START to END of `values` (·, H) at the tile's units, (units, 1) each."""
    found = ()
    for i in tl.static_range(START, END):
        value = tl.load(values + i * HIDDEN + unit, mask=unit < HIDDEN, other=0.0)
        found = found + (value.to(tl.float32)[:, None],)
    return found


@cache
def _jitted(function: Callable[..., Any]) -> Any:
    compiled = triton.jit(function)
    # The interpreter calls the plain function; its wrapper insists on functions that name `tl`.
    return compiled if isinstance(compiled, triton.JITFunction) else function


def stage_functions(stages: tuple[Callable[..., Any], ...]) -> dict[str, Any]:
    """A cell's stages as the kernels' constants FIRST_STAGE and SECOND_STAGE."""
    first, second = (*stages, None)[:2]
    return {
        "FIRST_STAGE": _jitted(first),
        "SECOND_STAGE": None if second is None else _jitted(second),
    }


def aligned(tensor: Tensor) -> Tensor:
    """`tensor`, contiguous and on a 16-byte boundary; a copy where it was not.

    Triton compiles a kernel anew, with narrow loads, for pointers off that boundary; a slice of a
    stack of states is contiguous and may still lie off it.
    """
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def padded_width(width: int, itemsize: int) -> int:
    """`width` elements rounded up to 16 bytes: loads of unpadded rows fall to 32 bits."""
    return width + -width % (16 // itemsize)


def padded_rows(weight: Tensor) -> Tensor:
    """`weight` with rows of `padded_width`.

    Made anew on every call: a cached copy would miss what an optimiser writes into the parameter
    while a CUDA graph replays.
    """
    missing = padded_width(weight.shape[-1], weight.itemsize) - weight.shape[-1]
    return pad(weight, (0, missing)) if missing else aligned(weight)
