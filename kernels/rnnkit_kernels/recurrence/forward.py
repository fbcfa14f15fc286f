"""The recurrence forward, in Triton, for any cell.

    h_gates_t = W_hh h_{t−1} + b_hh        (per stage; the operand may be another than h)
    state_t   = cell(x_gates_t, h_gates_t, state_{t−1})

`forward_tile` is one stage on one tile of units × sequences; the two kernels differ only in where
the operand of the product and the state of the step before come from.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rnnkit_kernels.cells import Cell
from rnnkit_kernels.cells.activations import relu, sigmoid, tanh
from rnnkit_kernels.recurrence.exchange import (
    aligned,
    count_of,
    end_of,
    gate_rows,
    padded_gates,
    padded_rows,
    padded_width,
    resident_product,
    size_of,
    stage_functions,
    start_of,
    step_rows,
    streamed_product,
    unstack,
)
from rnnkit_kernels.recurrence.plan import Plan
from rnnkit_kernels.recurrence.rows import Rows


@triton.jit
def forward_tile(
    hidden_gates,
    kept,
    state,
    x_gates,
    bias_hh,
    saved,
    row,
    unit,
    live,
    STAGE: tl.constexpr,
    FIRST_STAGE: tl.constexpr,
    SECOND_STAGE: tl.constexpr,
    GATES_AT: tl.constexpr,
    SAVED_AT: tl.constexpr,
    HIDDEN: tl.constexpr,
    SAVE: tl.constexpr,
):
    """Gate maths of one stage on one tile; `row` is the tile's first row of the storage."""
    lane = tl.arange(0, live.shape[1])
    width: tl.constexpr = GATES_AT[len(GATES_AT) - 1] * HIDDEN
    x_row = x_gates + row * width
    x = ()
    h = ()
    for gate in tl.static_range(start_of(GATES_AT, STAGE), end_of(GATES_AT, STAGE)):
        at = lane[None, :] * width + (gate * HIDDEN + unit)[:, None]
        x = x + (tl.load(x_row + at, mask=live, other=0.0).to(tl.float32),)
        bias = tl.load(bias_hh + gate * HIDDEN + unit, mask=unit < HIDDEN, other=0.0)
        h = h + (hidden_gates[gate - GATES_AT[STAGE]] + bias.to(tl.float32)[:, None],)
    if STAGE == 0:
        new, result = FIRST_STAGE(x, h, kept, state, sigmoid, tanh, relu)
    else:
        new, result = SECOND_STAGE(x, h, kept, state, sigmoid, tanh, relu)
    if SAVE:
        saved_width: tl.constexpr = SAVED_AT[len(SAVED_AT) - 1] * HIDDEN
        saved_row = saved + row * saved_width
        for i in tl.static_range(len(new)):
            at = lane[None, :] * saved_width + ((SAVED_AT[STAGE] + i) * HIDDEN + unit)[:, None]
            tl.store(saved_row + at, new[i].to(saved.dtype.element_ty), mask=live)
    return new, result


