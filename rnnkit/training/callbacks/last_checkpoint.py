"""last.ckpt, to go on with: of every validation, and of the last step of a run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Writes `last.ckpt` when a ModelCheckpoint without a score does, and when the run ends.

    ModelCheckpoint writes beside validations. The steps after the last of them would be lost, and
    everything where a run ends before the first.

    Nothing is written within a step of accumulated batches, whose gradients no checkpoint holds: a
    validation's checkpoint waits for the end of the step, and so does `trainer.should_stop`.
    """

    def __init__(self) -> None:
        super().__init__(filename="last", enable_version_counter=False)
        self._waits = False  # whether a validation within a step asked for a checkpoint
        self._stops = False  # whether a callback within a step asked the run to stop

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew with each fit."""
        super().on_train_start(trainer, pl_module)
        self._waits = self._stops = False

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write it if nothing is trained after this step, within an epoch.

        Here and not at the end of the epoch, which the loop then counts as a whole one: whoever
        went on from there would skip the rest of it.
        """
        if self._within_step(trainer):
            return
        trainer.should_stop = trainer.should_stop or self._stops
        if trainer.is_last_batch:
            return
        if self._waits or (_ends(trainer) and not _validates(trainer)):
            self._write(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it as ModelCheckpoint does, and if nothing is trained after this validation."""
        if trainer.sanity_checking:
            return
        if self._within_step(trainer):
            self._waits = True
            return
        super().on_validation_end(trainer, pl_module)
        if not trainer.is_last_batch and _ends(trainer):
            self._write(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it if nothing is trained after this epoch.

        Here and not in `on_train_end`, where a callback may have put averaged weights into the
        place of those that training goes on with.
        """
        super().on_train_epoch_end(trainer, pl_module)
        if self._waits or _ends(trainer):
            self._write(trainer)

    def _within_step(self, trainer: Trainer) -> bool:
        """Whether the batches of a step are not complete; the run may not stop there."""
        within = trainer.fit_loop._should_accumulate()
        if within and trainer.should_stop:
            self._stops, trainer.should_stop = True, False
        return within

    def _write(self, trainer: Trainer) -> None:
        self._waits = False
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


def _ends(trainer: Trainer) -> bool:
    """Whether the run ends here: the loop's `done`, which at its end would count the epoch too."""
    loop = trainer.fit_loop
    progress: Any = loop.epoch_progress.current
    if loop.max_epochs is not None and 0 <= loop.max_epochs <= progress.processed:
        return True
    if 0 <= loop.max_steps <= trainer.global_step:
        return True
    return trainer.should_stop and loop._can_stop_early


def _validates(trainer: Trainer) -> bool:
    """Whether a validation follows this batch that would also do so if the run went on.

    What goes on from a checkpoint between the two would not make up for it. But one that follows
    because the run stops is none that an unbroken run has.
    """
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    stops, trainer.should_stop = trainer.should_stop, False
    try:
        return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
    finally:
        trainer.should_stop = stops
