"""The time loop of `stepping_forward.py` in the opposite order: the gradients."""

import triton
import triton.language as tl

from rnnkit_kernels.recurrence.arguments import (
    Before,
    Dropout,
    Gradients,
    Meeting,
    Operand,
    Place,
    Stack,
    State,
    StepRows,
    Storage,
    WeightRows,
    Weights,
)
from rnnkit_kernels.recurrence.exchange import COUNTER_STRIDE, arrive, settle, wait
from rnnkit_kernels.recurrence.layout import (
    chunks_of,
    count_of,
    entry_of,
    product_of,
    size_of,
    start_of,
    step_rows,
)
from rnnkit_kernels.recurrence.products import split_product, split_weights, streamed_product
from rnnkit_kernels.recurrence.tiles import (
    arriving_gradient,
    backward_tile,
    keep_tile,
    states_around,
)


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
    gradients: Gradients,
    weights: Weights,
    initial: State,
    zoneout,
    storage: Storage,
    rows: StepRows,
    stack: Stack,
    dropout: Dropout,
    threshold: tl.int64,
    scale: tl.float32,
    meeting: Meeting,
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
    LAYER: tl.constexpr,
    TILES: tl.constexpr,
    WAVEFRONT: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """Stages STAGES, last first, of steps begin to end, counted from the one processed last.

    Grid, order and WAVEFRONT as in `stepping_forward`. The rows of `stack.weight_ih` lie as the
    gradient columns from `LAYER.input_column` do.
    """
    MEETING: tl.constexpr = TILES.meeting
    PRECISION: tl.constexpr = TILES.precision
    BLOCK_H: tl.constexpr = TILES.block_h
    BLOCK_B: tl.constexpr = TILES.block_b
    HIDDEN: tl.constexpr = LAYER.hidden
    MEMBERS: tl.constexpr = LAYER.members
    STRIDE: tl.constexpr = LAYER.weight_stride
    CARRIES: tl.constexpr = LAYER.carries
    LAST: tl.constexpr = LAYER.stages - 1
    TOGETHER: tl.constexpr = MEETING != "launch"
    WIDTH: tl.constexpr = LAYER.columns * HIDDEN
    columns, carried = gradients.columns, gradients.carry
    member = first_member + tl.program_id(2)
    backwards = reverse if WAVEFRONT else (member + reverse) % 2
    member_rows = member.to(tl.int64) * batch
    unit = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = unit < HIDDEN
    lane = tl.arange(0, BLOCK_B)
    nobody = lane < 0
    here = lane[None, :] * HIDDEN + unit[:, None]
    cell_weights = weights.cell_weights + member * (LAYER.cell_weights * HIDDEN)
    weight_hh = weights.weight_hh + member.to(tl.int64) * (LAYER.gates * HIDDEN * STRIDE)
    held = ()
    if TOGETHER:
        for product in tl.static_range(LAST + 1):
            first_column = weight_hh + LAYER.gates_at[product] * HIDDEN * STRIDE + unit[:, None]
            weight = split_weights(
                WeightRows(first_column, inside[:, None], STRIDE),
                count_of(LAYER.gates_at, product) * HIDDEN,
                chunks_of(TILES, product),
                TILES.split,
            )
            held = held + (weight,)
    if WAVEFRONT:
        DEPTH: tl.constexpr = LAYER.gates_at[1] * HIDDEN
        depths: tl.constexpr = chunks_of(TILES, 0)
        first_column = stack.weight_ih + member.to(tl.int64) * (DEPTH * STRIDE) + unit[:, None]
        exist = inside[:, None] & (member < MEMBERS - 1)
        held_above = split_weights(
            WeightRows(first_column, exist, STRIDE), DEPTH, depths, TILES.split
        )

    batch_tiles = tl.cdiv(batch, BLOCK_B)
    for step in tl.range(begin, end, disable_licm=True):
        t = tl.where(backwards == 1, step, steps - 1 - step)
        earlier = t - 1 + 2 * backwards
        later = t + 1 - 2 * backwards
        first, count = step_rows(t, steps, batch, rows, LAYER.ragged)
        first_before, count_before = step_rows(earlier, steps, batch, rows, LAYER.ragged)
        first_after, count_after = step_rows(later, steps, batch, rows, LAYER.ragged)
        for tile_index in tl.range(
            tl.program_id(1), batch_tiles, tl.num_programs(1), disable_licm=True
        ):
            tile = tile_index * tl.full((), BLOCK_B, tl.int64)
            active = tile + lane < count
            live = inside[:, None] & active[None, :]
            row = (first + tile) * MEMBERS + member
            row_after = (first_after + tile) * MEMBERS + member
            place = Place(row, unit, live)
            if TOGETHER:
                counter = meeting.counters + (member * batch_tiles + tile_index) * COUNTER_STRIDE
            else:
                counter = meeting.counters
            for stage in tl.static_range(entry_of(STAGES, 1) - 1, entry_of(STAGES, 0) - 1, -1):
                # What no other program writes comes first: it arrives while the others finish.
                settle(MEETING)
                at_start = (member_rows + tile) * HIDDEN
                kept, before, after = states_around(
                    State(
                        initial.h + at_start, initial.c + at_start if LAYER.has_cell else initial.c
                    ),
                    storage,
                    place,
                    Before(
                        (first_before + tile) * MEMBERS + member,
                        active & (tile + lane < count_before),
                        active & (tile + lane >= count_before),
                    ),
                    LAYER,
                )
                carry = ()
                for n in tl.static_range(CARRIES):
                    at = carried + (n * MEMBERS * batch + member_rows + tile) * HIDDEN + here
                    carry = carry + (tl.load(at, mask=live, other=0.0),)
                if stage == LAST:
                    going_on = active & (tile + lane < count_after)
                    source = columns + row_after * WIDTH
                    ending = active & (tile + lane >= count_after)
                    if WAVEFRONT:
                        top = live & (member == MEMBERS - 1)
                        dy_tile = gradients.y + (first + tile) * HIDDEN + here
                    else:
                        top = live
                        dy_tile = gradients.y + row * HIDDEN + lane[None, :] * (MEMBERS * HIDDEN)
                        dy_tile += unit[:, None]
                    last = gradients.h_n + (member_rows + tile) * HIDDEN + here
                    gradient = arriving_gradient(dy_tile, top, last, live & ending[None, :])
                else:
                    going_on = active
                    source = columns + row * WIDTH
                    gradient = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
                product_at = start_of(LAYER.gates_at, product_of(LAYER.gates_at, stage))
                source += (product_at + hidden_columns(LAYER.gates_at, LAYER.columns_at)) * HIDDEN
                read = Operand(source, MEMBERS * WIDTH, source, going_on, active & nobody)
                meetings = step * (LAST + 1) + LAST - stage
                budget = wait(counter, meetings * tl.num_programs(0), budget, MEETING)
                if TOGETHER:
                    gradient, budget = split_product(
                        gradient,
                        held[product_of(LAYER.gates_at, stage)],
                        read,
                        budget,
                        count_of(LAYER.gates_at, product_of(LAYER.gates_at, stage)) * HIDDEN,
                        chunks_of(TILES, product_of(LAYER.gates_at, stage)),
                        TILES,
                    )
                else:
                    rows_at = weight_hh + product_at * HIDDEN * STRIDE + unit[:, None]
                    gradient += streamed_product(
                        tl.zeros((BLOCK_H, BLOCK_B), tl.float32),
                        WeightRows(rows_at, inside[:, None], STRIDE),
                        read,
                        count_of(LAYER.gates_at, product_of(LAYER.gates_at, stage)) * HIDDEN,
                        size_of(chunks_of(TILES, product_of(LAYER.gates_at, stage)), 0),
                        PRECISION,
                    )
                if WAVEFRONT:
                    if member < MEMBERS - 1:
                        above = counter + batch_tiles * COUNTER_STRIDE
                        budget = wait(above, (step + 1) * tl.num_programs(0), budget, MEETING)
                        source = columns + (row + 1) * WIDTH + LAYER.input_column * HIDDEN
                        handed, budget = split_product(
                            tl.zeros((BLOCK_H, BLOCK_B), tl.float32),
                            held_above,
                            Operand(source, MEMBERS * WIDTH, source, active, active & nobody),
                            budget,
                            DEPTH,
                            depths,
                            TILES,
                        )
                        if DROPOUT:
                            keeps = keep_tile(
                                dropout, threshold, tile, t, member, unit, active, DROPOUT
                            )
                            handed = tl.where(keeps, handed * scale, 0.0)
                        gradient += handed
                _, carry = backward_tile(
                    gradient,
                    carry,
                    kept,
                    before,
                    after,
                    cell_weights,
                    zoneout,
                    columns,
                    place,
                    stage,
                    FIRST_STAGE,
                    SECOND_STAGE,
                    LAYER,
                    MEETING,
                )
                for n in tl.static_range(CARRIES):
                    at = carried + (n * MEMBERS * batch + member_rows + tile) * HIDDEN + here
                    tl.store(at, carry[n], mask=live)
                arrive(counter, MEETING)
    if TOGETHER:
        tl.store(meeting.error, 1, mask=budget <= 0)
