"""Dropout whose mask depends on what an element is, not on where it lies.

Element (layer, step t, sequence b, feature) draws a word of Philox-4x32-10, the counter-based
generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011):

    key = (low, high) 32 bits of the seed        counter = (feature // 4, b, t, layer)

and takes word feature mod 4 of the four. It is kept where that word is at least ⌊p·2³²⌋. Storage,
tiles, device and the order of the batch leave the mask as it is, and a backward pass draws it again
instead of keeping it. `philox.py` draws the same words in Triton.
"""

import importlib.util
import math
from typing import Any

import torch
from torch import Tensor

from rnnkit_kernels.recurrence.rows import Rows

_HAS_TRITON = importlib.util.find_spec("triton") is not None  # found, not imported
# Numbers of `layer` that one layer uses: dropout of its output, zoneout of h, zoneout of c.
STREAMS = 3
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def dropout(
    x: Tensor,
    probability: float,
    seed: Tensor,
    layer: int,
    rows: Rows,
    order: Tensor | None = None,
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
    return _masked(x, float(probability), seed, layer, rows.batch, rows.offsets, order)


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
) -> Tensor:
    """`dropout` in plain PyTorch; `batch` and `offsets` are those of `Rows`."""
    row = torch.arange(math.prod(x.shape[:-1]), device=x.device)
    if (first := packed_offsets(row.shape[0], batch, offsets)) is None:
        step, sequence = row // max(batch, 1), row % max(batch, 1)
    else:
        step = steps(row, first)
        sequence = row - first[step]
    if order is not None:
        sequence = order[sequence]
    kept = keep(probability, seed, layer, step[:, None], sequence[:, None], x.shape[-1])
    # Not `where`, which copies its zero from the host.
    return (x * scale(probability)).masked_fill(~kept.view(x.shape), 0)


def packed_offsets(count: int, batch: int, offsets: Tensor | None) -> Tensor | None:
    """The offsets that say where `count` rows belong, or None where row t·B + b is b of step t."""
    # A full count is padded storage, or packed sequences all of one length.
    return None if offsets is None or count == offsets.shape[0] * batch else offsets


def steps(row: Tensor, offsets: Tensor) -> Tensor:
    """t of each row of packed storage."""
    return torch.searchsorted(offsets, row, right=True) - 1


def threshold(probability: float) -> int:
    """⌊p·2³²⌋, the first word that keeps its element."""
    return int(probability * 2**32)


def scale(probability: float) -> float:
    """1 / (1 − p), or 0 where nothing is kept."""
    return 1 / (1 - probability) if probability < 1 else 0.0


def keep(
    probability: float, seed: Tensor, layer: int, step: Tensor, sequence: Tensor, features: int
) -> Tensor:
    """Which features are kept.

    Args:
        probability: of an element to be dropped.
        seed: int64, one element.
        layer: an integer.
        step, sequence: t and the original b, int64 (..., 1).
        features: F.

    Returns:
        bool (..., F).
    """
    group = torch.arange((features + 3) // 4, device=seed.device)
    seed = seed.reshape(())
    words = philox(
        (group, sequence, step, torch.full_like(step, layer)),
        (seed & _LOW, (seed >> 32) & _LOW),
    )
    first = threshold(probability)
    return torch.stack([word >= first for word in words], -1).flatten(-2)[..., :features]


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox-4x32-10; a word is an int64 in [0, 2³²).

    Args:
        counter: four tensors of words that broadcast against each other.
        key: two words, of shape ().

    Returns:
        Four tensors of words, of the shape they broadcast to.
    """
    a, b, c, d = counter
    rounds = torch.arange(_ROUNDS, device=key[0].device)
    keys = [((k + rounds * by) & _LOW).unbind() for k, by in zip(key, _KEY_STEPS, strict=True)]
    for key_a, key_b in zip(*keys, strict=True):
        high_a, low_a = _multiply(a, _MULTIPLIERS[0])
        high_c, low_c = _multiply(c, _MULTIPLIERS[1])
        a, b, c, d = high_c ^ b ^ key_a, low_c, high_a ^ d ^ key_b, low_a
    return a, b, c, d


def _multiply(word: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of word · by, for 2³¹ ≤ by < 2³²."""
    # word · by can exceed an int64. word · (by − 2³²) lies in (−2⁶³, 0] and its high half, rounded
    # down, is too small by exactly word.
    product = word * (by - 2**32)
    return (product >> 32) + word, product & _LOW


@torch.library.custom_op("rnnkit::dropout", mutates_args=())
def _operator(
    x: Tensor,
    probability: float,
    seed: Tensor,
    layer: int,
    batch: int,
    offsets: Tensor | None,
    order: Tensor | None,
) -> Tensor:
    """`definition`, opaque to `torch.compile`; on a GPU a Triton kernel."""
    return definition(x.contiguous(), probability, seed, layer, batch, offsets, order)


@_operator.register_kernel("cuda")
def _(x: Tensor, *others: Any) -> Tensor:
    x = x.contiguous()
    if not _HAS_TRITON:
        return definition(x, *others)
    from rnnkit_kernels.random import philox

    with torch.cuda.device(x.device):
        return philox.dropout(x, *others)


@_operator.register_fake
def _(x: Tensor, *others: Any) -> Tensor:
    return x.new_empty(x.shape)  # contiguous, however x lies


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.probability, seed, ctx.layer, ctx.batch, offsets, order = inputs
    ctx.save_for_backward(seed, offsets, order)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    seed, offsets, order = ctx.saved_tensors
    masked = _masked(gradient, ctx.probability, seed, ctx.layer, ctx.batch, offsets, order)
    return masked, None, None, None, None, None, None


_operator.register_autograd(_backward, setup_context=_save)
