"""Which scores a training of taggers can watch: entities have some, labels others."""

from __future__ import annotations

from lightning.pytorch import Trainer

from rnnkit.metrics.tags import Scheme

BEST = {False: "val/f1", True: "val/accuracy"}
"""What a tagger is judged by, by whether its tags are labels."""


def check_watched(trainer: Trainer, scheme: Scheme) -> None:
    """Refuse a callback or scheduler that watches a score which is never logged.

    Args:
        trainer: Of a run that has not begun, with its schedulers.
        scheme: Of the model's tags.

    Raises:
        ValueError: One watches a score of entities where the tags are labels, or of labels where
            they are not; names the score to watch.
    """
    labels = scheme == "labels"
    schedulers = [(each.scheduler, each.monitor) for each in trainer.lr_scheduler_configs]
    watching = [(*each, "--model.lr_scheduler.monitor {} does") for each in schedulers]
    for each in trainer.callbacks:  # type: ignore[attr-defined]
        typed = "--trainer.callbacks.monitor {} does for the last one"
        watching.append((each, getattr(each, "monitor", None), typed))
    for who, score, typed in watching:
        if score in ("val/accuracy", "val/f1_macro"):
            absent = not labels
        else:  # of entities there are scores of each type too
            absent = labels and str(score).startswith(("val/f1", "val/precision", "val/recall"))
        if absent:
            raise ValueError(
                f"{type(who).__name__} watches {score}, a score that "
                f"{'labels' if labels else 'entities'} do not have: make its monitor "
                f"{BEST[labels]}, as {typed.format(BEST[labels])}"
            )
