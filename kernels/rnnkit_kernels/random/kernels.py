"""The mask of `dropout.py` in Triton: for a tile inside a kernel, and dropout itself in one pass.

Only a path that runs Triton imports this module.
"""

# Bodies that Triton compiles take no annotations.

import torch
import triton
import triton.language as tl
from torch import Tensor

from rnnkit_kernels.random.philox import packed_offsets, scale, steps, threshold

_TILE = 2048  # elements a program: four draws of four words for each of 128 threads
_WIDEST = 512


@triton.jit
def key(seed):
    """(low, high) 32 bits of an int64 seed, which `words` and `keep` take."""
    return seed.to(tl.uint32), (seed >> 32).to(tl.uint32)


@triton.jit
def words(seed_low, seed_high, layer, t, sequence, group):
    """The four words of counter (group, sequence, t, layer), uint32, of the broadcast shape."""
    return tl.philox_impl(
        tl.cast(group, tl.uint32),
        tl.cast(sequence, tl.uint32),
        tl.cast(t, tl.uint32),
        tl.cast(layer, tl.uint32),
        seed_low,
        seed_high,
    )


@triton.jit
def keep(seed_low, seed_high, layer, t, sequence, feature, threshold):
    """Which elements of a tile are kept.

    Integers of any width and of any shapes that broadcast, (units, 1), (1, sequences) and scalars
    for instance; `threshold` is that of `philox.py`. Every element draws four words to use one.
    """
    a, b, c, d = words(seed_low, seed_high, layer, t, sequence, feature >> 2)
    lane = feature & 3
    word = tl.where(lane < 2, tl.where(lane == 0, a, b), tl.where(lane == 2, c, d))
    return word.to(tl.int64) >= threshold  # p = 1 has a threshold of 33 bits


@triton.jit(do_not_specialize=["layer", "batch", "rows", "threshold"])
def dropout_tile(
    x,
    out,
    seed,
    steps,
    offsets,
    order,
    layer: tl.int32,
    batch: tl.int32,
    rows: tl.int32,
    threshold: tl.int64,
    scale: tl.float64,
    FEATURES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
):
    """One tile of rows × features; `steps` and `offsets` are None where row t·B + b is b of t."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    present = row < rows
    if steps is None:
        step = row // batch
        sequence = row - step * batch
    else:
        step = tl.load(steps + row, mask=present, other=0)
        sequence = row - tl.load(offsets + step)
    if order is not None:
        sequence = tl.load(order + sequence, mask=present, other=0)
    low, high = key(tl.load(seed))
    start = tl.program_id(1) * BLOCK_FEATURES
    group = start // 4 + tl.arange(0, BLOCK_FEATURES // 4)[None, :]
    a, b, c, d = words(low, high, layer, step, sequence, group)
    # The inner joins pair even and odd words, so that the outer one restores their order.
    drawn = tl.join(tl.join(a, c), tl.join(b, d)).reshape(BLOCK_ROWS, BLOCK_FEATURES)
    kept = drawn.to(tl.int64) >= threshold
    feature = start + tl.arange(0, BLOCK_FEATURES)[None, :]
    at = row.to(tl.int64) * FEATURES + feature
    inside = present & (feature < FEATURES)
    value = tl.load(x + at, mask=inside, other=0.0)
    if x.dtype.element_ty != tl.float64:
        # Compiled, a scalar argument has a dtype of its own, which would win.
        value, scale = value.to(tl.float32), tl.full((), scale, tl.float32)
    scaled = tl.where(kept, value * scale, 0.0)
    tl.store(out + at, scaled.to(out.dtype.element_ty), mask=inside)


def dropout(
    x: Tensor,
    probability: float,
    seed: Tensor,
    layer: int,
    batch: int,
    offsets: Tensor | None,
    order: Tensor | None,
) -> Tensor:
    """As `definition` in `dropout.py`, for a contiguous `x`."""
    out = torch.empty_like(x)
    features = x.shape[-1]
    if out.numel() == 0:
        return out
    rows = out.numel() // features
    offsets = packed_offsets(rows, batch, offsets)
    step = None if offsets is None else steps(torch.arange(rows, device=x.device), offsets)
    block_features = min(max(triton.next_power_of_2(features), 4), _WIDEST)
    block_rows = _TILE // block_features
    dropout_tile[(triton.cdiv(rows, block_rows), triton.cdiv(features, block_features))](
        x,
        out,
        seed,
        step,
        offsets,
        None if order is None else order.contiguous(),
        layer,
        batch,
        rows,
        threshold(probability),
        scale(probability),
        FEATURES=features,
        BLOCK_ROWS=block_rows,
        BLOCK_FEATURES=block_features,
    )
    return out
