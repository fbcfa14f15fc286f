"""Ctrl-C ends training after the step it is in, with a checkpoint to go on from."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StopOnInterrupt(Callback):
    """Saves `last.ckpt` on Ctrl-C and says how to go on.

    Lightning stops in the middle of a step, where parameters, optimizer and carried state do not
    belong together. This lets the step end first, and the validation if one is running. A second
    Ctrl-C stops at once, without a checkpoint. With several processes, which cannot agree on a
    step without waiting for each other at every step, Lightning's own way is left alone.

    Args:
        resume_command: Command line that goes on, without the path of the checkpoint.
    """

    def __init__(self, resume_command: str) -> None:
        self.resume_command = resume_command
        self._requested = False
        self._previous: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over Ctrl-C."""
        self._requested = False
        if trainer.world_size == 1:
            self._previous = signal.signal(signal.SIGINT, self._request)

    def _request(self, *_: object) -> None:
        # Lightning's own tear-down brings this handler back after the run that it was for.
        over = self._previous is None
        if self._requested or over:
            raise KeyboardInterrupt
        self._requested = True
        print("\nstopping after this step; Ctrl-C again stops at once", file=sys.stderr)

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        """Stop within an epoch. After its last step the end of the epoch is waited for."""
        if self._requested and not trainer.is_last_batch:
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop between two epochs."""
        if self._requested:
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        path = self._folder(trainer) / "last.ckpt"
        trainer.save_checkpoint(path)
        print(
            f"\nstopped after step {trainer.global_step}, go on with\n"
            f"  {self.resume_command} --ckpt_path {path}",
            file=sys.stderr,
        )
        raise KeyboardInterrupt

    @staticmethod
    def _folder(trainer: Trainer) -> Path:
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        return Path(folder or Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give Ctrl-C back."""
        self._restore()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give Ctrl-C back."""
        self._restore()

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
