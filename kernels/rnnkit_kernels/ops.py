"""The recurrence as torch operators: opaque to `torch.compile`, functional, differentiable twice.

One operator runs one layer in one direction, input product included, from the layer's true inputs;
another runs its backward. The backward operator is differentiable too: its own formula recomputes
through `reference.py`, which autograd differentiates twice.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from rnnkit_kernels import reference
from rnnkit_kernels.cells import CELLS, Cell
from rnnkit_kernels.recurrence import eager
from rnnkit_kernels.recurrence.eager import state_dtype
from rnnkit_kernels.recurrence.plan import Device, Fallback, Plan, Precision, plan
from rnnkit_kernels.recurrence.rows import Rows


def recurrent_precision() -> Precision:
    """Precision of float32 products, as torch's setting for cuDNN's RNN has it.

    Only `torch.backends.cudnn.rnn.fp32_precision` is read: `allow_tf32` raises once a user has set
    a precision per operator.
    """
    setting = torch.backends.cudnn.rnn.fp32_precision  # type: ignore[attr-defined]
    return "tf32" if setting == "tf32" else "ieee"


@contextmanager
def _gemm_precision(example: Tensor) -> Iterator[None]:
    """Run the products around the loop at the loop's float32 precision."""
    if not example.is_cuda or example.dtype != torch.float32:
        yield
        return
    matmul = torch.backends.cuda.matmul
    before, wanted = matmul.fp32_precision, recurrent_precision()
    if before == wanted:
        # Writing even the same value would pin a setting that is inherited.
        yield
        return
    matmul.fp32_precision = wanted
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _on_device(x: Tensor) -> AbstractContextManager[None]:
    """Launch on the device of `x`, whatever the current one is."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _rows(x: Tensor, h0: Tensor, batch_sizes: Tensor | None, offsets: Tensor | None) -> Rows:
    steps = x.shape[0] if batch_sizes is None else batch_sizes.shape[0]
    return Rows(steps, h0.shape[0], batch_sizes, offsets)


def _plan(cell: Cell, weight_hh: Tensor, mode: str) -> Plan:
    found = plan(
        cell,
        weight_hh.shape[1],
        weight_hh.dtype,
        Device.of(weight_hh.device),
        recurrent_precision(),
        "resident" if mode == "resident" else "launch",
    )
    if isinstance(found, Fallback):
        raise RuntimeError(found.reason)
    return found


@torch.library.custom_op("rnnkit::recurrence", mutates_args=())
def recurrence(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    batch_sizes: Tensor | None,
    offsets: Tensor | None,
    cell: str,
    reverse: bool,
    mode: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One layer in one direction.

    Args:
        x: (T, B, D) dense, or (N, D) with `batch_sizes` and `offsets`.
        weight_ih: (G·H, D).
        weight_hh: (G·H, P), P = H without projection.
        bias_ih, bias_hh: (G·H,) or None.
        weight_hr: (P, H) or None.
        h0: (B, P).
        c0: (B, H), or None for cells without.
        batch_sizes, offsets: int64 (T,), see `Rows`.
        cell: a key of `CELLS`.
        reverse: whether t falls.
        mode: "resident" or "launch" for the Triton kernels, "eager" for the loop in PyTorch.
        save: whether to keep what a backward pass needs.

    Returns:
        y, x's shape with P for D; h_n (B, P); c_n (B, H), empty without c0; saved (N, S, H) and
        states (N, C, H), empty unless `save`.
    """
    kind, rows = CELLS[cell], _rows(x, h0, batch_sizes, offsets)
    gates, hidden = kind.gates_at[-1], weight_hh.shape[0] // kind.gates_at[-1]
    bias = weight_hh.new_zeros(gates * hidden) if bias_hh is None else bias_hh
    exact = state_dtype(x.dtype)
    c_start = None if c0 is None else c0.to(exact)
    with _gemm_precision(x):
        x_gates = linear(x.flatten(0, -2), weight_ih, bias_ih).view(-1, gates, hidden)
    if mode == "eager":
        y, saved, states = eager.forward(
            kind, x_gates, weight_hh, bias, weight_hr, h0, c_start, rows, reverse
        )
        c_n = None if c_start is None else rows.last(states[:, 0], c_start, reverse)
        if not save:
            saved, states = saved.new_empty(0), states.new_empty(0)
    else:
        from rnnkit_kernels.recurrence import forward

        if weight_hr is not None:
            raise RuntimeError("the Triton kernels have no projection")
        with _on_device(x):
            y, c_n, saved, states = forward.forward(
                kind,
                _plan(kind, weight_hh, mode),
                x_gates,
                weight_hh,
                bias,
                h0,
                c_start,
                rows,
                reverse,
                save,
            )
    h_n = rows.last(y, h0, reverse)
    last = x.new_empty(0) if c0 is None or c_n is None else c_n.to(c0.dtype, copy=True)
    return y.view(*x.shape[:-1], h0.shape[1]), h_n, last, saved, states