@triton.jit(do_not_specialize=["t", "steps", "batch"])
def launch_forward(
    x_gates,
    weight_hh,
    bias_hh,
    h0,
    cell_state,
    operand,
    y,
    saved,
    states,
    batch_sizes,
    offsets,
    t,
    steps,
    batch,
    FIRST_STAGE: tl.constexpr,
    SECOND_STAGE: tl.constexpr,
    STAGE: tl.constexpr,
    GATES_AT: tl.constexpr,
    SAVED_AT: tl.constexpr,
    HAS_CELL: tl.constexpr,
    HIDDEN: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    REVERSE: tl.constexpr,
    RAGGED: tl.constexpr,
    SAVE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One stage of step t. `cell_state` (B, H) is updated in place; h is read from the y before.

    `operand` (B, H) carries what an earlier stage hands to the next. With SAVE off, `saved` is a
    scratch of one step.
    """
    LAST: tl.constexpr = len(GATES_AT) - 2
    GATES: tl.constexpr = count_of(GATES_AT, STAGE)
    PADDED: tl.constexpr = padded_gates(GATES_AT, STAGE)
    unit_start = tl.program_id(0) * BLOCK_H
    unit = unit_start + tl.arange(0, BLOCK_H)
    lane = tl.arange(0, BLOCK_B)
    tile = tl.program_id(1).to(tl.int64) * BLOCK_B
    first, count = step_rows(t, steps, batch, batch_sizes, offsets, RAGGED)
    earlier = t + 1 if REVERSE else t - 1
    first_before, count_before = step_rows(earlier, steps, batch, batch_sizes, offsets, RAGGED)
    active = tile + lane < count
    started = active & (tile + lane < count_before)
    starting = active & (tile + lane >= count_before)
    live = (unit < HIDDEN)[:, None] & active[None, :]
    here = lane[None, :] * HIDDEN + unit[:, None]
    row = first + tile
    h_before = y + (first_before + tile) * HIDDEN
    h_start = h0 + tile * HIDDEN

    weight_row, row_exists = gate_rows(unit_start, GATES, PADDED, BLOCK_H, HIDDEN)
    stage_weight = weight_hh + GATES_AT[STAGE] * HIDDEN * WEIGHT_STRIDE
    weight = stage_weight + weight_row[:, None] * WEIGHT_STRIDE
    if STAGE == 0:
        source, running, beginning = h_before, started, starting
    else:
        source, running, beginning = operand + tile * HIDDEN, active, active & (lane < 0)
    accumulator = streamed_product(
        tl.zeros((PADDED * BLOCK_H, BLOCK_B), tl.float32),
        weight,
        row_exists[:, None],
        1,
        source,
        h_start,
        HIDDEN,
        running,
        beginning,
        HIDDEN,
        BLOCK_K,
        PRECISION,
    )
    hidden_gates = unstack(accumulator, PADDED, BLOCK_H, BLOCK_B)

    inside = (unit < HIDDEN)[:, None]
    h = tl.load(h_before + here, mask=inside & started[None, :], other=0.0)
    h += tl.load(h_start + here, mask=inside & starting[None, :], other=0.0)
    state = (h.to(tl.float32),)
    if HAS_CELL:
        state = state + (tl.load(cell_state + tile * HIDDEN + here, mask=live, other=0.0),)
    saved_width: tl.constexpr = SAVED_AT[len(SAVED_AT) - 1] * HIDDEN
    saved_row = row if SAVE else tile
    kept = ()
    for i in tl.static_range(start_of(SAVED_AT, STAGE)):
        at = lane[None, :] * saved_width + (i * HIDDEN + unit)[:, None]
        column = tl.load(saved + saved_row * saved_width + at, mask=live, other=0.0)
        kept = kept + (column.to(tl.float32),)

    new, result = forward_tile(
        hidden_gates,
        kept,
        state,
        x_gates,
        bias_hh,
        saved,
        row,
        unit,
        live,
        STAGE,
        FIRST_STAGE,
        SECOND_STAGE,
        GATES_AT,
        SAVED_AT,
        HIDDEN,
        SAVE,
    )
    if STAGE < LAST:
        tl.store(operand + tile * HIDDEN + here, result[0].to(y.dtype.element_ty), mask=live)
        if not SAVE:
            for i in tl.static_range(len(new)):
                at = lane[None, :] * saved_width + ((SAVED_AT[STAGE] + i) * HIDDEN + unit)[:, None]
                scratch = saved + tile * saved_width + at
                tl.store(scratch, new[i].to(saved.dtype.element_ty), mask=live)
    else:
        tl.store(y + row * HIDDEN + here, result[0].to(y.dtype.element_ty), mask=live)
        if HAS_CELL:
            tl.store(cell_state + tile * HIDDEN + here, result[1], mask=live)
            if SAVE:
                tl.store(states + row * HIDDEN + here, result[1], mask=live)


@triton.jit(do_not_specialize=["steps", "batch"])
def resident_forward(
    x_gates,
    weight_hh,
    bias_hh,
    h0,
    cell_state,
    y,
    saved,
    states,
    batch_sizes,
    offsets,
    steps,
    batch,
    FIRST_STAGE: tl.constexpr,
    SECOND_STAGE: tl.constexpr,
    GATES_AT: tl.constexpr,
    SAVED_AT: tl.constexpr,
    HAS_CELL: tl.constexpr,
    HIDDEN: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    REVERSE: tl.constexpr,
    RAGGED: tl.constexpr,
    SAVE: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All steps of BLOCK_B sequences. CHUNKS are (first unit, size) tiles that cover HIDDEN."""
    STAGES: tl.constexpr = len(GATES_AT) - 1
    lane = tl.arange(0, BLOCK_B)
    tile = tl.program_id(0).to(tl.int64) * BLOCK_B
    exists = tile + lane < batch

    weights = ()
    for stage in tl.static_range(STAGES):
        for i in tl.static_range(len(CHUNKS)):
            weight_row, row_exists = gate_rows(
                CHUNKS[i][0],
                count_of(GATES_AT, stage),
                padded_gates(GATES_AT, stage),
                size_of(CHUNKS, i),
                HIDDEN,
            )
            weight = weight_hh + (GATES_AT[stage] * HIDDEN + weight_row)[:, None] * WEIGHT_STRIDE
            for j in tl.static_range(len(CHUNKS)):
                k = CHUNKS[j][0] + tl.arange(0, size_of(CHUNKS, j))
                mask = row_exists[:, None] & (k < HIDDEN)[None, :]
                weights = weights + (tl.load(weight + k[None, :], mask=mask, other=0.0),)
    h = ()
    c = ()
    for i in tl.static_range(len(CHUNKS)):
        unit = CHUNKS[i][0] + tl.arange(0, size_of(CHUNKS, i))
        mask = (unit < HIDDEN)[:, None] & exists[None, :]
        here = lane[None, :] * HIDDEN + unit[:, None]
        h = h + (tl.load(h0 + tile * HIDDEN + here, mask=mask, other=0.0),)
        if HAS_CELL:
            c = c + ((tl.load(cell_state + tile * HIDDEN + here, mask=mask, other=0.0),),)
        else:
            c = c + ((),)

    for step in range(steps):
        t = steps - 1 - step if REVERSE else step
        first, count = step_rows(t, steps, batch, batch_sizes, offsets, RAGGED)
        active = tile + lane < count
        row = first + tile
        operand = h
        kept = ((),) * len(CHUNKS)
        new_h = ()
        new_c = ()
        for stage in tl.static_range(STAGES):
            new_operand = ()
            new_kept = ()
            for i in tl.static_range(len(CHUNKS)):
                unit = CHUNKS[i][0] + tl.arange(0, size_of(CHUNKS, i))
                live = (unit < HIDDEN)[:, None] & active[None, :]
                accumulator = resident_product(
                    tl.zeros(
                        (padded_gates(GATES_AT, stage) * size_of(CHUNKS, i), BLOCK_B), tl.float32
                    ),
                    weights,
                    (stage * len(CHUNKS) + i) * len(CHUNKS),
                    operand,
                    PRECISION,
                )
                new, result = forward_tile(
                    unstack(
                        accumulator, padded_gates(GATES_AT, stage), size_of(CHUNKS, i), BLOCK_B
                    ),
                    kept[i],
                    (h[i].to(tl.float32),) + c[i],
                    x_gates,
                    bias_hh,
                    saved,
                    row,
                    unit,
                    live,
                    stage,
                    FIRST_STAGE,
                    SECOND_STAGE,
                    GATES_AT,
                    SAVED_AT,
                    HIDDEN,
                    SAVE,
                )
                new_kept = new_kept + (kept[i] + new,)
                if stage < STAGES - 1:
                    inner = tl.where(live, result[0], 0.0).to(y.dtype.element_ty)
                    new_operand = new_operand + (inner,)
                else:
                    here = lane[None, :] * HIDDEN + unit[:, None]
                    rounded = result[0].to(y.dtype.element_ty)
                    tl.store(y + row * HIDDEN + here, rounded, mask=live)
                    # Also outside HIDDEN, where 0 · ∞ would make NaN that reaches real units.
                    new_h = new_h + (tl.where(live, rounded, h[i]),)
                    if HAS_CELL:
                        if SAVE:
                            tl.store(states + row * HIDDEN + here, result[1], mask=live)
                        new_c = new_c + ((tl.where(active[None, :], result[1], c[i][0]),),)
                    else:
                        new_c = new_c + ((),)
            operand = new_operand
            kept = new_kept
        h = new_h
        c = new_c

    if HAS_CELL:
        for i in tl.static_range(len(CHUNKS)):
            unit = CHUNKS[i][0] + tl.arange(0, size_of(CHUNKS, i))
            mask = (unit < HIDDEN)[:, None] & exists[None, :]
            here = lane[None, :] * HIDDEN + unit[:, None]
            tl.store(cell_state + tile * HIDDEN + here, c[i][0], mask=mask)


def forward_constants(
    cell: Cell, plan: Plan, hidden: int, itemsize: int, reverse: bool, ragged: bool, save: bool
) -> dict[str, Any]:
    """The kernel's compile-time arguments; those of one mode only are left to the caller."""
    return {
        **stage_functions(cell.forward),
        "GATES_AT": cell.gates_at,
        "SAVED_AT": cell.saved_at,
        "HAS_CELL": cell.has_cell_state,
        "HIDDEN": hidden,
        "WEIGHT_STRIDE": padded_width(hidden, itemsize),
        "REVERSE": reverse,
        "RAGGED": ragged,
        "SAVE": save,
        "PRECISION": plan.precision,
        **plan.tiles(),
    }


def forward(
    cell: Cell,
    plan: Plan,
    x_gates: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    rows: Rows,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the kernels.

    Args:
        cell: the cell.
        plan: mode and tiles.
        x_gates: (N, G, H), W_ih x + b_ih.
        weight_hh: (G·H, H).
        bias_hh: (G·H,).
        h0: (B, H).
        c0: (B, H) float32, or None.
        rows: which rows belong to a step.
        reverse: whether t falls.
        save: whether a backward pass will follow.

    Returns:
        y (N, H), zero in rows that belong to no step; c of the last step (B, H) float32, empty
        for cells without; saved (N, S, H) and states (N, C, H) float32, both empty unless `save`.
    """
    count, _, hidden = x_gates.shape
    # Rows of no step exist only when the lengths are on the device; all others are written. They
    # enter the weight gradients' products with columns of zero, so they must be finite.
    padded = rows.batch_sizes is not None and count == rows.steps * rows.batch
    fresh = torch.zeros if padded else torch.empty
    y = fresh(count, hidden, dtype=h0.dtype, device=h0.device)
    cell_state = (
        h0.new_empty(0, dtype=torch.float32)
        if c0 is None
        else c0.clone(memory_format=torch.contiguous_format)
    )
    scratch = rows.batch if len(cell.forward) > 1 else 0
    saved_rows = count if save else scratch
    shape = (saved_rows, cell.saved_at[-1], hidden)
    saved = fresh(shape, dtype=h0.dtype, device=h0.device)
    shape = (count if save else 0, int(cell.has_cell_state), hidden)
    states = fresh(shape, dtype=torch.float32, device=h0.device)
    weight, bias, start = padded_rows(weight_hh), aligned(bias_hh), aligned(h0)
    ragged = rows.batch_sizes is not None
    constants = forward_constants(cell, plan, hidden, h0.itemsize, reverse, ragged, save)
    options = plan.options("forward")
    row_tensors = (rows.batch_sizes, rows.offsets)
    batch_tiles = triton.cdiv(rows.batch, plan.block_b)
    if plan.mode == "resident":
        resident_forward[(batch_tiles,)](
            x_gates, weight, bias, start, cell_state, y, saved, states, *row_tensors,
            rows.steps, rows.batch, **constants, **options,
        )  # fmt: skip
    else:
        operand = h0.new_empty(scratch, hidden)
        grid = (triton.cdiv(hidden, plan.block_h), batch_tiles)
        for t in reversed(range(rows.steps)) if reverse else range(rows.steps):
            for stage in range(len(cell.forward)):
                launch_forward[grid](
                    x_gates, weight, bias, start, cell_state, operand, y, saved, states,
                    *row_tensors, t, rows.steps, rows.batch, STAGE=stage, **constants, **options,
                )  # fmt: skip
    if not save:
        saved = saved[:0].clone()
    return y, cell_state, saved, states
