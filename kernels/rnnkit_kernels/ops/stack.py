"""A stack of layers as one operator: layer l runs step t while the layer above runs step t − 1.

T + L − 1 meetings instead of L·T: the layers are the members of one cooperative launch (a
wavefront). Every layer but the first multiplies its input inside the loop, so only the first has an
input product over all steps. Dropout between the layers is drawn inside, as `dropout.py` does it.
"""

import math
from typing import Any

import torch
from torch import Tensor

from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.ops.context import on_device
from rnnkit_kernels.ops.flops import tell_counters
from rnnkit_kernels.ops.layer import input_gates, last_states, rows_of
from rnnkit_kernels.ops.planned import planned_stack
from rnnkit_kernels.ops.recurrence_backward import DIFFERENTIABLE
from rnnkit_kernels.ops.shortage import tells_shortage
from rnnkit_kernels.ops.stack_backward import TENSORS, stack_backward


@torch.library.custom_op("rnnkit::stack", mutates_args=())
@tells_shortage
def stack(
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
    dropout: float,
    cell: str,
    mode: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """L layers in one direction.

    Args:
        x: (T, B, D) dense, or (N, D) with `batch_sizes` and `offsets`.
        weight_ih: (G·H, D), of the first layer.
        weight_above: (L − 1, G·H, H), W_ih of the others.
        weight_hh: (L, G·H, H).
        bias_ih, bias_hh: (L, G·H) or None.
        cell_weights: (L, W, H), or None for cells without.
        h0: (L, B, H).
        c0: (L, B, H), or None for cells without.
        batch_sizes, offsets: int64 (T,), see `Rows`.
        order: int64 (B,), the original index of each sequence, or None for the identity.
        seed: int64, one element, or None without dropout.
        dropout: probability of dropping an output of every layer but the last.
        cell: a key of `CELLS`, with one stage.
        mode: "data" or "counter".
        save: whether to keep what a backward pass needs.

    Returns:
        y of the last layer, x's shape with H for D; h_n and c_n (L, B, H); y of all layers
        (N, L, H), saved (N, L, S, H), states (N, L, C, H) and what dropout left (N, L − 1, H), all
        empty unless `save`.
    """
    from rnnkit_kernels.recurrence import forward

    kind, rows = CELLS[cell], rows_of(x, h0, batch_sizes, offsets)
    layers = h0.shape[0]
    bias = weight_hh.new_zeros(weight_hh.shape[:2]) if bias_hh is None else bias_hh
    x_bias = torch.zeros_like(bias) if bias_ih is None else bias_ih
    c_start = None if c0 is None else c0.float()
    x_gates = input_gates(x, weight_ih.unsqueeze(0), x_bias[:1], kind.gates_at[-1])
    above = forward.Above(weight_above, x_bias[1:], dropout, seed, order)
    with on_device(x):
        y, c_n, saved, states, dropped = forward.forward(
            kind,
            planned_stack(kind, weight_hh, mode),
            x_gates,
            weight_hh,
            bias,
            cell_weights,
            h0,
            c_start,
            None,
            rows,
            False,
            save,
            False,
            above,
        )
    h_n = last_states(rows, y, h0, [False] * layers)
    last = x.new_empty(0) if c0 is None else c_n.to(c0.dtype, copy=True)
    output = y.new_empty(*x.shape[:-1], h0.shape[2])  # no view, which may not be changed in place
    output.view(-1, h0.shape[2]).copy_(y[:, -1])
    if not save:
        y, dropped = y.new_empty(0), y.new_empty(0)
    return output, h_n, last, y, saved, states, dropped


@stack.register_fake
def _(*inputs: Any) -> tuple[Tensor, ...]:
    x, h0, c0, dropout, cell, save = (inputs[i] for i in (0, 7, 8, 13, 14, 16))
    kind = CELLS[cell]
    layers, _, hidden = h0.shape
    count = math.prod(x.shape[:-1])
    results = [
        x.new_empty(*x.shape[:-1], hidden),
        h0.new_empty(h0.shape),
        x.new_empty(0) if c0 is None else c0.new_empty(c0.shape),
    ]
    exact = torch.float32
    if not save:
        empty = x.new_empty(0)
        return (*results, empty, x.new_empty(0), x.new_empty(0, dtype=exact), x.new_empty(0))
    extra = int(kind.has_cell_state)
    return (
        *results,
        x.new_empty(count, layers, hidden),
        x.new_empty(count, layers, kind.saved_at[-1], hidden),
        x.new_empty(count, layers, extra, hidden, dtype=exact),
        x.new_empty(count, layers - 1, hidden) if dropout > 0 else x.new_empty(0),
    )


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:TENSORS], *output[3:])
    ctx.dropout, ctx.cell, ctx.mode, ctx.save = inputs[TENSORS:]
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, *unused: Any
) -> tuple[Tensor | None, ...]:
    if not ctx.save:
        raise RuntimeError("this stack ran without keeping what a backward pass needs")
    tell_counters()
    tensors = ctx.saved_tensors
    has_cell_state = tensors[DIFFERENTIABLE - 1] is not None
    gradients = stack_backward(
        dy,
        dh_n,
        dc_n if has_cell_state else None,
        *tensors,
        ctx.dropout,
        ctx.cell,
        ctx.mode,
        ctx.needs_input_grad[0],
    )
    given = [tensor is not None for tensor in tensors[:DIFFERENTIABLE]]
    given[0] = ctx.needs_input_grad[0]
    found = (g if there else None for g, there in zip(gradients, given, strict=True))
    return (*found, *[None] * 8)


stack.register_autograd(_backward, setup_context=_save_inputs)
