"""Who learns the adding problem at which length, and after how many steps.

What a network has to remember lies up to T steps back, so it learns as far as its gradients reach.
Gated cells are compared with the tanh network, without help and with each remedy by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rnnkit.screen.atomic_file import atomic_write
from rnnkit.training.command import TrainingCLI
from rnnkit.training.studies.study import Member, Result, Study, logged, minutes_of

LEARNED = 0.01
"""The validation loss below which the problem counts as learned; chance is 1/6."""

CHANCE = 1 / 6

EPOCHS = {50: 30, 100: 30, 200: 40, 400: 40}
"""The lengths, and how many epochs of 100 steps a run has at most."""

_COLUMNS = ("train/loss", "train/grad_norm", "val/loss", "val/accuracy")


def _model(**options: str) -> tuple[str, ...]:
    return tuple(
        word for name, value in options.items() for word in (f"--model.init_args.{name}", value)
    )


def _penalty(penalty: str, weight: int) -> tuple[str, ...]:
    return _model(cell="tanh", penalties=f"[{{name: {penalty}, weight: {weight}}}]")


MODELS = {
    "gru": ("GRU", _model(cell="gru")),
    "lstm": ("LSTM", _model(cell="lstm")),
    "lstm_forget_bias": ("LSTM, forget bias 1", _model(cell="lstm", forget_bias="1")),
    "tanh": ("tanh", _model(cell="tanh")),
    "tanh_unclipped": (
        "tanh, no clipping",
        (*_model(cell="tanh"), "--trainer.gradient_clip_val", "null"),
    ),
    "tanh_percentile": (
        "tanh, clipped at the 95th percentile",
        (
            *(*_model(cell="tanh"), "--trainer.gradient_clip_val", "null"),
            *("--trainer.callbacks+", "PercentileClipping"),
            *("--trainer.callbacks.percentile", "95"),
        ),
    ),
    "tanh_orthogonal": ("tanh, orthogonal", _model(cell="tanh", recurrent_init="orthogonal")),
    "tanh_identity": ("tanh, identity", _model(cell="tanh", recurrent_init="identity")),
    "relu_identity": ("ReLU, identity", _model(cell="relu", recurrent_init="identity")),
    "tanh_to_identity": ("tanh, penalty identity", _penalty("identity", 10)),
    "tanh_radius": ("tanh, penalty spectral radius", _penalty("spectral_radius", 1)),
    "tanh_norm": ("tanh, penalty spectral norm", _penalty("spectral_norm", 1)),
    "tanh_omega": ("tanh, penalty omega", _penalty("omega", 1)),
    "tanh_jacobian": ("tanh, penalty jacobian", _penalty("jacobian", 1)),
    "tanh_contraction": ("tanh, penalty contraction", _penalty("contraction", 1)),
}
"""What is compared: names, titles and options. Where nothing is said the norm is clipped at 1."""


@dataclass(frozen=True, kw_only=True)
class Learned(Result):
    """What a run on the adding problem came to.

    Attributes:
        length: T.
        steps: Optimizer steps until the validation loss was below 0.01; None: it never was.
        loss: The lowest validation loss; None: it diverged before there was one.
        diverged: Whether it ended with a loss of NaN or infinity.
    """

    length: int
    steps: int | None
    loss: float | None
    diverged: bool = False

    @property
    def complete(self) -> bool:
        """Whether it has learned, or diverged, or had all its steps."""
        return self.steps is not None or self.diverged or super().complete


class GradientStudy(Study[Learned]):
    """Every model at every length, each until it has learned or its steps are over."""

    configurations = "sequences"
    result = Learned

    def __init__(self) -> None:
        super().__init__(
            [
                Member(
                    f"{name}_T{length}",
                    title,
                    "adding",
                    (
                        *("--data.init_args.length", str(length)),
                        *("--trainer.max_epochs", str(EPOCHS[length]), *options),
                    ),
                )
                for (name, (title, options)), length in product(MODELS.items(), EPOCHS)
            ]
        )

    def score(self, done: TrainingCLI, place: Path, member: Member) -> Learned:
        """When it has learned, by the losses of the validation.

        Raises:
            ValueError: No epoch was finished.
        """
        found = [(int(row["step"]), float(row["val/loss"])) for row in self.curve(place)]
        if not found:
            raise ValueError(f"{place} holds no val/loss: no epoch of {member.name} was finished")
        return Learned(
            name=place.name,
            title=member.title,
            epochs=done.trainer.current_epoch,
            max_epochs=done.trainer.max_epochs or 0,
            minutes=round(minutes_of(done.trainer), 2),
            length=done.datamodule.length,
            steps=next((step for step, loss in found if loss < LEARNED), None),
            loss=min(loss for _, loss in found),
        )

    def diverged(self, place: Path, member: Member) -> Learned:
        """That a run diverged is what it came to."""
        losses = [float(row["val/loss"]) for row in self.curve(place)]
        length = int(member.name.rpartition("_T")[2])
        seconds = [float(row["train/seconds"]) for row in logged(place) if row["train/seconds"]]
        return Learned(
            name=place.name,
            title=member.title,
            epochs=len(losses),
            max_epochs=EPOCHS[length],
            minutes=round(max(seconds, default=0.0) / 60, 2),
            length=length,
            steps=None,
            loss=min(losses, default=None),
            diverged=True,
        )

    def curve(self, place: Path) -> list[dict[str, str]]:
        """A row a validation: the steps so far, and what was logged last of each column."""
        rows: dict[int, dict[str, str]] = {}
        for line in logged(place):  # of a step that was done again, the later line counts
            row = rows.setdefault(int(line["step"]) + 1, {})
            row |= {name: line[name] for name in _COLUMNS if line.get(name)}
        return [
            {"step": str(step), **{name: rows[step].get(name, "") for name in _COLUMNS}}
            for step in sorted(rows)
            if "val/loss" in rows[step]
        ]

    def table(self, results: list[Learned]) -> list[str]:
        """A line of Markdown a model: the steps to learn, or the lowest loss, at each length."""
        lengths = sorted({result.length for result in results})
        lines = [
            f"| model | {' | '.join(f'T = {length}' for length in lengths)} |",
            "|---|" + "---|" * len(lengths),
        ]
        for title, cells in _cells(results).items():
            shown = [", ".join(map(_text, cells.get(length, []))) for length in lengths]
            lines.append(f"| {title} | {' | '.join(shown)} |")
        return lines

    def draw(self, results: list[Learned], curves: list[list[dict[str, str]]], to: Path) -> None:
        """learned.png, models against lengths, and curves.png, the losses at each length."""
        if results:
            _draw_table(results, to / "learned.png")
            _draw_curves(results, curves, to / "curves.png")


def _text(result: Learned) -> str:
    """The steps to learn, or what the loss came to."""
    lowest = "" if result.loss is None else f"({result.loss:.3f})"
    if result.diverged:
        return f"diverged {lowest}".rstrip()
    return lowest if result.steps is None else f"{result.steps:,}"


def _cells(results: list[Learned]) -> dict[str, dict[int, list[Learned]]]:
    """Results by title, in the order of the study, and length; several where there are seeds."""
    order = [title for title, _ in MODELS.values()]
    cells: dict[str, dict[int, list[Learned]]] = {}
    for result in sorted(results, key=lambda each: order.index(each.title)):
        cells.setdefault(result.title, {}).setdefault(result.length, []).append(result)
    return cells


def _draw_table(results: list[Learned], path: Path) -> None:
    """Models against lengths; the darker, the sooner it was learned."""
    from matplotlib import colormaps  # slow to import
    from matplotlib.figure import Figure

    cells = _cells(results)
    lengths = sorted({result.length for result in results})
    figure = Figure(figsize=(3.2 + 1.1 * len(lengths), 1.4 + 0.34 * len(cells)), dpi=150)
    axes = figure.subplots()
    most = max(EPOCHS.values()) * 100
    colours = colormaps["Greens"]
    for row, of_length in enumerate(cells.values()):
        for column, length in enumerate(lengths):
            found = of_length.get(length, [])
            steps = [each.steps for each in found if each.steps is not None]
            share = 1 - min(steps) / most if steps else 0.0
            face = colours(0.25 + 0.6 * share) if steps else "0.94"
            axes.add_patch(_square(column, row, face))
            ink = "white" if share > 0.6 else "0.1" if steps else "0.5"
            text = "\n".join(map(_text, found)).replace(" (", "\n(")
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
    axes.set_xlim(-0.5, len(lengths) - 0.5)
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.set_xticks(range(len(lengths)), [f"T = {length}" for length in lengths])
    axes.set_yticks(range(len(cells)), list(cells))
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.suptitle("The adding problem: who learns it, after how many steps", fontsize=10)
    figure.supxlabel(
        f"optimizer steps until the validation loss is below {LEARNED:g};\nin brackets, where it "
        f"never was: the lowest loss (always answering 1: {CHANCE:.3f})",
        fontsize=7.5,
        color="0.35",
    )
    figure.tight_layout()
    with atomic_write(path) as beside:
        figure.savefig(beside)


def _square(column: int, row: int, face: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, facecolor=face, linewidth=0)


def _draw_curves(results: list[Learned], curves: list[list[dict[str, str]]], path: Path) -> None:
    """The validation losses at each length, a line a run."""
    from matplotlib import colormaps  # slow to import
    from matplotlib.figure import Figure

    lengths = sorted({result.length for result in results})
    titles = list(_cells(results))
    figure = Figure(figsize=(3.1 * len(lengths) + 1.8, 3.6), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    colours = colormaps["tab20"]
    for panel, length in zip(panels, lengths, strict=True):
        for result, rows in zip(results, curves, strict=True):
            if result.length == length and rows:
                number = titles.index(result.title)
                points = [(int(row["step"]), float(row["val/loss"])) for row in rows]
                colour = colours((2 * number) % 20 + number // 10)
                panel.plot(*zip(*points, strict=True), color=colour, linewidth=1.2)
        panel.axhline(CHANCE, color="0.4", linewidth=0.8, linestyle="--", zorder=0)
        panel.axhline(LEARNED, color="0.4", linewidth=0.8, linestyle=":", zorder=0)
        panel.set_title(f"T = {length}", fontsize=10)
        panel.set_xlabel("step")
        panel.set_yscale("log")
        panel.set_ylim(1e-3, 1.0)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("validation loss")
    lines = [
        panels[0].plot([], [], color=colours((2 * number) % 20 + number // 10))[0]
        for number in range(len(titles))
    ]
    figure.legend(lines, titles, loc="outside right center", frameon=False, fontsize=7.5)
    with atomic_write(path) as beside:
        figure.savefig(beside)
