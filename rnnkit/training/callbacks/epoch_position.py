"""Where in an epoch a resumed run begins, by the batches that its checkpoint has counted."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class EpochPosition(Callback):
    """Goes on within the epoch that a checkpoint was written in, or with the next if it was whole.

    Lightning counts an epoch as over also where `max_steps` or `should_stop` ended the run within
    it. To make up for that it takes every epoch for unfinished once `max_steps` is set, and
    trains one batch too many, or one epoch too few, where a run goes on from a whole one.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the loop go by what is counted, whether `max_steps` is set or not."""
        trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take back an epoch that was counted before its last batch; the loops load this later."""
        if "loops" not in checkpoint:  # one of weights alone
            return
        progress = checkpoint["loops"]["fit_loop"]
        counts = progress["epoch_progress"]
        over = counts["current"]["processed"] == counts["current"]["started"] > 0
        if over and not progress["epoch_loop.batch_progress"]["is_last_batch"]:
            for count in counts.values():
                count["processed"] = count["completed"] = count["started"] - 1
