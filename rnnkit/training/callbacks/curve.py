"""Learning curves: pictures of the run's CSV, redrawn after every validation."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from rnnkit.screen.atomic_file import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Score(NamedTuple):
    """How a metric is drawn.

    Attributes:
        title: Of its axis.
        logarithmic: Whether the axis is.
        best: min or max, which finds the best of its values; None: none is better than another.
    """

    title: str
    logarithmic: bool
    best: Callable[[Sequence[float]], float] | None


SCORES = {
    "ppl": Score("perplexity", True, min),
    "bits_per_token": Score("bits per token", False, min),
    "loss": Score("loss", False, min),
    "grad_norm": Score("norm of the gradient", True, None),
    "f1": Score("F1", False, max),
    "f1_macro": Score("macro F1", False, max),
    "precision": Score("precision", False, max),
    "recall": Score("recall", False, max),
    "accuracy": Score("accuracy", False, max),
    "bleu": Score("BLEU", False, max),
    "chrf": Score("chrF", False, max),
}
"""The known metrics, by their names without the stage."""

_STAGES = {
    "train": ("training", "tab:blue"),
    "train_eval": ("training text, without dropout", "tab:purple"),
    "test": ("test", "tab:green"),
    "val": ("validation", "tab:orange"),  # last: above the others
}

DRAWN = ("ppl", "f1", "bleu", "accuracy")
"""What a run is judged by; of these it draws those that it logs for the validation."""


def score_of(metric: str) -> Score:
    """How a metric is drawn; one that is not known has a linear axis and no best value."""
    return SCORES.get(metric.rpartition("/")[2], Score(metric, False, None))


class CurvePlot(Callback):
    """Draws perplexity, F1, BLEU and accuracy, as far as a run has them, beside `metrics.csv`.

    Each gets a picture of its own, `ppl.png` and so on, with the training's values where they are
    logged. Nothing is drawn for a run without a CSVLogger.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what the CSV holds by now."""
        logger = next((each for each in trainer.loggers if isinstance(each, CSVLogger)), None)
        if logger is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if trainer.state.fn == "fit":
            folder = Path(logger.log_dir)
            logger.save()
            for metric in DRAWN:
                if f"val/{metric}" in trainer.callback_metrics:
                    draw_curves(folder / "metrics.csv", folder / f"{metric}.png", metric)


def draw_curves(csv_path: Path, png_path: Path, metric: str) -> None:
    """Draw one metric of training, validation and what else was scored with it, step by step.

    The validation's best value is written beside its point.

    Args:
        csv_path: A `metrics.csv` with the columns `step`, and `train/<metric>`, `val/<metric>`,
            `test/<metric>` or `train_eval/<metric>`, any of which may be missing or have gaps.
        png_path: The picture; it is replaced when the new one is complete.
        metric: Name of the metric without its stage.
    """
    from matplotlib.figure import Figure  # slow to import, and not needed by every run

    score = score_of(metric)
    rows = read_rows(csv_path)
    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    for stage, (label, colour) in _STAGES.items():
        steps, values = column(rows, f"{stage}/{metric}")
        if not steps:
            continue
        points = "" if stage == "train" else "o"
        axes.plot(steps, values, color=colour, linewidth=1.2, marker=points, ms=4, label=label)
        if stage == "val" and score.best is not None:
            best = values.index(score.best(values))
            axes.annotate(
                f"{values[best]:.4g}",
                (steps[best], values[best]),
                xytext=(0, -15 if score.best is min else 9),  # beyond the curve
                textcoords="offset points",
                horizontalalignment="center",
                color=colour,
            )
    axes.margins(y=0.12)  # room for the best value
    set_axes(axes, score)
    axes.set_xlabel("optimizer steps")
    axes.set_title(f"{csv_path.parent.parent.name}, {csv_path.parent.name}", fontsize=10)
    if axes.lines:
        axes.legend(frameon=False)
    with atomic_write(png_path) as beside:
        figure.savefig(beside)


def set_axes(axes: Axes, score: Score) -> None:
    """Scale, title and grid of a picture of curves."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    if score.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(score.title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def read_rows(csv_path: Path) -> list[dict[str, str]]:
    """Rows of a `metrics.csv`; a value that was not logged with the others of a row is empty."""
    with csv_path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def column(rows: list[dict[str, str]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one column, without those that are NaN or infinite."""
    found = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
    finite = [(step, value) for step, value in found if math.isfinite(value)]
    return [step for step, _ in finite], [value for _, value in finite]
