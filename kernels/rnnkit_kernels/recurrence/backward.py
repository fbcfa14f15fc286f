"""The recurrence backward, in Triton, for any cell: last step processed first.

    ∂L/∂h_t       = dy_t + W_hhᵀ columns_{t+1} + carry
    columns_t     = ∂L/∂(pre-activations of step t)

Gradients of the inputs, weights and biases are products over all steps, taken after the loop. As
in the forward kernel, `backward_tile` is one stage on one tile, and the two kernels differ only in
where the operand of the product, the columns of the step before, comes from.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rnnkit_kernels.cells import Cell
from rnnkit_kernels.cells.activations import tanh
from rnnkit_kernels.recurrence.exchange import (
    aligned,
    count_of,
    end_of,
    padded_rows,
    padded_width,
    resident_product,
    size_of,
    stage_functions,
    start_of,
    step_rows,
    streamed_product,
)
from rnnkit_kernels.recurrence.plan import Plan
from rnnkit_kernels.recurrence.rows import Rows


@triton.constexpr_function
def product_of(gates_at, stage):
    """The product that feeds a stage: the last stage is fed by the first of the step after it."""
    return (stage + 1) % (len(gates_at) - 1)


@triton.constexpr_function
def first_weight(gates_at, product, tiles, i):
    """Where the tiles of unit chunk i of a product begin: gate by gate, chunk by chunk."""
    return (gates_at[product] * tiles + i * (gates_at[product + 1] - gates_at[product])) * tiles


@triton.constexpr_function
def hidden_columns(gates_at, columns_at):
    """The first gradient column that belongs to `weight_hh`: those lie last, in weight order."""
    return columns_at[-1] - gates_at[-1]


@triton.constexpr_function
def first_read(gates_at, columns_at, stage):
    """First column that product `stage` reads, counted from this stage's first column."""
    return gates_at[stage] + columns_at[-1] - gates_at[-1] - columns_at[stage]


@triton.jit
def backward_tile(
    gradient,
    carry,
    h0,
    c0,
    y,
    saved,
    states,
    columns,
    row,
    row_before,
    tile,
    unit,
    live,
    started,
    starting,
    STAGE: tl.constexpr,
    FIRST_STAGE: tl.constexpr,
    SECOND_STAGE: tl.constexpr,
    SAVED: tl.constexpr,
    COLUMNS_AT: tl.constexpr,
    HAS_CELL: tl.constexpr,
    HIDDEN: tl.constexpr,
):
    """Gate gradients of one stage on one tile, stored and returned with the new carry.

    `row`, `row_before` and `tile` are the first rows of the tile in the storage, in the storage of
    the step that the forward direction ran before, and in (B, H) tensors.
    """
    lane = tl.arange(0, live.shape[1])
    inside = (unit < HIDDEN)[:, None]
    continued = inside & started[None, :]
    begun = inside & starting[None, :]
    here = lane[None, :] * HIDDEN + unit[:, None]
    h = tl.load(y + row_before * HIDDEN + here, mask=continued, other=0.0)
    h += tl.load(h0 + tile * HIDDEN + here, mask=begun, other=0.0)
    before = (h.to(tl.float32),)
    after = (tl.load(y + row * HIDDEN + here, mask=live, other=0.0).to(tl.float32),)
    if HAS_CELL:
        c = tl.load(states + row_before * HIDDEN + here, mask=continued, other=0.0)
        c += tl.load(c0 + tile * HIDDEN + here, mask=begun, other=0.0)
        before = before + (c,)
        after = after + (tl.load(states + row * HIDDEN + here, mask=live, other=0.0),)
    kept = ()
    for i in tl.static_range(SAVED):
        at = lane[None, :] * (SAVED * HIDDEN) + (i * HIDDEN + unit)[:, None]
        value = tl.load(saved + row * (SAVED * HIDDEN) + at, mask=live, other=0.0)
        kept = kept + (value.to(tl.float32),)
    if STAGE == 0:
        new, carry = FIRST_STAGE(kept, before, after, gradient, carry, tanh)
    else:
        new, carry = SECOND_STAGE(kept, before, after, gradient, carry, tanh)
    width: tl.constexpr = COLUMNS_AT[len(COLUMNS_AT) - 1] * HIDDEN
    rounded = ()
    for i in tl.static_range(len(new)):
        at = lane[None, :] * width + ((COLUMNS_AT[STAGE] + i) * HIDDEN + unit)[:, None]
        # A sequence that does not run here adds nothing to the next product, not even 0 · ∞.
        column = tl.where(live, new[i], 0.0).to(columns.dtype.element_ty)
        tl.store(columns + row * width + at, column, mask=live)
        rounded = rounded + (column,)
    return rounded, carry


