"""The losses and gradients of `linear_cross_entropy.py` in Triton, from tiles of the logits.

Forward, a program goes over a stretch of the vocabulary for some rows and keeps the largest logit m
and the sum s = Σ exp(z − m) so far, which a larger m rescales; no logit is stored. Backward, logits
are made again and turned into their gradients, a band of the vocabulary at a time, on which two
products of torch's follow: dW = Dᵀ h is whole for the words of a band, and dh = Σ D W adds up over
the bands in one order. Nothing is added by atomics: two runs agree bitwise.

Only a path that runs Triton imports this module.
"""

# Bodies that Triton compiles take no annotations.

from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rnnkit_kernels.recurrence.layout import aligned

# Numbers of a band of gradients: 32 MB in 16 bits, so that the products find it in an H200's L2.
BAND = 2**24


@dataclass(frozen=True)
class Tiles:
    """What a program works on.

    Attributes:
        BLOCK_ROWS, BLOCK_WORDS: of the logits.
        BLOCK_HIDDEN: units of h a step of the product.
        PRECISION: of the products, as `tl.dot` names it.
        num_warps, num_stages: as Triton takes them.
    """

    BLOCK_ROWS: int
    BLOCK_WORDS: int
    BLOCK_HIDDEN: int
    PRECISION: str
    num_warps: int
    num_stages: int


def tiles_of(dtype: torch.dtype, precision: str) -> Tiles:
    """Tiles for inputs of a dtype; `precision` is "ieee" or "tf32" and matters for float32."""
    if dtype == torch.float32 and precision == "ieee":
        # No tensor cores: each thread holds its part of both factors.
        return Tiles(64, 64, 16, "ieee", 8, 2)
    return Tiles(64, 128, 32 if dtype == torch.float32 else 64, precision, 8, 3)


