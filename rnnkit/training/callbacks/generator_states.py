"""Random generators in the checkpoint: a resumed run draws what the unbroken one would have."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class GeneratorStates(Callback):
    """Saves and restores the generators of Python, NumPy, torch and CUDA, of every process.

    Lightning's checkpoints hold none of them, and without them dropout differs after a resume.
    """

    def __init__(self) -> None:
        self._saved: dict[str, Any] | None = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the generators of all processes."""
        states: list[Any] = [_states()]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, _states())
        checkpoint["generators"] = states

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take this process's generators; with another number of processes, none."""
        states = checkpoint.get("generators", [])
        self._saved = states[trainer.global_rank] if len(states) == trainer.world_size else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore, after all else that is set up has drawn its numbers."""
        if self._saved is not None:
            _restore(self._saved)
            self._saved = None


def _states() -> dict[str, Any]:
    """Plain data and tensors only, so that the checkpoint loads with weights_only=True."""
    numpy: Any = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in numpy],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _restore(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())
