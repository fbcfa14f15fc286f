"""The recurrent product, W_hh times what the step before left, in its four forms.

The product is weight-stationary: rows are hidden units (times gates), columns are sequences.

* `streamed_product`: weights and operand come from memory, a launch a step.
* `held_product`, `split_product`: forward and backward of programs that meet; a slice of the
  weights stays in shared memory for the whole sequence, the operand comes from the others.
* `resident_product`: all weights stay in shared memory, the operand in registers.
"""

import triton
import triton.language as tl

from rnnkit_kernels.recurrence.arguments import WeightRows
from rnnkit_kernels.recurrence.exchange import fetch
from rnnkit_kernels.recurrence.layout import count_of, gate_rows, padded_gates, size_of


@triton.jit
def streamed_product(
    accumulator,
    weight,
    operand,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add weight (rows, WIDTH) @ operand (WIDTH, sequences), both read from memory.

    Args:
        accumulator: (rows, BLOCK_B).
        weight: `WeightRows`.
        operand: `Operand`.
    """
    lane = tl.arange(0, operand.started.shape[0])
    for k_start in range(0, WIDTH, BLOCK_K):
        k = k_start + tl.arange(0, BLOCK_K)
        inside = k < WIDTH
        w = tl.load(
            weight.at + k[None, :] * weight.step, mask=weight.exist & inside[None, :], other=0.0
        )
        v = tl.load(
            operand.row + lane[None, :] * operand.stride + k[:, None],
            mask=operand.started[None, :] & inside[:, None],
            other=0.0,
        )
        v += tl.load(
            operand.start + lane[None, :] * WIDTH + k[:, None],
            mask=operand.starting[None, :] & inside[:, None],
            other=0.0,
        )
        accumulator = tl.dot(w, v, accumulator, input_precision=PRECISION)
    return accumulator


@triton.jit
def stage_weights(
    weight, unit_start, STAGE: tl.constexpr, LAYER: tl.constexpr, BLOCK: tl.constexpr
):
    """Rows of a member's weights for BLOCK units of a stage, their gates side by side."""
    row, exist = gate_rows(
        unit_start,
        count_of(LAYER.gates_at, STAGE),
        padded_gates(LAYER.gates_at, STAGE),
        BLOCK,
        LAYER.hidden,
    )
    at = weight + (LAYER.gates_at[STAGE] * LAYER.hidden + row)[:, None] * LAYER.weight_stride
    return WeightRows(at, exist[:, None], 1)


@triton.jit
def held_weights(weight, WIDTH: tl.constexpr, CHUNKS: tl.constexpr):
    """The tiles (rows, size) of `weight` over CHUNKS of its WIDTH columns; see `held_product`."""
    tiles = ()
    for j in tl.static_range(len(CHUNKS)):
        k = CHUNKS[j][0] + tl.arange(0, size_of(CHUNKS, j))
        mask = weight.exist & (k < WIDTH)[None, :]
        tiles = tiles + (tl.load(weight.at + k[None, :] * weight.step, mask=mask, other=0.0),)
    return tiles


@triton.jit
def held_product(
    accumulator,
    weights,
    operand,
    budget,
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    TILES: tl.constexpr,
):
    """As `streamed_product`, with `held_weights` that stay in shared memory over all steps."""
    MEETING: tl.constexpr = TILES.meeting
    starting = operand.starting
    lane = tl.arange(0, starting.shape[0])
    reading = operand.started | starting
    # Sequences that begin here read h0 itself, whatever its bits, and poll nothing.
    row = tl.where(starting, operand.start + lane * WIDTH, operand.row + lane * operand.stride)
    for first in tl.static_range(0, len(CHUNKS), polled_of(TILES)):
        pointers, masks = (), ()
        for j in tl.static_range(first, end_of_group(CHUNKS, first, TILES)):
            k = CHUNKS[j][0] + tl.arange(0, size_of(CHUNKS, j))
            pointers = pointers + (row[None, :] + k[:, None],)
            masks = masks + (reading[None, :] & (k < WIDTH)[:, None],)
        tiles, budget = fetch(pointers, masks, starting[None, :], budget, MEETING)
        for i in tl.static_range(len(tiles)):
            accumulator = tl.dot(
                weights[first + i], tiles[i], accumulator, input_precision=TILES.precision
            )
    return accumulator, budget


@triton.constexpr_function
def polled_of(tiles):
    """Chunks that are fetched at a time, as a constant."""
    return tiles.polled


@triton.constexpr_function
def end_of_group(chunks, first, tiles):
    """One past the last chunk that is fetched together with chunk `first`."""
    return min(len(chunks), first + tiles.polled)


@triton.constexpr_function
def halvings(count):
    """How often a power of two can be halved."""
    return count.bit_length() - 1


@triton.constexpr_function
def slice_of(chunks, j, split):
    """Units in one of the `split` slices of chunk j."""
    return chunks[j][1] // split


@triton.jit
def split_weights(weight, WIDTH: tl.constexpr, CHUNKS: tl.constexpr, SPLIT: tl.constexpr):
    """As `held_weights`, each tile cut into (SPLIT, rows, size / SPLIT); see `split_product`."""
    part = tl.arange(0, SPLIT)
    tiles = ()
    for j in tl.static_range(len(CHUNKS)):
        inner = tl.arange(0, slice_of(CHUNKS, j, SPLIT))
        k = CHUNKS[j][0] + part[:, None] * slice_of(CHUNKS, j, SPLIT) + inner[None, :]
        mask = weight.exist[None, :, :] & (k < WIDTH)[:, None, :]
        at = weight.at[None, :, :] + k[:, None, :] * weight.step
        tiles = tiles + (tl.load(at, mask=mask, other=0.0),)
    return tiles


@triton.jit
def sum_of_parts(parts, SPLIT: tl.constexpr):
    """(SPLIT, rows, sequences) summed over the first dimension, by halves.

    `tl.sum` would leave every warp with the whole sum, in a layout that all that follows then takes
    on: each warp would do the gate maths of all of them.
    """
    rows: tl.constexpr = parts.shape[1]
    lanes: tl.constexpr = parts.shape[2]
    for level in tl.static_range(halvings(SPLIT)):
        pairs = tl.reshape(parts, (SPLIT >> (level + 1), 2, rows, lanes))
        first, second = tl.split(tl.permute(pairs, (0, 2, 3, 1)))
        parts = first + second
    return tl.reshape(parts, (rows, lanes))


@triton.jit
def split_product(
    gradient,
    weights,
    operand,
    budget,
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    TILES: tl.constexpr,
):
    """Add weight (rows, WIDTH) @ operand (WIDTH, sequences) with the depth split over the warps.

    The rows are few here and the product is deep: each warp takes a slice of every chunk, and the
    partial sums are added at the end, in a fixed order. No sequence starts: of `operand` only those
    that go on are read.
    """
    MEETING: tl.constexpr = TILES.meeting
    SPLIT: tl.constexpr = TILES.split
    running = operand.started
    lane = tl.arange(0, running.shape[0])
    part = tl.arange(0, SPLIT)
    partial = tl.zeros((SPLIT, gradient.shape[0], gradient.shape[1]), tl.float32)
    for first in tl.static_range(0, len(CHUNKS), polled_of(TILES)):
        pointers, masks = (), ()
        for j in tl.static_range(first, end_of_group(CHUNKS, first, TILES)):
            inner = tl.arange(0, slice_of(CHUNKS, j, SPLIT))
            k = CHUNKS[j][0] + part[:, None] * slice_of(CHUNKS, j, SPLIT) + inner[None, :]
            at = lane[None, None, :] * operand.stride + k[:, :, None]
            pointers = pointers + (operand.row + at,)
            masks = masks + (running[None, None, :] & (k < WIDTH)[:, :, None],)
        tiles, budget = fetch(pointers, masks, False, budget, MEETING)
        for i in tl.static_range(len(tiles)):
            partial = tl.dot(weights[first + i], tiles[i], partial, input_precision=TILES.precision)
    return gradient + sum_of_parts(partial, SPLIT), budget


@triton.jit
def resident_product(accumulator, weights, FIRST: tl.constexpr, operand, PRECISION: tl.constexpr):
    """Add Σ_j weights[FIRST + j] @ operand[j]: tiles in shared memory, operands in registers."""
    for j in tl.static_range(len(operand)):
        accumulator = tl.dot(weights[FIRST + j], operand[j], accumulator, input_precision=PRECISION)
    return accumulator
