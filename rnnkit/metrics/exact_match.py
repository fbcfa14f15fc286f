"""Exact match: the share of lines that are what they should be, over all processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class ExactMatch(Metric):
    """Share of lines that equal their references, 0 to 100 as BLEU is.

    Any white space counts as one blank, and none at the ends of a line.

    Args:
        lowercase: Compare in lower case.

    Example:
        >>> match = ExactMatch()
        >>> match.update(["Four  two", "four"], ["four two", "five"])
        >>> float(match.compute())
        50.0
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    equal: Tensor
    lines: Tensor

    def __init__(self, lowercase: bool = True) -> None:
        super().__init__()
        self.lowercase = lowercase
        self.add_state("equal", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("lines", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, hypotheses: Sequence[str], references: Sequence[str]) -> None:
        """Add some lines.

        Args:
            hypotheses: What was written.
            references: One of each.
        """
        pairs = zip(hypotheses, references, strict=True)
        self.equal += sum(self._compared(one) == self._compared(other) for one, other in pairs)
        self.lines += len(references)

    def compute(self) -> Tensor:
        """The share in per cent, float64 scalar; 0 where there is no line."""
        return 100 * self.equal.double() / self.lines.clamp(min=1)

    def _compared(self, line: str) -> str:
        return " ".join((line.lower() if self.lowercase else line).split())
