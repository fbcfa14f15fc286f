"""What the tasks share: optimizers from factories, a loss over real targets, checkpoints."""

from __future__ import annotations

import os
from typing import Any, ClassVar, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from torch import Tensor

from rnnkit.callbacks.checkpoint_io import CheckpointError, read_checkpoint

TaskType = TypeVar("TaskType", bound="Task")


class Task(LightningModule):
    """A task whose loss is a sum over target tokens divided by their number.

    Args:
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the learning rate scheduler from the optimizer; none: constant rate.
        lr_scheduler_interval: Whether the scheduler counts epochs or optimizer steps.
    """

    shape_arguments: ClassVar[tuple[str, ...]] = ()
    """What decides the shapes of the parameters: a checkpoint has to agree in all of it."""

    def __init__(
        self,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        lr_scheduler_interval: str,
    ) -> None:
        super().__init__()
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self._lr_scheduler_interval = lr_scheduler_interval
        self._losses: list[tuple[Tensor, Tensor, Tensor]] = []

    def loss_per_token(
        self, summed: Tensor, tokens: Tensor, likelihood: Tensor | None = None
    ) -> Tensor:
        """The loss of a training batch, noted for `train/loss` and `train/ppl`.

        Args:
            summed: Over the real targets, scalar.
            tokens: Their number.
            likelihood: Summed negative log-likelihood, for the perplexity; None: `summed` is that.
        """
        likelihood = summed if likelihood is None else likelihood
        self._losses.append((summed.detach(), likelihood.detach(), tokens))
        self._log_training()
        if self.trainer.world_size > 1:
            # Gradients are averaged over processes: each divides by the mean number of targets. A
            # copy, for the reduction is in place; no integer, for the mean may be none.
            tokens = self.trainer.strategy.reduce(tokens.double(), reduce_op="mean")
        return summed / tokens.to(summed.dtype)

    def _log_training(self) -> None:
        """Log the steps since the last time, and stop where one of them has no finite loss.

        Between the steps that are logged a loss stays on its device, so that the host need not
        wait for it.
        """
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        due = every > 0 and (self.global_step + 1) % every == 0
        if not (due or self.trainer.is_last_batch):
            return
        summed, likelihood, tokens = (
            torch.stack(part).double() for part in zip(*self._losses, strict=True)
        )
        totals = torch.stack([summed.sum(), likelihood.sum(), tokens.sum()])
        if self.trainer.world_size > 1:
            totals = self.trainer.strategy.reduce(totals, reduce_op="sum")
        loss = totals[0] / totals[2]
        if not loss.isfinite():
            finite = summed.isfinite()  # all True where another process has the culprit
            step = self.global_step - len(finite) + 1 + int(finite.int().argmin())
            raise FloatingPointError(
                f"the loss became {float(loss)} at step {step} of epoch {self.current_epoch}: "
                "lower the learning rate or trainer.gradient_clip_val, and go on from an earlier "
                "checkpoint with --ckpt_path"
            )
        if due:
            self.log("train/loss", loss.float())
            self.log("train/ppl", (totals[1] / totals[2]).exp().float(), prog_bar=True)
        if due or every == 0:
            self._losses.clear()

    def on_train_start(self) -> None:
        """Forget what another run has noted."""
        self._losses.clear()

    def configure_optimizers(self) -> Any:
        """Optimizer and scheduler from their factories."""
        optimizer = self._optimizer(self.parameters())
        if self._lr_scheduler is None:
            return optimizer
        scheduler = self._lr_scheduler(optimizer)
        settings: dict[str, Any] = {"scheduler": scheduler, "interval": self._lr_scheduler_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            settings["monitor"] = scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": settings}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model.

        Raises:
            ValueError: It has other shapes; names each difference.
        """
        saved = checkpoint.get("hyper_parameters", {})
        different = [
            f"{name} {saved[name]} in the checkpoint, {self.hparams[name]} here"
            for name in self.shape_arguments
            if name in saved and saved[name] != self.hparams[name]
        ]
        if different:
            raise ValueError(
                f"the checkpoint is of another model: {'; '.join(different)}; use the "
                "configuration it was trained with, config.yaml in the folder of its run"
            )


def load_for_use(
    path: str | os.PathLike[str], task: type[TaskType], data: str, what: str
) -> tuple[TaskType, dict[str, Any]]:
    """A trained model on the CPU, in evaluation mode, and what its data left in the checkpoint.

    Args:
        path: The checkpoint.
        task: Class of the model.
        data: Name of the class of its data.
        what: To call it in an error: "language model".

    Raises:
        CheckpointError: It is missing, damaged or of another task.
    """
    checkpoint = read_checkpoint(path)
    parts = {"state_dict", "hyper_parameters", data}
    if missing := ", ".join(sorted(parts - checkpoint.keys())):
        raise CheckpointError(f"{path} is no checkpoint of a {what}: no {missing}")
    arguments = {
        name: value
        for name, value in checkpoint["hyper_parameters"].items()
        if not name.startswith("_")  # what Lightning's command line adds
    }
    model = task(**arguments)
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval(), dict(checkpoint[data])
