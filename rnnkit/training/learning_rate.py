"""The learning rate of a run: what LearningRateFinder sets, and what ReduceLROnPlateau watches."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch import Trainer
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.optim import lr_scheduler


def learning_rate(trainer: Trainer) -> float | None:
    """That of the optimizer's first parameters; None before there is an optimizer."""
    optimizers = trainer.optimizers
    return float(optimizers[0].param_groups[0]["lr"]) if optimizers else None


def set_learning_rate(trainer: Trainer, rate: float) -> None:
    """Let training begin with a rate, and its scheduler go on from that.

    Args:
        trainer: Of a run that has not begun.
        rate: For all parameters.

    Raises:
        ValueError: The scheduler would begin with another one; the message has the rate.
    """
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        # These have rates of their own, or schedulers inside; others may begin below the rate.
        own = isinstance(
            scheduler, (lr_scheduler.OneCycleLR, lr_scheduler.CyclicLR, lr_scheduler.SequentialLR)
        )
        if own or any(group["lr"] != group.get("initial_lr", group["lr"]) for group in groups):
            raise ValueError(
                f"{type(scheduler).__name__} begins with a learning rate of its own, so that which "
                f"LearningRateFinder has found, {rate:.3g}, would not count: set it in the "
                "scheduler and the optimizer, and leave the finder out"
            )
        if hasattr(scheduler, "base_lrs"):  # ReduceLROnPlateau changes the rate that there is
            scheduler.base_lrs = [rate] * len(scheduler.base_lrs)
    for group in groups:
        group["lr"] = group["initial_lr"] = rate


def watched_by(scheduler: lr_scheduler.ReduceLROnPlateau, plateaus: Mapping[str, str]) -> str:
    """The score that a scheduler watches.

    Args:
        scheduler: Lightning's, which names one, or torch's, which does not.
        plateaus: What torch's watches in each of its modes.

    Raises:
        ValueError: There is none for the mode.
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        return scheduler.monitor
    if scheduler.mode not in plateaus:
        raise ValueError(
            f"ReduceLROnPlateau with mode {scheduler.mode} needs the name of a score: use "
            "lightning.pytorch.cli.ReduceLROnPlateau, which has an argument monitor"
        )
    return plateaus[scheduler.mode]