@triton.jit(do_not_specialize=["t", "steps", "batch"])
def launch_backward(
    dy,
    dh_n,
    carry_gradient,
    weight_hh,
    h0,
    c0,
    y,
    saved,
    states,
    columns,
    batch_sizes,
    offsets,
    t,
    steps,
    batch,
    FIRST_STAGE: tl.constexpr,
    SECOND_STAGE: tl.constexpr,
    STAGE: tl.constexpr,
    GATES_AT: tl.constexpr,
    SAVED: tl.constexpr,
    COLUMNS_AT: tl.constexpr,
    CARRIES: tl.constexpr,
    HAS_CELL: tl.constexpr,
    HIDDEN: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    REVERSE: tl.constexpr,
    RAGGED: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One stage of step t. `carry_gradient` (carries, B, H) is updated in place."""
    STAGES: tl.constexpr = len(GATES_AT) - 1
    # The last stage takes what the first product of the step after it hands back.
    PRODUCT: tl.constexpr = product_of(GATES_AT, STAGE)
    DEPTH: tl.constexpr = count_of(GATES_AT, PRODUCT) * HIDDEN
    WIDTH: tl.constexpr = COLUMNS_AT[STAGES] * HIDDEN
    unit = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    lane = tl.arange(0, BLOCK_B)
    tile = tl.program_id(1).to(tl.int64) * BLOCK_B
    earlier = t + 1 if REVERSE else t - 1
    later = t - 1 if REVERSE else t + 1
    first, count = step_rows(t, steps, batch, batch_sizes, offsets, RAGGED)
    first_before, count_before = step_rows(earlier, steps, batch, batch_sizes, offsets, RAGGED)
    first_after, count_after = step_rows(later, steps, batch, batch_sizes, offsets, RAGGED)
    active = tile + lane < count
    inside = unit < HIDDEN
    live = inside[:, None] & active[None, :]
    here = lane[None, :] * HIDDEN + unit[:, None]
    row = first + tile
    if STAGE == STAGES - 1:
        going_on = active & (tile + lane < count_after)
        source = columns + (first_after + tile) * WIDTH
        gradient = tl.load(dy + row * HIDDEN + here, mask=live, other=0.0).to(tl.float32)
        ending = live & (tile + lane >= count_after)[None, :]
        gradient += tl.load(dh_n + tile * HIDDEN + here, mask=ending, other=0.0).to(tl.float32)
    else:
        going_on = active
        source = columns + row * WIDTH
        gradient = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
    read = source + (GATES_AT[PRODUCT] + hidden_columns(GATES_AT, COLUMNS_AT)) * HIDDEN
    gradient = streamed_product(
        gradient,
        weight_hh + GATES_AT[PRODUCT] * HIDDEN * WEIGHT_STRIDE + unit[:, None],
        inside[:, None],
        WEIGHT_STRIDE,
        read,
        read,
        WIDTH,
        going_on,
        active & (lane < 0),
        DEPTH,
        BLOCK_K,
        PRECISION,
    )
    carry = ()
    for i in tl.static_range(CARRIES):
        at = carry_gradient + (i * batch + tile) * HIDDEN + here
        carry = carry + (tl.load(at, mask=live, other=0.0),)
    _, carry = backward_tile(
        gradient,
        carry,
        h0,
        c0,
        y,
        saved,
        states,
        columns,
        row,
        first_before + tile,
        tile,
        unit,
        live,
        active & (tile + lane < count_before),
        active & (tile + lane >= count_before),
        STAGE,
        FIRST_STAGE,
        SECOND_STAGE,
        SAVED,
        COLUMNS_AT,
        HAS_CELL,
        HIDDEN,
    )
    for i in tl.static_range(CARRIES):
        tl.store(carry_gradient + (i * batch + tile) * HIDDEN + here, carry[i], mask=live)


@triton.jit(do_not_specialize=["steps", "batch"])
def resident_backward(
    dy,
    dh_n,
    carry_gradient,
    weight_hh,
    h0,
    c0,
    y,
    saved,
    states,
    columns,
    batch_sizes,
    offsets,
    steps,
    batch,
    FIRST_STAGE: tl.constexpr,
    SECOND_STAGE: tl.constexpr,
    GATES_AT: tl.constexpr,
    SAVED: tl.constexpr,
    COLUMNS_AT: tl.constexpr,
    CARRIES: tl.constexpr,
    HAS_CELL: tl.constexpr,
    HIDDEN: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    REVERSE: tl.constexpr,
    RAGGED: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All steps of BLOCK_B sequences. Columns stay in registers as one tile a gate and chunk."""
    STAGES: tl.constexpr = len(GATES_AT) - 1
    TILES: tl.constexpr = len(CHUNKS)
    lane = tl.arange(0, BLOCK_B)
    tile = tl.program_id(0).to(tl.int64) * BLOCK_B
    exists = tile + lane < batch

    # In the order of `first_weight`.
    weights = ()
    columns_before = ()
    for product in tl.static_range(STAGES):
        for i in tl.static_range(TILES):
            unit = CHUNKS[i][0] + tl.arange(0, size_of(CHUNKS, i))
            for gate in tl.static_range(start_of(GATES_AT, product), end_of(GATES_AT, product)):
                for j in tl.static_range(TILES):
                    k = CHUNKS[j][0] + tl.arange(0, size_of(CHUNKS, j))
                    at = (gate * HIDDEN + k)[None, :] * WEIGHT_STRIDE + unit[:, None]
                    mask = (unit < HIDDEN)[:, None] & (k < HIDDEN)[None, :]
                    weights = weights + (tl.load(weight_hh + at, mask=mask, other=0.0),)
    for gate in tl.static_range(start_of(GATES_AT, 0), end_of(GATES_AT, 0)):  # noqa: B007
        for j in tl.static_range(TILES):
            zeros = tl.zeros((size_of(CHUNKS, j), BLOCK_B), columns.dtype.element_ty)
            columns_before = columns_before + (zeros,)
    carry = ()
    for i in tl.static_range(TILES):
        unit = CHUNKS[i][0] + tl.arange(0, size_of(CHUNKS, i))
        mask = (unit < HIDDEN)[:, None] & exists[None, :]
        here = lane[None, :] * HIDDEN + unit[:, None]
        of_chunk = ()
        for n in tl.static_range(CARRIES):
            at = carry_gradient + (n * batch + tile) * HIDDEN + here
            of_chunk = of_chunk + (tl.load(at, mask=mask, other=0.0),)
        carry = carry + (of_chunk,)

    for step in range(steps):
        t = step if REVERSE else steps - 1 - step
        earlier = t + 1 if REVERSE else t - 1
        later = t - 1 if REVERSE else t + 1
        first, count = step_rows(t, steps, batch, batch_sizes, offsets, RAGGED)
        first_before, count_before = step_rows(earlier, steps, batch, batch_sizes, offsets, RAGGED)
        _, count_after = step_rows(later, steps, batch, batch_sizes, offsets, RAGGED)
        active = tile + lane < count
        row = first + tile
        operand = columns_before
        # Entry n holds the tiles of column n, in chunk order; stages fill it from the last down.
        step_columns = ()
        for stage in tl.static_range(STAGES - 1, -1, -1):
            new_columns = ((),) * count_of(COLUMNS_AT, stage)
            new_carry = ()
            for i in tl.static_range(TILES):
                unit = CHUNKS[i][0] + tl.arange(0, size_of(CHUNKS, i))
                live = (unit < HIDDEN)[:, None] & active[None, :]
                here = lane[None, :] * HIDDEN + unit[:, None]
                gradient = tl.zeros((size_of(CHUNKS, i), BLOCK_B), tl.float32)
                if stage == STAGES - 1:
                    dy_row = dy + row * HIDDEN + here
                    gradient += tl.load(dy_row, mask=live, other=0.0).to(tl.float32)
                    ending = live & (tile + lane >= count_after)[None, :]
                    last = tl.load(dh_n + tile * HIDDEN + here, mask=ending, other=0.0)
                    gradient += last.to(tl.float32)
                gradient = resident_product(
                    gradient,
                    weights,
                    first_weight(GATES_AT, product_of(GATES_AT, stage), TILES, i),
                    operand,
                    PRECISION,
                )
                new, new_c = backward_tile(
                    gradient,
                    carry[i],
                    h0,
                    c0,
                    y,
                    saved,
                    states,
                    columns,
                    row,
                    first_before + tile,
                    tile,
                    unit,
                    live,
                    active & (tile + lane < count_before),
                    active & (tile + lane >= count_before),
                    stage,
                    FIRST_STAGE,
                    SECOND_STAGE,
                    SAVED,
                    COLUMNS_AT,
                    HAS_CELL,
                    HIDDEN,
                )
                joined = ()
                for n in tl.static_range(count_of(COLUMNS_AT, stage)):
                    joined = joined + (new_columns[n] + (new[n],),)
                new_columns = joined
                kept = ()
                for n in tl.static_range(CARRIES):
                    kept = kept + (tl.where(active[None, :], new_c[n], carry[i][n]),)
                new_carry = new_carry + (kept,)
            carry = new_carry
            step_columns = new_columns + step_columns
            operand = ()
            for n in tl.static_range(count_of(GATES_AT, stage)):
                operand = operand + step_columns[first_read(GATES_AT, COLUMNS_AT, stage) + n]
        columns_before = operand

    for i in tl.static_range(TILES):
        unit = CHUNKS[i][0] + tl.arange(0, size_of(CHUNKS, i))
        mask = (unit < HIDDEN)[:, None] & exists[None, :]
        here = lane[None, :] * HIDDEN + unit[:, None]
        for n in tl.static_range(CARRIES):
            at = carry_gradient + (n * batch + tile) * HIDDEN + here
            tl.store(at, carry[i][n], mask=mask)


def backward_constants(
    cell: Cell, plan: Plan, hidden: int, itemsize: int, reverse: bool, ragged: bool
) -> dict[str, Any]:
    """The kernel's compile-time arguments; STAGE of the launch mode is left to the caller."""
    return {
        **stage_functions(cell.backward),
        "GATES_AT": cell.gates_at,
        "SAVED": cell.saved_at[-1],
        "COLUMNS_AT": cell.columns_at,
        "CARRIES": len(cell.carry),
        "HAS_CELL": cell.has_cell_state,
        "HIDDEN": hidden,
        "WEIGHT_STRIDE": padded_width(hidden, itemsize),
        "REVERSE": reverse,
        "RAGGED": ragged,
        "PRECISION": plan.precision,
        **plan.tiles(),
    }


def backward(
    cell: Cell,
    plan: Plan,
    dy: Tensor,
    dh_n: Tensor,
    dc_n: Tensor | None,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    rows: Rows,
    reverse: bool,
    y: Tensor,
    saved: Tensor,
    states: Tensor,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run the kernels.

    Args:
        dy: (N, H). dh_n: (B, H). dc_n: (B, H) float32, or None.
        y: (N, H), saved (N, S, H), states (N, C, H): as `forward` returned them; the rest as
            `forward` took it.

    Returns:
        columns (N, R, H), gradients of the pre-activations, zero in rows of no step; and the carry
        at the start of each sequence, (B, H) float32 each.
    """
    count, hidden = y.shape
    padded = rows.batch_sizes is not None and count == rows.steps * rows.batch
    fresh = torch.zeros if padded else torch.empty
    columns = fresh(count, cell.columns_at[-1], hidden, dtype=y.dtype, device=y.device)
    carry = y.new_zeros(len(cell.carry), rows.batch, hidden, dtype=torch.float32)
    if dc_n is not None:
        carry[cell.carry.index("cell")] = dc_n
    weight = padded_rows(weight_hh)
    c_start = None if c0 is None else aligned(c0)
    starts = (aligned(h0), c_start)
    tensors = (aligned(dy), aligned(dh_n), carry, weight, *starts, y, saved, states, columns)
    row_tensors = (rows.batch_sizes, rows.offsets)
    ragged = rows.batch_sizes is not None
    constants = backward_constants(cell, plan, hidden, y.itemsize, reverse, ragged)
    options = plan.options("backward")
    batch_tiles = triton.cdiv(rows.batch, plan.block_b)
    if plan.mode == "resident":
        resident_backward[(batch_tiles,)](
            *tensors, *row_tensors, rows.steps, rows.batch, **constants, **options
        )
    else:
        grid = (triton.cdiv(hidden, plan.block_h), batch_tiles)
        for t in range(rows.steps) if reverse else reversed(range(rows.steps)):
            for stage in reversed(range(len(cell.backward))):
                launch_backward[grid](
                    *tensors, *row_tensors, t, rows.steps, rows.batch, STAGE=stage,
                    **constants, **options,
                )  # fmt: skip
    return columns, tuple(carry)
