"""The time loop of programs that each own a few units and meet at every step, for any cell.

They meet by leaving the kernel (launch), or inside it (counter and data of `exchange.py`).
"""

import triton
import triton.language as tl

from rnnkit_kernels.recurrence.arguments import (
    Dropout,
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
from rnnkit_kernels.recurrence.exchange import COUNTER_STRIDE, arrive, publish, settle, wait
from rnnkit_kernels.recurrence.layout import (
    chunks_of,
    entry_of,
    padded_gates,
    size_of,
    start_of,
    step_rows,
    unit_values,
    unstack,
)
from rnnkit_kernels.recurrence.products import (
    held_product,
    held_weights,
    stage_weights,
    streamed_product,
)
from rnnkit_kernels.recurrence.tiles import (
    forward_tile,
    gate_tiles,
    keep_tile,
    parameter_tiles,
    save_tile,
)


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
    weights: Weights,
    initial: State,
    zoneout,
    operand,
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
    SAVE: tl.constexpr,
    SAVE_GATES: tl.constexpr,
    WAVEFRONT: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """Stages STAGES of steps begin to end, counted in the order of processing.

    Grid: tiles of units, groups of sequences, members. A program serves the tiles of sequences
    that are congruent to its group, in turn; all programs in the same order, so that no cycle of
    waits can be. `initial.c` is updated in place; h is read from the y before. `operand` carries
    what an earlier stage hands to the next, in rows of the storage, or of one step in launch mode.
    There, with SAVE_GATES off, `storage.saved` is a scratch of one step.

    With WAVEFRONT the members are layers, and x_gates those of the first. The others take the y of
    the layer below at the same step, or with DROPOUT what is left of it, `stack.dropped`.
    """
    MEETING: tl.constexpr = TILES.meeting
    PRECISION: tl.constexpr = TILES.precision
    BLOCK_H: tl.constexpr = TILES.block_h
    BLOCK_B: tl.constexpr = TILES.block_b
    CHUNKS: tl.constexpr = chunks_of(TILES, 0)
    HIDDEN: tl.constexpr = LAYER.hidden
    MEMBERS: tl.constexpr = LAYER.members
    GATES: tl.constexpr = LAYER.gates
    LAST: tl.constexpr = LAYER.stages - 1
    TOGETHER: tl.constexpr = MEETING != "launch"
    X_MEMBERS: tl.constexpr = 1 if WAVEFRONT else MEMBERS
    y, saved = storage.y, storage.saved
    member = first_member + tl.program_id(2)
    backwards = reverse if WAVEFRONT else (member + reverse) % 2
    member_rows = member.to(tl.int64) * batch
    unit_start = tl.program_id(0) * BLOCK_H
    unit = unit_start + tl.arange(0, BLOCK_H)
    inside = (unit < HIDDEN)[:, None]
    lane = tl.arange(0, BLOCK_B)
    nobody = lane < 0
    here = lane[None, :] * HIDDEN + unit[:, None]
    spread = lane[None, :] * (MEMBERS * HIDDEN) + unit[:, None]
    own = Weights(
        bias_hh=weights.bias_hh + member * (GATES * HIDDEN),
        cell_weights=weights.cell_weights + member * (LAYER.cell_weights * HIDDEN),
        weight_hh=weights.weight_hh + member.to(tl.int64) * (GATES * HIDDEN * LAYER.weight_stride),
    )
    held = ()
    if TOGETHER:
        for stage in tl.static_range(LAST + 1):
            weight = stage_weights(own.weight_hh, unit_start, stage, LAYER, BLOCK_H)
            held = held + (held_weights(weight, HIDDEN, CHUNKS),)
    if WAVEFRONT:
        PADDED: tl.constexpr = padded_gates(LAYER.gates_at, 0)
        above = stack.weight_ih
        above += (member - 1).to(tl.int64) * (GATES * HIDDEN * LAYER.weight_stride)
        weight = stage_weights(above, unit_start, 0, LAYER, BLOCK_H)
        weight = WeightRows(weight.at, weight.exist & (member > 0), 1)
        held_above = held_weights(weight, HIDDEN, CHUNKS)

    batch_tiles = tl.cdiv(batch, BLOCK_B)
    for step in tl.range(begin, end, disable_licm=True):
        t = tl.where(backwards == 1, steps - 1 - step, step)
        earlier = t - 1 + 2 * backwards
        first, count = step_rows(t, steps, batch, rows, LAYER.ragged)
        first_before, count_before = step_rows(earlier, steps, batch, rows, LAYER.ragged)
        for tile_index in tl.range(
            tl.program_id(1), batch_tiles, tl.num_programs(1), disable_licm=True
        ):
            tile = tile_index * tl.full((), BLOCK_B, tl.int64)
            active = tile + lane < count
            started = active & (tile + lane < count_before)
            starting = active & (tile + lane >= count_before)
            live = inside & active[None, :]
            row = (first + tile) * MEMBERS + member
            place = Place(row, unit, live)
            h_before = y + ((first_before + tile) * MEMBERS + member) * HIDDEN
            h_start = initial.h + (member_rows + tile) * HIDDEN
            c_tile = initial.c + (member_rows + tile) * HIDDEN + here
            if TOGETHER:
                counter = meeting.counters + (member * batch_tiles + tile_index) * COUNTER_STRIDE
            else:
                counter = meeting.counters
            kept = ()
            width: tl.constexpr = LAYER.saved * HIDDEN
            if entry_of(STAGES, 0) > 0:
                scratch_row = row if SAVE_GATES else tile * MEMBERS + member
                for i in tl.static_range(start_of(LAYER.saved_at, entry_of(STAGES, 0))):
                    at = lane[None, :] * (MEMBERS * width) + (i * HIDDEN + unit)[:, None]
                    value = tl.load(saved + scratch_row * width + at, mask=live, other=0.0)
                    kept = kept + (value.to(tl.float32),)
            for stage in tl.static_range(entry_of(STAGES, 0), entry_of(STAGES, 1)):
                # What no other program writes comes first: it arrives while the others finish.
                settle(MEETING)
                x_row = first + tile if WAVEFRONT else row
                x_live = live & (member == 0) if WAVEFRONT else live
                x = gate_tiles(
                    x_gates + x_row * (GATES * HIDDEN), unit, x_live, stage, LAYER, X_MEMBERS
                )
                h = tl.load(h_before + spread, mask=inside & started[None, :], other=0.0)
                h += tl.load(h_start + here, mask=inside & starting[None, :], other=0.0)
                state = (h.to(tl.float32),)
                if LAYER.has_cell:
                    state = state + (tl.load(c_tile, mask=live, other=0.0),)
                parameters = parameter_tiles(own, unit, stage, LAYER)
                meetings = step * (LAST + 1) + stage
                budget = wait(counter, meetings * tl.num_programs(0), budget, MEETING)
                operand_row = row if TOGETHER else tile * MEMBERS + member
                if stage == 0:
                    source, running, beginning = h_before, started, starting
                else:
                    source = operand + operand_row * HIDDEN
                    running, beginning = active, active & nobody
                read = Operand(source, MEMBERS * HIDDEN, h_start, running, beginning)
                stacked = tl.zeros(
                    (padded_gates(LAYER.gates_at, stage) * BLOCK_H, BLOCK_B), tl.float32
                )
                if TOGETHER:
                    stacked, budget = held_product(
                        stacked, held[stage], read, budget, HIDDEN, CHUNKS, TILES
                    )
                else:
                    stacked = streamed_product(
                        stacked,
                        stage_weights(own.weight_hh, unit_start, stage, LAYER, BLOCK_H),
                        read,
                        HIDDEN,
                        size_of(CHUNKS, 0),
                        PRECISION,
                    )
                if WAVEFRONT:
                    if member > 0:
                        below = counter - batch_tiles * COUNTER_STRIDE
                        budget = wait(below, (step + 1) * tl.num_programs(0), budget, MEETING)
                        if DROPOUT:
                            source = stack.dropped
                            source += ((first + tile) * (MEMBERS - 1) + member - 1) * HIDDEN
                            stride = (MEMBERS - 1) * HIDDEN
                        else:
                            source = y + (row - 1) * HIDDEN
                            stride = MEMBERS * HIDDEN
                        product, budget = held_product(
                            tl.zeros((PADDED * BLOCK_H, BLOCK_B), tl.float32),
                            held_above,
                            Operand(source, stride, h_start, active, active & nobody),
                            budget,
                            HIDDEN,
                            CHUNKS,
                            TILES,
                        )
                        tiles = unstack(product, PADDED, BLOCK_H, BLOCK_B)
                        bias_above = stack.bias_ih + (member - 1) * (GATES * HIDDEN)
                        shifts = unit_values(bias_above, unit, 0, GATES, HIDDEN)
                        x_below = ()
                        for gate in tl.static_range(GATES):
                            x_below = x_below + (tiles[gate] + shifts[gate],)
                        x = x_below
                new, computed, result = forward_tile(
                    x,
                    unstack(stacked, padded_gates(LAYER.gates_at, stage), BLOCK_H, BLOCK_B),
                    kept,
                    state,
                    parameters,
                    zoneout,
                    place,
                    stage,
                    FIRST_STAGE,
                    SECOND_STAGE,
                    LAYER,
                )
                kept = kept + new
                # What others wait for goes first.
                if stage < LAST:
                    publish(operand + operand_row * HIDDEN + spread, result[0], live, MEETING)
                else:
                    publish(y + row * HIDDEN + spread, result[0], live, MEETING)
                    if DROPOUT:
                        keeps = keep_tile(
                            dropout, threshold, tile, t, member, unit, active, DROPOUT
                        )
                        rest = result[0].to(y.dtype.element_ty).to(tl.float32) * scale
                        rest = tl.where(keeps, rest, 0.0)
                        at = ((first + tile) * (MEMBERS - 1) + member) * HIDDEN
                        at += lane[None, :] * ((MEMBERS - 1) * HIDDEN) + unit[:, None]
                        upper = live & (member < MEMBERS - 1)
                        publish(stack.dropped + at, rest, upper, MEETING)
                    if LAYER.has_cell:
                        tl.store(c_tile, result[1], mask=live)
                arrive(counter, MEETING)
                save_tile(new, computed, result, storage, place, stage, LAYER, SAVE, SAVE_GATES)
                if stage < LAST and not (SAVE_GATES or TOGETHER):
                    scratch = saved + (tile * MEMBERS + member) * width
                    for i in tl.static_range(len(new)):
                        at = lane[None, :] * (MEMBERS * width)
                        at += ((LAYER.saved_at[stage] + i) * HIDDEN + unit)[:, None]
                        tl.store(scratch + at, new[i].to(saved.dtype.element_ty), mask=live)
    if TOGETHER:
        tl.store(meeting.error, 1, mask=budget <= 0)
