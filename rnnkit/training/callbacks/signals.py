"""Ctrl-C and SIGTERM end training after the step it is in, with a checkpoint to go on from."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from rnnkit.screen.terminal import visible


class StopOnSignal(Callback):
    """Saves `last.ckpt` on Ctrl-C (SIGINT) and on SIGTERM, and says how to go on.

    Lightning stops in the middle of a step, where parameters, optimizer and carried state do not
    belong together. This lets the step end first, and the validation if one is running. A second
    Ctrl-C stops at once, without a checkpoint; a second SIGTERM changes nothing, for a launcher
    may send it to a process that has got it already.

    Several processes have to stop after the same step. They tell each other every
    `log_every_n_steps` steps, where they sum what is logged anyway, and at the end of an epoch.

    Args:
        resume_command: Command line that goes on, without the path of the checkpoint.
    """

    def __init__(self, resume_command: str) -> None:
        self.resume_command = resume_command
        self._received = 0  # number of the signal
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over both signals. Lightning has taken them by now, and gives them back later."""
        self._received = 0
        self._previous.clear()
        if threading.current_thread() is not threading.main_thread():
            return  # who gets no signals

        def receive(number: int, _: object) -> None:
            before, self._received = self._received, number
            if number == before == signal.SIGINT:
                raise KeyboardInterrupt
            if before:
                return
            launcher = trainer.strategy.launcher
            if number == signal.SIGTERM and launcher is not None:
                launcher.kill(number)  # to the processes that this one has started
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            steps = self._steps_between_agreements(trainer)
            when = "this step" if steps == 1 else f"{steps} steps or fewer"
            self._tell(trainer, f"stopping after {when}{again}")

        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, receive)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop within an epoch. After its last step the end of the epoch is waited for."""
        # A step may be of several batches, whose gradients no checkpoint holds.
        batches = self._steps_between_agreements(trainer) * trainer.accumulate_grad_batches
        if not trainer.is_last_batch and (batch_idx + 1) % batches == 0:
            self._stop_if_told(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop between two epochs."""
        self._stop_if_told(trainer)

    @staticmethod
    def _steps_between_agreements(trainer: Trainer) -> int:
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        return 1 if trainer.world_size == 1 else every or 50  # of a run that logs nothing

    def _stop_if_told(self, trainer: Trainer) -> None:
        received = self._received
        if trainer.world_size > 1:
            told = torch.tensor(received, device=trainer.strategy.root_device)
            received = int(trainer.strategy.reduce(told, reduce_op="max"))
        if not received:
            return
        path = self._folder(trainer) / "last.ckpt"
        trainer.save_checkpoint(path)
        going_on = visible(f"{self.resume_command} --ckpt_path {path}")
        self._tell(trainer, f"stopped after step {trainer.global_step}, go on with\n  {going_on}")
        raise KeyboardInterrupt if received == signal.SIGINT else SIGTERMException

    @staticmethod
    def _tell(trainer: Trainer, words: str) -> None:
        # Ctrl-C ends `tee` as well: who reads may be gone, and the checkpoint counts more.
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            if trainer.is_global_zero:
                print(f"\n{words}", file=sys.stderr)

    @staticmethod
    def _folder(trainer: Trainer) -> Path:
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        return Path(folder or Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            if handler is not None:  # one that was not set from Python
                signal.signal(number, handler)
        self._previous.clear()
