"""One stage of one step on one tile of units × sequences, forward and backward, for any cell."""

import triton
import triton.language as tl

from rnnkit_kernels.cells.activations import relu, sigmoid, tanh
from rnnkit_kernels.random.kernels import keep, key
from rnnkit_kernels.recurrence.exchange import publish
from rnnkit_kernels.recurrence.layout import end_of, start_of, unit_values


@triton.jit
def gate_tiles(x_row, unit, live, STAGE: tl.constexpr, LAYER: tl.constexpr, MEMBERS: tl.constexpr):
    """W_ih x + b_ih of a stage's gates, one tile each; `x_row` is the tile's first (G, H)."""
    lane = tl.arange(0, live.shape[1])
    stride: tl.constexpr = MEMBERS * LAYER.gates * LAYER.hidden
    x = ()
    for gate in tl.static_range(start_of(LAYER.gates_at, STAGE), end_of(LAYER.gates_at, STAGE)):
        at = lane[None, :] * stride + (gate * LAYER.hidden + unit)[:, None]
        x = x + (tl.load(x_row + at, mask=live, other=0.0).to(tl.float32),)
    return x


@triton.jit
def parameter_tiles(weights, unit, STAGE: tl.constexpr, LAYER: tl.constexpr):
    """A member's biases of a stage's gates, and the weights inside the cell, (units, 1) each."""
    FIRST: tl.constexpr = start_of(LAYER.gates_at, STAGE)
    END: tl.constexpr = end_of(LAYER.gates_at, STAGE)
    bias = unit_values(weights.bias_hh, unit, FIRST, END, LAYER.hidden)
    return bias, unit_values(weights.cell_weights, unit, 0, LAYER.cell_weights, LAYER.hidden)


@triton.jit
def forward_tile(
    x,
    h_gates,
    kept,
    state,
    parameters,
    zoneout,
    place,
    STAGE: tl.constexpr,
    FIRST_STAGE: tl.constexpr,
    SECOND_STAGE: tl.constexpr,
    LAYER: tl.constexpr,
):
    """Gate maths of one stage on one tile; nothing is stored.

    Args:
        x, h_gates: W_ih x + b_ih and W_hh operand, one tile a gate.
        kept: what the stages before this one saved.
        state: (h,) or (h, c) of the step before.
        parameters: as `parameter_tiles` returns them.
        zoneout: pointer to shares of states that stay, or None.
        place: where the tile lies.

    Returns:
        What the stage saves; what the cell computed, which is the operand of the next stage or the
        new state; and the same after zoneout.
    """
    bias, weights = parameters
    h = ()
    for i in tl.static_range(len(bias)):
        h = h + (h_gates[i] + bias[i],)
    if STAGE == 0:
        new, computed = FIRST_STAGE(x, h, kept, state, weights, sigmoid, tanh, relu)
    else:
        new, computed = SECOND_STAGE(x, h, kept, state, weights, sigmoid, tanh, relu)
    result = computed
    if LAYER.zoneout and LAYER.stages - 1 == STAGE:
        lane = tl.arange(0, place.live.shape[1])
        zone_row = zoneout + place.row * (LAYER.states * LAYER.hidden)
        at = lane[None, :] * (LAYER.members * LAYER.states * LAYER.hidden) + place.unit[:, None]
        zoned = ()
        for i in tl.static_range(len(computed)):
            share = tl.load(zone_row + at + i * LAYER.hidden, mask=place.live, other=0.0)
            share = share.to(tl.float32)
            zoned = zoned + (share * state[i] + (1 - share) * computed[i],)
        result = zoned
    return new, computed, result


@triton.jit
def save_tile(
    new,
    computed,
    result,
    storage,
    place,
    STAGE: tl.constexpr,
    LAYER: tl.constexpr,
    SAVE: tl.constexpr,
    SAVE_GATES: tl.constexpr,
):
    """Store what the backward pass needs of a stage, from the results of `forward_tile`.

    A function of its own, for what others wait for is stored before it.
    """
    lane = tl.arange(0, place.live.shape[1])
    if SAVE_GATES:
        width: tl.constexpr = LAYER.saved * LAYER.hidden
        saved = storage.saved
        saved_row = saved + place.row * width
        for i in tl.static_range(len(new)):
            at = lane[None, :] * (LAYER.members * width)
            at += ((LAYER.saved_at[STAGE] + i) * LAYER.hidden + place.unit)[:, None]
            tl.store(saved_row + at, new[i].to(saved.dtype.element_ty), mask=place.live)
    if SAVE and LAYER.stages - 1 == STAGE:
        state_row = storage.states + place.row * (LAYER.slots * LAYER.hidden)
        at = lane[None, :] * (LAYER.members * LAYER.slots * LAYER.hidden) + place.unit[:, None]
        if LAYER.has_cell:
            tl.store(state_row + at, result[1], mask=place.live)
        if LAYER.zoneout:
            for i in tl.static_range(len(computed)):
                slot = state_row + at + (LAYER.has_cell + i) * LAYER.hidden
                tl.store(slot, computed[i], mask=place.live)


