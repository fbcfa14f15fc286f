"""A run that goes on in a folder of its own takes its best checkpoint along."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from rnnkit.screen.atomic_file import atomic_write


class KeepBestCheckpoint(Callback):
    """Copies the best checkpoint of a resumed run into the folder of its new part.

    Lightning's ModelCheckpoint forgets what was the best when its folder is another one: the first
    validation after the resume would be, however bad, and its weights would bear that name.
    """

    def __init__(self) -> None:
        self._saved: dict[str, Any] = {}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note what each ModelCheckpoint of the run knew."""
        self._saved = checkpoint.get("callbacks", {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let each ModelCheckpoint know it again, where its folder has changed."""
        saved, self._saved = self._saved, {}
        for callback in trainer.checkpoint_callbacks:
            if not isinstance(callback, ModelCheckpoint) or callback.save_top_k < 1:
                continue
            state = saved.get(callback.state_key)
            if callback.monitor is None or state is None or state["dirpath"] == callback.dirpath:
                continue
            folder = Path(str(callback.dirpath))
            # Without its file the score counts all the same: what is worse is not the best.
            here = {path: str(folder / Path(path).name) for path in state["best_k_models"]}
            for path, copy in here.items():
                if trainer.is_global_zero and Path(path).is_file():
                    with atomic_write(copy) as beside:
                        shutil.copyfile(path, beside)
            callback.best_k_models = {here[p]: score for p, score in state["best_k_models"].items()}
            callback.best_model_score = state["best_model_score"]
            callback.best_model_path = here.get(state["best_model_path"], "")
            callback.kth_best_model_path = here.get(state["kth_best_model_path"], "")
            callback.kth_value = state["kth_value"]
