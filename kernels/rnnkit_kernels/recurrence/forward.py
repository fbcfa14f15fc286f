"""The recurrence forward, in Triton, for any cell.

    h_gates_t = W_hh h_{t−1} + b_hh        (per stage; the operand may be another than h)
    state_t   = cell(x_gates_t, h_gates_t, state_{t−1})

`tiles.forward_tile` is one stage on one tile of units × sequences. Two kernels call it; the operand
of the product and the state of the step before come through memory in one (`stepping_forward.py`),
and from registers in the other (`resident_forward.py`).

A layer has M *members*, one a direction: x_gates (N, M, G, H), y (N, M, H), weights (M, G·H, H).
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from rnnkit_kernels.cells import Cell
from rnnkit_kernels.random.philox import STREAMS, scale, threshold
from rnnkit_kernels.recurrence.arguments import (
    Dropout,
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
from rnnkit_kernels.recurrence.layout import aligned, padded_rows, stage_functions
from rnnkit_kernels.recurrence.plan import Plan
from rnnkit_kernels.recurrence.resident_forward import resident_forward
from rnnkit_kernels.recurrence.rows import Rows
from rnnkit_kernels.recurrence.stepping_forward import stepping_forward


def forward_constants(
    cell: Cell,
    plan: Plan,
    layer: Layer,
    save: bool,
    recompute: bool = False,
    wavefront: bool = False,
    dropout: bool = False,
) -> dict[str, Any]:
    """The kernel's compile-time arguments; STAGES of `stepping_forward` is left to the caller."""
    return {
        **stage_functions(cell.forward),
        "LAYER": layer,
        "TILES": Tiling.of(plan, "forward"),
        "SAVE": save,
        "SAVE_GATES": save and not recompute,
        **wavefront_constants(plan, wavefront, dropout),
    }


def wavefront_constants(plan: Plan, wavefront: bool, dropout: bool) -> dict[str, Any]:
    """What the stepping kernels have to know of a stack; the resident kernels know none."""
    if plan.mode == "resident":
        return {}
    return {"WAVEFRONT": wavefront, "DROPOUT": STREAMS if dropout else 0}


@dataclass(frozen=True)
class Above:
    """Layers that run with the one below them as a wavefront; M is their number plus one.

    Attributes:
        weight_ih: (M − 1, G·H, H).
        bias_ih: (M − 1, G·H).
        dropout: probability of dropping an output of a layer that feeds another.
        seed: int64, one element, or None without dropout.
        order: int64 (B,), the original index of each sequence, or None for the identity.
    """

    weight_ih: Tensor
    bias_ih: Tensor
    dropout: float = 0.0
    seed: Tensor | None = None
    order: Tensor | None = None

    def masks(self) -> tuple[Dropout, int, float]:
        """The random words of dropout, its threshold and its scale, as the kernels take them."""
        return (
            Dropout(self.seed, self.order),
            threshold(self.dropout),
            scale(self.dropout),
        )


# What kernels take for the stack that a layer on its own is not part of.
ALONE: tuple[Stack, Dropout, int, float] = (Stack(None, None, None), Dropout(None, None), 0, 0.0)


