"""What ran the layers on a CPU, in the checkpoint: under another, a run goes on to other bits."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rnnkit.nn.base import Recurrent
from rnnkit.screen.terminal import sentence
from rnnkit_kernels.functional import cpu_engine

_log = logging.getLogger(__name__)


class CpuEngine(Callback):
    """Saves which engine ran on the CPU, and tells of another one when the run goes on.

    Sums are rounded in the order of an engine's build, instruction set and number of threads.
    """

    def __init__(self) -> None:
        self._saved: Any = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the engine, where the layers leave the choice of one."""
        if _may_run_natively(trainer, pl_module):
            checkpoint["cpu_engine"] = cpu_engine()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the checkpoint's. One of earlier versions, or of a GPU, has none."""
        self._saved = checkpoint.get("cpu_engine")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell of another one: only a run that goes on training gets here."""
        saved, self._saved, here = self._saved, None, cpu_engine()
        if saved in (None, here) or not trainer.is_global_zero:
            return
        if _may_run_natively(trainer, pl_module):
            _log.warning(
                "the engine that wrote the checkpoint was %s, and here it is %s: the run goes on "
                "to the values of an unbroken one but for rounding, not to its bits",
                sentence(str(saved)),
                here,
            )


def _may_run_natively(trainer: Trainer, model: LightningModule) -> bool:
    """Whether layers run on a CPU, in full precision, and not by torch alone."""
    if trainer.strategy.root_device.type != "cpu" or not str(trainer.precision).endswith("true"):
        return False
    return any(
        isinstance(layer, Recurrent) and layer.backend in ("auto", "native")
        for layer in model.modules()
    )
