"""Averaged weights from the moment that plain training gets no further: NT-ASGD.

    trigger T: the check whose score is above min(scores[:-n])     n checks without a new best
    average:   (w_T + w_{T+1} + ... + w_k) / (k - T + 1)           over optimizer steps

Merity et al. 2018 (arXiv 1708.02182), algorithm 1: non-monotonically triggered averaged SGD.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim.swa_utils import AveragedModel


class TriggeredAveraging(WeightAveraging):
    """Averages the weights of all steps from the first validation on that was no progress.

    Until then nothing differs from a run without it. From then on validation scores the average, a
    checkpoint's `state_dict` is the average (what training goes on with lies beside it), and so are
    the weights in the end. The optimizer itself goes on as it was.

    Args:
        monitor: Name of the score that validation logs; lower is better.
        interval: n: training is stuck when a score is worse than the best of those that are more
            than n checks old.

    Raises:
        ValueError: `interval` is below 1.

    Example:
        >>> trainer = Trainer(callbacks=[TriggeredAveraging("val/ppl", interval=5)])
    """

    def __init__(self, monitor: str = "val/ppl", interval: int = 5) -> None:
        super().__init__()
        if interval < 1:
            raise ValueError(f"expected an interval of 1 check or more, got {interval}")
        self.monitor = monitor
        self.interval = interval
        self.scores: list[float] = []
        self.triggered = False

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """After every optimizer step, once averaging is on."""
        return self.triggered and step_idx is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin anew with each fit."""
        if stage != "fit":
            return
        self.scores, self.triggered, self._latest_update_step = [], False, 0
        self._average_model = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make room for the average, or bring that of a checkpoint to the model's device."""
        # After the model's own `setup`, which may give buffers other shapes. It averages
        # parameters; buffers, which may be tables of integers, are copied.
        if self._average_model is None:
            self._average_model = AveragedModel(pl_module)
        # Its count of steps stays on the host, which asks for it at every step.
        self._average_model.module.to(pl_module.device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the score, and begin to average if it was no progress.

        Lightning saves checkpoints after this: one of the same validation knows of it.

        Raises:
            ValueError: Validation did not log `monitor`.
        """
        if not _training(trainer) or trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise ValueError(f"validation has to log {self.monitor}, it logged {known}")
        score = float(trainer.callback_metrics[self.monitor])
        old = self.scores[: -self.interval]
        if not self.triggered and old and score > min(old):
            self.triggered = True
            # w_T itself is the first of the weights that are averaged.
            assert self._average_model is not None
            self._average_model.update_parameters(pl_module)
            self._latest_update_step = trainer.global_step
        self.scores.append(score)

    # The base class would let the initial weights stand in for an average that there is not yet.

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the average, if there is one."""
        if self.triggered and _training(trainer):
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the weights in training their place again."""
        if self.triggered and _training(trainer):
            super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average as the model's weights, if there is one."""
        if self.triggered:
            super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average as the weights, if there is one, and beside it those in training."""
        if self.triggered:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on with the average and the weights in training, if the checkpoint has both."""
        # Where a checkpoint is scored its average is in the model already, and has to stay.
        if _training(trainer) and "averaging_state" in checkpoint:
            self._average_model = AveragedModel(pl_module)
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """The scores so far, as plain data."""
        return {**super().state_dict(), "scores": list(self.scores), "triggered": self.triggered}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the scores of a checkpoint."""
        super().load_state_dict(state_dict)
        self.scores = list(state_dict["scores"])
        self.triggered = state_dict["triggered"]


def _training(trainer: Trainer) -> bool:
    """Whether the trainer fits: `trainer.training` is false in a validation on the way."""
    return trainer.state.fn == TrainerFn.FITTING
