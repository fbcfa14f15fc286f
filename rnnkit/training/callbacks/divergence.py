"""A model that has diverged is not saved: the checkpoints on the disk stay those of a good one."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rnnkit.training.not_finite import stop_if_not_finite


class KeepGoodCheckpoints(Callback):
    """Stops a run before a checkpoint is written whose weights are not all finite.

    The loss alone is no guard. Between the steps that are logged nobody has looked at it, and the
    step after a finite loss may have a gradient that is not finite: the next validation would
    write NaN over the best checkpoint and the last one.
    """

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Look at every weight; the file has not been touched yet.

        Raises:
            FloatingPointError: A weight is NaN or infinite; the message names it.
        """
        stop_if_not_finite(trainer, pl_module)
