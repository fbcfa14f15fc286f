"""What PercentileClipping takes of a training step, and the gradient's norm by itself.

    python docs/results/clipping/cost.py

CPU time of 400 steps of Zaremba's small model (2 x 200 units, V = 10,000, 20 windows of 20 random
words), one thread: medians. Clipping at a fixed norm needs the norm too.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from rnnkit.language_modeling import LanguageModel, LanguageModelingData
from rnnkit.training.callbacks import PercentileClipping, percentile_clipping

STEPS = 400


class Timed(PercentileClipping):
    """Notes the CPU time of each call."""

    taken: list[float]

    def on_before_optimizer_step(self, *arguments: Any) -> None:
        """Clip."""
        begin = time.process_time()
        super().on_before_optimizer_step(*arguments)
        self.taken.append(time.process_time() - begin)


class Steps(Callback):
    """Notes the CPU time of each step."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Begin."""
        self._begin = time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        """End."""
        self.taken.append(time.process_time() - self._begin)


norms: list[float] = []
total_norm = percentile_clipping.get_total_norm


def timed_norm(*arguments: Any) -> torch.Tensor:
    """torch's, timed."""
    begin = time.process_time()
    found = total_norm(*arguments)
    norms.append(time.process_time() - begin)
    return found


percentile_clipping.get_total_norm = timed_norm  # type: ignore[assignment]
torch.set_num_threads(1)
torch.manual_seed(0)
with tempfile.TemporaryDirectory() as folder:
    for name, words in (("train", 20 * 20 * (STEPS + 1)), ("valid", 20_000), ("test", 20_000)):
        # Every word once, so that the vocabulary has them all.
        ids = [*range(10_000), *torch.randint(10_000, (words - 10_000,)).tolist()]
        (Path(folder) / f"{name}.txt").write_text(" ".join(f"w{i}" for i in ids))
    data = LanguageModelingData(folder, batch_size=20, window=20)
    model = LanguageModel(data.vocabulary_size, loss_reduction="sum_over_time")
    clipping, steps = Timed(initial=5.0), Steps()
    clipping.taken = []
    trainer = Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        callbacks=[clipping, steps],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
step, callback, norm = (
    statistics.median(each) * 1e3 for each in (steps.taken, clipping.taken, norms)
)
print(
    f"torch {torch.__version__}, 1 thread, V = {data.vocabulary_size:,}, {len(steps.taken)} steps"
)
print(f"a step {step:.1f} ms; the norm {norm:.3f} ms, {norm / step:.2%} of it")
print(f"the callback beside the norm {callback - norm:.3f} ms, {(callback - norm) / step:.2%}")
