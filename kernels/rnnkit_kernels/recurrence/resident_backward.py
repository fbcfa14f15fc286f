"""The time loop of `resident_forward.py` in the opposite order: the gradients."""

import triton
import triton.language as tl

from rnnkit_kernels.recurrence.arguments import (
    Before,
    Gradients,
    Place,
    State,
    StepRows,
    Storage,
    Weights,
)
from rnnkit_kernels.recurrence.layout import (
    chunks_of,
    count_of,
    end_of,
    product_of,
    size_of,
    start_of,
    step_rows,
)
from rnnkit_kernels.recurrence.products import resident_product
from rnnkit_kernels.recurrence.tiles import arriving_gradient, backward_tile, states_around


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
    gradients: Gradients,
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
):
    """All steps of a tile of sequences. Columns stay in registers as one tile a gate and chunk.

    Grid: tiles of sequences, members.
    """
    BLOCK_B: tl.constexpr = TILES.block_b
    CHUNKS: tl.constexpr = chunks_of(TILES, 0)
    PRECISION: tl.constexpr = TILES.precision
    PARTS: tl.constexpr = len(CHUNKS)
    STAGES: tl.constexpr = LAYER.stages
    HIDDEN: tl.constexpr = LAYER.hidden
    MEMBERS: tl.constexpr = LAYER.members
    STRIDE: tl.constexpr = LAYER.weight_stride
    CARRIES: tl.constexpr = LAYER.carries
    columns, carried = gradients.columns, gradients.carry
    member = tl.program_id(1)
    backwards = (member + reverse) % 2
    lane = tl.arange(0, BLOCK_B)
    tile = tl.program_id(0).to(tl.int64) * BLOCK_B
    exists = tile + lane < batch
    member_rows = member.to(tl.int64) * batch
    cell_weights = weights.cell_weights + member * (LAYER.cell_weights * HIDDEN)
    weight_hh = weights.weight_hh + member.to(tl.int64) * (LAYER.gates * HIDDEN * STRIDE)

    # In the order of `first_weight`.
    held = ()
    columns_before = ()
    for product in tl.static_range(STAGES):
        for i in tl.static_range(PARTS):
            unit = CHUNKS[i][0] + tl.arange(0, size_of(CHUNKS, i))
            for gate in tl.static_range(
                start_of(LAYER.gates_at, product), end_of(LAYER.gates_at, product)
            ):
                for j in tl.static_range(PARTS):
                    k = CHUNKS[j][0] + tl.arange(0, size_of(CHUNKS, j))
                    at = (gate * HIDDEN + k)[None, :] * STRIDE + unit[:, None]
                    mask = (unit < HIDDEN)[:, None] & (k < HIDDEN)[None, :]
                    held = held + (tl.load(weight_hh + at, mask=mask, other=0.0),)
    for gate in tl.static_range(start_of(LAYER.gates_at, 0), end_of(LAYER.gates_at, 0)):  # noqa: B007
        for j in tl.static_range(PARTS):
            zeros = tl.zeros((size_of(CHUNKS, j), BLOCK_B), columns.dtype.element_ty)
            columns_before = columns_before + (zeros,)
    carry = ()
    for i in tl.static_range(PARTS):
        unit = CHUNKS[i][0] + tl.arange(0, size_of(CHUNKS, i))
        mask = (unit < HIDDEN)[:, None] & exists[None, :]
        here = lane[None, :] * HIDDEN + unit[:, None]
        of_chunk = ()
        for n in tl.static_range(CARRIES):
            at = carried + (n * MEMBERS * batch + member_rows + tile) * HIDDEN + here
            of_chunk = of_chunk + (tl.load(at, mask=mask, other=0.0),)
        carry = carry + (of_chunk,)

    for step in tl.range(steps, disable_licm=True):
        t = tl.where(backwards == 1, step, steps - 1 - step)
        earlier = t - 1 + 2 * backwards
        later = t + 1 - 2 * backwards
        first, count = step_rows(t, steps, batch, rows, LAYER.ragged)
        first_before, count_before = step_rows(earlier, steps, batch, rows, LAYER.ragged)
        _, count_after = step_rows(later, steps, batch, rows, LAYER.ragged)
        active = tile + lane < count
        row = (first + tile) * MEMBERS + member
        operand = columns_before
        # Entry n holds the tiles of column n, in chunk order; stages fill it from the last down.
        step_columns = ()
        for stage in tl.static_range(STAGES - 1, -1, -1):
            new_columns = ((),) * count_of(LAYER.columns_at, stage)
            new_carry = ()
            for i in tl.static_range(PARTS):
                unit = CHUNKS[i][0] + tl.arange(0, size_of(CHUNKS, i))
                live = (unit < HIDDEN)[:, None] & active[None, :]
                if stage == STAGES - 1:
                    ending = active & (tile + lane >= count_after)
                    here = lane[None, :] * HIDDEN + unit[:, None]
                    spread = lane[None, :] * (MEMBERS * HIDDEN) + unit[:, None]
                    last = gradients.h_n + (member_rows + tile) * HIDDEN + here
                    gradient = arriving_gradient(
                        gradients.y + row * HIDDEN + spread, live, last, live & ending[None, :]
                    )
                else:
                    gradient = tl.zeros((size_of(CHUNKS, i), BLOCK_B), tl.float32)
                gradient = resident_product(
                    gradient,
                    held,
                    first_weight(LAYER.gates_at, product_of(LAYER.gates_at, stage), PARTS, i),
                    operand,
                    PRECISION,
                )
                place = Place(row, unit, live)
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
                new, new_c = backward_tile(
                    gradient,
                    carry[i],
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
                    "launch",
                )
                joined = ()
                for n in tl.static_range(count_of(LAYER.columns_at, stage)):
                    joined = joined + (new_columns[n] + (new[n],),)
                new_columns = joined
                remaining = ()
                for n in tl.static_range(CARRIES):
                    remaining = remaining + (tl.where(active[None, :], new_c[n], carry[i][n]),)
                new_carry = new_carry + (remaining,)
            carry = new_carry
            step_columns = new_columns + step_columns
            operand = ()
            for n in tl.static_range(count_of(LAYER.gates_at, stage)):
                operand = (
                    operand + step_columns[first_read(LAYER.gates_at, LAYER.columns_at, stage) + n]
                )
        columns_before = operand

    for i in tl.static_range(PARTS):
        unit = CHUNKS[i][0] + tl.arange(0, size_of(CHUNKS, i))
        mask = (unit < HIDDEN)[:, None] & exists[None, :]
        here = lane[None, :] * HIDDEN + unit[:, None]
        for n in tl.static_range(CARRIES):
            at = carried + (n * MEMBERS * batch + member_rows + tile) * HIDDEN + here
            tl.store(at, carry[i][n], mask=mask)
