"""Layers above each other as one operator, where a plan lets them run as a wavefront."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.dispatch.autocast import compute_dtype
from rnnkit_kernels.dispatch.choice import Decision
from rnnkit_kernels.ops.stack import stack
from rnnkit_kernels.recurrence.plan import Device, Plan
from rnnkit_kernels.recurrence.rows import Rows
from rnnkit_kernels.recurrence.wavefront import wavefront_plan


def flows(cell: str, hidden: int, layers: int, decision: Decision, weight: Tensor) -> bool:
    """Whether the layers run as one wavefront."""
    chosen = decision.plan
    if chosen is None:
        return False
    device, dtype = Device.of(weight.device), compute_dtype(weight)
    found = wavefront_plan(
        CELLS[cell], hidden, layers, dtype, device, chosen.precision, chosen.mode
    )
    return isinstance(found, Plan)


def in_one_wavefront(
    cell: str,
    decision: Decision,
    data: Tensor,
    weights: Sequence[Tensor],
    size: int,
    has_biases: bool,
    state: tuple[Tensor, ...],
    rows: Rows,
    order: Tensor | None,
    seed: Tensor | None,
    dropout: float,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """All layers, `size` weights each, as one operator; see `ops/stack.py`."""
    assert decision.plan is not None

    def stacked(i: int) -> Tensor:
        return torch.stack(tuple(weights[i::size]))

    biases = (stacked(2), stacked(3)) if has_biases else (None, None)
    peepholes = stacked(size - 1) if CELLS[cell].weights else None
    above = torch.stack(tuple(weights[size::size]))
    h0, c0 = state[0], state[1] if len(state) > 1 else None
    inputs = (data, weights[0], above, stacked(1), *biases, peepholes, h0, c0)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    y, h_n, c_n, *_ = stack(
        *inputs,
        rows.batch_sizes,
        rows.offsets,
        order,
        seed if dropout > 0 else None,
        dropout,
        cell,
        decision.plan.mode,
        save,
    )
    return y, (h_n,) if c0 is None else (h_n, c_n)
