"""The backward pass of a stack of layers as an operator, differentiable through its definition."""

from typing import Any

import torch
from torch import Tensor

from rnnkit_kernels import reference
from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.ops.context import gemm_precision, on_device
from rnnkit_kernels.ops.layer import hidden_gradients, member, rows_of
from rnnkit_kernels.ops.planned import planned_stack
from rnnkit_kernels.ops.recurrence_backward import (
    Gradients,
    like_inputs,
    present,
)
from rnnkit_kernels.ops.shortage import tells_shortage
from rnnkit_kernels.ops.twice import differentiate_twice
from rnnkit_kernels.random.dropout import definition
from rnnkit_kernels.random.philox import STREAMS

TENSORS = 13  # inputs of `stack` that are tensors


@torch.library.custom_op("rnnkit::stack_backward", mutates_args=())
@tells_shortage
def stack_backward(
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    x: Tensor,
    weight_ih: Tensor,
    weight_above: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    cell_weights: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    batch_sizes: Tensor | None,
    offsets: Tensor | None,
    order: Tensor | None,
    seed: Tensor | None,
    y: Tensor,
    saved: Tensor,
    states: Tensor,
    dropped: Tensor,
    dropout: float,
    cell: str,
    mode: str,
    needs_dx: bool,
) -> Gradients:
    """Gradients of x, the weights, biases and cell weights, h0 and c0, empty where absent.

    Args:
        dy, dh_n, dc_n: gradients of `stack`'s first three results; None stands for zero.
        y, saved, states, dropped: as `stack` returned them, the others as it took them.
        needs_dx: whether the gradient of x is wanted.
    """
    from rnnkit_kernels.recurrence import backward, forward

    kind, rows = CELLS[cell], rows_of(x, h0, batch_sizes, offsets)
    layers, _, hidden = h0.shape
    shape, x = x.shape, x.flatten(0, -2)
    dy = x.new_zeros(len(x), hidden) if dy is None else dy.reshape(len(x), hidden)
    dh_n = torch.zeros_like(h0) if dh_n is None else dh_n
    c_start = None if c0 is None else c0.float()
    dc: Tensor | None = None
    if c_start is not None:
        dc = torch.zeros_like(c_start) if dc_n is None else dc_n.float()
    # The biases of the inputs play no part backwards.
    above = forward.Above(weight_above, weight_above[:, :, 0], dropout, seed, order)
    with on_device(x):
        columns, carry = backward.backward(
            kind,
            planned_stack(kind, weight_hh, mode),
            dy,
            dh_n,
            dc,
            weight_hh,
            cell_weights,
            h0,
            c_start,
            None,
            rows,
            False,
            y,
            saved,
            states,
            above,
        )
    with gemm_precision(x):
        ordered = torch.stack([columns[:, :, i] for i in kind.input_columns], 2).flatten(2)
        below = dropped if dropout > 0 else y[:, :-1]
        d_above = [ordered[:, m + 1].t() @ below[:, m] for m in range(layers - 1)]
        parts = [
            hidden_gradients(
                kind,
                rows,
                False,
                columns[:, m],
                y[:, m],
                saved[:, m],
                states[:, m],
                None,
                *member(m, weight_hh, cell_weights, h0, c_start, dh_n),
            )
            for m in range(layers)
        ]
        d_weight_hh, d_cell_weights, dh0 = zip(*parts, strict=True)
        d_h0 = torch.stack(dh0)
        if "hidden" in kind.carry:
            d_h0 = d_h0 + carry[kind.carry.index("hidden")]
        d_hidden = columns[:, :, kind.hidden_columns :].flatten(2)
        gradients = (
            (ordered[:, 0] @ weight_ih).view(shape) if needs_dx else None,
            ordered[:, 0].t() @ x,
            torch.stack(d_above),
            torch.stack(d_weight_hh),
            None if bias_ih is None else ordered.sum(0, dtype=torch.float32).to(x.dtype),
            None if bias_hh is None else d_hidden.sum(0, dtype=torch.float32).to(x.dtype),
            None if cell_weights is None else torch.stack(d_cell_weights).to(x.dtype),
            d_h0.to(h0.dtype, copy=True),
            None if c0 is None else carry[kind.carry.index("cell")].to(c0.dtype, copy=True),
        )
        return present(x, gradients)


@stack_backward.register_fake
def _(*inputs: Any) -> Gradients:
    return like_inputs(*inputs)


def _save_backward_inputs(ctx: Any, inputs: tuple[Any, ...], output: Gradients) -> None:
    ctx.save_for_backward(*inputs[: 3 + TENSORS])
    ctx.dropout, ctx.cell = inputs[-4], inputs[-3]
    ctx.set_materialize_grads(False)


def _double_backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiate the backward through the definition of the layers, one after another."""
    *inputs, batch_sizes, offsets, order, seed = ctx.saved_tensors

    def run(*layer_inputs: Tensor | None) -> tuple[Tensor | None, ...]:
        rows = rows_of(inputs[3], inputs[10], batch_sizes, offsets)
        return by_definition(layer_inputs, rows, order, seed, ctx.dropout, ctx.cell)

    return (*differentiate_twice(run, inputs[:3], inputs[3:], list(outer)), *[None] * 12)


stack_backward.register_autograd(_double_backward, setup_context=_save_backward_inputs)


def by_definition(
    inputs: tuple[Any, ...],
    rows: Any,
    order: Tensor | None,
    seed: Tensor | None,
    dropout: float,
    cell: str,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What `stack` computes, layer after layer by `reference.py`; `inputs` are its first nine."""
    x, weight_ih, weight_above, weight_hh, bias_ih, bias_hh, cell_weights, h0, c0 = inputs
    finals = []
    for m in range(h0.shape[0]):
        if m > 0 and dropout > 0 and seed is not None:
            place = (STREAMS * (m - 1), rows.batch, rows.offsets, order, None)
            x = definition(x, dropout, seed, *place)
        own = member(m, weight_hh, bias_ih, bias_hh, cell_weights, h0, c0)
        w_hh, b_ih, b_hh, weights, h, c = own
        w_ih = weight_ih if m == 0 else weight_above[m - 1]
        x, *last = reference.layer(
            cell, (x, w_ih, w_hh, b_ih, b_hh, None, weights, h, c, None), rows
        )
        finals.append(last)
    h_n, c_n = zip(*finals, strict=True)
    return x, torch.stack(h_n), None if c0 is None else torch.stack(c_n)
