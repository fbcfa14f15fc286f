"""The recurrence backward, in Triton, for any cell: last step processed first.

    ∂L/∂h_t       = dy_t + W_hhᵀ columns_{t+1} + carry
    columns_t     = ∂L/∂(pre-activations of step t)

Gradients of the inputs, weights and biases are products over all steps, taken after the loop. The
kernels are in `stepping_backward.py` and `resident_backward.py`; members M as in `forward.py`.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from rnnkit_kernels.cells import Cell
from rnnkit_kernels.recurrence.arguments import (
    Gradients,
    Layer,
    Meeting,
    Stack,
    State,
    StepRows,
    Storage,
    Tiling,
    Weights,
)
from rnnkit_kernels.recurrence.exchange import blank_exchange, launch_together
from rnnkit_kernels.recurrence.forward import ALONE, Above, wavefront_constants
from rnnkit_kernels.recurrence.layout import aligned, padded_rows, stage_functions
from rnnkit_kernels.recurrence.plan import Plan
from rnnkit_kernels.recurrence.resident_backward import resident_backward
from rnnkit_kernels.recurrence.rows import Rows
from rnnkit_kernels.recurrence.stepping_backward import stepping_backward


def backward_constants(
    cell: Cell, plan: Plan, layer: Layer, wavefront: bool = False, dropout: bool = False
) -> dict[str, Any]:
    """The kernel's compile-time arguments; STAGES of `stepping_backward` is left to the caller."""
    return {
        **stage_functions(cell.backward),
        "LAYER": layer,
        "TILES": Tiling.of(plan, "backward"),
        **wavefront_constants(plan, wavefront, dropout),
    }


def backward(
    cell: Cell,
    plan: Plan,
    dy: Tensor,
    dh_n: Tensor,
    dc_n: Tensor | None,
    weight_hh: Tensor,
    cell_weights: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    zoneout: Tensor | None,
    rows: Rows,
    reverse: bool,
    y: Tensor,
    saved: Tensor,
    states: Tensor,
    above: Above | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the kernels.

    Args:
        dy: (N, M, H); in a wavefront of the last layer only, (N, H).
        dh_n: (M, B, H).
        dc_n: (M, B, H) float32, or None.
        y: (N, M, H), saved (N, M, S, H), states (N, M, slots, H): as `forward` returned them; the
            rest as `forward` took it.

    Returns:
        columns (N, M, R, H), gradients of the pre-activations, zero in rows of no step; and the
        carry at the start of each sequence, (carries, M, B, H) float32, in `Cell.carried`'s order.

    Raises:
        RuntimeError: programs waited for each other in vain.
    """
    count, members, hidden = y.shape
    padded = rows.batch_sizes is not None and count == rows.steps * rows.batch
    shape = (count, members, cell.columns_at[-1], hidden)
    if plan.mode == "data":
        columns = blank_exchange(shape, rows if padded else None, y.dtype, y.device)
    else:
        fresh = torch.zeros if padded else torch.empty
        columns = fresh(shape, dtype=y.dtype, device=y.device)
    names = cell.carried(zoneout is not None)
    carry = y.new_zeros(len(names), members, rows.batch, hidden, dtype=torch.float32)
    if dc_n is not None:
        carry[names.index("cell")] = dc_n
    weight = padded_rows(weight_hh)
    parameters = weight if cell_weights is None else aligned(cell_weights)
    given = (
        Gradients(aligned(dy), aligned(dh_n), carry, columns),
        Weights(weight, None, parameters),
        State(aligned(h0), None if c0 is None else aligned(c0)),
        None if zoneout is None else aligned(zoneout),
        Storage(y, saved, states),
        StepRows(rows.batch_sizes, rows.offsets),
    )
    layer = Layer.of(
        cell, hidden, y.itemsize, members, rows.batch_sizes is not None, zoneout is not None
    )
    constants = backward_constants(
        cell, plan, layer, above is not None, above is not None and above.dropout > 0
    )
    options = plan.options("backward")
    stages = len(cell.backward)
    batch_tiles = triton.cdiv(rows.batch, plan.backward.block_b)
    if plan.mode == "resident":
        resident_backward[(batch_tiles, members)](
            *given, int(reverse), rows.steps, rows.batch, **constants, **options
        )
    elif plan.mode == "launch":
        tensors = (*given, *ALONE, Meeting(None, None))
        grid = (triton.cdiv(hidden, plan.backward.block_h), batch_tiles, members)
        for step in range(rows.steps):
            for stage in reversed(range(stages)):
                stepping_backward[grid](
                    *tensors, 0, int(reverse), step, step + 1, rows.steps, rows.batch, 0,
                    STAGES=(stage, stage + 1), **constants, **options,
                )  # fmt: skip
    else:
        stack = ALONE
        if above is not None:
            # In the order of the gradient columns, which the product takes as they lie.
            order = sorted(range(len(cell.input_columns)), key=cell.input_columns.__getitem__)
            gates = above.weight_ih.reshape(members - 1, -1, hidden, hidden)
            ordered = torch.cat([gates[:, i] for i in order], 1)
            stack = (Stack(padded_rows(ordered), None, None), *above.masks())
        launch_together(
            stepping_backward,
            plan,
            triton.cdiv(hidden, plan.backward.block_h),
            batch_tiles,
            members,
            y.device,
            (*given, *stack),
            (int(reverse), 0, rows.steps, rows.steps, rows.batch),
            {"STAGES": (0, stages), **constants, **options},
            wavefront=above is not None,
        )
    return columns, carry
