"""Philox in PyTorch: the random words of a mask, where they belong, and which of them keep.

Philox-4x32-10 of Salmon et al. 2011; `dropout.py` says which word is whose. `kernels.py` draws the
same words in Triton.
"""

import torch
from torch import Tensor

# Numbers of `layer` that one layer uses: dropout of its output, zoneout of h, zoneout of c.
STREAMS = 3
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


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