@recurrence.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, _, weight_hh, _, _, weight_hr, h0, c0, _, _, cell, _, _, save = inputs
    kind = CELLS[cell]
    hidden = weight_hh.shape[0] // kind.gates_at[-1]
    count = math.prod(x.shape[:-1])  # torch.Size.numel() would fix dynamic sizes
    extra = int(kind.has_cell_state) + int(weight_hr is not None)
    y = x.new_empty(*x.shape[:-1], h0.shape[1])
    h_n = h0.new_empty(h0.shape)  # contiguous, however h0 lies
    c_n = x.new_empty(0) if c0 is None else c0.new_empty(c0.shape)
    exact = state_dtype(x.dtype)
    if not save:
        return y, h_n, c_n, x.new_empty(0), x.new_empty(0, dtype=exact)
    saved = x.new_empty(count, kind.saved_at[-1], hidden)
    states = x.new_empty(count, extra, hidden, dtype=exact)
    return y, h_n, c_n, saved, states


@torch.library.custom_op("rnnkit::recurrence_backward", mutates_args=())
def recurrence_backward(
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    batch_sizes: Tensor | None,
    offsets: Tensor | None,
    y: Tensor,
    saved: Tensor,
    states: Tensor,
    cell: str,
    reverse: bool,
    mode: str,
    needs_dx: bool,
) -> list[Tensor]:
    """Gradients of x, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, h0, c0 (empty if absent).

    Args:
        dy, dh_n, dc_n: gradients of `recurrence`'s first three results; None stands for zero.
        y, saved, states: as `recurrence` returned them, the others as it took them.
        needs_dx: whether the gradient of x is wanted.
    """
    kind, rows = CELLS[cell], _rows(x, h0, batch_sizes, offsets)
    hidden = weight_hh.shape[0] // kind.gates_at[-1]
    exact = state_dtype(x.dtype)
    shape, x, y = x.shape, x.flatten(0, -2), y.flatten(0, -2)
    dy = torch.zeros_like(y) if dy is None else dy.flatten(0, -2)
    dh_n = torch.zeros_like(h0) if dh_n is None else dh_n
    c_start = None if c0 is None else c0.to(exact)
    dc: Tensor | None = None
    if c_start is not None:
        dc = torch.zeros_like(c_start) if dc_n is None else dc_n.to(exact)
    projected: Tensor | None = None
    if mode == "eager":
        columns, carry, projected = eager.backward(
            kind, dy, dh_n, dc, weight_hh, weight_hr, h0, c_start, rows, reverse, y, saved, states
        )
    else:
        from rnnkit_kernels.recurrence import backward

        with _on_device(x):
            columns, carry = backward.backward(
                kind,
                _plan(kind, weight_hh, mode),
                dy,
                dh_n,
                dc,
                weight_hh,
                h0,
                c_start,
                rows,
                reverse,
                y,
                saved,
                states,
            )
    with _gemm_precision(x):
        ordered = columns
        if kind.input_columns != tuple(range(columns.shape[1])):
            # Slices, for an index list would be copied from the host.
            ordered = torch.cat([columns[:, i : i + 1] for i in kind.input_columns], 1)
        d_input = ordered.flatten(1)
        d_hidden = columns[:, kind.hidden_columns :].flatten(1)
        h_before = rows.before(y, h0, reverse)
        kept = saved.unbind(1) if kind.operand else ()
        operands = (h_before, *(operand(kept, h_before) for operand in kind.operand))
        bounds = [at * hidden for at in kind.gates_at]
        spans = [slice(a, b) for a, b in pairwise(bounds)]
        d_weight_hh = torch.cat(
            [d_hidden[:, span].t() @ v for span, v in zip(spans, operands, strict=True)]
        )
        # The step processed first hands its gradient to h0; an empty sequence hands on dh_n.
        first = rows.first(d_hidden[:, spans[0]], dh_n.new_zeros(rows.batch, bounds[1]), reverse)
        dh0 = (first @ weight_hh[spans[0]]).to(exact)
        lengths = rows.lengths()
        if lengths is not None:
            dh0 = torch.where((lengths > 0)[:, None], dh0, dh_n.to(exact))
        if "hidden" in kind.carry:
            dh0 = dh0 + carry[kind.carry.index("hidden")]
        d_weight_hr = d_c0 = None
        if projected is not None:
            d_weight_hr = projected.t() @ states[:, -1].to(x.dtype)
        if c0 is not None:
            d_c0 = carry[kind.carry.index("cell")].to(c0.dtype, copy=True)
        found = (
            (d_input @ weight_ih).view(shape) if needs_dx else None,
            d_input.t() @ x,
            d_weight_hh,
            None if bias_ih is None else d_input.sum(0, dtype=exact).to(x.dtype),
            None if bias_hh is None else d_hidden.sum(0, dtype=exact).to(x.dtype),
            d_weight_hr,
            dh0.to(h0.dtype, copy=True),
            d_c0,
        )
        return [x.new_empty(0) if gradient is None else gradient for gradient in found]


