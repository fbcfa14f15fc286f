"""A learning rate that follows the length of the window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rnnkit.language_modeling.windows import Window
from rnnkit.training.task import Task


class WindowTask(Task):
    """A task on windows: each step's learning rate is multiplied by its window's `rate_factor`.

    The optimizer has its own rate again after the step, and schedulers know no other.
    """

    _rate_factor = 1.0

    def on_train_batch_start(self, batch: Window, batch_idx: int) -> None:
        """Note what the window does to the learning rate.

        Raises:
            ValueError: Windows with rates of their own would be added up to one step.
        """
        super().on_train_batch_start(batch, batch_idx)
        batches = self.trainer.accumulate_grad_batches
        if batches > 1 and batch.rate_factor != 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches {batches} makes one step of windows that each "
                "have a learning rate: set data.random_windows or the accumulation aside"
            )
        self._rate_factor = batch.rate_factor

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """One step at the learning rate of the window; schedulers see that of the optimizer."""
        rates = [group["lr"] for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * self._rate_factor
        try:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        finally:  # a checkpoint may be made of what is left behind
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
