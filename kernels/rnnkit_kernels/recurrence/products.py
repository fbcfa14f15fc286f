"""The recurrent product, W_hh times what the step before left, in its four forms.

The product is weight-stationary: rows are hidden units (times gates), columns are sequences.

* `streamed_product`: weights and operand come from memory, a launch a step.
* `held_product`, `split_product`: forward and backward of programs that meet; a slice of the
  weights stays in shared memory for the whole sequence, the operand comes from the others.
* `resident_product`: all weights stay in shared memory, the operand in registers.
"""

import triton
import triton.language as tl

from rnnkit_kernels.recurrence.exchange import fetch
from rnnkit_kernels.recurrence.layout import size_of


@triton.jit
def streamed_product(
    accumulator,
    weight,
    weight_mask,
    weight_step,
    operand,
    start,
    lane_stride,
    started,
    starting,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add weight (rows, WIDTH) @ operand (WIDTH, sequences), both read from memory.

    Args:
        accumulator: (rows, BLOCK_B).
        weight: pointers (rows, 1) to column 0; `weight_step` elements lead to the next column.
        operand: pointer to the rows of sequences that run, (BLOCK_B, WIDTH).
        start: as `operand`, for sequences that begin at this step.
        lane_stride: elements between two sequences of `operand`; those of `start` lie WIDTH apart.
        started, starting: (BLOCK_B,) masks, disjoint.
    """
    lane = tl.arange(0, started.shape[0])
    for k_start in range(0, WIDTH, BLOCK_K):
        k = k_start + tl.arange(0, BLOCK_K)
        inside = k < WIDTH
        w = tl.load(
            weight + k[None, :] * weight_step, mask=weight_mask & inside[None, :], other=0.0
        )
        v = tl.load(
            operand + lane[None, :] * lane_stride + k[:, None],
            mask=started[None, :] & inside[:, None],
            other=0.0,
        )
        v += tl.load(
            start + lane[None, :] * WIDTH + k[:, None],
            mask=starting[None, :] & inside[:, None],
            other=0.0,
        )
        accumulator = tl.dot(w, v, accumulator, input_precision=PRECISION)
    return accumulator


@triton.jit
def held_weights(weight, weight_mask, weight_step, WIDTH: tl.constexpr, CHUNKS: tl.constexpr):
    """The tiles (rows, size) of `weight` over CHUNKS of its WIDTH columns; see `held_product`."""
    tiles = ()
    for j in tl.static_range(len(CHUNKS)):
        k = CHUNKS[j][0] + tl.arange(0, size_of(CHUNKS, j))
        mask = weight_mask & (k < WIDTH)[None, :]
        tiles = tiles + (tl.load(weight + k[None, :] * weight_step, mask=mask, other=0.0),)
    return tiles


@triton.jit
def held_product(
    accumulator,
    weights,
    operand,
    start,
    lane_stride,
    started,
    starting,
    budget,
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    POLLED: tl.constexpr,
    MEETING: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """As `streamed_product`, with `held_weights` that stay in shared memory over all steps.

    POLLED chunks are fetched at a time.
    """
    lane = tl.arange(0, started.shape[0])
    reading = started | starting
    # Sequences that begin here read h0 itself, whatever its bits, and poll nothing.
    row = tl.where(starting, start + lane * WIDTH, operand + lane * lane_stride)
    for first in tl.static_range(0, len(CHUNKS), POLLED):
        pointers, masks = (), ()
        for j in tl.static_range(first, end_of_group(CHUNKS, first, POLLED)):
            k = CHUNKS[j][0] + tl.arange(0, size_of(CHUNKS, j))
            pointers = pointers + (row[None, :] + k[:, None],)
            masks = masks + (reading[None, :] & (k < WIDTH)[:, None],)
        tiles, budget = fetch(pointers, masks, starting[None, :], budget, MEETING)
        for i in tl.static_range(len(tiles)):
            accumulator = tl.dot(
                weights[first + i], tiles[i], accumulator, input_precision=PRECISION
            )
    return accumulator, budget


@triton.constexpr_function
def end_of_group(chunks, first, polled):
    """One past the last chunk that is fetched together with chunk `first`."""
    return min(len(chunks), first + polled)


@triton.constexpr_function
def halvings(count):
    """How often a power of two can be halved."""
    return count.bit_length() - 1


@triton.constexpr_function
def slice_of(chunks, j, split):
    """Units in one of the `split` slices of chunk j."""
    return chunks[j][1] // split


@triton.jit
def split_weights(
    weight,
    weight_mask,
    weight_step,
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """As `held_weights`, each tile cut into (SPLIT, rows, size / SPLIT); see `split_product`."""
    part = tl.arange(0, SPLIT)
    tiles = ()
    for j in tl.static_range(len(CHUNKS)):
        inner = tl.arange(0, slice_of(CHUNKS, j, SPLIT))
        k = CHUNKS[j][0] + part[:, None] * slice_of(CHUNKS, j, SPLIT) + inner[None, :]
        mask = weight_mask[None, :, :] & (k < WIDTH)[:, None, :]
        at = weight[None, :, :] + k[:, None, :] * weight_step
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
    lane_stride,
    running,
    budget,
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    POLLED: tl.constexpr,
    SPLIT: tl.constexpr,
    MEETING: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add weight (rows, WIDTH) @ operand (WIDTH, sequences) with the depth split over the warps.

    The rows are few here and the product is deep: each warp takes a slice of every chunk, and the
    partial sums are added at the end, in a fixed order.
    """
    lane = tl.arange(0, running.shape[0])
    part = tl.arange(0, SPLIT)
    partial = tl.zeros((SPLIT, gradient.shape[0], gradient.shape[1]), tl.float32)
    for first in tl.static_range(0, len(CHUNKS), POLLED):
        pointers, masks = (), ()
        for j in tl.static_range(first, end_of_group(CHUNKS, first, POLLED)):
            inner = tl.arange(0, slice_of(CHUNKS, j, SPLIT))
            k = CHUNKS[j][0] + part[:, None] * slice_of(CHUNKS, j, SPLIT) + inner[None, :]
            at = lane[None, None, :] * lane_stride + k[:, :, None]
            pointers = pointers + (operand + at,)
            masks = masks + (running[None, None, :] & (k < WIDTH)[:, :, None],)
        tiles, budget = fetch(pointers, masks, False, budget, MEETING)
        for i in tl.static_range(len(tiles)):
            partial = tl.dot(weights[first + i], tiles[i], partial, input_precision=PRECISION)
    return gradient + sum_of_parts(partial, SPLIT), budget


@triton.jit
def resident_product(accumulator, weights, FIRST: tl.constexpr, operand, PRECISION: tl.constexpr):
    """Add Σ_j weights[FIRST + j] @ operand[j]: tiles in shared memory, operands in registers."""
    for j in tl.static_range(len(operand)):
        accumulator = tl.dot(weights[FIRST + j], operand[j], accumulator, input_precision=PRECISION)
    return accumulator
