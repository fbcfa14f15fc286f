"""One stage of one step on one tile of units × sequences, forward and backward, for any cell.

`row` is always the tile's first row of the storage times M, plus the member (direction).
"""

import triton
import triton.language as tl

from rnnkit_kernels.cells.activations import relu, sigmoid, tanh
from rnnkit_kernels.recurrence.exchange import publish
from rnnkit_kernels.recurrence.layout import end_of, start_of, unit_values


@triton.jit
def gate_tiles(
    x_row,
    unit,
    live,
    STAGE: tl.constexpr,
    GATES_AT: tl.constexpr,
    HIDDEN: tl.constexpr,
    MEMBERS: tl.constexpr,
):
    """W_ih x + b_ih of a stage's gates, one tile each; `x_row` is the tile's first (G, H)."""
    lane = tl.arange(0, live.shape[1])
    stride: tl.constexpr = MEMBERS * GATES_AT[len(GATES_AT) - 1] * HIDDEN
    x = ()
    for gate in tl.static_range(start_of(GATES_AT, STAGE), end_of(GATES_AT, STAGE)):
        at = lane[None, :] * stride + (gate * HIDDEN + unit)[:, None]
        x = x + (tl.load(x_row + at, mask=live, other=0.0).to(tl.float32),)
    return x


@triton.jit
def parameter_tiles(
    bias_hh,
    cell_weights,
    unit,
    STAGE: tl.constexpr,
    GATES_AT: tl.constexpr,
    WEIGHTS: tl.constexpr,
    HIDDEN: tl.constexpr,
):
    """The member's biases of a stage's gates, and the weights inside the cell, (units, 1) each."""
    bias = unit_values(bias_hh, unit, start_of(GATES_AT, STAGE), end_of(GATES_AT, STAGE), HIDDEN)
    return bias, unit_values(cell_weights, unit, 0, WEIGHTS, HIDDEN)


@triton.jit
def forward_tile(
    x,
    hidden_gates,
    kept,
    state,
    bias,
    weights,
    zoneout,
    row,
    unit,
    live,
    STAGE: tl.constexpr,
    FIRST_STAGE: tl.constexpr,
    SECOND_STAGE: tl.constexpr,
    GATES_AT: tl.constexpr,
    ZONEOUT: tl.constexpr,
    HIDDEN: tl.constexpr,
    MEMBERS: tl.constexpr,
):
    """Gate maths of one stage on one tile; nothing is stored.

    `row` is the tile's first row of the storage times M, plus the member. Returns what the stage
    saves; what the cell computed, which is the operand of the next stage or the new state; and the
    same after zoneout.
    """
    h = ()
    for i in tl.static_range(len(bias)):
        h = h + (hidden_gates[i] + bias[i],)
    if STAGE == 0:
        new, computed = FIRST_STAGE(x, h, kept, state, weights, sigmoid, tanh, relu)
    else:
        new, computed = SECOND_STAGE(x, h, kept, state, weights, sigmoid, tanh, relu)
    result = computed
    if ZONEOUT and len(GATES_AT) - 2 == STAGE:
        lane = tl.arange(0, live.shape[1])
        zone_row = zoneout + row * len(computed) * HIDDEN
        at = lane[None, :] * (MEMBERS * len(computed) * HIDDEN) + unit[:, None]
        zoned = ()
        for i in tl.static_range(len(computed)):
            share = tl.load(zone_row + at + i * HIDDEN, mask=live, other=0.0).to(tl.float32)
            zoned = zoned + (share * state[i] + (1 - share) * computed[i],)
        result = zoned
    return new, computed, result


@triton.jit
def save_tile(
    new,
    computed,
    result,
    saved,
    states,
    row,
    unit,
    live,
    STAGE: tl.constexpr,
    SAVED_AT: tl.constexpr,
    HAS_CELL: tl.constexpr,
    ZONEOUT: tl.constexpr,
    HIDDEN: tl.constexpr,
    MEMBERS: tl.constexpr,
    SAVE: tl.constexpr,
    SAVE_GATES: tl.constexpr,
):
    """Store what the backward pass needs of a stage, from the results of `forward_tile`.

    A function of its own, for what others wait for is stored before it.
    """
    lane = tl.arange(0, live.shape[1])
    if SAVE_GATES:
        saved_width: tl.constexpr = SAVED_AT[len(SAVED_AT) - 1] * HIDDEN
        saved_row = saved + row * saved_width
        for i in tl.static_range(len(new)):
            at = lane[None, :] * (MEMBERS * saved_width)
            at += ((SAVED_AT[STAGE] + i) * HIDDEN + unit)[:, None]
            tl.store(saved_row + at, new[i].to(saved.dtype.element_ty), mask=live)
    if SAVE and len(SAVED_AT) - 2 == STAGE:
        slots: tl.constexpr = HAS_CELL + ZONEOUT * (1 + HAS_CELL)
        state_row = states + row * slots * HIDDEN
        at = lane[None, :] * (MEMBERS * slots * HIDDEN) + unit[:, None]
        if HAS_CELL:
            tl.store(state_row + at, result[1], mask=live)
        if ZONEOUT:
            for i in tl.static_range(len(computed)):
                tl.store(state_row + at + (HAS_CELL + i) * HIDDEN, computed[i], mask=live)