@triton.jit
def states_around(initial, storage, place, before, LAYER: tl.constexpr):
    """What the forward pass left: the values saved, the states before a step, and those after.

    With zoneout the latter are what the cell gave, before the shares that stayed. `initial` is that
    of the tile's first sequence.
    """
    HIDDEN: tl.constexpr = LAYER.hidden
    SAVED: tl.constexpr = LAYER.saved
    slots: tl.constexpr = LAYER.slots
    y, states, row, unit, live = storage.y, storage.states, place.row, place.unit, place.live
    lane = tl.arange(0, live.shape[1])
    inside = (unit < HIDDEN)[:, None]
    continued = inside & before.started[None, :]
    begun = inside & before.starting[None, :]
    here = lane[None, :] * HIDDEN + unit[:, None]
    spread = lane[None, :] * (LAYER.members * HIDDEN) + unit[:, None]
    slot_spread = lane[None, :] * (LAYER.members * slots * HIDDEN) + unit[:, None]
    state_row = states + row * (slots * HIDDEN)
    h = tl.load(y + before.row * HIDDEN + spread, mask=continued, other=0.0)
    h += tl.load(initial.h + here, mask=begun, other=0.0)
    earlier = (h.to(tl.float32),)
    if LAYER.zoneout:
        h_slot = state_row + LAYER.has_cell * HIDDEN + slot_spread
        after = (tl.load(h_slot, mask=live, other=0.0),)
    else:
        after = (tl.load(y + row * HIDDEN + spread, mask=live, other=0.0).to(tl.float32),)
    if LAYER.has_cell:
        before_row = states + before.row * (slots * HIDDEN)
        c = tl.load(before_row + slot_spread, mask=continued, other=0.0)
        c += tl.load(initial.c + here, mask=begun, other=0.0)
        earlier = earlier + (c,)
        slot: tl.constexpr = 2 if LAYER.zoneout else 0
        at = state_row + slot * HIDDEN + slot_spread
        after = after + (tl.load(at, mask=live, other=0.0),)
    kept = ()
    for i in tl.static_range(SAVED):
        at = lane[None, :] * (LAYER.members * SAVED * HIDDEN) + (i * HIDDEN + unit)[:, None]
        value = tl.load(storage.saved + row * (SAVED * HIDDEN) + at, mask=live, other=0.0)
        kept = kept + (value.to(tl.float32),)
    return kept, earlier, after


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
    place,
    STAGE: tl.constexpr,
    FIRST_STAGE: tl.constexpr,
    SECOND_STAGE: tl.constexpr,
    LAYER: tl.constexpr,
    MEETING: tl.constexpr,
):
    """Gate gradients of one stage on one tile, stored and returned with the new carry.

    Args:
        gradient: what arrives at the stage's result.
        carry: the gradients that reach it without passing through `weight_hh`.
        kept, before, after: as `states_around` returns them.
        cell_weights: pointer to the member's weights inside the cell.
        zoneout: pointer to shares of states that stayed, or None.
        columns: pointer to all gradient columns.
        place: where the tile lies.
    """
    HIDDEN: tl.constexpr = LAYER.hidden
    MEMBERS: tl.constexpr = LAYER.members
    CARRIES: tl.constexpr = LAYER.carries
    OWN_CARRIES: tl.constexpr = LAYER.own_carries
    row, unit, live = place.row, place.unit, place.live
    lane = tl.arange(0, live.shape[1])
    weights = unit_values(cell_weights, unit, 0, LAYER.cell_weights, HIDDEN)
    direct = ()
    if LAYER.zoneout and LAYER.stages - 1 == STAGE:
        # What arrives at a state goes in part to the cell, in part straight to the state before.
        STATES: tl.constexpr = LAYER.states
        zone_row = zoneout + row * (STATES * HIDDEN)
        at = lane[None, :] * (MEMBERS * STATES * HIDDEN) + unit[:, None]
        share = tl.load(zone_row + at, mask=live, other=0.0).to(tl.float32)
        whole = gradient + carry[LAYER.hidden_carry]
        gradient = (1 - share) * whole
        entering = ()
        for n in tl.static_range(CARRIES):
            if n == LAYER.hidden_carry:
                direct = direct + (share * whole,)
                entering = entering + (tl.zeros_like(whole),)
            else:
                share_c = tl.load(zone_row + HIDDEN + at, mask=live, other=0.0).to(tl.float32)
                direct = direct + (share_c * carry[n],)
                entering = entering + ((1 - share_c) * carry[n],)
        carry = entering
    # The cell knows its own carries; a hidden one that only zoneout needs lies behind them.
    own = ()
    for n in tl.static_range(OWN_CARRIES):
        own = own + (carry[n],)
    if STAGE == 0:
        new, result = FIRST_STAGE(kept, before, after, gradient, own, weights, tanh)
    else:
        new, result = SECOND_STAGE(kept, before, after, gradient, own, weights, tanh)
    for n in tl.static_range(OWN_CARRIES, CARRIES):
        result = result + (carry[n],)
    if LAYER.zoneout and LAYER.stages - 1 == STAGE:
        summed = ()
        for n in tl.static_range(CARRIES):
            summed = summed + (result[n] + direct[n],)
        result = summed
    width: tl.constexpr = LAYER.columns * HIDDEN
    rounded = ()
    for i in tl.static_range(len(new)):
        at = lane[None, :] * (MEMBERS * width)
        at += ((LAYER.columns_at[STAGE] + i) * HIDDEN + unit)[:, None]
        # A sequence that does not run here adds nothing to the next product, not even 0 · ∞.
        column = tl.where(live, new[i], 0.0).to(columns.dtype.element_ty)
        publish(columns + row * width + at, column, live, MEETING)
        rounded = rounded + (column,)
    return rounded, result


@triton.jit
def keep_tile(dropout, threshold, tile, t, member, unit, active, STREAMS: tl.constexpr):
    """Which elements of a layer's output dropout keeps; see `dropout.py`."""
    low, high = key(tl.load(dropout.seed))
    lane = tl.arange(0, active.shape[0])
    if dropout.order is None:
        sequence = tile + lane
    else:
        sequence = tl.load(dropout.order + tile + lane, mask=active, other=0)
    return keep(low, high, STREAMS * member, t, sequence[None, :], unit[:, None], threshold)
