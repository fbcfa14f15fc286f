"""averaged.ckpt: the weights that StochasticWeightAveraging leaves when a run ends."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, StochasticWeightAveraging

from rnnkit.screen.terminal import visible


class AveragedCheckpoint(Checkpoint):
    """Saves averaged weights, to be scored and used, where Lightning would let them go.

    StochasticWeightAveraging puts them into the model in the end, after the last checkpoint of the
    run. WeightAveraging and what derives from it needs none: its checkpoints hold the average.
    """

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write them beside the other checkpoints and say where."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        averaged = any(
            isinstance(each, StochasticWeightAveraging) and each.n_averaged is not None
            for each in callbacks
        )
        folders = [each.dirpath for each in callbacks if isinstance(each, ModelCheckpoint)]
        if not averaged or not folders or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = Path(str(folders[-1])) / "averaged.ckpt"
        trainer.save_checkpoint(path, weights_only=True)
        if trainer.is_global_zero:
            print(visible(f"averaged weights: {path}"))
