"""The recursions of `crf.py` in Triton: one program a sentence, all moves in its registers.

A program goes as far as its own sentence, whose length it reads itself, and no further than that
does it read emissions. What sentences share, the gradients of the weights, each leaves in a place
of its own, so that two runs agree bitwise. Sums are on logarithms and in float32.

Only a path that runs Triton imports this module.
"""

# Bodies that Triton compiles take no annotations.

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def finite(values, instead):
    """Values, and something instead of infinities."""
    return tl.where(tl.abs(values) == float("inf"), instead, values)


@triton.jit
def shared(value, terms):
    """A value over the sum of the terms that share it, one but for rounding; or zero, for none."""
    return value / tl.where(terms == 0, 1.0, terms)


@triton.jit(do_not_specialize=["batch"])
def partition_forward(
    emissions,
    transitions,
    start,
    end,
    lengths,
    sums,
    log_z,
    batch: tl.int32,
    TAGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Σ_t of all steps and log Z of one sentence."""
    b = tl.program_id(0)
    length = tl.load(lengths + b).to(tl.int32)
    tag = tl.arange(0, BLOCK)
    real = tag < TAGS
    # Tags that only fill the tile are never reached: no path starts there or goes there.
    moves = tl.load(
        transitions + tag[:, None] * TAGS + tag[None, :],
        mask=real[:, None] & real[None, :],
        other=float("-inf"),
    )
    row = b.to(tl.int64) * TAGS
    total = tl.load(start + tag, mask=real, other=float("-inf"))
    tl.store(sums + row + tag, total, mask=real)
    alpha = total + tl.load(emissions + row + tag, mask=real, other=0.0).to(tl.float32)
    for _ in range(1, length):
        row += batch.to(tl.int64) * TAGS
        emission = tl.load(emissions + row + tag, mask=real, other=0.0).to(tl.float32)
        scores = alpha[:, None] + moves
        largest = finite(tl.max(scores, 0), 0.0)
        total = tl.log(tl.sum(tl.exp(scores - largest[None, :]), 0)) + largest
        tl.store(sums + row + tag, total, mask=real)
        alpha = total + emission
    last = alpha + tl.load(end + tag, mask=real, other=float("-inf"))
    highest = finite(tl.max(last, 0), 0.0)
    tl.store(log_z + b, tl.log(tl.sum(tl.exp(last - highest), 0)) + highest)


@triton.jit(do_not_specialize=["batch", "steps"])
def partition_backward(
    gradient,
    emissions,
    transitions,
    end,
    lengths,
    sums,
    log_z,
    d_emissions,
    d_transitions,
    d_start,
    d_end,
    batch: tl.int32,
    steps: tl.int32,
    TAGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """δ of all steps, and the sums of δ and of pairs that the weights get from one sentence."""
    b = tl.program_id(0)
    length = tl.load(lengths + b).to(tl.int32)
    tag = tl.arange(0, BLOCK)
    real = tag < TAGS
    square = tag[:, None] * TAGS + tag[None, :]
    inside = real[:, None] & real[None, :]
    moves = tl.load(transitions + square, mask=inside, other=float("-inf"))
    stride = batch.to(tl.int64) * TAGS
    row = b.to(tl.int64) * TAGS + (length - 1) * stride
    after = row
    for _ in range(length, steps):
        after += stride
        tl.store(d_emissions + after + tag, 0.0, mask=real)
    last = tl.load(sums + row + tag, mask=real, other=float("-inf"))
    last += tl.load(emissions + row + tag, mask=real, other=0.0).to(tl.float32)
    last += tl.load(end + tag, mask=real, other=float("-inf"))
    # Where every term is −∞, all are zero here.
    ends = tl.exp(last - finite(tl.load(log_z + b), float("inf")))
    share = ends * shared(tl.load(gradient + b), tl.sum(ends, 0))
    tl.store(d_end + b.to(tl.int64) * TAGS + tag, share, mask=real)
    pairs = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for _ in range(1, length):
        tl.store(d_emissions + row + tag, share.to(d_emissions.dtype.element_ty), mask=real)
        total = tl.load(sums + row + tag, mask=real, other=float("-inf"))
        row -= stride
        alpha = tl.load(sums + row + tag, mask=real, other=float("-inf"))
        alpha += tl.load(emissions + row + tag, mask=real, other=0.0).to(tl.float32)
        terms = tl.exp(alpha[:, None] + moves - finite(total, float("inf"))[None, :])
        pair = terms * shared(share, tl.sum(terms, 0))[None, :]
        pairs += pair
        share = tl.sum(pair, 1)
    tl.store(d_emissions + row + tag, share.to(d_emissions.dtype.element_ty), mask=real)
    tl.store(d_start + b.to(tl.int64) * TAGS + tag, share, mask=real)
    tl.store(d_transitions + b.to(tl.int64) * (TAGS * TAGS) + square, pairs, mask=inside)


def options(tags: int) -> dict[str, Any]:
    """Compile-time arguments for K tags, and warps: as few as leave room for all moves twice."""
    block = max(16, triton.next_power_of_2(tags))
    return {"TAGS": tags, "BLOCK": block, "num_warps": 1 if block <= 32 else 4}


def forward(
    emissions: Tensor, transitions: Tensor, start: Tensor, end: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Log Z (B,) and Σ_t (T, B, K), float32; this is not written past a length.

    Args:
        emissions: float32, float16 or bfloat16 (T, B, K), up to `crf.MAX_TAGS` tags.
        transitions, start, end: float32 (K, K), (K,), (K,).
        lengths: int64 (B,), between 1 and T.
    """
    _, batch, tags = emissions.shape
    sums = torch.empty(emissions.shape, dtype=torch.float32, device=emissions.device)
    log_z = sums.new_empty(batch)
    if batch:
        weights = (weight.contiguous() for weight in (transitions, start, end))
        partition_forward[(batch,)](
            emissions.contiguous(),
            *weights,
            lengths.contiguous(),
            sums,
            log_z,
            batch,
            **options(tags),
        )
    return log_z, sums


def backward(
    gradient: Tensor,
    emissions: Tensor,
    transitions: Tensor,
    end: Tensor,
    lengths: Tensor,
    log_z: Tensor,
    sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of emissions, transitions, start and end.

    Args:
        gradient: float32 (B,), of log Z.
        emissions, transitions, end, lengths: as `forward` took them.
        log_z, sums: as it returned them.
    """
    steps, batch, tags = emissions.shape
    d_emissions = torch.empty_like(emissions, memory_format=torch.contiguous_format)
    d_transitions = sums.new_empty(batch, tags, tags)
    d_start, d_end = sums.new_empty(batch, tags), sums.new_empty(batch, tags)  # both aligned
    if batch:
        partition_backward[(batch,)](
            gradient.contiguous(),
            emissions.contiguous(),
            transitions.contiguous(),
            end.contiguous(),
            lengths.contiguous(),
            sums,
            log_z,
            d_emissions,
            d_transitions,
            d_start,
            d_end,
            batch,
            steps,
            **options(tags),
        )
    return d_emissions, d_transitions.sum(0), d_start.sum(0), d_end.sum(0)
