"""A run that was complete when it began says so."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer


class NothingToDo(Callback):
    """Tells which limit was reached before the first step: Lightning says nothing at all then."""

    def __init__(self) -> None:
        self._trained = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew with each fit."""
        self._trained = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there was something."""
        self._trained = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was reached, and what would let the run go on."""
        if self._trained or not trainer.is_global_zero:
            return
        if 0 <= trainer.max_steps <= trainer.global_step:
            limit, value = "max_steps", trainer.max_steps
        elif trainer.fit_loop.max_batches == 0 or trainer.limit_train_batches == 0:
            print("there are no batches to train on, nothing to do")
            return
        else:
            limit, value = "max_epochs", trainer.max_epochs or 0
        print(f"{limit}={value} is reached, nothing to do: raise --trainer.{limit} to go on")
