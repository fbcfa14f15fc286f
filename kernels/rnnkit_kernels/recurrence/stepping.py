"""The time loop of programs that each own a few units and meet at every step, for any cell.

They meet by leaving the kernel (launch), or inside it (counter and data of `exchange.py`).
"""

import triton
import triton.language as tl

from rnnkit_kernels.random.kernels import keep, key
from rnnkit_kernels.recurrence.exchange import COUNTER_STRIDE, arrive, publish, settle, wait
from rnnkit_kernels.recurrence.layout import (
    count_of,
    entry_of,
    gate_rows,
    padded_gates,
    product_of,
    size_of,
    start_of,
    step_rows,
    unit_values,
    unstack,
)
from rnnkit_kernels.recurrence.products import (
    held_product,
    held_weights,
    split_product,
    split_weights,
    streamed_product,
)
from rnnkit_kernels.recurrence.tiles import (
    arriving_gradient,
    backward_tile,
    forward_tile,
    gate_tiles,
    parameter_tiles,
    save_tile,
    states_around,
)


@triton.jit
def keep_tile(seed, order, tile, t, member, unit, active, threshold, STREAMS: tl.constexpr):
    """Which elements of a layer's output dropout keeps; see `dropout.py`."""
    low, high = key(tl.load(seed))
    lane = tl.arange(0, active.shape[0])
    if order is None:
        sequence = tile + lane
    else:
        sequence = tl.load(order + tile + lane, mask=active, other=0)
    return keep(low, high, STREAMS * member, t, sequence[None, :], unit[:, None], threshold)


