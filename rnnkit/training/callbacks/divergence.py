"""A model that has diverged is not saved, and the run says what helps."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from rnnkit.training.callbacks.percentile_clipping import percentile_clipping
from rnnkit.training.not_finite import weight_not_finite


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


def stop_if_not_finite(trainer: Trainer, model: nn.Module) -> None:
    """End a training before it validates or saves weights that are not all finite.

    Raises:
        FloatingPointError: A weight is NaN or infinite; the message names it, and what norms a
            task's gradient had before.
    """
    if name := weight_not_finite(model):
        last_norms = getattr(model, "last_norms", None)  # a Task knows them
        norms = last_norms(trainer.global_step) if last_norms is not None else ""
        raise FloatingPointError(
            f"{name} is not finite after step {trainer.global_step}, so no checkpoint was written: "
            f"{remedy(trainer, trainer.global_step)}{norms}"
        )


def remedy(trainer: Trainer, step: int) -> str:
    """What to do about a loss or a weight that is not finite, in words.

    Args:
        trainer: Of the run.
        step: The first step whose loss, or after which a weight, is not finite.
    """
    if trainer.precision == "16-true":
        return (
            "16-true computes in float16 alone, where numbers end at 65,504 and those below 6e-8 "
            "are 0 (Adam's eps of 1e-8 too), and does not scale the loss: use --trainer.precision "
            "bf16-true or 32-true, or 16-mixed on a GPU"
        )
    slower = (
        f"lower the learning rate or {_clipping(trainer)}, and go on from an earlier checkpoint "
        "with --ckpt_path"
    )
    if trainer.precision == "16-mixed":
        return (
            "16-mixed computes in float16, where numbers end at 65,504: use --trainer.precision "
            f"bf16-mixed or 32-true, or {slower}"
        )
    if step == 0:
        return (
            "no step has changed a weight yet, so no learning rate is to blame: look for NaN, "
            "infinity and large numbers in the weights that training begins with and in the data"
        )
    return slower


def _clipping(trainer: Trainer) -> str:
    """What to change about the clipping of a run, in words."""
    if (percentile := percentile_clipping(trainer)) is not None:
        return percentile.remedy()
    if trainer.gradient_clip_val:
        return (
            f"trainer.gradient_clip_val, which is {trainer.gradient_clip_val:g}, or set that to "
            "null for PercentileClipping in trainer.callbacks, which clips at a percentile of the "
            "norms so far"
        )
    return (
        "clip the gradient: with PercentileClipping in trainer.callbacks, at a percentile of the "
        "norms so far, or at a norm of your own by trainer.gradient_clip_val"
    )
