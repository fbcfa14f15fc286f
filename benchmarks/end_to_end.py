"""Training speed of `LanguageModel` under Lightning against a plain PyTorch loop.

Both sides train configs/lm/ptb_zaremba_small.yaml from the same parameters on the same windows in
the same order: the Lightning side as `rnnkit fit` runs it, with its callbacks, CSV and progress
bar, the plain side as tests/tasks/plain_language_model.py writes it. They take turns, some steps
each, so that a machine that is busy for a while is so for both. Parity comes before speed: the
losses of the two have to agree.

Sharing a process, they also share its memory settings: `rnnkit fit` lets malloc keep freed blocks
on a CPU, which speeds up the plain side as well.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from rnnkit.training import run

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "lm" / "ptb_zaremba_small.yaml"

# Largest relative difference of the mean losses; the same arithmetic should give none.
AGREEMENT = 0.005


class PlainTwin(Callback):
    """Takes the same steps as the Trainer with the plain loop, some at a time, and times both.

    The Trainer's time runs from the end of the plain steps to this callback's next turn: all
    that Lightning and the other callbacks do is in it.

    Args:
        steps: Steps of one turn.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.trainer_seconds: list[float] = []
        self.plain_seconds: list[float] = []
        self.trainer_losses: list[Tensor] = []
        self.plain_losses: list[Tensor] = []
        self._plain: Iterator[Tensor] = iter(())
        self._begin = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set up the plain side, with the parameters that the other side starts with."""
        plain = _plain_script()
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        recipe = pl_module.hparams
        model = plain.PlainLanguageModel(
            data.vocabulary_size, recipe["hidden_size"], recipe["num_layers"], recipe["init_range"]
        ).to(pl_module.device)
        model.load_state_dict(pl_module.state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=trainer.optimizers[0].defaults["lr"])
        inputs, targets = plain.streams(data.train_tokens.to(pl_module.device), data.batch_size)
        clip = trainer.gradient_clip_val
        self._plain = plain.train(model, optimizer, inputs, targets, data.window, clip)
        self._begin = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """After so many steps, the other side's turn."""
        self.trainer_losses.append(outputs["loss"] / len(batch.input))
        if trainer.global_step % self.steps:
            return
        _synchronize(pl_module.device)
        between = time.perf_counter()
        self.plain_losses += islice(self._plain, self.steps)
        _synchronize(pl_module.device)
        self.trainer_seconds.append(between - self._begin)
        self.plain_seconds.append(time.perf_counter() - between)
        self._begin = time.perf_counter()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(corpus: str, steps: int, repeats: int) -> dict[str, Any]:
    """Measure both sides in turn.

    Args:
        corpus: Name or path of a corpus.
        steps: Steps of one turn.
        repeats: Number of turns of each side.

    Returns:
        Raw figures with all that is needed to read them, ready for JSON.

    Raises:
        ValueError: An epoch has fewer steps, or the losses of the two sides disagree.
    """
    total = steps * (1 + repeats)  # the first turn is the warm-up
    with tempfile.TemporaryDirectory() as folder:
        command = run(
            [
                *("fit", "-c", str(CONFIG), "--data.init_args.corpus", corpus),
                *("--trainer.max_steps", str(total), "--trainer.limit_val_batches", "0"),
                *("--trainer.callbacks", f"{__name__}.PlainTwin"),
                *("--trainer.callbacks.steps", str(steps)),
                *("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", folder),
            ]
        )
    trainer: Any = command.trainer
    data: Any = command.datamodule
    twin = next(each for each in trainer.callbacks if isinstance(each, PlainTwin))
    if len(twin.plain_losses) < total:
        raise ValueError(
            f"an epoch of {corpus} has {len(twin.plain_losses)} steps, {total} were asked for: "
            "lower --steps or --repeats"
        )
    ours = float(torch.stack(twin.trainer_losses).mean())
    theirs = float(torch.stack(twin.plain_losses).mean())
    if abs(ours - theirs) > AGREEMENT * theirs:
        raise ValueError(f"the two sides disagree: mean loss {ours:.4f} and plain {theirs:.4f}")
    tokens = steps * data.batch_size * data.window
    pairs = []
    for seconds, plain in zip(twin.trainer_seconds[1:], twin.plain_seconds[1:], strict=True):
        pairs.append(
            {"rnnkit": tokens / seconds, "plain": tokens / plain, "ratio": plain / seconds}
        )
    return {
        "what": "training speed in tokens/s, LanguageModel under Lightning and a plain loop",
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "config": str(CONFIG.relative_to(ROOT)),
        "corpus": corpus,
        "steps": steps,
        "pairs": pairs,
        "median": {key: statistics.median(pair[key] for pair in pairs) for key in pairs[0]},
        "mean_loss": {"rnnkit": ours, "plain": theirs},
        "device": str(command.model.device),
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lightning": lightning.__version__,
        },
    }


def _plain_script() -> ModuleType:
    path = ROOT / "tests" / "tasks" / "plain_language_model.py"
    spec = importlib.util.spec_from_file_location("plain_language_model", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"the plain side of the comparison is missing: {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write the figures; returns the exit status 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Training speed of LanguageModel under Lightning and of a plain PyTorch loop.",
    )
    add = parser.add_argument
    add("--corpus", default="python-docs", help="ptb, python-docs or a path (default: python-docs)")
    add("--steps", type=int, default=50, help="steps of one turn (default: 50)")
    add("--repeats", type=int, default=4, help="turns of each side (default: 4)")
    add("--out", type=Path, default=Path("runs/end_to_end.json"), help="where the figures go")
    arguments = parser.parse_args(argv)
    figures = compare(arguments.corpus, arguments.steps, arguments.repeats)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    for pair in [*figures["pairs"], figures["median"]]:
        print(
            f"rnnkit {pair['rnnkit']:8,.0f} tokens/s   plain {pair['plain']:8,.0f} tokens/s   "
            f"ratio {pair['ratio']:.3f}{'   median' if pair is figures['median'] else ''}"
        )
    losses = figures["mean_loss"]
    print(f"mean loss {losses['rnnkit']:.6f} and {losses['plain']:.6f}; figures in {arguments.out}")
    return 0
