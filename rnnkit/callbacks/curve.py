"""Learning curves: a picture of the run's CSV, redrawn after every validation."""

from __future__ import annotations

import csv
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from rnnkit.callbacks.atomic_file import atomic_write


class CurvePlot(Callback):
    """Draws one metric of training and validation into `<metric>.png` beside `metrics.csv`.

    Nothing is drawn for a run without a CSVLogger.

    Args:
        metric: Name of the metric without its stage: `ppl` for `train/ppl` and `val/ppl`.
    """

    def __init__(self, metric: str = "ppl") -> None:
        self.metric = metric

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what the CSV holds by now."""
        logger = next((each for each in trainer.loggers if isinstance(each, CSVLogger)), None)
        if logger is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if trainer.state.fn == "fit":
            folder = Path(logger.log_dir)
            logger.save()
            draw_curves(folder / "metrics.csv", folder / f"{self.metric}.png", self.metric)


def draw_curves(csv_path: Path, png_path: Path, metric: str) -> None:
    """Draw training and validation of one metric against the optimizer steps.

    Args:
        csv_path: A `metrics.csv` with the columns `step`, `train/<metric>` and `val/<metric>`,
            either of which may be missing or have gaps.
        png_path: The picture; it is replaced when the new one is complete.
        metric: Name of the metric without its stage.
    """
    from matplotlib.figure import Figure  # slow to import, and not needed by every run
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    steps, values = _column(csv_path, f"train/{metric}")
    if steps:
        axes.plot(steps, values, color="tab:blue", linewidth=1.2, label="training")
    steps, values = _column(csv_path, f"val/{metric}")
    if steps:
        axes.plot(steps, values, "o-", color="tab:orange", markersize=4, label="validation")
        best = min(range(len(values)), key=values.__getitem__)
        axes.annotate(
            f"{values[best]:.4g}",
            (steps[best], values[best]),
            xytext=(0, 9),
            textcoords="offset points",
            horizontalalignment="center",
            color="tab:orange",
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel({"ppl": "perplexity"}.get(metric, metric))
    axes.set_title(f"{csv_path.parent.parent.name}, {csv_path.parent.name}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    with atomic_write(png_path) as beside:
        figure.savefig(beside)


def _column(path: Path, name: str) -> tuple[list[int], list[float]]:
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(name)]
    return [int(row["step"]) for row in rows], [float(row[name]) for row in rows]