@triton.jit(
    do_not_specialize=[
        "threshold",
        "scale",
        "first_member",
        "reverse",
        "begin",
        "end",
        "steps",
        "batch",
        "budget",
    ]
)
def stepping_forward(
    x_gates,
    weight_hh,
    bias_hh,
    cell_weights,
    h0,
    cell_state,
    zoneout,
    operand,
    y,
    saved,
    states,
    batch_sizes,
    offsets,
    weight_above,
    bias_above,
    dropped,
    seed,
    order,
    threshold: tl.int64,
    scale: tl.float32,
    counters,
    error,
    first_member,
    reverse,
    begin,
    end,
    steps,
    batch,
    budget,
    FIRST_STAGE: tl.constexpr,
    SECOND_STAGE: tl.constexpr,
    STAGES: tl.constexpr,
    GATES_AT: tl.constexpr,
    SAVED_AT: tl.constexpr,
    WEIGHTS: tl.constexpr,
    HAS_CELL: tl.constexpr,
    ZONEOUT: tl.constexpr,
    HIDDEN: tl.constexpr,
    MEMBERS: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    RAGGED: tl.constexpr,
    SAVE: tl.constexpr,
    SAVE_GATES: tl.constexpr,
    WAVEFRONT: tl.constexpr,
    DROPOUT: tl.constexpr,
    MEETING: tl.constexpr,
    CHUNKS: tl.constexpr,
    POLLED: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Stages STAGES of steps begin to end, counted in the order of processing.

    Grid: tiles of units, groups of sequences, members. A program serves the tiles of sequences
    that are congruent to its group, in turn; all programs in the same order, so that no cycle of
    waits can be. `cell_state` (M, B, H) is updated in place; h is read from the y before. `operand`
    carries what an earlier stage hands to the next, in rows of the storage, or of one step in
    launch mode. There, with SAVE_GATES off, `saved` is a scratch of one step.

    With WAVEFRONT the members are layers, and x_gates those of the first. `weight_above` and
    `bias_above` (M − 1, ·) are W_ih and b_ih of the others, which take the y of the layer below at
    the same step, or with DROPOUT what is left of it, `dropped` (N, M − 1, H).
    """
    LAST: tl.constexpr = len(GATES_AT) - 2
    TOGETHER: tl.constexpr = MEETING != "launch"
    GATES: tl.constexpr = GATES_AT[LAST + 1]
    X_MEMBERS: tl.constexpr = 1 if WAVEFRONT else MEMBERS
    member = first_member + tl.program_id(2)
    backwards = reverse if WAVEFRONT else (member + reverse) % 2
    member_rows = member.to(tl.int64) * batch
    unit_start = tl.program_id(0) * BLOCK_H
    unit = unit_start + tl.arange(0, BLOCK_H)
    inside = (unit < HIDDEN)[:, None]
    lane = tl.arange(0, BLOCK_B)
    here = lane[None, :] * HIDDEN + unit[:, None]
    spread = lane[None, :] * (MEMBERS * HIDDEN) + unit[:, None]
    bias = bias_hh + member * (GATES * HIDDEN)
    parameters = cell_weights + member * (WEIGHTS * HIDDEN)
    member_weight = weight_hh + member.to(tl.int64) * (GATES * HIDDEN * WEIGHT_STRIDE)
    held = ()
    if TOGETHER:
        for stage in tl.static_range(LAST + 1):
            weight_row, row_exists = gate_rows(
                unit_start,
                count_of(GATES_AT, stage),
                padded_gates(GATES_AT, stage),
                BLOCK_H,
                HIDDEN,
            )
            weight = (
                member_weight + (GATES_AT[stage] * HIDDEN + weight_row)[:, None] * WEIGHT_STRIDE
            )
            held = held + (held_weights(weight, row_exists[:, None], 1, HIDDEN, CHUNKS),)
    if WAVEFRONT:
        PADDED: tl.constexpr = padded_gates(GATES_AT, 0)
        weight_row, row_exists = gate_rows(unit_start, GATES, PADDED, BLOCK_H, HIDDEN)
        weight = weight_above + (member - 1).to(tl.int64) * (GATES * HIDDEN * WEIGHT_STRIDE)
        weight += weight_row[:, None] * WEIGHT_STRIDE
        exists = row_exists[:, None] & (member > 0)
        held_above = held_weights(weight, exists, 1, HIDDEN, CHUNKS)

    batch_tiles = tl.cdiv(batch, BLOCK_B)
    for step in tl.range(begin, end, disable_licm=True):
        t = tl.where(backwards == 1, steps - 1 - step, step)
        earlier = t - 1 + 2 * backwards
        first, count = step_rows(t, steps, batch, batch_sizes, offsets, RAGGED)
        first_before, count_before = step_rows(earlier, steps, batch, batch_sizes, offsets, RAGGED)
        for tile_index in tl.range(
            tl.program_id(1), batch_tiles, tl.num_programs(1), disable_licm=True
        ):
            tile = tile_index * tl.full((), BLOCK_B, tl.int64)
            active = tile + lane < count
            started = active & (tile + lane < count_before)
            starting = active & (tile + lane >= count_before)
            live = inside & active[None, :]
            row = (first + tile) * MEMBERS + member
            h_before = y + ((first_before + tile) * MEMBERS + member) * HIDDEN
            h_start = h0 + (member_rows + tile) * HIDDEN
            c_tile = cell_state + (member_rows + tile) * HIDDEN + here
            if TOGETHER:
                counter = counters + (member * batch_tiles + tile_index) * COUNTER_STRIDE
            else:
                counter = counters
            kept = ()
            width: tl.constexpr = SAVED_AT[LAST + 1] * HIDDEN
            if entry_of(STAGES, 0) > 0:
                scratch_row = row if SAVE_GATES else tile * MEMBERS + member
                for i in tl.static_range(start_of(SAVED_AT, entry_of(STAGES, 0))):
                    at = lane[None, :] * (MEMBERS * width) + (i * HIDDEN + unit)[:, None]
                    value = tl.load(saved + scratch_row * width + at, mask=live, other=0.0)
                    kept = kept + (value.to(tl.float32),)
            for stage in tl.static_range(entry_of(STAGES, 0), entry_of(STAGES, 1)):
                # What no other program writes comes first: it arrives while the others finish.
                settle(MEETING)
                x_row = first + tile if WAVEFRONT else row
                x_live = live & (member == 0) if WAVEFRONT else live
                x = gate_tiles(
                    x_gates + x_row * (GATES * HIDDEN),
                    unit,
                    x_live,
                    stage,
                    GATES_AT,
                    HIDDEN,
                    X_MEMBERS,
                )
                h = tl.load(h_before + spread, mask=inside & started[None, :], other=0.0)
                h += tl.load(h_start + here, mask=inside & starting[None, :], other=0.0)
                state = (h.to(tl.float32),)
                if HAS_CELL:
                    state = state + (tl.load(c_tile, mask=live, other=0.0),)
                biases, peepholes = parameter_tiles(
                    bias, parameters, unit, stage, GATES_AT, WEIGHTS, HIDDEN
                )
                meetings = step * (LAST + 1) + stage
                budget = wait(counter, meetings * tl.num_programs(0), budget, MEETING)
                operand_row = row if TOGETHER else tile * MEMBERS + member
                if stage == 0:
                    source, running, beginning = h_before, started, starting
                else:
                    source = operand + operand_row * HIDDEN
                    running, beginning = active, active & (lane < 0)
                accumulator = tl.zeros(
                    (padded_gates(GATES_AT, stage) * BLOCK_H, BLOCK_B), tl.float32
                )
                if TOGETHER:
                    accumulator, budget = held_product(
                        accumulator,
                        held[stage],
                        source,
                        h_start,
                        MEMBERS * HIDDEN,
                        running,
                        beginning,
                        budget,
                        HIDDEN,
                        CHUNKS,
                        POLLED,
                        MEETING,
                        PRECISION,
                    )
                else:
                    weight_row, row_exists = gate_rows(
                        unit_start,
                        count_of(GATES_AT, stage),
                        padded_gates(GATES_AT, stage),
                        BLOCK_H,
                        HIDDEN,
                    )
                    weight_row += GATES_AT[stage] * HIDDEN
                    accumulator = streamed_product(
                        accumulator,
                        member_weight + weight_row[:, None] * WEIGHT_STRIDE,
                        row_exists[:, None],
                        1,
                        source,
                        h_start,
                        MEMBERS * HIDDEN,
                        running,
                        beginning,
                        HIDDEN,
                        size_of(CHUNKS, 0),
                        PRECISION,
                    )
                if WAVEFRONT:
                    if member > 0:
                        below = counter - batch_tiles * COUNTER_STRIDE
                        budget = wait(below, (step + 1) * tl.num_programs(0), budget, MEETING)
                        if DROPOUT:
                            source = (
                                dropped + ((first + tile) * (MEMBERS - 1) + member - 1) * HIDDEN
                            )
                            stride = (MEMBERS - 1) * HIDDEN
                        else:
                            source = y + (row - 1) * HIDDEN
                            stride = MEMBERS * HIDDEN
                        product, budget = held_product(
                            tl.zeros((PADDED * BLOCK_H, BLOCK_B), tl.float32),
                            held_above,
                            source,
                            h_start,
                            stride,
                            active,
                            active & (lane < 0),
                            budget,
                            HIDDEN,
                            CHUNKS,
                            POLLED,
                            MEETING,
                            PRECISION,
                        )
                        tiles = unstack(product, PADDED, BLOCK_H, BLOCK_B)
                        above = bias_above + (member - 1) * (GATES * HIDDEN)
                        shifts = unit_values(above, unit, 0, GATES, HIDDEN)
                        x_below = ()
                        for gate in tl.static_range(GATES):
                            x_below = x_below + (tiles[gate] + shifts[gate],)
                        x = x_below
                new, computed, result = forward_tile(
                    x,
                    unstack(accumulator, padded_gates(GATES_AT, stage), BLOCK_H, BLOCK_B),
                    kept,
                    state,
                    biases,
                    peepholes,
                    zoneout,
                    row,
                    unit,
                    live,
                    stage,
                    FIRST_STAGE,
                    SECOND_STAGE,
                    GATES_AT,
                    ZONEOUT,
                    HIDDEN,
                    MEMBERS,
                )
                kept = kept + new
                # What others wait for goes first.
                if stage < LAST:
                    publish(operand + operand_row * HIDDEN + spread, result[0], live, MEETING)
                else:
                    publish(y + row * HIDDEN + spread, result[0], live, MEETING)
                    if DROPOUT:
                        keeps = keep_tile(
                            seed, order, tile, t, member, unit, active, threshold, DROPOUT
                        )
                        rest = result[0].to(y.dtype.element_ty).to(tl.float32) * scale
                        rest = tl.where(keeps, rest, 0.0)
                        at = ((first + tile) * (MEMBERS - 1) + member) * HIDDEN
                        at += lane[None, :] * ((MEMBERS - 1) * HIDDEN) + unit[:, None]
                        upper = live & (member < MEMBERS - 1)
                        publish(dropped + at, rest, upper, MEETING)
                    if HAS_CELL:
                        tl.store(c_tile, result[1], mask=live)
                arrive(counter, MEETING)
                save_tile(
                    new,
                    computed,
                    result,
                    saved,
                    states,
                    row,
                    unit,
                    live,
                    stage,
                    SAVED_AT,
                    HAS_CELL,
                    ZONEOUT,
                    HIDDEN,
                    MEMBERS,
                    SAVE,
                    SAVE_GATES,
                )
                if stage < LAST and not (SAVE_GATES or TOGETHER):
                    scratch = saved + (tile * MEMBERS + member) * width
                    for i in tl.static_range(len(new)):
                        at = lane[None, :] * (MEMBERS * width)
                        at += ((SAVED_AT[stage] + i) * HIDDEN + unit)[:, None]
                        tl.store(scratch + at, new[i].to(saved.dtype.element_ty), mask=live)
    if TOGETHER:
        tl.store(error, 1, mask=budget <= 0)


@triton.constexpr_function
def hidden_columns(gates_at, columns_at):
    """The first gradient column that belongs to `weight_hh`: those lie last, in weight order."""
    return columns_at[-1] - gates_at[-1]


@triton.jit(
    do_not_specialize=[
        "threshold",
        "scale",
        "first_member",
        "reverse",
        "begin",
        "end",
        "steps",
        "batch",
        "budget",
    ]
)
def stepping_backward(
    dy,
    dh_n,
    carry_gradient,
    weight_hh,
    cell_weights,
    h0,
    c0,
    zoneout,
    y,
    saved,
    states,
    columns,
    batch_sizes,
    offsets,
    weight_above,
    seed,
    order,
    threshold: tl.int64,
    scale: tl.float32,
    counters,
    error,
    first_member,
    reverse,
    begin,
    end,
    steps,
    batch,
    budget,
    FIRST_STAGE: tl.constexpr,
    SECOND_STAGE: tl.constexpr,
    STAGES: tl.constexpr,
    GATES_AT: tl.constexpr,
    SAVED: tl.constexpr,
    COLUMNS_AT: tl.constexpr,
    WEIGHTS: tl.constexpr,
    CELL_CARRIES: tl.constexpr,
    CARRIES: tl.constexpr,
    HIDDEN_CARRY: tl.constexpr,
    CELL_CARRY: tl.constexpr,
    ZONEOUT: tl.constexpr,
    HIDDEN: tl.constexpr,
    MEMBERS: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    RAGGED: tl.constexpr,
    WAVEFRONT: tl.constexpr,
    DROPOUT: tl.constexpr,
    INPUT_COLUMN: tl.constexpr,
    MEETING: tl.constexpr,
    CHUNKS: tl.constexpr,
    POLLED: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Stages STAGES, last first, of steps begin to end, counted from the one processed last.

    Grid, order and WAVEFRONT as in `stepping_forward`. `carry_gradient` (carries, M, B, H) is
    updated in place. With WAVEFRONT dy (N, H) is that of the last layer, and the rows of
    `weight_above` lie as the gradient columns from INPUT_COLUMN do.
    """
    LAST: tl.constexpr = len(GATES_AT) - 2
    TOGETHER: tl.constexpr = MEETING != "launch"
    HAS_CELL: tl.constexpr = CELL_CARRY >= 0
    WIDTH: tl.constexpr = COLUMNS_AT[LAST + 1] * HIDDEN
    member = first_member + tl.program_id(2)
    backwards = reverse if WAVEFRONT else (member + reverse) % 2
    member_rows = member.to(tl.int64) * batch
    unit = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = unit < HIDDEN
    lane = tl.arange(0, BLOCK_B)
    here = lane[None, :] * HIDDEN + unit[:, None]
    parameters = cell_weights + member * (WEIGHTS * HIDDEN)
    member_weight = weight_hh + member.to(tl.int64) * (GATES_AT[LAST + 1] * HIDDEN * WEIGHT_STRIDE)
    held = ()
    if TOGETHER:
        for product in tl.static_range(LAST + 1):
            weight = member_weight + GATES_AT[product] * HIDDEN * WEIGHT_STRIDE + unit[:, None]
            held = held + (
                split_weights(
                    weight,
                    inside[:, None],
                    WEIGHT_STRIDE,
                    count_of(GATES_AT, product) * HIDDEN,
                    entry_of(CHUNKS, product),
                    SPLIT,
                ),
            )
    if WAVEFRONT:
        DEPTH: tl.constexpr = GATES_AT[1] * HIDDEN
        weight = weight_above + member.to(tl.int64) * (DEPTH * WEIGHT_STRIDE) + unit[:, None]
        exists = inside[:, None] & (member < MEMBERS - 1)
        depths: tl.constexpr = entry_of(CHUNKS, 0)
        held_above = split_weights(weight, exists, WEIGHT_STRIDE, DEPTH, depths, SPLIT)

    batch_tiles = tl.cdiv(batch, BLOCK_B)
    for step in tl.range(begin, end, disable_licm=True):
        t = tl.where(backwards == 1, step, steps - 1 - step)
        earlier = t - 1 + 2 * backwards
        later = t + 1 - 2 * backwards
        first, count = step_rows(t, steps, batch, batch_sizes, offsets, RAGGED)
        first_before, count_before = step_rows(earlier, steps, batch, batch_sizes, offsets, RAGGED)
        first_after, count_after = step_rows(later, steps, batch, batch_sizes, offsets, RAGGED)
        for tile_index in tl.range(
            tl.program_id(1), batch_tiles, tl.num_programs(1), disable_licm=True
        ):
            tile = tile_index * tl.full((), BLOCK_B, tl.int64)
            active = tile + lane < count
            live = inside[:, None] & active[None, :]
            row = (first + tile) * MEMBERS + member
            row_after = (first_after + tile) * MEMBERS + member
            if TOGETHER:
                counter = counters + (member * batch_tiles + tile_index) * COUNTER_STRIDE
            else:
                counter = counters
            for stage in tl.static_range(entry_of(STAGES, 1) - 1, entry_of(STAGES, 0) - 1, -1):
                # What no other program writes comes first: it arrives while the others finish.
                settle(MEETING)
                kept, before, after = states_around(
                    h0 + (member_rows + tile) * HIDDEN,
                    c0 if c0 is None else c0 + (member_rows + tile) * HIDDEN,
                    y,
                    saved,
                    states,
                    row,
                    (first_before + tile) * MEMBERS + member,
                    unit,
                    live,
                    active & (tile + lane < count_before),
                    active & (tile + lane >= count_before),
                    SAVED,
                    HAS_CELL,
                    ZONEOUT,
                    HIDDEN,
                    MEMBERS,
                )
                carry = ()
                for n in tl.static_range(CARRIES):
                    at = carry_gradient + (n * MEMBERS * batch + member_rows + tile) * HIDDEN + here
                    carry = carry + (tl.load(at, mask=live, other=0.0),)
                if stage == LAST:
                    going_on = active & (tile + lane < count_after)
                    source = columns + row_after * WIDTH
                    ending = active & (tile + lane >= count_after)
                    if WAVEFRONT:
                        top = live & (member == MEMBERS - 1)
                        dy_tile = dy + (first + tile) * HIDDEN + here
                    else:
                        top = live
                        dy_tile = dy + row * HIDDEN + lane[None, :] * (MEMBERS * HIDDEN)
                        dy_tile += unit[:, None]
                    last = dh_n + (member_rows + tile) * HIDDEN + here
                    gradient = arriving_gradient(dy_tile, top, last, live & ending[None, :])
                else:
                    going_on = active
                    source = columns + row * WIDTH
                    gradient = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
                product_at = start_of(GATES_AT, product_of(GATES_AT, stage))
                read = source + (product_at + hidden_columns(GATES_AT, COLUMNS_AT)) * HIDDEN
                meetings = step * (LAST + 1) + LAST - stage
                budget = wait(counter, meetings * tl.num_programs(0), budget, MEETING)
                if TOGETHER:
                    gradient, budget = split_product(
                        gradient,
                        held[product_of(GATES_AT, stage)],
                        read,
                        MEMBERS * WIDTH,
                        going_on,
                        budget,
                        count_of(GATES_AT, product_of(GATES_AT, stage)) * HIDDEN,
                        entry_of(CHUNKS, product_of(GATES_AT, stage)),
                        POLLED,
                        SPLIT,
                        MEETING,
                        PRECISION,
                    )
                else:
                    gradient += streamed_product(
                        tl.zeros((BLOCK_H, BLOCK_B), tl.float32),
                        member_weight + product_at * HIDDEN * WEIGHT_STRIDE + unit[:, None],
                        inside[:, None],
                        WEIGHT_STRIDE,
                        read,
                        read,
                        MEMBERS * WIDTH,
                        going_on,
                        active & (lane < 0),
                        count_of(GATES_AT, product_of(GATES_AT, stage)) * HIDDEN,
                        size_of(entry_of(CHUNKS, product_of(GATES_AT, stage)), 0),
                        PRECISION,
                    )
                if WAVEFRONT:
                    if member < MEMBERS - 1:
                        above = counter + batch_tiles * COUNTER_STRIDE
                        budget = wait(above, (step + 1) * tl.num_programs(0), budget, MEETING)
                        handed, budget = split_product(
                            tl.zeros((BLOCK_H, BLOCK_B), tl.float32),
                            held_above,
                            columns + (row + 1) * WIDTH + INPUT_COLUMN * HIDDEN,
                            MEMBERS * WIDTH,
                            active,
                            budget,
                            DEPTH,
                            depths,
                            POLLED,
                            SPLIT,
                            MEETING,
                            PRECISION,
                        )
                        if DROPOUT:
                            keeps = keep_tile(
                                seed, order, tile, t, member, unit, active, threshold, DROPOUT
                            )
                            handed = tl.where(keeps, handed * scale, 0.0)
                        gradient += handed
                _, carry = backward_tile(
                    gradient,
                    carry,
                    kept,
                    before,
                    after,
                    parameters,
                    zoneout,
                    columns,
                    row,
                    unit,
                    live,
                    stage,
                    FIRST_STAGE,
                    SECOND_STAGE,
                    COLUMNS_AT,
                    WEIGHTS,
                    CELL_CARRIES,
                    CARRIES,
                    HIDDEN_CARRY,
                    CELL_CARRY,
                    ZONEOUT,
                    HIDDEN,
                    MEMBERS,
                    MEETING,
                )
                for n in tl.static_range(CARRIES):
                    at = carry_gradient + (n * MEMBERS * batch + member_rows + tile) * HIDDEN + here
                    tl.store(at, carry[n], mask=live)
                arrive(counter, MEETING)
    if TOGETHER:
        tl.store(error, 1, mask=budget <= 0)
