"""Parity before speed: results and all gradients against float64, by one rule.

The error of each may be twice that of a plain loop in the same dtype, each step by itself, plus a
band of 8 units in the last place of the largest value. float64 runs in torch.nn's layers, which
nobody here wrote, on the same rounded numbers.

Gradients of weights and biases sum over all N rows. Who adds them one after another in float32, as
oneDNN does for biases, rounds N growing sums by up to half a unit each: an error of √N/6 units by
its standard deviation, of which three are allowed on top. In 16 bits that is next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cases import DTYPES
from .peers.loops import Loop
from .peers.torch_layers import TorchLayers
from .work import Work

BAND = 8
DEVIATIONS = 3


@dataclass
class Expected:
    """What a case should give.

    Attributes:
        exact: results and gradients in float64.
        allowed: the largest error of each.
        results: how many of them are results; gradients follow.
    """

    exact: list[Tensor]
    allowed: list[float]
    results: int

    @classmethod
    def of(cls, work: Work) -> Expected:
        """Run torch.nn in float64 and the plain loop in the dtype of the work."""
        double = work.to(work.device, torch.float64)
        exact = TorchLayers(cudnn=True).prepare(double, "train").everything("train")
        plain = Loop(compiled=False, ahead=False).prepare(work, "train").everything("train")
        dtype, precision = DTYPES[work.dtype]
        # TF32 rounds factors to ten bits of a mantissa.
        unit = 2.0**-10 if precision == "tf32" else torch.finfo(dtype).eps
        added = DEVIATIONS * sum(work.case.lengths()) ** 0.5 / 6 * torch.finfo(torch.float32).eps
        sums = len(exact) - len(work.weights)
        allowed = []
        for i, (a, b) in enumerate(zip(plain, exact, strict=True)):
            band = BAND * unit + (added if i >= sums else 0.0)
            allowed.append(2 * float((a - b).abs().max()) + band * float(b.abs().max()))
        return cls(exact, allowed, len(work.arriving))

    def error(self, found: Sequence[Tensor]) -> float:
        """The worst error over what is allowed: right up to 1, infinite for NaN.

        Args:
            found: all results and gradients, or the results alone.

        Raises:
            ValueError: shapes differ, or something is missing.
        """
        if len(found) not in (len(self.exact), self.results):
            raise ValueError(f"expected {self.results} or {len(self.exact)}, got {len(found)}")
        worst = 0.0
        for a, b, allowed in zip(found, self.exact, self.allowed, strict=False):
            if a.shape != b.shape:
                raise ValueError(
                    f"expected a result of shape {tuple(b.shape)}, got {tuple(a.shape)}"
                )
            error = float((a - b).abs().max())
            share = error / allowed if allowed > 0 else float(error > 0) * float("inf")
            # A NaN compares false with everything: it must not pass.
            worst = max(worst, share) if share == share else float("inf")
        return worst