@recurrence_backward.register_fake
def _(*inputs: Any) -> list[Tensor]:
    x, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, h0, c0 = inputs[3:11]
    needs_dx = inputs[-1]
    wanted = (x if needs_dx else None, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, h0, c0)
    return [
        x.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape) for tensor in wanted
    ]


# The first inputs of `recurrence` are tensors; of its backward, their gradients come before them.
_LAYER_INPUTS = 10


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    y, _, _, saved, states = output
    ctx.save_for_backward(*inputs[:_LAYER_INPUTS], y, saved, states)
    ctx.cell, ctx.reverse, ctx.mode, ctx.save = inputs[_LAYER_INPUTS:]
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    d_saved: Tensor | None,
    d_states: Tensor | None,
) -> tuple[Tensor | None, ...]:
    if not ctx.save:
        raise RuntimeError(
            "this recurrence ran without keeping what a backward pass needs: it was traced or "
            "called with gradients off; trace it with gradients on to differentiate it"
        )
    tensors = ctx.saved_tensors
    has_cell_state = tensors[7] is not None
    gradients = recurrence_backward(
        dy,
        dh_n,
        dc_n if has_cell_state else None,
        *tensors,
        ctx.cell,
        ctx.reverse,
        ctx.mode,
        ctx.needs_input_grad[0],
    )
    given = [tensor is not None for tensor in tensors[:8]]
    given[0] = ctx.needs_input_grad[0]
    found = (g if there else None for g, there in zip(gradients, given, strict=True))
    return (*found, None, None, None, None, None, None)


recurrence.register_autograd(_backward, setup_context=_save_inputs)


def _save_backward_inputs(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.save_for_backward(*inputs[: 3 + _LAYER_INPUTS])
    ctx.cell, ctx.reverse = inputs[-4], inputs[-3]
    ctx.set_materialize_grads(False)


def _double_backward(ctx: Any, outer: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Differentiate the backward: recompute the layer by its definition, twice differentiated."""
    *inputs, batch_sizes, offsets = (
        None if tensor is None else tensor.detach() for tensor in ctx.saved_tensors
    )
    leaves: list[Any] = [None if tensor is None else tensor.requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        dy, dh_n, dc_n, x, *others = leaves
        rows = _rows(x, others[-2], batch_sizes, offsets)
        y, h_n, c_n = reference.layer(ctx.cell, (x, *others), rows, ctx.reverse)
        results = [(y, dy), (h_n, dh_n), (c_n, dc_n)]
        outputs, output_gradients = zip(
            *((a, b) for a, b in results if a is not None and b is not None), strict=True
        )
        present = [leaf for leaf in (x, *others) if leaf is not None]
        first = iter(
            torch.autograd.grad(
                outputs, present, output_gradients, create_graph=True, allow_unused=True
            )
        )
        weighted = []
        for leaf, factor in zip((x, *others), outer, strict=True):
            gradient = None if leaf is None else next(first)
            if gradient is not None and factor is not None and gradient.requires_grad:
                weighted.append((gradient, factor))
        sought = [leaf for leaf in leaves if leaf is not None]
        second = iter(
            torch.autograd.grad(
                [gradient for gradient, _ in weighted],
                sought,
                [factor for _, factor in weighted],
                allow_unused=True,
            )
            if weighted
            else [None] * len(sought)
        )
    found = [None if leaf is None else next(second) for leaf in leaves]
    return (*found, *[None] * 9)


recurrence_backward.register_autograd(_double_backward, setup_context=_save_backward_inputs)
