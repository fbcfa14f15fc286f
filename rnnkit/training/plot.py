"""`rnnkit plot`: the curves of several runs in one picture."""

from __future__ import annotations

from itertools import count, pairwise
from pathlib import Path
from typing import NamedTuple

from rnnkit.data.registry import DataError
from rnnkit.screen.atomic_file import atomic_write
from rnnkit.screen.terminal import Parser, visible
from rnnkit.training.callbacks.curve import Score, column, read_rows, score_of, set_axes

_DESCRIPTION = """\
rnnkit plot runs/conll2003/version_0 runs/conll2003/version_1 --metric f1 --out f1.png

Draw the curves of several runs in one picture.
"""

_UNITS = ((3600, "hours"), (60, "minutes"), (1, "seconds"))


class Run(NamedTuple):
    """One run's `metrics.csv`.

    Attributes:
        name: What the legend calls it.
        path: The file.
        rows: Its rows.
    """

    name: str
    path: Path
    rows: list[dict[str, str]]


class Curve(NamedTuple):
    """Points of one metric: the optimizer steps, and the values."""

    steps: list[int]
    values: list[float]


def find_run(path: Path) -> Run:
    """The run that a folder or a file names.

    Args:
        path: Folder of a run, as `runs/hafez/version_0`, or a `metrics.csv`.

    Raises:
        DataError: There is no such file, or it has no metrics.
    """
    file = path / "metrics.csv" if path.is_dir() else path
    if not file.is_file():
        found_below = (*path.glob("*/metrics.csv"), *path.glob("*/*/metrics.csv"))
        runs = sorted(str(each.parent.relative_to(path)) for each in found_below)
        hint = f": it holds runs, name one of them: {', '.join(runs)}" if runs else ""
        found = "has no metrics.csv" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {found}{hint}")
    try:
        rows = read_rows(file)
    except (UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{file} is no metrics.csv: {error}") from error
    if not rows or "step" not in rows[0]:
        reason = "has no column step" if rows else "is empty: nothing was logged yet"
        raise DataError(f"{file} {reason}")
    folder = file.absolute().parent
    name = folder.name
    if name.startswith("version_"):  # Lightning's number of a run with the same configuration
        name = f"{folder.parent.name}, {name}"
    return Run(name, file, rows)


def curves_of(run: Run, metric: str) -> dict[str, Curve]:
    """Curves of a metric by stage, `train` and `val`, those that the run has.

    Args:
        run: The run.
        metric: With its stage, as `train/grad_norm`, or without.

    Raises:
        DataError: There is no finite value of it; the message lists what there is.
    """
    stages = [metric.partition("/")[0]] if "/" in metric else ["train", "val"]
    bare = metric.rpartition("/")[2]
    curves = {stage: Curve(*column(run.rows, f"{stage}/{bare}")) for stage in stages}
    curves = {stage: curve for stage, curve in curves.items() if curve.steps}
    if not curves:
        logged = sorted(name for name in run.rows[0] if "/" in name and column(run.rows, name)[0])
        raise DataError(
            f"{run.path} has no value of {metric}: it has {', '.join(logged) or 'no metric'}"
        )
    return curves


def epochs_at(run: Run, steps: list[int]) -> list[float]:
    """Epochs that had passed after each step, as a fraction.

    An epoch ends with its last row; the last one may be unfinished, and is taken to be as long
    as those before it.

    Args:
        run: The run.
        steps: Steps, counted from 0.

    Raises:
        DataError: The run has no column epoch.
    """
    ends: dict[int, int] = {}
    for row in run.rows:
        if row.get("epoch"):
            epoch = int(float(row["epoch"]))
            ends[epoch] = max(ends.get(epoch, 0), int(row["step"]) + 1)
    if not ends:
        raise DataError(f"{run.path} has no column epoch: choose --x step")
    first, last = min(ends), max(ends)
    whole = max((epoch for epoch in ends if epoch < last), default=last)
    length = ends[whole] / (whole + 1)  # steps count from the first epoch, also after a resume
    ends[last] = max(ends[last], round((last + 1) * length))
    knots = [(first * length, float(first))]
    knots += [(float(ends[epoch]), epoch + 1.0) for epoch in sorted(ends)]
    return [_interpolate(step + 1.0, knots) for step in steps]


def seconds_at(run: Run, steps: list[int]) -> list[float]:
    """Seconds since training began at each step, between the steps at which they were logged.

    Args:
        run: The run.
        steps: Steps, counted from 0.

    Raises:
        DataError: The run has logged no seconds.
    """
    logged, seconds = column(run.rows, "train/seconds")
    if not logged:
        raise DataError(f"{run.path} has no column train/seconds: choose --x step or --x epoch")
    knots = [(float(step), value) for step, value in zip(logged, seconds, strict=True)]
    return [_interpolate(float(step), knots) for step in steps]


def _interpolate(x: float, knots: list[tuple[float, float]]) -> float:
    """Value at x of the line through the knots, beyond its ends that of the end."""
    if x <= knots[0][0]:
        return knots[0][1]
    for (left, below), (right, above) in pairwise(knots):
        if x <= right:
            return below + (above - below) * (x - left) / (right - left)
    return knots[-1][1]


def draw_runs(runs: list[Run], metric: str, x: str, path: Path) -> list[str]:
    """Draw a metric of several runs, validation with points and training as a thin line.

    Args:
        runs: One colour each.
        metric: With its stage or without.
        x: step, epoch or time.
        path: The picture; it is replaced when the new one is complete.

    Returns:
        A line for each run: its name and its best value, the last one where no value is better
        than another.

    Raises:
        DataError: A run lacks the metric, or what --x needs.
        ValueError: Matplotlib knows no such kind of file.
    """
    from matplotlib.figure import Figure  # slow to import, and not needed by every command

    score = score_of(metric)
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    names = _distinct_names(runs)
    drawn = [curves_of(run, metric) for run in runs]
    places = [
        {stage: _places(run, curve.steps, x) for stage, curve in curves.items()}
        for run, curves in zip(runs, drawn, strict=True)
    ]
    divisor, unit = 1, {"step": "optimizer steps", "epoch": "epochs"}.get(x, "")
    if x == "time":
        longest = max(max(each) for stages in places for each in stages.values())
        divisor, unit = next((u for u in _UNITS if longest >= 2 * u[0]), _UNITS[-1])
        unit = f"{unit} of training"
    lines = []
    for name, curves, stages, number in zip(names, drawn, places, count(), strict=False):
        colour = f"C{number % 10}"
        judged = "val" if "val" in curves else next(iter(curves))
        text, star = _best(score, curves[judged])
        lines.append(f"{name}: {judged}/{metric.rpartition('/')[2]} {text}")
        for stage, curve in curves.items():
            at = [place / divisor for place in stages[stage]]
            if stage != judged:
                axes.plot(at, curve.values, color=colour, linewidth=0.8, alpha=0.4)
                continue
            label = f"{name}: {text}".replace("$", r"\$")
            points = "o" if stage == "val" else ""
            axes.plot(
                at, curve.values, color=colour, linewidth=1.5, marker=points, ms=3, label=label
            )
            if star is not None:
                axes.plot(at[star], curve.values[star], "*", color=colour, markersize=13)
    set_axes(axes, score)
    axes.set_xlabel(unit)
    if any(len(curves) > 1 for curves in drawn):
        axes.set_title("validation, and training as a thin line", fontsize=10)
    axes.legend(frameon=False)
    with atomic_write(path) as beside:
        figure.savefig(beside)
    return lines


def _places(run: Run, steps: list[int], x: str) -> list[float]:
    if x == "epoch":
        return epochs_at(run, steps)
    return seconds_at(run, steps) if x == "time" else [step + 1.0 for step in steps]


def _best(score: Score, curve: Curve) -> tuple[str, int | None]:
    if score.best is None:
        return f"last {curve.values[-1]:.4g} at step {curve.steps[-1] + 1:,}", None
    best = curve.values.index(score.best(curve.values))
    return f"best {curve.values[best]:.4g} at step {curve.steps[best] + 1:,}", best


def _distinct_names(runs: list[Run]) -> list[str]:
    """Names for the legend; runs of the same name in different folders are told by their paths."""
    names = [run.name for run in runs]
    return [
        visible(str(run.path.parent) if names.count(run.name) > 1 else run.name) for run in runs
    ]


def main(argv: list[str]) -> int:
    """Run `rnnkit plot` with the arguments that follow these two words.

    Args:
        argv: Arguments, for example `["runs/hafez/version_0", "--metric", "ppl"]`.

    Returns:
        Exit status: 0.

    Raises:
        DataError: A run has no metrics, or not the one that is asked for.
        ValueError: An argument makes no sense.
    """
    parser = Parser(prog="rnnkit plot", description=_DESCRIPTION)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or its metrics.csv")
    add(
        "--metric",
        default="ppl",
        metavar="NAME",
        help="ppl, f1, bleu, loss, grad_norm ..., for validation and training, or with the stage "
        "as train/loss (default: ppl)",
    )
    add(
        "--out",
        type=Path,
        default=Path("curves.png"),
        metavar="FILE",
        help="the picture, as its ending says: .png, .svg, .pdf (default: curves.png)",
    )
    add(
        "--x",
        choices=("step", "epoch", "time"),
        default="step",
        help="what runs along the bottom: optimizer steps, epochs, or time of training "
        "(default: step)",
    )
    arguments = parser.parse_args(argv)
    runs = [find_run(path) for path in arguments.runs]
    for line in draw_runs(runs, arguments.metric, arguments.x, arguments.out):
        print(visible(line))
    print(visible(str(arguments.out)))
    return 0
