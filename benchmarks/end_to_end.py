"""Whole trainings: rnnkit's side against what one would write with PyTorch alone.

A language model: `LanguageModel` under Lightning as `rnnkit fit` runs it, with its callbacks, CSV
and progress bar, against the loop of tests/language_modeling/plain_language_model.py, from the same
parameters on the same windows in the same order. A tagger: `tagger.py`; decoding: `decoding.py`.

The two sides take turns, some steps each, so that a machine that is busy for a while is so for
both. Parity comes before speed: their losses have to agree. Sharing a process, they also share its
memory settings: `rnnkit fit` lets malloc keep freed blocks on a CPU, which speeds up the plain side
as well.

With `--against torch` the other side is not plain: the same program with the same parameters, but
for its recurrent layers, which are torch's own. So one process compares before and after.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from rnnkit.language_modeling.data import LanguageModelingData
from rnnkit.screen.terminal import Parser
from rnnkit.training.command import keep_freed_memory, run

from .output_layers import BASELINE, BATCH, Side
from .progress import Progress
from .turns import AGREEMENT, WITH_DROPOUT, agreeing, figures_of, synchronize

ROOT = Path(__file__).parents[1]
CONFIGS = {
    size: ROOT / "configs" / "lm" / f"ptb_zaremba_{size}.yaml" for size in ("small", "medium")
}
# Units and steps of a window.
SIZES = {"small": (200, 20), "medium": (650, 35)}


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
            data.vocabulary_size,
            recipe["hidden_size"],
            recipe["num_layers"],
            recipe["init_range"],
            recipe["dropout"],
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
        synchronize(pl_module.device)
        between = time.perf_counter()
        self.plain_losses += islice(self._plain, self.steps)
        synchronize(pl_module.device)
        self.trainer_seconds.append(between - self._begin)
        self.plain_seconds.append(time.perf_counter() - between)
        self._begin = time.perf_counter()


def language_model(size: str, corpus: str, steps: int, repeats: int) -> dict[str, Any]:
    """Tokens a second of a language model, both sides in turn.

    Args:
        size: a key of `CONFIGS`.
        corpus: name or path of a corpus.
        steps: of one turn.
        repeats: turns of each side.

    Returns:
        Raw figures with all that is needed to read them, ready for JSON.

    Raises:
        ValueError: an epoch has fewer steps, or the losses of the two sides disagree.
    """
    config = CONFIGS[size]
    total = steps * (1 + repeats)  # the first turn is the warm-up
    with tempfile.TemporaryDirectory() as folder:
        command = run(
            [
                *("fit", "-c", str(config), "--data.init_args.corpus", corpus),
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
    dropout = float(command.model.hparams["dropout"])
    losses = agreeing(
        twin.trainer_losses, twin.plain_losses, WITH_DROPOUT if dropout else AGREEMENT
    )
    tokens = steps * data.batch_size * data.window
    rates = [
        (tokens / ours, tokens / plain)
        for ours, plain in zip(twin.trainer_seconds[1:], twin.plain_seconds[1:], strict=True)
    ]
    return {
        "what": f"training, tokens/s, Zaremba's {size} model: rnnkit on Lightning, a plain loop",
        "config": str(config.relative_to(ROOT)),
        "corpus": corpus,
        "steps": steps,
        "mean_loss": losses,
        **figures_of(rates, command.model.device),
    }


def same_model(size: str, cell: str, corpus: str, steps: int, repeats: int) -> dict[str, Any]:
    """Tokens a second of a language model by itself and with torch's layers, both sides in turn.

    Args:
        size: a key of `CONFIGS`; without dropout, so that the losses can agree.
        cell: "lstm", "gru" or "rnn".
        corpus: name or path of a corpus.
        steps: of one turn.
        repeats: turns of each side.

    Returns:
        Raw figures, ready for JSON.

    Raises:
        ValueError: the losses of the two sides disagree.
    """
    units, window = SIZES[size]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    data = LanguageModelingData(corpus, batch_size=BATCH, window=window)
    options = {"cell": cell, "embedding_size": units, "hidden_size": units}
    sides = [
        Side(BASELINE, data, 0, device, backend=backend, **options) for backend in ("auto", "torch")
    ]
    for side in sides:
        # A tenth of Zaremba's: with his a GRU makes other losses of other roundings.
        side.optimizer.param_groups[0]["lr"] = 0.1
    progress = Progress()
    for repeat in range(1 + repeats):  # the first turn is the warm-up
        progress(repeat / (1 + repeats), f"turn {repeat} of {repeats}")
        # Every other time the other side begins.
        for side in sides if repeat % 2 == 0 else reversed(sides):
            side.train(steps)
    progress.close()
    tokens = steps * BATCH * window
    ours, theirs = ([tokens / seconds for seconds in side.seconds[1:]] for side in sides)
    return {
        "what": f"training, tokens/s, Zaremba's {size} model, {cell}: auto, then backend torch",
        "corpus": corpus,
        "steps": steps,
        "mean_loss": agreeing(sides[0].losses, sides[1].losses, AGREEMENT),
        **figures_of(list(zip(ours, theirs, strict=True)), device),
    }


def _plain_script() -> ModuleType:
    path = ROOT / "tests" / "language_modeling" / "plain_language_model.py"
    spec = importlib.util.spec_from_file_location("plain_language_model", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"the plain side of the comparison is missing: {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(argv: list[str]) -> int:
    """Measure, print and write the figures; returns the exit status: 0, or 1 for an error."""
    parser = Parser(
        prog="rnnkit bench end-to-end",
        description="rnnkit bench end-to-end small --against torch\n\n"
        "Compare whole trainings with what one would write with PyTorch alone.",
    )
    add = parser.add_argument
    add(
        "what",
        choices=[*CONFIGS, "tagger", "decoding"],
        help="Zaremba's small or medium language model, a tagger, or decoding",
    )
    add(
        "--against",
        choices=["plain", "torch"],
        default="plain",
        help="plain: PyTorch alone; torch: the same program with torch's own recurrent layers",
    )
    add("--cell", choices=["lstm", "gru", "rnn"], default="lstm",
        help="of a language model --against torch (default: lstm)")  # fmt: skip
    add("--corpus", help="name or path (default: python-docs, for a tagger announcements)")
    add("--steps", type=int, default=50, help="steps of one turn (default: 50)")
    add("--repeats", type=int, default=4, help="turns of each side (default: 4)")
    add("--out", type=Path, help="where the figures go (default: runs/end_to_end_WHAT.json)")
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as end:
        return int(end.code or 0)
    what, steps, repeats = arguments.what, arguments.steps, arguments.repeats
    backend = None if arguments.against == "plain" else arguments.against
    try:
        if arguments.cell != "lstm" and (backend is None or what not in CONFIGS):
            raise ValueError(f"--cell {arguments.cell} is for language models --against torch")
        if what == "tagger":
            from .tagger import tagger

            figures = tagger(arguments.corpus or "announcements", steps, repeats, backend)
        elif what == "decoding":
            from .decoding import decoding

            figures = decoding(steps, repeats, backend)
        elif backend is None:
            figures = language_model(what, arguments.corpus or "python-docs", steps, repeats)
        else:
            given = (arguments.corpus or "python-docs", steps, repeats)
            figures = same_model(what, arguments.cell, *given)
    except ValueError as error:
        print(f"rnnkit bench end-to-end: {error}", file=sys.stderr)
        return 1
    figures["command"] = shlex.join(["rnnkit", "bench", "end-to-end", *argv])
    name = "_".join([what, *[arguments.cell, "torch"] * (backend is not None)])
    out = arguments.out or Path(f"runs/end_to_end_{name}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=2) + "\n")
    other = "plain" if backend is None else "torch"
    unit = "tokens/s" if what in CONFIGS else "sentences/s"
    for part in figures.get("parts", [figures]):
        if part is not figures:
            print(part["what"])
        for pair in [*part["pairs"], part["median"]]:
            print(
                f"rnnkit {pair['rnnkit']:8,.0f} {unit}   {other} {pair['plain']:8,.0f} {unit}   "
                f"ratio {pair['ratio']:.3f}{'   median' if pair is part['median'] else ''}"
            )
        if "mean_loss" in part:
            losses = part["mean_loss"]
            print(f"mean loss {losses['rnnkit']:.6f} and {losses['plain']:.6f}")
    print(f"figures in {out}")
    return 0