@triton.jit
def states_around(
    h0,
    c0,
    y,
    saved,
    states,
    row,
    row_before,
    unit,
    live,
    started,
    starting,
    SAVED: tl.constexpr,
    HAS_CELL: tl.constexpr,
    ZONEOUT: tl.constexpr,
    HIDDEN: tl.constexpr,
    MEMBERS: tl.constexpr,
):
    """What the forward pass left: the values saved, the states before a step, and those after.

    With zoneout the latter are what the cell gave, before the shares that stayed.
    """
    lane = tl.arange(0, live.shape[1])
    inside = (unit < HIDDEN)[:, None]
    continued = inside & started[None, :]
    begun = inside & starting[None, :]
    here = lane[None, :] * HIDDEN + unit[:, None]
    spread = lane[None, :] * (MEMBERS * HIDDEN) + unit[:, None]
    slots: tl.constexpr = HAS_CELL + ZONEOUT * (1 + HAS_CELL)
    slot_spread = lane[None, :] * (MEMBERS * slots * HIDDEN) + unit[:, None]
    state_row = states + row * (slots * HIDDEN)
    h = tl.load(y + row_before * HIDDEN + spread, mask=continued, other=0.0)
    h += tl.load(h0 + here, mask=begun, other=0.0)
    before = (h.to(tl.float32),)
    if ZONEOUT:
        after = (tl.load(state_row + HAS_CELL * HIDDEN + slot_spread, mask=live, other=0.0),)
    else:
        after = (tl.load(y + row * HIDDEN + spread, mask=live, other=0.0).to(tl.float32),)
    if HAS_CELL:
        before_row = states + row_before * (slots * HIDDEN)
        c = tl.load(before_row + slot_spread, mask=continued, other=0.0)
        c += tl.load(c0 + here, mask=begun, other=0.0)
        before = before + (c,)
        slot: tl.constexpr = 2 if ZONEOUT else 0
        at = state_row + slot * HIDDEN + slot_spread
        after = after + (tl.load(at, mask=live, other=0.0),)
    kept = ()
    for i in tl.static_range(SAVED):
        at = lane[None, :] * (MEMBERS * SAVED * HIDDEN) + (i * HIDDEN + unit)[:, None]
        value = tl.load(saved + row * (SAVED * HIDDEN) + at, mask=live, other=0.0)
        kept = kept + (value.to(tl.float32),)
    return kept, before, after


@triton.jit
def arriving_gradient(dy_tile, live, dh_tile, ending):
    """∂L/∂h of a tile but for what comes through later steps: from y, and from h_n at the end."""
    gradient = tl.load(dy_tile, mask=live, other=0.0).to(tl.float32)
    return gradient + tl.load(dh_tile, mask=ending, other=0.0).to(tl.float32)


@triton.jit
def backward_tile(
    gradient,
    carry,
    kept,
    before,
    after,
    cell_weights,
    zoneout,
    columns,
    row,
    unit,
    live,
    STAGE: tl.constexpr,
    FIRST_STAGE: tl.constexpr,
    SECOND_STAGE: tl.constexpr,
    COLUMNS_AT: tl.constexpr,
    WEIGHTS: tl.constexpr,
    CELL_CARRIES: tl.constexpr,
    CARRIES: tl.constexpr,
    HIDDEN_CARRY: tl.constexpr,
    CELL_CARRY: tl.constexpr,
    ZONEOUT: tl.constexpr,
    HIDDEN: tl.constexpr,
    MEMBERS: tl.constexpr,
    MEETING: tl.constexpr,
):
    """Gate gradients of one stage on one tile, stored and returned with the new carry.

    `row` is the tile's first row of the storage times M, plus the member.
    """
    lane = tl.arange(0, live.shape[1])
    weights = unit_values(cell_weights, unit, 0, WEIGHTS, HIDDEN)
    direct = ()
    if ZONEOUT and len(COLUMNS_AT) - 2 == STAGE:
        # What arrives at a state goes in part to the cell, in part straight to the state before.
        STATES: tl.constexpr = 1 + (CELL_CARRY >= 0)
        zone_row = zoneout + row * (STATES * HIDDEN)
        at = lane[None, :] * (MEMBERS * STATES * HIDDEN) + unit[:, None]
        share = tl.load(zone_row + at, mask=live, other=0.0).to(tl.float32)
        whole = gradient + carry[HIDDEN_CARRY]
        gradient = (1 - share) * whole
        entering = ()
        for n in tl.static_range(CARRIES):
            if n == HIDDEN_CARRY:
                direct = direct + (share * whole,)
                entering = entering + (tl.zeros_like(whole),)
            else:
                share_c = tl.load(zone_row + HIDDEN + at, mask=live, other=0.0).to(tl.float32)
                direct = direct + (share_c * carry[n],)
                entering = entering + ((1 - share_c) * carry[n],)
        carry = entering
    # The cell knows its own carries; a hidden one that only zoneout needs lies behind them.
    own = ()
    for n in tl.static_range(CELL_CARRIES):
        own = own + (carry[n],)
    if STAGE == 0:
        new, result = FIRST_STAGE(kept, before, after, gradient, own, weights, tanh)
    else:
        new, result = SECOND_STAGE(kept, before, after, gradient, own, weights, tanh)
    for n in tl.static_range(CELL_CARRIES, CARRIES):
        result = result + (carry[n],)
    if ZONEOUT and len(COLUMNS_AT) - 2 == STAGE:
        summed = ()
        for n in tl.static_range(CARRIES):
            summed = summed + (result[n] + direct[n],)
        result = summed
    width: tl.constexpr = COLUMNS_AT[len(COLUMNS_AT) - 1] * HIDDEN
    rounded = ()
    for i in tl.static_range(len(new)):
        at = lane[None, :] * (MEMBERS * width) + ((COLUMNS_AT[STAGE] + i) * HIDDEN + unit)[:, None]
        # A sequence that does not run here adds nothing to the next product, not even 0 · ∞.
        column = tl.where(live, new[i], 0.0).to(columns.dtype.element_ty)
        publish(columns + row * width + at, column, live, MEETING)
        rounded = rounded + (column,)
    return rounded, result
