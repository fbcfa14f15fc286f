"""last.ckpt, to go on with: of every validation, and of the last step of a run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Writes `last.ckpt` when a ModelCheckpoint without a score does, and when the run ends.

    ModelCheckpoint writes beside validations. The steps after the last of them would be lost, and
    everything where a run ends before the first.
    """

    def __init__(self) -> None:
        super().__init__(filename="last", enable_version_counter=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it if nothing is trained after this epoch, whole or not.

        Here and not in `on_train_end`, where a callback may have put averaged weights into the
        place of those that training goes on with.
        """
        super().on_train_epoch_end(trainer, pl_module)
        if _ends(trainer) and not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


def _ends(trainer: Trainer) -> bool:
    """Whether the run ends with this epoch: the loop's `done`, which would count the epoch too."""
    loop = trainer.fit_loop
    progress: Any = loop.epoch_progress.current
    if loop.max_epochs is not None and 0 <= loop.max_epochs <= progress.processed:
        return True
    if 0 <= loop.max_steps <= trainer.global_step:
        return True
    return trainer.should_stop and loop._can_stop_early
