"""Gradients of several batches, added up to those of one: Σ summed losses / Σ divisors.

The Trainer divides every batch's loss by `accumulate_grad_batches`, which is right only where all
batches are as large and an epoch has a whole number of steps. A batch's own share is known only
when the others are: until then all are divided by the first one's divisor, which keeps gradients in
their usual range, and the sum is put right in the end. Where the first is far smaller than others,
float16 may overflow: its scaler then leaves the step out and halves the scale, as it always does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class Accumulation:
    """What the batches of an optimizer step are divided by.

    Args:
        mean: Makes of a process's divisor, a scalar tensor, the mean over all processes.
    """

    def __init__(self, mean: Callable[[Tensor], Tensor]) -> None:
        self._mean = mean
        self._divisors: list[Tensor] = []
        self._first = torch.ones(())

    def begin(self) -> None:
        """Forget the batches of the step before."""
        self._divisors.clear()

    def add(self, divisor: Tensor) -> Tensor:
        """Note a batch's divisor, a scalar tensor; what its sum is divided by for the time."""
        if not self._divisors:
            # At least 1, for the first batch may have no target, and others some.
            self._first = self._mean(divisor).clamp(min=1)
        self._divisors.append(divisor)
        return self._first

    def finish(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide the gradients by the divisors of all batches instead of the first one's."""
        if not self._divisors:
            return
        factor = self._first / self._mean(torch.stack(self._divisors).sum())
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad *= factor.to(parameter.grad.dtype)
        self._divisors.clear()