@triton.jit
def logits_tile(
    hidden,
    weight,
    bias,
    first_row,
    first_word,
    rows,
    words,
    HIDDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """z of a tile, float32; −∞ for words beyond the last."""
    row = tl.arange(0, BLOCK_ROWS)
    word = tl.arange(0, BLOCK_WORDS)
    unit = tl.arange(0, BLOCK_HIDDEN)
    # Bases have 64 bits, offsets inside the tile 32.
    hidden += tl.cast(first_row, tl.int64) * HIDDEN
    weight += tl.cast(first_word, tl.int64) * HIDDEN
    has_row = (first_row + row < rows)[:, None]
    has_word = first_word + word < words
    z = tl.zeros([BLOCK_ROWS, BLOCK_WORDS], tl.float32)
    for start in range(0, HIDDEN, BLOCK_HIDDEN):
        has_unit = start + unit < HIDDEN
        h = tl.load(
            hidden + row[:, None] * HIDDEN + (start + unit)[None, :],
            mask=has_row & has_unit[None, :],
            other=0.0,
        )
        w = tl.load(
            weight + word[None, :] * HIDDEN + (start + unit)[:, None],
            mask=has_word[None, :] & has_unit[:, None],
            other=0.0,
        )
        z = tl.dot(h, w, z, input_precision=PRECISION)
    if bias is not None:
        z += tl.load(bias + first_word + word, mask=has_word, other=0.0).to(tl.float32)[None, :]
    return tl.where(has_word[None, :], z, -float("inf"))


@triton.jit(do_not_specialize=["rows", "words", "stretch"])
def sums_of_stretches(
    hidden,
    weight,
    bias,
    target,
    peaks,
    sums,
    at_target,
    rows: tl.int32,
    words: tl.int32,
    stretch: tl.int32,
    HIDDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """m and s over one stretch of words for some rows, and z of the target if it is there.

    The three results are (stretches, N).
    """
    first_row = tl.program_id(0) * BLOCK_ROWS
    first_word = tl.program_id(1) * stretch
    row = first_row + tl.arange(0, BLOCK_ROWS)
    wanted = tl.load(target + row, mask=row < rows, other=-1)
    largest = tl.full([BLOCK_ROWS], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    found = tl.zeros([BLOCK_ROWS], tl.float32)
    for start in range(first_word, tl.minimum(first_word + stretch, words), BLOCK_WORDS):
        z = logits_tile(
            hidden, weight, bias, first_row, start, rows, words,
            HIDDEN, BLOCK_ROWS, BLOCK_WORDS, BLOCK_HIDDEN, PRECISION,
        )  # fmt: skip
        word = start + tl.arange(0, BLOCK_WORDS)
        found += tl.sum(tl.where(word[None, :] == wanted[:, None], z, 0.0), 1)
        higher = tl.maximum(largest, tl.max(z, 1))
        # Where all are −∞ so far, there is nothing to subtract.
        peak = tl.where(higher == -float("inf"), 0.0, higher)
        total = total * tl.exp(largest - peak) + tl.sum(tl.exp(z - peak[:, None]), 1)
        largest = higher
    at = tl.program_id(1).to(tl.int64) * rows + row
    tl.store(peaks + at, largest, mask=row < rows)
    tl.store(sums + at, total, mask=row < rows)
    tl.store(at_target + at, found, mask=row < rows)


@triton.jit(do_not_specialize=["first", "rows", "words", "width"])
def gradients_of_band(
    hidden,
    weight,
    bias,
    target,
    peaks,
    sums,
    gradient,
    band,
    first: tl.int32,
    rows: tl.int32,
    words: tl.int32,
    width: tl.int32,
    HIDDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """g (softmax(z) − onehot(target)) of a tile, in the words from `first` on: band (N, width)."""
    first_row = tl.program_id(0) * BLOCK_ROWS
    first_word = first + tl.program_id(1) * BLOCK_WORDS
    z = logits_tile(
        hidden, weight, bias, first_row, first_word, rows, words,
        HIDDEN, BLOCK_ROWS, BLOCK_WORDS, BLOCK_HIDDEN, PRECISION,
    )  # fmt: skip
    row = first_row + tl.arange(0, BLOCK_ROWS)
    word = first_word + tl.arange(0, BLOCK_WORDS)
    wanted = tl.load(target + row, mask=row < rows, other=-1)
    peak = tl.load(peaks + row, mask=row < rows, other=0.0)
    total = tl.load(sums + row, mask=row < rows, other=1.0)
    g = tl.load(gradient + row, mask=row < rows, other=0.0)
    share = tl.exp(z - peak[:, None]) / total[:, None]
    d = g[:, None] * tl.where(word[None, :] == wanted[:, None], share - 1.0, share)
    column = tl.program_id(1) * BLOCK_WORDS + tl.arange(0, BLOCK_WORDS)
    base = band + first_row.to(tl.int64) * width
    at = tl.arange(0, BLOCK_ROWS)[:, None].to(tl.int64) * width + column[None, :]
    inside = (row < rows)[:, None] & (word < words)[None, :]
    tl.store(base + at, d.to(band.dtype.element_ty), mask=inside)


def losses(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor
) -> tuple[Tensor, Tensor]:
    """m + log s − z_target of each row, and its m and s.

    Args:
        hidden: float32, float16 or bfloat16 (N, H).
        weight: (V, H), of that dtype.
        bias: (V,), of that dtype, or None.
        target: int64 (N,), in [0, V).

    Returns:
        float32 (N,) and (2, N).
    """
    rows, words = len(hidden), len(weight)
    if rows == 0:
        return hidden.new_empty(0, dtype=torch.float32), hidden.new_empty(2, 0, dtype=torch.float32)
    tiles = tiles_of(hidden.dtype, _precision())
    row_blocks, word_blocks = _blocks(rows, tiles.BLOCK_ROWS), _blocks(words, tiles.BLOCK_WORDS)
    # As many stretches as give every multiprocessor a program or two.
    stretches = min(word_blocks, max(1, 2 * _multiprocessors(hidden) // row_blocks))
    stretch = _blocks(word_blocks, stretches) * tiles.BLOCK_WORDS
    stretches = _blocks(words, stretch)
    # Apart, so that each is aligned whatever the number of rows: one kernel serves them all.
    made = [hidden.new_empty(stretches, rows, dtype=torch.float32) for _ in range(3)]
    sums_of_stretches[(row_blocks, stretches)](
        hidden.contiguous(), weight.contiguous(), _contiguous(bias), target, *made,
        rows, words, stretch, hidden.shape[1], **asdict(tiles),
    )  # fmt: skip
    peaks, sums, at_target = made
    peak = peaks.amax(0)
    total = (sums * (peaks - peak).exp()).sum(0)
    return (peak - at_target.sum(0)) + total.log(), torch.stack([peak, total])


def gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    sums: Tensor,
    gradient: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of hidden, weight and bias, in their dtype.

    Args:
        hidden, weight, bias, target: as for `losses`.
        sums: its second result.
        gradient: g, float32 (N,).
    """
    (rows, width), words = hidden.shape, len(weight)
    hidden, weight, gradient = hidden.contiguous(), weight.contiguous(), gradient.contiguous()
    d_hidden = hidden.new_zeros(rows, width, dtype=torch.float32)
    d_weight, d_bias = torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)
    if rows == 0:
        return d_hidden.to(hidden.dtype), d_weight, d_bias
    tiles = tiles_of(hidden.dtype, _precision())
    block = tiles.BLOCK_WORDS
    at_once = min(_blocks(words, block), max(1, BAND // (rows * block))) * block
    band = hidden.new_empty(rows, at_once)
    peaks_and_sums = [aligned(row) for row in sums]
    for first in range(0, words, at_once):
        gradients_of_band[(_blocks(rows, tiles.BLOCK_ROWS), at_once // block)](
            hidden, weight, _contiguous(bias), target, *peaks_and_sums, gradient, band,
            first, rows, words, at_once, width, **asdict(tiles),
        )  # fmt: skip
        last = min(first + at_once, words)
        d = band[:, : last - first]
        d_hidden += _product(d, weight[first:last])
        torch.mm(d.t(), hidden, out=d_weight[first:last])
        if d_bias is not None:
            d_bias[first:last] = d.sum(0, dtype=torch.float32)
    return d_hidden.to(hidden.dtype), d_weight, d_bias


def _product(a: Tensor, b: Tensor) -> Tensor:
    """A product that is not rounded to the dtype of its factors: other bands are to be added."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _precision() -> str:
    """Of float32 products, as torch's setting for its own has it."""
    setting: Any = torch.backends.cuda.matmul
    return "tf32" if setting.fp32_precision == "tf32" else "ieee"


def _multiprocessors(tensor: Tensor) -> int:
    """Of the GPU; of none two, so that the interpreter meets more than one stretch."""
    if not tensor.is_cuda:
        return 2
    return int(torch.cuda.get_device_properties(tensor.device).multi_processor_count)


def _blocks(count: int, size: int) -> int:
    """How many blocks of a size cover a count."""
    return -(-count // size)
