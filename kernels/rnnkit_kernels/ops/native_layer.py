"""A layer by the native engine in eager mode, without the cost of a call through the dispatcher.

`rnnkit::recurrence` is opaque to `torch.compile`, for which a call pays more than a small layer
takes; here the same engine stands behind an `autograd.Function`. Where its gradients are to be
differentiated once more, the operator of the backward pass takes over, which knows how.
"""

from typing import Any

import torch
from torch import Tensor

from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.cpu import native
from rnnkit_kernels.ops.context import observed
from rnnkit_kernels.ops.flops import tell_counters
from rnnkit_kernels.ops.layer import rows_of
from rnnkit_kernels.ops.recurrence_backward import (
    DIFFERENTIABLE,
    layer_gradients,
    recurrence_backward,
)
from rnnkit_kernels.ops.shortage import tells_shortage

Result = tuple[Tensor, Tensor, Tensor | None]


@tells_shortage
def _forward(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    cell_weights: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    zoneout: Tensor | None,
    batch_sizes: Tensor | None,
    offsets: Tensor | None,
    lengths: Tensor | None,
    cell: str,
    mode: str,
    save: bool,
    recompute: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    rows = rows_of(x, h0, batch_sizes, offsets)
    inputs = (x, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, cell_weights, h0, c0)
    keep = save and not recompute
    y, h_n, c_n, saved, states = native.forward(
        CELLS[cell], *inputs, zoneout, rows, False, save, keep, lengths
    )
    return y.view(*x.shape[:-1], -1), h_n, c_n, saved, states


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cell: str, recompute: bool, *inputs: Any) -> Any:
        run: Any = _forward
        y, h_n, c_n, saved, states = run(*inputs, cell, "native", True, recompute)
        ctx.save_for_backward(*inputs, y, saved, states)
        ctx.cell, ctx.recompute = cell, recompute
        ctx.set_materialize_grads(False)
        return y, h_n, c_n

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        needs_dx = ctx.needs_input_grad[2]
        # Grad mode is on here where the gradients will be differentiated themselves.
        by_operator = torch.is_grad_enabled() or _batched(gradients) or observed()
        run: Any = _by_operator if by_operator else _gradients
        found = run(*gradients, *tensors, ctx.cell, "native", ctx.recompute, needs_dx)
        given = [tensor is not None for tensor in tensors[:DIFFERENTIABLE]]
        given[0] = needs_dx
        wanted = (g if there else None for g, there in zip(found, given, strict=True))
        return (None, None, *wanted, *[None] * 4)


@tells_shortage
def _gradients(
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    cell_weights: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    zoneout: Tensor | None,
    batch_sizes: Tensor | None,
    offsets: Tensor | None,
    lengths: Tensor | None,
    y: Tensor,
    saved: Tensor,
    states: Tensor,
    cell: str,
    mode: str,
    recompute: bool,
    needs_dx: bool,
) -> Any:
    inputs = (x, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, cell_weights, h0, c0, zoneout)
    if lengths is None:
        rest = (batch_sizes, offsets, y, saved, states, cell, False, mode, recompute, needs_dx)
        return layer_gradients(dy, dh_n, dc_n, *inputs, *rest)
    rows = rows_of(x, h0, None, None)
    y = y.view(-1, h0.shape[0], h0.shape[2])
    return native.backward(
        CELLS[cell], dy, dh_n, dc_n, *inputs, rows, False, y, saved, states, needs_dx, lengths
    )


def _batched(gradients: tuple[Any, ...]) -> bool:
    """Whether vmap runs the backward pass, for many gradients at once: they have no memory."""
    return not all(g is None or torch._C._has_storage(g) for g in gradients)


def _by_operator(*inputs: Any) -> list[Any]:
    """As `_gradients`, by the operator, of which torch knows derivative and vmap.

    It takes sequences in order of their lengths.
    """
    tell_counters()
    dy, dh_n, dc_n, x, *weights, h0, c0, zoneout, sizes, offsets, lengths = inputs[:16]
    kept, (cell, mode, recompute, needs_dx) = inputs[16:19], inputs[19:]
    options = (cell, False, mode, recompute, needs_dx)
    if lengths is None:
        given = (x, *weights, h0, c0, zoneout, sizes, offsets)
        found: Any = recurrence_backward(dy, dh_n, dc_n, *given, *kept, *options)
        return list(found)
    ordered, order = lengths.sort(descending=True, stable=True)
    steps, batch = x.shape[:2]

    def rows(value: Any) -> Any:
        """(T, B, ...) or (T·B, ...) with sequences in order, as (T·B, ...)."""
        if value is None or value.numel() == 0:
            return value
        own = value.shape[2:] if value.shape[:2] == (steps, batch) else value.shape[1:]
        ordered = value.reshape(steps, batch, *own).index_select(1, order)
        return ordered.reshape(-1, *own)

    def states(value: Any) -> Any:
        return None if value is None else value.index_select(1, order)

    step = torch.arange(steps)
    given = (rows(x), *weights, states(h0), states(c0), rows(zoneout))
    ragged = ((step[:, None] < ordered).sum(1), step * batch)
    found = recurrence_backward(
        rows(dy), states(dh_n), states(dc_n), *given, *ragged, *map(rows, kept), *options
    )
    back = order.argsort()
    dx, *of_weights, d_h0, d_c0 = found
    whole = dx.view(steps, batch, -1).index_select(1, back) if dx.numel() else dx
    last = (value.index_select(1, back) if value.numel() else value for value in (d_h0, d_c0))
    return [whole, *of_weights, *last]


def native_layer(inputs: tuple[Any, ...], cell: str, save: bool, recompute: bool) -> Result:
    """One layer in one direction or both.

    Args:
        inputs: the first twelve of `rnnkit::recurrence`, and lengths, int64 (B,) in any order for
            a padded x (T, B, D), or None.
        cell: a key of `CELLS`.
        save: whether a backward pass will follow.
        recompute: whether it computes the gates again.

    Returns:
        y, h_n and c_n, as `rnnkit::recurrence` gives them; c_n is None for cells without.
    """
    if save:
        return _Layer.apply(cell, recompute, *inputs)  # type: ignore[no-any-return,no-untyped-call]
    run: Any = _forward
    y, h_n, c_n, _, _ = run(*inputs, cell, "native", False, recompute)
    return y, h_n, c_n
