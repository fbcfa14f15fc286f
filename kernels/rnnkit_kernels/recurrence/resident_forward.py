"""The time loop of programs that own all units of their sequences, for any cell."""

import triton
import triton.language as tl

from rnnkit_kernels.recurrence.arguments import (
    Place,
    State,
    StepRows,
    Storage,
    Weights,
)
from rnnkit_kernels.recurrence.layout import (
    chunks_of,
    padded_gates,
    size_of,
    step_rows,
    unstack,
)
from rnnkit_kernels.recurrence.products import held_weights, resident_product, stage_weights
from rnnkit_kernels.recurrence.tiles import (
    forward_tile,
    gate_tiles,
    parameter_tiles,
    save_tile,
)


@triton.jit(do_not_specialize=["reverse", "steps", "batch"])
def resident_forward(
    x_gates,
    weights: Weights,
    initial: State,
    zoneout,
    storage: Storage,
    rows: StepRows,
    reverse,
    steps,
    batch,
    FIRST_STAGE: tl.constexpr,
    SECOND_STAGE: tl.constexpr,
    LAYER: tl.constexpr,
    TILES: tl.constexpr,
    SAVE: tl.constexpr,
    SAVE_GATES: tl.constexpr,
):
    """All steps of a tile of sequences; `initial.c` is updated in place.

    Grid: tiles of sequences, members.
    """
    BLOCK_B: tl.constexpr = TILES.block_b
    CHUNKS: tl.constexpr = chunks_of(TILES, 0)
    PRECISION: tl.constexpr = TILES.precision
    STAGES: tl.constexpr = LAYER.stages
    GATES: tl.constexpr = LAYER.gates
    HIDDEN: tl.constexpr = LAYER.hidden
    MEMBERS: tl.constexpr = LAYER.members
    y = storage.y
    member = tl.program_id(1)
    backwards = (member + reverse) % 2
    lane = tl.arange(0, BLOCK_B)
    tile = tl.program_id(0).to(tl.int64) * BLOCK_B
    exists = tile + lane < batch
    member_rows = member.to(tl.int64) * batch
    h_start = initial.h + (member_rows + tile) * HIDDEN
    c_tile = initial.c + (member_rows + tile) * HIDDEN
    own = Weights(
        bias_hh=weights.bias_hh + member * (GATES * HIDDEN),
        cell_weights=weights.cell_weights + member * (LAYER.cell_weights * HIDDEN),
        weight_hh=weights.weight_hh + member.to(tl.int64) * (GATES * HIDDEN * LAYER.weight_stride),
    )

    held = ()
    for stage in tl.static_range(STAGES):
        for i in tl.static_range(len(CHUNKS)):
            weight = stage_weights(own.weight_hh, CHUNKS[i][0], stage, LAYER, size_of(CHUNKS, i))
            held = held + held_weights(weight, HIDDEN, CHUNKS)
    h = ()
    c = ()
    for i in tl.static_range(len(CHUNKS)):
        unit = CHUNKS[i][0] + tl.arange(0, size_of(CHUNKS, i))
        mask = (unit < HIDDEN)[:, None] & exists[None, :]
        here = lane[None, :] * HIDDEN + unit[:, None]
        h = h + (tl.load(h_start + here, mask=mask, other=0.0),)
        if LAYER.has_cell:
            c = c + ((tl.load(c_tile + here, mask=mask, other=0.0),),)
        else:
            c = c + ((),)

    for step in tl.range(steps, disable_licm=True):
        t = tl.where(backwards == 1, steps - 1 - step, step)
        first, count = step_rows(t, steps, batch, rows, LAYER.ragged)
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
                place = Place(row, unit, live)
                stacked = resident_product(
                    tl.zeros(
                        (padded_gates(LAYER.gates_at, stage) * size_of(CHUNKS, i), BLOCK_B),
                        tl.float32,
                    ),
                    held,
                    (stage * len(CHUNKS) + i) * len(CHUNKS),
                    operand,
                    PRECISION,
                )
                x_row = x_gates + row * (GATES * HIDDEN)
                x = gate_tiles(x_row, unit, live, stage, LAYER, MEMBERS)
                parameters = parameter_tiles(own, unit, stage, LAYER)
                new, computed, result = forward_tile(
                    x,
                    unstack(
                        stacked, padded_gates(LAYER.gates_at, stage), size_of(CHUNKS, i), BLOCK_B
                    ),
                    kept[i],
                    (h[i].to(tl.float32),) + c[i],
                    parameters,
                    zoneout,
                    place,
                    stage,
                    FIRST_STAGE,
                    SECOND_STAGE,
                    LAYER,
                )
                save_tile(new, computed, result, storage, place, stage, LAYER, SAVE, SAVE_GATES)
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
                    if LAYER.has_cell:
                        new_c = new_c + ((tl.where(active[None, :], result[1], c[i][0]),),)
                    else:
                        new_c = new_c + ((),)
            operand = new_operand
            kept = new_kept
        h = new_h
        c = new_c

    if LAYER.has_cell:
        for i in tl.static_range(len(CHUNKS)):
            unit = CHUNKS[i][0] + tl.arange(0, size_of(CHUNKS, i))
            mask = (unit < HIDDEN)[:, None] & exists[None, :]
            here = lane[None, :] * HIDDEN + unit[:, None]
            tl.store(c_tile + here, c[i][0], mask=mask)
