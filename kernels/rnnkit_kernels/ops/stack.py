"""A stack of layers as one operator: layer l runs step t while the layer above runs step t − 1.

T + L − 1 meetings instead of L·T: the layers are the members of one cooperative launch (a
wavefront). Every layer but the first multiplies its input inside the loop, so only the first has an
input product over all steps. Dropout between the layers is drawn inside, as `dropout.py` does it.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rnnkit_kernels import reference
from rnnkit_kernels.cells import CELLS, Cell
from rnnkit_kernels.ops.recurrence import (
    differentiate_twice,
    gemm_precision,
    hidden_gradients,
    input_gates,
    last_states,
    member,
    on_device,
    recurrent_precision,
    rows_of,
)
from rnnkit_kernels.ops.shortage import tells_shortage
from rnnkit_kernels.random.dropout import STREAMS, definition
from rnnkit_kernels.recurrence.plan import (
    Device,
    Fallback,
    Mode,
    Plan,
    Precision,
    plan,
    together_tiles,
)


def wavefront_plan(
    cell: Cell,
    hidden: int,
    layers: int,
    dtype: torch.dtype,
    device: Device,
    precision: Precision,
    mode: Mode,
) -> Plan | Fallback:
    """The plan of `layers` layers that run at once, or the reason why there is none."""
    if len(cell.gates) > 1:
        return Fallback(f"{cell.name} takes two products a step")
    if mode not in ("data", "counter"):
        return Fallback(f"a wavefront needs programs that meet, and the plan is {mode}")
    found = plan(cell, hidden, dtype, device, precision, mode)
    if isinstance(found, Fallback):
        return found
    # Above the first layer W_ih lies beside W_hh, in a tile of the same size.
    sizes = (cell, hidden, dtype, precision, device, False)
    ahead, back = (together_tiles(*sizes, backward, weights=2) for backward in (False, True))
    if isinstance(ahead, str) or isinstance(back, str):
        return Fallback(f"with both weights {ahead if isinstance(ahead, str) else back}")
    found = replace(found, forward=ahead, backward=back)
    programs = layers * -(-hidden // min(found.forward.block_h, found.backward.block_h))
    if programs > found.multiprocessors:
        return Fallback(f"{programs} programs exceed {found.multiprocessors} multiprocessors")
    return found


def _planned(cell: Cell, weight_hh: Tensor, mode: Any) -> Plan:
    layers, _, hidden = weight_hh.shape
    device = Device.of(weight_hh.device)
    precision = recurrent_precision()
    found = wavefront_plan(cell, hidden, layers, weight_hh.dtype, device, precision, mode)
    if isinstance(found, Fallback):
        raise RuntimeError(f"{layers} layers can't run as a wavefront: {found.reason}")
    return found


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
            _planned(kind, weight_hh, mode),
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
    output = y[:, -1].clone(memory_format=torch.contiguous_format)
    if not save:
        y, dropped = y.new_empty(0), y.new_empty(0)
    return output.view(*x.shape[:-1], h0.shape[2]), h_n, last, y, saved, states, dropped


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
) -> list[Tensor]:
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
            _planned(kind, weight_hh, mode),
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
        return [x.new_empty(0) if gradient is None else gradient for gradient in gradients]


@stack_backward.register_fake
def _(*inputs: Any) -> list[Tensor]:
    x, *others = inputs[3 : 3 + _DIFFERENTIABLE]
    wanted = (x if inputs[-1] else None, *others)
    return [
        x.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape) for tensor in wanted
    ]


# Inputs of `stack` that are tensors, and those of them that have a gradient.
_TENSORS = 13
_DIFFERENTIABLE = 9


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:_TENSORS], *output[3:])
    ctx.dropout, ctx.cell, ctx.mode, ctx.save = inputs[_TENSORS:]
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, *unused: Any
) -> tuple[Tensor | None, ...]:
    if not ctx.save:
        raise RuntimeError("this stack ran without keeping what a backward pass needs")
    tensors = ctx.saved_tensors
    has_cell_state = tensors[_DIFFERENTIABLE - 1] is not None
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
    given = [tensor is not None for tensor in tensors[:_DIFFERENTIABLE]]
    given[0] = ctx.needs_input_grad[0]
    found = (g if there else None for g, there in zip(gradients, given, strict=True))
    return (*found, *[None] * 8)


stack.register_autograd(_backward, setup_context=_save_inputs)


def _save_backward_inputs(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.save_for_backward(*inputs[: 3 + _TENSORS])
    ctx.dropout, ctx.cell = inputs[-4], inputs[-3]
    ctx.set_materialize_grads(False)


def _double_backward(ctx: Any, outer: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Differentiate the backward through the definition of the layers, one after another."""
    *inputs, batch_sizes, offsets, order, seed = ctx.saved_tensors

    def run(*layer_inputs: Tensor | None) -> tuple[Tensor | None, ...]:
        rows = rows_of(inputs[3], inputs[10], batch_sizes, offsets)
        return by_definition(layer_inputs, rows, order, seed, ctx.dropout, ctx.cell)

    return (*differentiate_twice(run, inputs[:3], inputs[3:], outer), *[None] * 12)


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
            place = (STREAMS * (m - 1), rows.batch, rows.offsets, order)
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
