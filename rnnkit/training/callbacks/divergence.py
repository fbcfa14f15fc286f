"""A model that has diverged is not saved: the checkpoints on the disk stay those of a good one."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


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
        for name, parameter in pl_module.named_parameters():
            if not torch.isfinite(parameter).all():
                raise FloatingPointError(
                    f"{name} is not finite after step {trainer.global_step}, so no checkpoint was "
                    "written: lower the learning rate or trainer.gradient_clip_val, and go on from "
                    "an earlier checkpoint with --ckpt_path"
                )
