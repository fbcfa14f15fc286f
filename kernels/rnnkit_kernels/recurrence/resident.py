"""The time loop of programs that own all units of their sequences, for any cell."""

import triton
import triton.language as tl

from rnnkit_kernels.recurrence.layout import (
    count_of,
    end_of,
    gate_rows,
    padded_gates,
    product_of,
    size_of,
    start_of,
    step_rows,
    unstack,
)
from rnnkit_kernels.recurrence.products import held_weights, resident_product
from rnnkit_kernels.recurrence.tiles import (
    arriving_gradient,
    backward_tile,
    forward_tile,
    gate_tiles,
    parameter_tiles,
    save_tile,
    states_around,
)


@triton.jit(do_not_specialize=["reverse", "steps", "batch"])
def resident_forward(
    x_gates,
    weight_hh,
    bias_hh,
    cell_weights,
    h0,
    cell_state,
    zoneout,
    y,
    saved,
    states,
    batch_sizes,
    offsets,
    reverse,
    steps,
    batch,
    FIRST_STAGE: tl.constexpr,
    SECOND_STAGE: tl.constexpr,
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
    CHUNKS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All steps of BLOCK_B sequences. CHUNKS are (first unit, size) tiles that cover HIDDEN.

    Grid: tiles of sequences, members.
    """
    STAGES: tl.constexpr = len(GATES_AT) - 1
    GATES: tl.constexpr = GATES_AT[STAGES]
    member = tl.program_id(1)
    backwards = (member + reverse) % 2
    lane = tl.arange(0, BLOCK_B)
    tile = tl.program_id(0).to(tl.int64) * BLOCK_B
    exists = tile + lane < batch
    member_rows = member.to(tl.int64) * batch
    h_start = h0 + (member_rows + tile) * HIDDEN
    c_tile = cell_state + (member_rows + tile) * HIDDEN
    bias = bias_hh + member * (GATES * HIDDEN)
    parameters = cell_weights + member * (WEIGHTS * HIDDEN)
    member_weight = weight_hh + member.to(tl.int64) * (GATES * HIDDEN * WEIGHT_STRIDE)

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
            weight = (
                member_weight + (GATES_AT[stage] * HIDDEN + weight_row)[:, None] * WEIGHT_STRIDE
            )
            weights = weights + held_weights(weight, row_exists[:, None], 1, HIDDEN, CHUNKS)
    h = ()
    c = ()
    for i in tl.static_range(len(CHUNKS)):
        unit = CHUNKS[i][0] + tl.arange(0, size_of(CHUNKS, i))
        mask = (unit < HIDDEN)[:, None] & exists[None, :]
        here = lane[None, :] * HIDDEN + unit[:, None]
        h = h + (tl.load(h_start + here, mask=mask, other=0.0),)
        if HAS_CELL:
            c = c + ((tl.load(c_tile + here, mask=mask, other=0.0),),)
        else:
            c = c + ((),)

    for step in tl.range(steps, disable_licm=True):
        t = tl.where(backwards == 1, steps - 1 - step, step)
        first, count = step_rows(t, steps, batch, batch_sizes, offsets, RAGGED)
        active = tile + lane < count
        row = (first + tile) * MEMBERS + member
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
                x = gate_tiles(
                    x_gates + row * (GATES * HIDDEN), unit, live, stage, GATES_AT, HIDDEN, MEMBERS
                )
                biases, peepholes = parameter_tiles(
                    bias, parameters, unit, stage, GATES_AT, WEIGHTS, HIDDEN
                )
                new, computed, result = forward_tile(
                    x,
                    unstack(
                        accumulator, padded_gates(GATES_AT, stage), size_of(CHUNKS, i), BLOCK_B
                    ),
                    kept[i],
                    (h[i].to(tl.float32),) + c[i],
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
                new_kept = new_kept + (kept[i] + new,)
                if stage < STAGES - 1:
                    inner = tl.where(live, result[0], 0.0).to(y.dtype.element_ty)
                    new_operand = new_operand + (inner,)
                else:
                    spread = lane[None, :] * (MEMBERS * HIDDEN) + unit[:, None]
                    rounded = result[0].to(y.dtype.element_ty)
                    tl.store(y + row * HIDDEN + spread, rounded, mask=live)
                    # Also outside HIDDEN, where 0 · ∞ would make NaN that reaches real units.
                    new_h = new_h + (tl.where(live, rounded, h[i]),)
                    if HAS_CELL:
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
            tl.store(c_tile + here, c[i][0], mask=mask)


@triton.constexpr_function
def first_weight(gates_at, product, tiles, i):
    """Where the tiles of unit chunk i of a product begin: gate by gate, chunk by chunk."""
    return (gates_at[product] * tiles + i * (gates_at[product + 1] - gates_at[product])) * tiles


@triton.constexpr_function
def first_read(gates_at, columns_at, stage):
    """First column that product `stage` reads, counted from this stage's first column."""
    return gates_at[stage] + columns_at[-1] - gates_at[-1] - columns_at[stage]


@triton.jit(do_not_specialize=["reverse", "steps", "batch"])
def resident_backward(
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
    reverse,
    steps,
    batch,
    FIRST_STAGE: tl.constexpr,
    SECOND_STAGE: tl.constexpr,
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
    CHUNKS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All steps of BLOCK_B sequences. Columns stay in registers as one tile a gate and chunk.

    Grid: tiles of sequences, members.
    """
    STAGES: tl.constexpr = len(GATES_AT) - 1
    TILES: tl.constexpr = len(CHUNKS)
    HAS_CELL: tl.constexpr = CELL_CARRY >= 0
    member = tl.program_id(1)
    backwards = (member + reverse) % 2
    lane = tl.arange(0, BLOCK_B)
    tile = tl.program_id(0).to(tl.int64) * BLOCK_B
    exists = tile + lane < batch
    member_rows = member.to(tl.int64) * batch
    parameters = cell_weights + member * (WEIGHTS * HIDDEN)
    member_weight = weight_hh + member.to(tl.int64) * (GATES_AT[STAGES] * HIDDEN * WEIGHT_STRIDE)

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
                    weights = weights + (tl.load(member_weight + at, mask=mask, other=0.0),)
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
            at = carry_gradient + (n * MEMBERS * batch + member_rows + tile) * HIDDEN + here
            of_chunk = of_chunk + (tl.load(at, mask=mask, other=0.0),)
        carry = carry + (of_chunk,)

    for step in tl.range(steps, disable_licm=True):
        t = tl.where(backwards == 1, step, steps - 1 - step)
        earlier = t - 1 + 2 * backwards
        later = t + 1 - 2 * backwards
        first, count = step_rows(t, steps, batch, batch_sizes, offsets, RAGGED)
        first_before, count_before = step_rows(earlier, steps, batch, batch_sizes, offsets, RAGGED)
        _, count_after = step_rows(later, steps, batch, batch_sizes, offsets, RAGGED)
        active = tile + lane < count
        row = (first + tile) * MEMBERS + member
        operand = columns_before
        # Entry n holds the tiles of column n, in chunk order; stages fill it from the last down.
        step_columns = ()
        for stage in tl.static_range(STAGES - 1, -1, -1):
            new_columns = ((),) * count_of(COLUMNS_AT, stage)
            new_carry = ()
            for i in tl.static_range(TILES):
                unit = CHUNKS[i][0] + tl.arange(0, size_of(CHUNKS, i))
                live = (unit < HIDDEN)[:, None] & active[None, :]
                if stage == STAGES - 1:
                    ending = active & (tile + lane >= count_after)
                    here = lane[None, :] * HIDDEN + unit[:, None]
                    spread = lane[None, :] * (MEMBERS * HIDDEN) + unit[:, None]
                    last = dh_n + (member_rows + tile) * HIDDEN + here
                    gradient = arriving_gradient(
                        dy + row * HIDDEN + spread, live, last, live & ending[None, :]
                    )
                else:
                    gradient = tl.zeros((size_of(CHUNKS, i), BLOCK_B), tl.float32)
                gradient = resident_product(
                    gradient,
                    weights,
                    first_weight(GATES_AT, product_of(GATES_AT, stage), TILES, i),
                    operand,
                    PRECISION,
                )
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
                new, new_c = backward_tile(
                    gradient,
                    carry[i],
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
                    "launch",
                )
                joined = ()
                for n in tl.static_range(count_of(COLUMNS_AT, stage)):
                    joined = joined + (new_columns[n] + (new[n],),)
                new_columns = joined
                remaining = ()
                for n in tl.static_range(CARRIES):
                    remaining = remaining + (tl.where(active[None, :], new_c[n], carry[i][n]),)
                new_carry = new_carry + (remaining,)
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
            at = carry_gradient + (n * MEMBERS * batch + member_rows + tile) * HIDDEN + here
            tl.store(at, carry[i][n], mask=mask)
