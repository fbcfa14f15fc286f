"""Who learns the adding problem at which length, and after how many steps.

What a network has to remember lies up to T steps back, so it learns as far as its gradients reach.
Gated cells are compared with the tanh network, without help and with each remedy by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

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


def _penalty(penalty: str, weight: float) -> tuple[str, ...]:
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
}
"""What is compared: names, titles and options. Where nothing is said the norm is clipped at 1."""


@dataclass(frozen=True, kw_only=True)
class Learned(Result):
    """What a run on the adding problem came to.

    Attributes:
        length: T.
        steps: Optimizer steps until the validation loss was below 0.01; None: it never was.
        loss: The lowest validation loss.
    """

    length: int
    steps: int | None
    loss: float

    @property
    def complete(self) -> bool:
        """Whether it has learned, or had all its steps."""
        return self.steps is not None or super().complete


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
            parameters=sum(parameter.numel() for parameter in done.model.parameters()),
            epochs=done.trainer.current_epoch,
            max_epochs=done.trainer.max_epochs or 0,
            minutes=round(minutes_of(done.trainer), 2),
            length=done.datamodule.length,
            steps=next((step for step, loss in found if loss < LEARNED), None),
            loss=min(loss for _, loss in found),
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
    return f"({result.loss:.3f})" if result.steps is None else f"{result.steps:,}"


def _cells(results: list[Learned]) -> dict[str, dict[int, list[Learned]]]:
    """Results by title, in the order of the study, and length; several where there are seeds."""
    order = [title for title, _ in MODELS.values()]
    cells: dict[str, dict[int, list[Learned]]] = {}
    for result in sorted(results, key=lambda each: order.index(each.title)):
        cells.setdefault(result.title, {}).setdefault(result.length, []).append(result)
    return cells


def _draw_table(results: list[Learned], path: Path) -> None:
    pass


def _draw_curves(results: list[Learned], curves: list[list[dict[str, str]]], path: Path) -> None:
    pass
