"""What surrounds the time loop of a layer: the input product before it, gradients after it."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from rnnkit_kernels.cells import Cell
from rnnkit_kernels.ops.context import gemm_precision
from rnnkit_kernels.recurrence import eager
from rnnkit_kernels.recurrence.eager import state_dtype
from rnnkit_kernels.recurrence.rows import Rows


def rows_of(x: Tensor, h0: Tensor, batch_sizes: Tensor | None, offsets: Tensor | None) -> Rows:
    """The rows of an operator's input x, for h0 (M, B, ·)."""
    steps = x.shape[0] if batch_sizes is None else batch_sizes.shape[0]
    return Rows(steps, h0.shape[1], batch_sizes, offsets)


def member(m: int, *tensors: Tensor | None) -> tuple[Any, ...]:
    """Entry m of the leading dimension of each tensor."""
    return tuple(None if tensor is None else tensor[m] for tensor in tensors)


def input_gates(x: Tensor, weight_ih: Tensor, bias_ih: Tensor | None, gates: int) -> Tensor:
    """W_ih x + b_ih over all rows and directions: (N, M, G, H)."""
    bias = None if bias_ih is None else bias_ih.flatten()
    with gemm_precision(x):
        product = linear(x.flatten(0, -2), weight_ih.flatten(0, 1), bias)
    hidden = weight_ih.shape[1] // gates
    return product.view(product.shape[0], weight_ih.shape[0], gates, hidden)


def last_states(rows: Rows, values: Tensor, start: Tensor, directions: list[bool]) -> Tensor:
    """(M, B, ·): what each sequence's last step left in `values` (N, M, ·)."""
    return torch.stack(
        [rows.last(values[:, m], start[m], reverse) for m, reverse in enumerate(directions)]
    )


def hidden_gradients(
    kind: Cell,
    rows: Rows,
    reverse: bool,
    columns: Tensor,
    y: Tensor,
    saved: Tensor,
    states: Tensor,
    zoneout: Tensor | None,
    weight_hh: Tensor,
    cell_weights: Tensor | None,
    h0: Tensor,
    c_start: Tensor | None,
    dh_n: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of one direction's weight_hh, cell weights, and h0 as far as through weight_hh."""
    exact = state_dtype(y.dtype)
    hidden = columns.shape[2]
    d_hidden = columns[:, kind.hidden_columns :].flatten(1)
    h_before = rows.before(y, h0, reverse)
    kept = saved.unbind(1) if kind.operand else ()
    operands = (h_before, *(operand(kept, h_before) for operand in kind.operand))
    bounds = [at * hidden for at in kind.gates_at]
    spans = [slice(a, b) for a, b in pairwise(bounds)]
    d_weight_hh = torch.cat(
        [d_hidden[:, span].t() @ v for span, v in zip(spans, operands, strict=True)]
    )
    d_cell_weights = None
    if cell_weights is not None and kind.weight_gradients is not None:
        before, after = eager.states_around(kind, h0, c_start, zoneout, rows, reverse, y, states)
        parts = (columns.unbind(1), before, after)
        values = kind.weight_gradients(*(tuple(v.to(exact) for v in part) for part in parts))
        d_cell_weights = torch.stack([value.sum(0) for value in values])
    # The step processed first hands its gradient to h0; an empty sequence hands on dh_n.
    first = rows.first(d_hidden[:, spans[0]], dh_n.new_zeros(rows.batch, bounds[1]), reverse)
    dh0 = (first @ weight_hh[spans[0]]).to(exact)
    lengths = rows.lengths()
    if lengths is not None:
        dh0 = torch.where((lengths > 0)[:, None], dh0, dh_n.to(exact))
    return d_weight_hh, d_cell_weights, dh0