def forward(
    cell: Cell,
    plan: Plan,
    x_gates: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    cell_weights: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    zoneout: Tensor | None,
    rows: Rows,
    reverse: bool,
    save: bool,
    recompute: bool,
    above: Above | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the kernels; M is the number of directions, or of layers in a wavefront.

    Args:
        cell: the cell.
        plan: mode and tiles.
        x_gates: (N, M, G, H), W_ih x + b_ih; of the first layer only in a wavefront.
        weight_hh: (M, G·H, H).
        bias_hh: (M, G·H).
        cell_weights: (M, P, H), or None for cells without.
        h0: (M, B, H).
        c0: (M, B, H) float32, or None.
        zoneout: (N, M, Z, H), shares of the states that stay as they were, or None.
        rows: which rows belong to a step.
        reverse: whether t falls for the first member; it does the opposite for the second.
        save: whether a backward pass will follow.
        recompute: whether it will compute the gates again.
        above: the layers above the first, for a wavefront.

    Returns:
        y (N, M, H), zero in rows that belong to no step; c of the last step (M, B, H) float32,
        empty for cells without; saved (N, M, S, H) and states (N, M, slots, H) float32, c and then
        with zoneout the states before it; both empty unless `save`, and saved with `recompute`; and
        what dropout left of y (N, M − 1, H), empty without.

    Raises:
        RuntimeError: programs waited for each other in vain.
    """
    count, _, _, hidden = x_gates.shape
    members = h0.shape[0]
    # Rows of no step exist only when the lengths are on the device; all others are written. They
    # enter the weight gradients' products with columns of zero, so they must be finite.
    padded = rows.batch_sizes is not None and count == rows.steps * rows.batch
    fresh = torch.zeros if padded else torch.empty
    polled = plan.mode == "data"
    device, dtype = h0.device, h0.dtype

    def exchange(*shape: int) -> Tensor:
        if polled:
            return blank_exchange(shape, rows if padded else None, dtype, device)
        return fresh(shape, dtype=dtype, device=device)

    y = exchange(count, members, hidden)
    dropped = y.new_empty(0)
    cell_state = (
        h0.new_empty(0, dtype=torch.float32)
        if c0 is None
        else c0.clone(memory_format=torch.contiguous_format)
    )
    stages = len(cell.forward)
    launches = plan.mode == "launch"
    scratch = rows.batch if stages > 1 and launches else 0
    shape = (count if save and not recompute else scratch, members, cell.saved_at[-1], hidden)
    saved = fresh(shape, dtype=dtype, device=device)
    slots = int(cell.has_cell_state)
    if zoneout is not None:
        slots += 1 + int(cell.has_cell_state)
        zoneout = aligned(zoneout)
    states = fresh(
        (count if save else 0, members, slots, hidden), dtype=torch.float32, device=device
    )
    bias = aligned(bias_hh)
    parameters = bias if cell_weights is None else aligned(cell_weights)
    weights = Weights(padded_rows(weight_hh), bias, parameters)
    initial = State(aligned(h0), cell_state)
    storage = Storage(y, saved, states)
    step_rows = StepRows(rows.batch_sizes, rows.offsets)
    given = (aligned(x_gates), weights, initial, zoneout)
    layer = Layer.of(
        cell, hidden, h0.itemsize, members, rows.batch_sizes is not None, zoneout is not None
    )
    constants = forward_constants(
        cell, plan, layer, save, recompute, above is not None,
        above is not None and above.dropout > 0,
    )  # fmt: skip
    options = plan.options("forward")
    batch_tiles = triton.cdiv(rows.batch, plan.forward.block_b)
    if plan.mode == "resident":
        resident_forward[(batch_tiles, members)](
            *given, storage, step_rows, int(reverse), rows.steps, rows.batch, **constants, **options
        )
    elif launches:
        operand = h0.new_empty(scratch, members, hidden)
        tensors = (*given, operand, storage, step_rows, *ALONE, Meeting(None, None))
        grid = (triton.cdiv(hidden, plan.forward.block_h), batch_tiles, members)
        for step in range(rows.steps):
            for stage in range(stages):
                stepping_forward[grid](
                    *tensors, 0, int(reverse), step, step + 1, rows.steps, rows.batch, 0,
                    STAGES=(stage, stage + 1), **constants, **options,
                )  # fmt: skip
    else:
        operand = exchange(count, members, hidden) if stages > 1 else y
        stack = ALONE
        if above is not None:
            if above.dropout > 0:
                dropped = exchange(count, members - 1, hidden)
            weight = padded_rows(above.weight_ih)
            stack = (Stack(weight, aligned(above.bias_ih), dropped), *above.masks())
        launch_together(
            stepping_forward,
            plan,
            triton.cdiv(hidden, plan.forward.block_h),
            batch_tiles,
            members,
            device,
            (*given, operand, storage, step_rows, *stack),
            (int(reverse), 0, rows.steps, rows.steps, rows.batch),
            {"STAGES": (0, stages), **constants, **options},
            wavefront=above is not None,
        )
    if not save or recompute:
        saved = y.new_empty(0)
    if not save:
        states = states.new_empty(0)
    return y, cell_state, saved, states, dropped
