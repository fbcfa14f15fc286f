"""The recurrence as torch operators: opaque to `torch.compile`, functional, differentiable twice.

One operator runs one layer in one direction or both, input product included, from the layer's true
inputs; another runs its backward. The backward operator is differentiable too: its own formula
recomputes through `reference.py`, which autograd differentiates twice.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.functional import linear

from rnnkit_kernels import reference
from rnnkit_kernels.cells import CELLS, Cell
from rnnkit_kernels.ops.shortage import tells_shortage
from rnnkit_kernels.recurrence import eager
from rnnkit_kernels.recurrence.eager import state_dtype
from rnnkit_kernels.recurrence.plan import Device, Fallback, Mode, Plan, Precision, plan
from rnnkit_kernels.recurrence.rows import Rows


def recurrent_precision() -> Precision:
    """Precision of float32 products, as torch's setting for cuDNN's RNN has it.

    Only `torch.backends.cudnn.rnn.fp32_precision` is read: `allow_tf32` raises once a user has set
    a precision per operator.
    """
    setting = torch.backends.cudnn.rnn.fp32_precision  # type: ignore[attr-defined]
    return "tf32" if setting == "tf32" else "ieee"


@contextmanager
def gemm_precision(example: Tensor) -> Iterator[None]:
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


def on_device(x: Tensor) -> AbstractContextManager[None]:
    """Launch on the device of `x`, whatever the current one is."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def rows_of(x: Tensor, h0: Tensor, batch_sizes: Tensor | None, offsets: Tensor | None) -> Rows:
    """The rows of an operator's input x, for h0 (M, B, ·)."""
    steps = x.shape[0] if batch_sizes is None else batch_sizes.shape[0]
    return Rows(steps, h0.shape[1], batch_sizes, offsets)


def planned(cell: Cell, weight_hh: Tensor, h0: Tensor, mode: str) -> Plan:
    """The plan of a mode, or an error that says why there is none.

    "rule" leaves the mode to the plan's rule, "alone" to the rule without programs that wait for
    each other: in a traced graph B and torch's flags are known only now.
    """
    members, batch, hidden = h0.shape
    by_rule = mode in ("rule", "alone")
    found = plan(
        cell,
        hidden,
        weight_hh.dtype,
        Device.of(weight_hh.device),
        recurrent_precision(),
        None if by_rule else cast(Mode, mode),
        batch,
        members,
        mode != "alone",
    )
    if isinstance(found, Fallback):
        raise RuntimeError(found.reason)
    return found


class LaunchRefusedWarning(RuntimeWarning):
    """A kernel did not fit the GPU as it is, and a slower one ran."""


Result = TypeVar("Result")


def run_planned(
    run: Callable[[Plan], Result],
    cell: Cell,
    weight_hh: Tensor,
    h0: Tensor,
    mode: str,
    backward: bool,
) -> Result:
    """Run the plan of a mode, or one launch a step where the driver refuses it."""
    try:
        chosen = planned(cell, weight_hh, h0, mode)
    except RuntimeError:
        if not backward:
            raise
        # Since the forward pass torch's flag for float32 products has changed.
        chosen = planned(cell, weight_hh, h0, "launch")
    try:
        return run(chosen)
    except Exception as error:
        # CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE: fewer multiprocessors are visible than the
        # device has (MPS). OutOfResources: the plan's estimate of shared memory was too low.
        refused = "too many blocks in cooperative launch" in str(error)
        if not refused and type(error).__name__ != "OutOfResources":
            raise
        warnings.warn(
            f"one launch a step runs in the place of mode {chosen.mode}, which the driver refused: "
            f"{error}",
            LaunchRefusedWarning,
            stacklevel=2,
        )
        return run(planned(cell, weight_hh, h0, "launch"))


def member(m: int, *tensors: Tensor | None) -> tuple[Any, ...]:
    """Entry m of the leading dimension of each tensor."""
    return tuple(None if tensor is None else tensor[m] for tensor in tensors)


def _slots(kind: Cell, weight_hr: Tensor | None, zoneout: Tensor | None) -> int:
    """Values per unit in `states`: c; with zoneout the cell's h and c; h before projection."""
    has_cell = int(kind.has_cell_state)
    zoned = 1 + has_cell if zoneout is not None else 0
    return has_cell + zoned + int(weight_hr is not None)


