"""A study of language models by their perplexities, each with a picture of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnnkit.screen.atomic_file import atomic_write
from rnnkit.training.callbacks.checkpoint_io import read_checkpoint
from rnnkit.training.command import TrainingCLI
from rnnkit.training.studies.study import Member, Result, Study, logged, minutes_of, newest

CURVES = {
    "train/ppl": "training, mean over the epoch",
    "train_eval/ppl": "training, 80,000 tokens after it",
    "val/ppl": "validation",
    "test/ppl": "test",
}
"""The columns of a run's curve, and what they are called in its picture."""


@dataclass(frozen=True, kw_only=True)
class Perplexities(Result):
    """What a language model came to; its title tells cell, dropout and learning rate.

    Attributes:
        parameters: Their number.
        dropout: Probability.
        best_epoch: The one with the lowest validation perplexity, counted from 1.
        train: Perplexity of the whole training text with the weights of the best epoch.
        valid: Of the validation text.
        test: Of the test text.
        checkpoint: Where those weights are.
    """

    parameters: int
    dropout: float
    best_epoch: int
    train: float
    valid: float
    test: float
    checkpoint: str


class PerplexityStudy(Study[Perplexities]):
    """Language models, with the perplexities of all three texts after every epoch."""

    configurations = "lm"
    options = (
        *("--data.init_args.also_validate_on", "[train, test]"),
        *("--trainer.callbacks+", "lightning.pytorch.callbacks.LearningRateMonitor"),
    )
    result = Perplexities

    def score(self, done: TrainingCLI, place: Path, member: Member) -> Perplexities:
        """Perplexities of all three texts, whole, with the weights of the best epoch.

        Raises:
            ValueError: No epoch was finished.
        """
        best = newest(place, "best.ckpt")
        if best is None:
            raise ValueError(f"{place} holds no best.ckpt: no epoch of {member.name} was finished")
        model, data, trainer = done.model, done.datamodule, done.trainer
        epochs = trainer.current_epoch
        checkpoint = read_checkpoint(best)
        model.load_state_dict(checkpoint["state_dict"])
        texts = {"train": data.train_tokens, "valid": data.valid_tokens, "test": data.test_tokens}
        scores = {
            name: model.perplexity(data.evaluation_loader(text)) for name, text in texts.items()
        }
        rates = [float(row["lr"]) for row in self.curve(place) if row["lr"]]
        dropout = float(model.hparams["dropout"])
        words = f"dropout {dropout:g}" if dropout else "no dropout"
        rate = f"learning rate {rates[0]:g}" if rates else "learning rate unknown"
        if rates and rates[-1] < rates[0]:
            rate += f", cut to {rates[-1]:.2g}"
        return Perplexities(
            name=place.name,
            title=f"{member.title}, {words}, {rate}",
            dropout=dropout,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            epochs=epochs,
            max_epochs=trainer.max_epochs or 0,
            best_epoch=checkpoint["epoch"] + 1,
            **scores,
            minutes=minutes_of(trainer),
            checkpoint=str(best),
        )

    def curve(self, place: Path) -> list[dict[str, str]]:
        """A row an epoch of a run, over all parts in which it was trained.

        Args:
            place: Folder of the run, with a metrics.csv in each version_<n>.

        Returns:
            Columns epoch, lr and those of `CURVES`, as text; empty where there is no value.
        """
        rows: dict[int, dict[str, str]] = {}
        rates: dict[int, str] = {}
        # By epoch and step: what a part did after its last checkpoint, the next one does again.
        running: dict[int, dict[int, float]] = {}
        for line in logged(place):
            step = int(line["step"])
            for name, value in line.items():
                if value and name.startswith("lr-"):
                    rates[step] = value
            if line.get("train/ppl"):
                of_epoch = running.setdefault(int(line["epoch"]), {})
                of_epoch[step] = math.log(float(line["train/ppl"]))
            if line.get("val/ppl"):
                rows[int(line["epoch"])] = {"step": line["step"]} | {
                    name: line[name] for name in CURVES if line.get(name)
                }
        for epoch, row in rows.items():
            before = [step for step in rates if step <= int(row["step"])]
            if before:
                row["lr"] = rates[max(before)]
            if logs := running.get(epoch):
                row["train/ppl"] = f"{math.exp(sum(logs.values()) / len(logs)):.4f}"
        names = ("lr", *CURVES)
        return [
            {"epoch": str(epoch + 1), **{name: rows[epoch].get(name, "") for name in names}}
            for epoch in sorted(rows)
        ]

    def table(self, results: list[Perplexities]) -> list[str]:
        """The results as lines of Markdown."""
        lines = [
            "| run | parameters | best epoch | epochs | train | valid | test | minutes |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for result in results:
            lines.append(
                f"| {result.name}: {result.title} | {result.parameters:,} | {result.best_epoch} | "
                f"{result.epochs} of {result.max_epochs} | {result.train:.1f} | "
                f"{result.valid:.1f} | {result.test:.1f} | {result.minutes:.0f} |"
            )
        return lines

    def draw(
        self, results: list[Perplexities], curves: list[list[dict[str, str]]], to: Path
    ) -> None:
        """A picture a run."""
        for result, rows in zip(results, curves, strict=True):
            draw(result, rows, to / f"{result.name}.png")


def draw(result: Perplexities, rows: list[dict[str, str]], path: Path) -> None:
    """Draw the convergence of a run.

    Args:
        result: For the heading and the best epoch.
        rows: What `curve` gave.
        path: The picture; it is replaced when the new one is complete.
    """
    from matplotlib.figure import Figure  # slow to import
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

    figure = Figure(figsize=(7, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    styles: dict[str, dict[str, Any]] = {
        "train/ppl": {"color": "tab:blue", "linewidth": 0.8, "alpha": 0.6},
        "train_eval/ppl": {"color": "tab:blue", "linewidth": 1.8},
        "val/ppl": {"color": "tab:green", "linewidth": 1.2, "linestyle": "--"},
        "test/ppl": {"color": "tab:orange", "linewidth": 1.8},
    }
    for name, label in CURVES.items():
        points = [(int(row["epoch"]), float(row[name])) for row in rows if row[name]]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **styles[name])
    axes.axvline(result.best_epoch, color="0.7", linewidth=0.8, zorder=0)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("perplexity")
    axes.set_title(
        f"{result.title}\nbest epoch {result.best_epoch}: validation {result.valid:.1f}, test "
        f"{result.test:.1f}",
        fontsize=10,
    )
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    with atomic_write(path) as beside:
        figure.savefig(beside)
