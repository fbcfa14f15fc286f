"""One layer in one direction or both, from its true inputs, as an operator."""

import math
from typing import Any

import torch
from torch import Tensor

from rnnkit_kernels.cells import CELLS, Cell
from rnnkit_kernels.cpu import native
from rnnkit_kernels.ops.context import gemm_precision, on_device
from rnnkit_kernels.ops.flops import tell_counters
from rnnkit_kernels.ops.layer import input_gates, last_states, member, rows_of
from rnnkit_kernels.ops.planned import run_planned
from rnnkit_kernels.ops.recurrence_backward import (
    DIFFERENTIABLE,
    LAYER_INPUTS,
    recurrence_backward,
)
from rnnkit_kernels.ops.shortage import tells_shortage
from rnnkit_kernels.recurrence import eager
from rnnkit_kernels.recurrence.eager import state_dtype


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
        mode: a mode of `Plan`, "rule" or "alone" (see `planned`) for the Triton kernels, "native"
            for the CPU engine, "eager" for the loop in PyTorch.
        save: whether to keep what a backward pass needs.
        recompute: whether the gates are left out of that, and computed again from h and c.

    Returns:
        y, x's shape with M·P for D; h_n (M, B, P); c_n (M, B, H), empty without c0; saved
        (N, M, S, H) and states (N, M, slots, H), empty unless `save`; with `recompute`, saved too.
    """
    kind, rows = CELLS[cell], rows_of(x, h0, batch_sizes, offsets)
    exact = state_dtype(x.dtype)
    members, gates = h0.shape[0], kind.gates_at[-1]
    if mode == "native" and native.runs(kind, x):
        inputs = (x, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, cell_weights, h0, c0)
        y, h_n, c_n, saved, states = native.forward(
            kind, *inputs, zoneout, rows, reverse, save, save and not recompute
        )
        last = x.new_empty(0) if c_n is None else c_n
        return y.view(*x.shape[:-1], members * h0.shape[2]), h_n, last, saved, states
    bias = weight_hh.new_zeros(weight_hh.shape[:2]) if bias_hh is None else bias_hh
    c_start = None if c0 is None else c0.to(exact)
    x_gates = input_gates(x, weight_ih, bias_ih, gates)
    directions = [reverse != (m == 1) for m in range(members)]
    if mode in ("eager", "native"):  # a graph may run where the engine it was made with is not
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


def _slots(kind: Cell, weight_hr: Tensor | None, zoneout: Tensor | None) -> int:
    """Values per unit in `states`: c; with zoneout the cell's h and c; h before projection."""
    has_cell = int(kind.has_cell_state)
    zoned = 1 + has_cell if zoneout is not None else 0
    return has_cell + zoned + int(weight_hr is not None)


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


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    y, _, _, saved, states = output
    ctx.save_for_backward(*inputs[:LAYER_INPUTS], y, saved, states)
    ctx.cell, ctx.reverse, ctx.mode, ctx.save, ctx.recompute = inputs[LAYER_INPUTS:]
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
    tell_counters()
    tensors = ctx.saved_tensors
    has_cell_state = tensors[DIFFERENTIABLE - 1] is not None
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
    given = [tensor is not None for tensor in tensors[:DIFFERENTIABLE]]
    given[0] = ctx.needs_input_grad[0]
    found = (g if there else None for g, there in zip(gradients, given, strict=True))
    return (*found, *[None] * 8)


recurrence.register_autograd(_backward, setup_context=_save_inputs)