@torch.library.custom_op("rnnkit::recurrence", mutates_args=())
@tells_shortage
def recurrence(
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
    cell: str,
    reverse: bool,
    mode: str,
    save: bool,
    recompute: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One layer in one direction, or in both: M = 1 or 2.

    Args:
        x: (T, B, D) dense, or (N, D) with `batch_sizes` and `offsets`.
        weight_ih: (M, G·H, D).
        weight_hh: (M, G·H, P), P = H without projection.
        bias_ih, bias_hh: (M, G·H) or None.
        weight_hr: (M, P, H) or None.
        cell_weights: (M, W, H), such as peepholes, or None for cells without.
        h0: (M, B, P).
        c0: (M, B, H), or None for cells without.
        zoneout: (N, M, Z, H) in [0, 1], the share of h, and of c, that stays; or None.
        batch_sizes, offsets: int64 (T,), see `Rows`.
        cell: a key of `CELLS`.
        reverse: whether t falls for the first direction; a second goes the other way.
        mode: a mode of `Plan`, "rule" or "alone" (see `planned`) for the Triton kernels, "eager"
            for the loop in PyTorch.
        save: whether to keep what a backward pass needs.
        recompute: whether the gates are left out of that, and computed again from h and c.

    Returns:
        y, x's shape with M·P for D; h_n (M, B, P); c_n (M, B, H), empty without c0; saved
        (N, M, S, H) and states (N, M, slots, H), empty unless `save`; with `recompute`, saved too.
    """
    kind, rows = CELLS[cell], rows_of(x, h0, batch_sizes, offsets)
    exact = state_dtype(x.dtype)
    members, gates = h0.shape[0], kind.gates_at[-1]
    bias = weight_hh.new_zeros(weight_hh.shape[:2]) if bias_hh is None else bias_hh
    c_start = None if c0 is None else c0.to(exact)
    x_gates = input_gates(x, weight_ih, bias_ih, gates)
    directions = [reverse != (m == 1) for m in range(members)]
    if mode == "eager":
        leading = (weight_hh, bias, weight_hr, cell_weights, h0, c_start)
        found = []
        for m, falls in enumerate(directions):
            shares = None if zoneout is None else zoneout[:, m]
            of_member = (*member(m, *leading), shares, rows, falls)
            with gemm_precision(x):
                found.append(eager.forward(kind, x_gates[:, m], *of_member))
        y, saved, states = (torch.stack(parts, 1) for parts in zip(*found, strict=True))
        c_n = None
        if c_start is not None:
            c_n = last_states(rows, states[:, :, 0], c_start, directions)
        if not save or recompute:
            saved = saved.new_empty(0)
        if not save:
            states = states.new_empty(0)
    else:
        from rnnkit_kernels.recurrence import forward

        if weight_hr is not None:
            raise RuntimeError("the Triton kernels have no projection")
        with on_device(x):
            tensors = (x_gates, weight_hh, bias, cell_weights, h0, c_start, zoneout)
            y, c_n, saved, states, _ = run_planned(
                lambda plan: forward.forward(kind, plan, *tensors, rows, reverse, save, recompute),
                kind,
                weight_hh,
                h0,
                mode,
                backward=False,
            )
    h_n = last_states(rows, y, h0, directions)
    last = x.new_empty(0) if c0 is None or c_n is None else c_n.to(c0.dtype, copy=True)
    return y.view(*x.shape[:-1], members * h0.shape[2]), h_n, last, saved, states


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


@recurrence.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, _, weight_hh, _, _, weight_hr, _, h0, c0, zoneout, _, _, cell, _, _, save, recompute = inputs
    kind = CELLS[cell]
    members, hidden = h0.shape[0], weight_hh.shape[1] // kind.gates_at[-1]
    count = math.prod(x.shape[:-1])  # torch.Size.numel() would fix dynamic sizes
    y = x.new_empty(*x.shape[:-1], members * h0.shape[2])
    h_n = h0.new_empty(h0.shape)  # contiguous, however h0 lies
    c_n = x.new_empty(0) if c0 is None else c0.new_empty(c0.shape)
    exact = state_dtype(x.dtype)
    saved, states = x.new_empty(0), x.new_empty(0, dtype=exact)
    if save and not recompute:
        saved = x.new_empty(count, members, kind.saved_at[-1], hidden)
    if save:
        states = x.new_empty(count, members, _slots(kind, weight_hr, zoneout), hidden, dtype=exact)
    return y, h_n, c_n, saved, states


@torch.library.custom_op("rnnkit::recurrence_backward", mutates_args=())
@tells_shortage
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
) -> list[Tensor]:
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
    dy = torch.zeros_like(y) if dy is None else dy.reshape(y.shape)
    dh_n = torch.zeros_like(h0) if dh_n is None else dh_n
    c_start = None if c0 is None else c0.to(exact)
    dc: Tensor | None = None
    if c_start is not None:
        dc = torch.zeros_like(c_start) if dc_n is None else dc_n.to(exact)
    directions = [reverse != (m == 1) for m in range(members)]
    if recompute:
        saved = _saved_again(
            kind, x, weight_ih, weight_hh, bias_ih, bias_hh, cell_weights, h0, c_start, rows,
            directions, y, states,
        )  # fmt: skip
    projected: list[Tensor | None] = [None] * members
    if mode == "eager":
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
        return [x.new_empty(0) if gradient is None else gradient for gradient in gradients]


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


# The first inputs of `recurrence` are tensors; of its backward, their gradients come before them.
_LAYER_INPUTS = 12
_DIFFERENTIABLE = 9


@recurrence_backward.register_fake
def _(*inputs: Any) -> list[Tensor]:
    x, *others = inputs[3 : 3 + _DIFFERENTIABLE]
    wanted = (x if inputs[-1] else None, *others)
    return [
        x.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape) for tensor in wanted
    ]


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    y, _, _, saved, states = output
    ctx.save_for_backward(*inputs[:_LAYER_INPUTS], y, saved, states)
    ctx.cell, ctx.reverse, ctx.mode, ctx.save, ctx.recompute = inputs[_LAYER_INPUTS:]
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
    has_cell_state = tensors[_DIFFERENTIABLE - 1] is not None
    gradients = recurrence_backward(
        dy,
        dh_n,
        dc_n if has_cell_state else None,
        *tensors,
        ctx.cell,
        ctx.reverse,
        ctx.mode,
        ctx.recompute,
        ctx.needs_input_grad[0],
    )
    given = [tensor is not None for tensor in tensors[:_DIFFERENTIABLE]]
    given[0] = ctx.needs_input_grad[0]
    found = (g if there else None for g, there in zip(gradients, given, strict=True))
    return (*found, *[None] * 8)


recurrence.register_autograd(_backward, setup_context=_save_inputs)


def _save_backward_inputs(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.save_for_backward(*inputs[: 3 + _LAYER_INPUTS])
    ctx.cell, ctx.reverse = inputs[-5], inputs[-4]
    ctx.set_materialize_grads(False)


def _double_backward(ctx: Any, outer: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Differentiate the backward through the definition of the layer."""
    *inputs, zoneout, batch_sizes, offsets = ctx.saved_tensors

    def run(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
        h0 = others[-2]
        assert h0 is not None
        rows = rows_of(x, h0, batch_sizes, offsets)
        return reference.directions(ctx.cell, (x, *others, zoneout), rows, ctx.reverse)

    return (*differentiate_twice(run, inputs[:3], inputs[3:], outer), *[None] * 11)


def differentiate_twice(
    run: Callable[..., tuple[Tensor | None, ...]],
    gradients: list[Tensor | None],
    inputs: list[Tensor | None],
    outer: list[Tensor | None],
) -> list[Tensor | None]:
    """The backward of a backward: run a layer by its definition, and differentiate that twice.

    Args:
        run: the definition, of `inputs`.
        gradients: what arrived at its results, None where nothing did.
        inputs: the layer's.
        outer: what arrived at the gradients of the inputs, None where nothing did.

    Returns:
        Gradients of `gradients` and then of `inputs`.
    """
    leaves: list[Any] = [
        None if tensor is None else tensor.detach().requires_grad_()
        for tensor in (*gradients, *inputs)
    ]
    arrived, given = leaves[: len(gradients)], leaves[len(gradients) :]
    with torch.enable_grad():
        pairs = zip(run(*given), arrived, strict=True)
        outputs, output_gradients = zip(
            *((a, b) for a, b in pairs if a is not None and b is not None), strict=True
        )
        present = [leaf for leaf in given if leaf is not None]
        first = iter(
            torch.autograd.grad(
                outputs, present, output_gradients, create_graph=True, allow_unused=True
            )
        )
        weighted = []
        for leaf, factor in zip(given, outer, strict=True):
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
    return [None if leaf is None else next(second) for leaf in leaves]


recurrence_backward.register_autograd(_double_backward, setup_context=_save_backward_inputs)
