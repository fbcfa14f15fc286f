"""Dropout whose mask depends on what an element is, not on where it lies.

Element (layer, step t, sequence b, feature) draws a word of Philox-4x32-10, the counter-based
generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011):

    key = (low, high) 32 bits of the seed        counter = (feature // 4, b, t, layer)

and takes word feature mod 4 of the four. It is kept where that word is at least ⌊p·2³²⌋. Storage,
tiles, device and the order of the batch leave the mask as it is, and a backward pass draws it again
instead of keeping it.
"""

from __future__ import annotations

import importlib.util
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rnnkit_kernels.random.philox import keep, packed_offsets, scale, steps

if TYPE_CHECKING:
    from rnnkit_kernels.recurrence.rows import Rows

_HAS_TRITON = importlib.util.find_spec("triton") is not None  # found, not imported


def dropout(
    x: Tensor,
    probability: float,
    seed: Tensor,
    layer: int,
    rows: Rows,
    order: Tensor | None = None,
    begins: Tensor | None = None,
) -> Tensor:
    """Zero each element of `x` with the given probability and scale the others by 1 / (1 − p).

    Differentiable any number of times. The host reads neither `seed` nor `rows`: a captured graph
    draws anew once the seed's value changes. Writing to the seed between the forward pass and the
    backward, which reads it again, makes autograd raise.

    Args:
        x: (T, B, F) when `rows` is dense, else (N, F); of a floating dtype.
        probability: p, in [0, 1].
        seed: int64, one element, on x's device.
        layer: in [0, 2³¹); layers that share a seed differ in it.
        rows: which rows belong to a step, on x's device.
        order: int64 (B,), the original index of each sorted sequence; None for the identity.
        begins: int64 (B,), the step t at which each sorted sequence begins where it is a segment
            of a longer one; None for 0.

    Returns:
        As `x`; `x` itself when p is 0.

    Raises:
        ValueError: a probability outside [0, 1], or a seed that is not one int64.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {probability}")
    if seed.dtype != torch.int64 or seed.numel() != 1:
        raise ValueError(
            f"the seed must be one int64, got {seed.dtype} of shape {tuple(seed.shape)}"
        )
    if probability == 0:
        return x
    places = (rows.batch, rows.offsets, order, begins)
    return _masked(x, float(probability), seed, layer, *places)


def _masked(x: Tensor, *others: Any) -> Tensor:
    # Under functorch transforms and forward-mode AD the operator would lose tangents silently.
    forward_mode = torch.autograd.forward_ad._current_level >= 0
    transformed = torch._C._are_functorch_transforms_active() or forward_mode
    return definition(x, *others) if transformed else _operator(x, *others)


def definition(
    x: Tensor,
    probability: float,
    seed: Tensor,
    layer: int,
    batch: int,
    offsets: Tensor | None,
    order: Tensor | None,
    begins: Tensor | None,
) -> Tensor:
    """`dropout` in plain PyTorch; `batch` and `offsets` are those of `Rows`."""
    row = torch.arange(math.prod(x.shape[:-1]), device=x.device)
    if (first := packed_offsets(row.shape[0], batch, offsets)) is None:
        step, sequence = row // max(batch, 1), row % max(batch, 1)
    else:
        step = steps(row, first)
        sequence = row - first[step]
    if begins is not None:
        step = step + begins[sequence]
    if order is not None:
        sequence = order[sequence]
    kept = keep(probability, seed, layer, step[:, None], sequence[:, None], x.shape[-1])
    # Not `where`, which copies its zero from the host.
    return (x * scale(probability)).masked_fill(~kept.view(x.shape), 0)


@torch.library.custom_op("rnnkit::dropout", mutates_args=())
def _operator(
    x: Tensor,
    probability: float,
    seed: Tensor,
    layer: int,
    batch: int,
    offsets: Tensor | None,
    order: Tensor | None,
    begins: Tensor | None,
) -> Tensor:
    """`definition`, opaque to `torch.compile`; on a GPU a Triton kernel."""
    return definition(x.contiguous(), probability, seed, layer, batch, offsets, order, begins)


@_operator.register_kernel("cuda")
def _(x: Tensor, *others: Any) -> Tensor:
    x = x.contiguous()
    *places, begins = others
    if not _HAS_TRITON or begins is not None:  # the kernel has no segments
        return definition(x, *others)
    from rnnkit_kernels.random import kernels

    with torch.cuda.device(x.device):
        return kernels.dropout(x, *places)


@_operator.register_fake
def _(x: Tensor, *others: Any) -> Tensor:
    return x.new_empty(x.shape)  # contiguous, however x lies


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.probability, seed, ctx.layer, ctx.batch, *places = inputs
    ctx.save_for_backward(seed, *places)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    seed, *places = ctx.saved_tensors
    masked = _masked(gradient, ctx.probability, seed, ctx.layer, ctx.batch, *places)
    return masked, *[None] * 7


_operator.register_autograd(_backward, setup_context=_save)
