"""The backward pass of a layer as an operator, which is differentiable too.

Its own formula recomputes through `reference.py`, which autograd differentiates twice.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from rnnkit_kernels import reference
from rnnkit_kernels.cells import CELLS, Cell
from rnnkit_kernels.cpu import native
from rnnkit_kernels.ops.context import gemm_precision, on_device
from rnnkit_kernels.ops.layer import hidden_gradients, input_gates, member, rows_of
from rnnkit_kernels.ops.planned import run_planned
from rnnkit_kernels.ops.shortage import tells_shortage
from rnnkit_kernels.ops.twice import differentiate_twice
from rnnkit_kernels.recurrence import eager
from rnnkit_kernels.recurrence.eager import state_dtype
from rnnkit_kernels.recurrence.rows import Rows

# The first inputs of `recurrence` are tensors; of its backward, their gradients come before them.
LAYER_INPUTS = 12
DIFFERENTIABLE = 9
# A tuple, not a list: torch's vmap then runs an operator that it has no rule for once an entry.
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@tells_shortage
def layer_gradients(
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
    y: Tensor,
    saved: Tensor,
    states: Tensor,
    cell: str,
    reverse: bool,
    mode: str,
    recompute: bool,
    needs_dx: bool,
) -> Gradients:
    """Gradients of x, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, cell_weights, h0, c0.

    Those of absent inputs are empty.

    Args:
        dy, dh_n, dc_n: gradients of `recurrence`'s first three results; None stands for zero.
        y, saved, states: as `recurrence` returned them, the others as it took them.
        needs_dx: whether the gradient of x is wanted.
    """
    kind, rows = CELLS[cell], rows_of(x, h0, batch_sizes, offsets)
    members, _, width = h0.shape
    exact = state_dtype(x.dtype)
    shape, x, y = x.shape, x.flatten(0, -2), y.view(-1, members, width)
    c_start = None if c0 is None else c0.to(exact)
    directions = [reverse != (m == 1) for m in range(members)]
    if recompute:
        saved = _saved_again(
            kind, x, weight_ih, weight_hh, bias_ih, bias_hh, cell_weights, h0, c_start, rows,
            directions, y, states,
        )  # fmt: skip
    if mode == "native" and native.runs(kind, x):
        inputs = (x, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, cell_weights, h0, c0)
        dx, *of_others = native.backward(
            kind, dy, dh_n, dc_n, *inputs, zoneout, rows, reverse, y, saved, states, needs_dx
        )
        whole = (None if dx is None else dx.view(shape), *of_others)
        return present(x, whole)
    dy = torch.zeros_like(y) if dy is None else dy.reshape(y.shape)
    dh_n = torch.zeros_like(h0) if dh_n is None else dh_n
    dc: Tensor | None = None
    if c_start is not None:
        dc = torch.zeros_like(c_start) if dc_n is None else dc_n.to(exact)
    projected: list[Tensor | None] = [None] * members
    if mode in ("eager", "native"):
        leading = (dh_n, dc, weight_hh, weight_hr, cell_weights, h0, c_start)
        kept = (y, saved, states)
        found = []
        for m, falls in enumerate(directions):
            shares = None if zoneout is None else zoneout[:, m]
            of_member = (*member(m, *leading), shares, rows, falls, *(v[:, m] for v in kept))
            with gemm_precision(x):
                found.append(eager.backward(kind, dy[:, m], *of_member))
        columns = torch.stack([part[0] for part in found], 1)
        carries = [torch.stack(values) for values in zip(*(part[1] for part in found), strict=True)]
        projected = [part[2] for part in found]
    else:
        from rnnkit_kernels.recurrence import backward

        with on_device(x):
            tensors = (dy, dh_n, dc, weight_hh, cell_weights, h0, c_start, zoneout)
            columns, carry = run_planned(
                lambda plan: backward.backward(
                    kind, plan, *tensors, rows, reverse, y, saved, states
                ),
                kind,
                weight_hh,
                h0,
                mode,
                backward=True,
            )
        carries = list(carry)
    names = kind.carried(zoneout is not None)
    with gemm_precision(x):
        ordered = columns
        if kind.input_columns != tuple(range(columns.shape[2])):
            # Slices, for an index list would be copied from the host.
            ordered = torch.cat([columns[:, :, i : i + 1] for i in kind.input_columns], 2)
        d_input = ordered.flatten(1)
        parts = [
            hidden_gradients(
                kind,
                rows,
                directions[m],
                columns[:, m],
                y[:, m],
                saved[:, m] if saved.dim() == 4 else saved,
                states[:, m],
                None if zoneout is None else zoneout[:, m],
                *member(m, weight_hh, cell_weights, h0, c_start, dh_n),
            )
            for m in range(members)
        ]
        d_weight_hh, d_cell_weights, dh0 = zip(*parts, strict=True)
        d_h0 = torch.stack(dh0)
        if "hidden" in names:
            d_h0 = d_h0 + carries[names.index("hidden")]
        d_weight_hr = [
            gradient.t() @ states[:, m, -1].to(x.dtype)
            for m, gradient in enumerate(projected)
            if gradient is not None
        ]
        d_hidden = columns[:, :, kind.hidden_columns :].flatten(2)
        gradients = (
            (d_input @ weight_ih.flatten(0, 1)).view(shape) if needs_dx else None,
            (d_input.t() @ x).view(weight_ih.shape),
            torch.stack(d_weight_hh),
            None
            if bias_ih is None
            else d_input.sum(0, dtype=exact).to(x.dtype).view(bias_ih.shape),
            None if bias_hh is None else d_hidden.sum(0, dtype=exact).to(x.dtype),
            torch.stack(d_weight_hr) if d_weight_hr else None,
            None if cell_weights is None else torch.stack(d_cell_weights).to(x.dtype),
            d_h0.to(h0.dtype, copy=True),
            None if c0 is None else carries[names.index("cell")].to(c0.dtype, copy=True),
        )
        return present(x, gradients)


def present(x: Tensor, gradients: Iterable[Tensor | None]) -> Gradients:
    """What an operator returns, in which absent gradients are empty and of x's kind."""
    found: Any = tuple(x.new_empty(0) if value is None else value for value in gradients)
    return found  # type: ignore[no-any-return]


