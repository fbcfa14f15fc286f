"""Layers of any kind and size that the native engine takes, drawn at random."""

import math
import random
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.cpu import native
from tests.kernels.layers import BAND, Layer, random_layer

SIZES = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 40, 48, 63, 65)
BATCHES = (1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 17, 31, 33, 49, 70)


@dataclass(frozen=True)
class Case:
    """One layer, and how it runs."""

    cell: str
    storage: str
    reverse: bool
    steps: int
    batch: int
    features: int
    hidden: int
    projection: int
    bias: bool
    zoneout: bool
    recompute: bool
    dtype: torch.dtype
    threads: int
    seed: int

    def layer(self) -> Layer:
        """The layer, its inputs rounded to float32."""
        lengths = None
        if self.storage != "dense":
            chance = random.Random(self.seed)
            least = 0 if self.storage == "padded" else 1
            lengths = sorted(chance.choices(range(least, self.steps + 1), k=self.batch))[::-1]
            lengths[0] = max(lengths[0], 1)
        drawn = random_layer(
            self.cell,
            self.storage,
            self.reverse,
            self.hidden,
            self.features,
            self.batch,
            self.projection,
            self.bias,
            self.seed,
            self.zoneout,
            lengths,
            self.steps,
        )
        return drawn.to(torch.float32)


def random_case(chance: random.Random) -> Case:
    """A case that takes some milliseconds."""
    cell = chance.choice(list(CELLS))
    hidden, batch = chance.choice(SIZES), chance.choice(BATCHES)
    steps = chance.choice((1, 2, 3, 5, 11, 23))
    projection = chance.choice((0, 0, chance.randint(1, hidden)))
    projection *= CELLS[cell].has_cell_state
    return Case(
        cell,
        chance.choice(("dense", "packed", "padded")),
        chance.random() < 0.5,
        steps,
        batch,
        chance.choice(SIZES),
        hidden,
        projection,
        chance.random() < 0.8,
        chance.random() < 0.3 and not projection,
        chance.random() < 0.1,
        chance.choice((torch.float32, torch.float64)),
        chance.choice((1, 2)),
        chance.randrange(2**31),
    )


def run(case: Case, layer: Layer) -> list[Tensor]:
    """Results and gradients by the engine, with as many threads as the case wants."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "threads_for", lambda work: case.threads)
        return layer.to(case.dtype).run("native", case.recompute)


def check(case: Case) -> None:
    """The rule for errors; where a layer breaks it by a little, so must most of nine like it.

    In a layer of few numbers the plain loop's own error is small by chance now and then, or a
    gradient is the small difference of large ones. A hundred times the rule is never chance.
    """
    broken, excess = breach(case)
    assert excess <= 100, broken
    if broken:
        others = [breach(replace(case, seed=case.seed + i)) for i in range(1, 9)]
        assert sum(bool(other) for other, _ in others) < 4, broken


def breach(case: Case) -> tuple[str, float]:
    """What breaks the rule, in float64 too, and by which factor; or nothing, and 0.

    There the plain loop's own error is not known: it is what the loop in float32 errs at its worst
    result, in units in the last place.
    """
    low = case.layer()
    plain = low.run("reference")
    exact = low.to(torch.float64).run("reference")
    found = run(case, low)
    own = [units_off(b, c, torch.float32) for b, c in zip(plain, exact, strict=True)]
    for i, (a, c) in enumerate(zip(found, exact, strict=True)):
        if (a.dtype, a.shape) != (case.dtype, c.shape):
            return f"result {i}: {a.dtype}, {tuple(a.shape)}, expected {tuple(c.shape)}", math.inf
        allowed = 2 * (own[i] if case.dtype == torch.float32 else max(own)) + BAND
        error = units_off(a, c, case.dtype)
        if not error <= allowed:
            off = f"result {i}: off by {error:.1f} units in the last place, allowed {allowed:.1f}"
            return off, error / allowed if error < math.inf else math.inf
    return "", 0.0


def units_off(found: Tensor, exact: Tensor, dtype: torch.dtype) -> float:
    """The largest error, in units in the last place of the largest value."""
    if exact.numel() == 0:
        return 0.0
    error, largest = (found - exact).detach().abs().max(), exact.detach().abs().max()
    return float(error / largest.clamp(min=torch.finfo(dtype).tiny) / torch.finfo(dtype).eps)
