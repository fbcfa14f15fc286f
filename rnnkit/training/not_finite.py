"""What is NaN or infinite in a model, and what helps a training that became so."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer
from torch import nn


def weight_not_finite(model: nn.Module) -> str | None:
    """The name of a weight that is NaN or infinite somewhere; None where there is none."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return name
    return None


def stop_if_not_finite(trainer: Trainer, model: nn.Module) -> None:
    """End a training before it validates or saves weights that are not all finite.

    Raises:
        FloatingPointError: A weight is NaN or infinite; the message names it.
    """
    if name := weight_not_finite(model):
        raise FloatingPointError(
            f"{name} is not finite after step {trainer.global_step}, so no checkpoint was written: "
            f"{remedy(trainer, trainer.global_step)}"
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
        "lower the learning rate or trainer.gradient_clip_val, and go on from an earlier "
        "checkpoint with --ckpt_path"
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