recurrence_backward = torch.library.custom_op(
    "rnnkit::recurrence_backward", layer_gradients, mutates_args=()
)


def _saved_again(
    kind: Cell,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    cell_weights: Tensor | None,
    h0: Tensor,
    c_start: Tensor | None,
    rows: Rows,
    directions: list[bool],
    y: Tensor,
    states: Tensor,
) -> Tensor:
    """What the forward pass did not save, (N, M, S, H): h is known, so nothing is sequential."""
    exact = state_dtype(x.dtype)
    x_gates = input_gates(x, weight_ih, bias_ih, kind.gates_at[-1])
    found = []
    for m, reverse in enumerate(directions):
        operand = rows.before(y[:, m], h0[m], reverse)
        before: tuple[Tensor, ...] = (operand.to(exact),)
        if c_start is not None:
            before = (*before, rows.before(states[:, m, 0], c_start[m], reverse))
        weights = () if cell_weights is None else cell_weights[m].to(exact).unbind()
        kept: tuple[Tensor, ...] = ()
        for stage, function in enumerate(kind.forward):
            gates = slice(kind.gates_at[stage], kind.gates_at[stage + 1])
            hidden = x_gates.shape[3]
            span = slice(gates.start * hidden, gates.stop * hidden)
            bias = None if bias_hh is None else bias_hh[m, span]
            with gemm_precision(x):
                h_gates = linear(operand, weight_hh[m, span], bias)
            new, result = function(
                x_gates[:, m, gates].to(exact).unbind(1),
                h_gates.view(len(operand), kind.gates[stage], hidden).to(exact).unbind(1),
                kept,
                before,
                weights,
                torch.sigmoid,
                torch.tanh,
                torch.relu,
            )
            kept += new
            operand = result[0].to(x.dtype)
        found.append(torch.stack(kept, 1).to(x.dtype) if kept else y.new_empty(len(y), 0, hidden))
    return torch.stack(found, 1)


@recurrence_backward.register_fake
def _(*inputs: Any) -> Gradients:
    return like_inputs(*inputs)


def like_inputs(*inputs: Any) -> Gradients:
    """Room for the gradients that a backward operator returns, whose arguments these are."""
    x, *others = inputs[3 : 3 + DIFFERENTIABLE]
    wanted = (x if inputs[-1] else None, *others)
    return present(x, (None if t is None else t.new_empty(t.shape) for t in wanted))


def _save_backward_inputs(ctx: Any, inputs: tuple[Any, ...], output: Gradients) -> None:
    ctx.save_for_backward(*inputs[: 3 + LAYER_INPUTS])
    ctx.cell, ctx.reverse = inputs[-5], inputs[-4]
    ctx.set_materialize_grads(False)


def _double_backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiate the backward through the definition of the layer."""
    *inputs, zoneout, batch_sizes, offsets = ctx.saved_tensors

    def run(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
        h0 = others[-2]
        assert h0 is not None
        rows = rows_of(x, h0, batch_sizes, offsets)
        return reference.directions(ctx.cell, (x, *others, zoneout), rows, ctx.reverse)

    return (*differentiate_twice(run, inputs[:3], inputs[3:], list(outer)), *[None] * 11)


recurrence_backward.register_autograd(_double_backward, setup_context=_save_backward_inputs)
