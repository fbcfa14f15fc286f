"""The time loop in plain PyTorch, with the handwritten backward of the cells.

It runs where Triton can't: on CPU inside the opaque operator that `torch.compile` and
`torch.export` see, in float64, and with a projection. Step maths is in float32 for 16-bit inputs.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

from rnnkit_kernels.cells import Cell
from rnnkit_kernels.recurrence.rows import Rows


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of cell states, state gradients and accumulators: never below float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def forward(
    cell: Cell,
    x_gates: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    weight_hr: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    rows: Rows,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the recurrence over all steps.

    Args:
        cell: the cell.
        x_gates: (N, G, H), W_ih x + b_ih.
        weight_hh: (G·H, P), P = H without projection.
        bias_hh: (G·H,).
        weight_hr: (P, H) or None, the projection of LSTMP.
        h0: (B, P).
        c0: (B, H) in `state_dtype`, or None.
        rows: which rows belong to a step.
        reverse: whether t falls.

    Returns:
        y (N, P), zero in rows that belong to no step; saved (N, S, H); states (N, C, H) in
        `state_dtype`: c, then h before projection, each where there is one.
    """
    hidden = x_gates.shape[2]
    exact = state_dtype(x_gates.dtype)
    y = x_gates.new_zeros(x_gates.shape[0], h0.shape[1])
    saved = x_gates.new_zeros(x_gates.shape[0], cell.saved_at[-1], hidden)
    extra = (1 if cell.has_cell_state else 0) + (1 if weight_hr is not None else 0)
    states = x_gates.new_zeros(x_gates.shape[0], extra, hidden, dtype=exact)
    h = h0.clone()
    c = None if c0 is None else c0.clone()
    steps = [(first, count) for first, count in rows.to_host() if count > 0]
    for first, count in reversed(steps) if reverse else steps:
        now = slice(first, first + count)
        before = (h[:count].to(exact), *([c[:count]] if c is not None else []))
        kept: tuple[Tensor, ...] = ()
        operand = h[:count]
        for stage, function in enumerate(cell.forward):
            gates = slice(cell.gates_at[stage], cell.gates_at[stage + 1])
            rows_hh = slice(gates.start * hidden, gates.stop * hidden)
            h_gates = linear(operand, weight_hh[rows_hh], bias_hh[rows_hh])
            new, result = function(
                x_gates[now, gates].to(exact).unbind(1),
                h_gates.view(count, -1, hidden).to(exact).unbind(1),
                kept,
                before,
                torch.sigmoid,
                torch.tanh,
                torch.relu,
            )
            kept += new
            operand = result[0].to(h.dtype)
        if cell.saved_at[-1]:
            saved[now] = torch.stack(kept, 1)
        if c is not None:
            states[now, 0] = c[:count] = result[1]
        if weight_hr is not None:
            states[now, -1] = result[0]
            operand = linear(operand, weight_hr)
        y[now] = h[:count] = operand
    return y, saved, states


def backward(
    cell: Cell,
    dy: Tensor,
    dh_n: Tensor,
    dc_n: Tensor | None,
    weight_hh: Tensor,
    weight_hr: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    rows: Rows,
    reverse: bool,
    y: Tensor,
    saved: Tensor,
    states: Tensor,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
    """Run the recurrence backwards; the last step processed by `forward` comes first.

    Args:
        dy: (N, P). dh_n: (B, P). dc_n: (B, H) in `state_dtype`, or None.
        y: (N, P), saved, states: as `forward` returned them; the rest as `forward` took it.

    Returns:
        columns (N, R, H), gradients of the pre-activations, zero in rows of no step; the carry at
        the start of each sequence, (B, H) each; and the gradient of the projected h (N, P) or None.
    """
    hidden, exact = weight_hh.shape[0] // cell.gates_at[-1], state_dtype(dy.dtype)
    columns = dy.new_zeros(dy.shape[0], cell.columns_at[-1], hidden)
    projected = torch.zeros_like(dy) if weight_hr is not None else None
    h_before = rows.before(y, h0, reverse)
    c_before = None if c0 is None else rows.before(states[:, 0], c0, reverse)
    d_h = dh_n.to(exact, copy=True)
    carry = [
        dc_n.clone() if name == "cell" and dc_n is not None else d_h.new_zeros(len(h0), hidden)
        for name in cell.carry
    ]
    steps = [(first, count) for first, count in rows.to_host() if count > 0]
    for first, count in steps if reverse else reversed(steps):
        now = slice(first, first + count)
        gradient = d_h[:count] + dy[now]
        if projected is not None and weight_hr is not None:
            projected[now] = gradient
            gradient = (projected[now] @ weight_hr).to(exact)
        before: tuple[Tensor, ...] = (h_before[now].to(exact),)
        after: tuple[Tensor, ...] = (y[now].to(exact),)
        if c_before is not None:
            before, after = (*before, c_before[now]), (*after, states[now, 0])
        kept = saved[now].to(exact).unbind(1)
        carried = tuple(value[:count] for value in carry)
        for stage in reversed(range(len(cell.backward))):
            new, carried = cell.backward[stage](kept, before, after, gradient, carried, torch.tanh)
            at = cell.columns_at[stage]
            columns[now, at : at + len(new)] = torch.stack(new, 1).to(dy.dtype)
            gates = slice(cell.gates_at[stage], cell.gates_at[stage + 1])
            read = slice(gates.start + cell.hidden_columns, gates.stop + cell.hidden_columns)
            d_gates = columns[now, read].reshape(count, -1)
            gradient = (d_gates @ weight_hh[gates.start * hidden : gates.stop * hidden]).to(exact)
        d_h[:count] = gradient
        for value, new_value in zip(carry, carried, strict=True):
            value[:count] = new_value
    return columns, tuple(carry), projected
