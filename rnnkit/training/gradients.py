"""`rnnkit gradients`: how far back gradients reach, in fresh cells or in those of a checkpoint."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from rnnkit.nn import GRU, LSTM, RNN
from rnnkit.nn.base import Recurrent
from rnnkit.nn.gradient_flow import (
    Flow,
    elman_bound,
    forget_products,
    gradient_flow,
    jacobian_norms,
    unit_vectors,
)
from rnnkit.nn.initialisation import RecurrentInit, initialise
from rnnkit.nn.states import watch_states
from rnnkit.screen.atomic_file import atomic_write
from rnnkit.screen.gradient_picture import Line, Panel, draw_gradients
from rnnkit.screen.terminal import Parser, visible, waiting
from rnnkit.training.command import run

_DESCRIPTION = """\
rnnkit gradients
rnnkit gradients --cells tanh lstm --forget-bias 0 1 3 --steps 200 --out flow.png
rnnkit gradients --ckpt runs/ptb_zaremba_small/version_0/checkpoints/best.ckpt

Show how gradients fade or grow on their way back through time: a table, a picture, and a CSV with
all norms. Cells are fresh and read numbers drawn from N(0, 1), in float64; or they are those of a
checkpoint, and read what they read in a batch of its validation data.

What is drawn is the norm of uᵀ ∂(h_T, c_T)/∂(h_t, c_t), for a unit vector u drawn once for each
sequence, averaged over sequences: one backward pass tells it for all steps. The norm of the
Jacobian itself, at least as large, is that of --exact.
"""

CELLS: dict[str, tuple[type[Recurrent], dict[str, Any]]] = {
    "tanh": (RNN, {}),
    "relu": (RNN, {"nonlinearity": "relu"}),
    "tanh_residual": (RNN, {"residual": True}),
    "gru": (GRU, {}),
    "gru_residual": (GRU, {"residual": True}),
    "gru_reset_before": (GRU, {"reset_after": False}),
    "lstm": (LSTM, {}),
    "lstm_peephole": (LSTM, {"peephole": True}),
    "lstm_coupled": (LSTM, {"coupled": True}),
}
"""What --cells chooses from."""

_FRESH: dict[str, Any] = {
    "cells": ["tanh", "relu", "gru", "lstm"],
    "forget_bias": [0.0, 1.0, 3.0],
    "init": "uniform",
    "steps": 100,
    "hidden": 128,
    "input": 32,
    "sequences": 16,
}
"""Options of fresh cells, and their defaults."""

_NAMES = {
    "tanh": "tanh",
    "relu": "ReLU",
    "tanh_residual": "tanh, residual",
    "gru": "GRU",
    "gru_residual": "GRU, residual",
    "gru_reset_before": "GRU, reset before",
    "lstm": "LSTM",
    "lstm_peephole": "LSTM, peepholes",
    "lstm_coupled": "LSTM, coupled gates",
}

_BACK = (1, 10, 25, 50)
"""Steps before the last one that stand in the table, beside the first step of all."""

# What the other lines of a curve's colour are.
_BOUND = "dotted: bound by σ_max(R)"
_FORGET = "dashed: forget gates alone"
_EXACT = "dashed: norm of the Jacobian"

_EXACT_UNITS = 256
"""Most units of a state whose Jacobians --exact makes: it takes as many copies of a sequence."""


class Curve(NamedTuple):
    """What reaches each step of one layer in one direction, from one loss, (T,) each.

    Attributes:
        name: Of the cell or layer.
        loss: last, sum or cell.
        hidden: Mean of ‖∂L/∂h_t‖ over sequences.
        cell: Of ‖∂L/∂c_t‖; None without c.
        both: Of the pair's.
        bound: (σ_max(R) max φ')^{T-t}; None where there is none.
        forget: Mean of ‖u ⊙ f_T ⊙ ··· ⊙ f_{t+1}‖; None but for loss cell.
        exact: 2-norm of the Jacobian; None where it was not asked for.
    """

    name: str
    loss: str
    hidden: Tensor
    cell: Tensor | None
    both: Tensor
    bound: Tensor | None = None
    forget: Tensor | None = None
    exact: Tensor | None = None

    @classmethod
    def of(cls, name: str, loss: str, flow: Flow, **others: Tensor | None) -> Curve:
        """The means over the sequences of a flow."""
        cell = None if flow.cell is None else flow.mean(flow.cell)
        return cls(name, loss, flow.mean(flow.hidden), cell, flow.mean(flow.both), **others)


class InputsOfLayers(Callback):
    """Keeps what each recurrent layer of a model reads in the first batch of a validation."""

    def __init__(self) -> None:
        self.inputs: dict[str, tuple[Tensor, Tensor | None]] = {}

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Watch from now on."""
        self._watching = watch_states(pl_module)
        self._watched = self._watching.__enter__()

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Keep the inputs of each layer's first call; a layer of a decoder has one a step."""
        for name, entries in self._watched.items():
            if entries:
                self.inputs.setdefault(name, (entries[0].input, entries[0].lengths))
        self._watched.clear()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Watch no more."""
        self._watching.__exit__(None, None, None)


def measure(
    name: str, layer: Recurrent, input: Tensor, lengths: Tensor | None, seed: int, exact: bool
) -> Iterator[Curve]:
    """The curves of one module, from a loss at the last step, at all steps, and of c_T alone.

    Args:
        name: Of the module.
        layer: In evaluation mode.
        input: (T, B, D), or (B, T, D) with batch_first.
        lengths: Of the sequences, or None.
        seed: Of the vectors u.
        exact: Whether to make the Jacobians of the first sequence too.

    Raises:
        ValueError: `exact` of a layer that is too large, or runs in both directions.
    """
    norms = jacobian_norms(layer, _first(layer, input, lengths)) if exact else None
    for loss in ("last", "sum", "cell") if layer._states == 2 else ("last", "sum"):
        generator = torch.Generator().manual_seed(seed)
        vectors: list[Tensor] | None = None
        if loss == "cell":
            if layer.bidirectional:
                continue
            vectors = unit_vectors([layer.hidden_size], _sequences(layer, input), input, generator)
        found = gradient_flow(layer, input, loss, generator, vectors, lengths)
        for flow in found:
            top = flow.layer == layer.num_layers - 1
            others: dict[str, Tensor | None] = {}
            if top and loss == "last":
                others["exact"] = norms
                if isinstance(layer, RNN) and not layer.bidirectional:
                    others["bound"] = elman_bound(layer, len(flow.hidden))
            if top and vectors is not None:
                others["forget"] = flow.mean(_forget_products(layer, input, lengths, vectors[0]))
            yield Curve.of(_name(name, layer, flow), loss, flow, **others)


def _sequences(layer: Recurrent, input: Tensor) -> int:
    return input.shape[0 if layer.batch_first else 1]


def _first(layer: Recurrent, input: Tensor, lengths: Tensor | None) -> Tensor:
    """The first sequence, as long as it is, where its Jacobians are not too large."""
    units = layer.hidden_size * layer._states
    if units > _EXACT_UNITS:
        raise ValueError(
            f"--exact takes {units} copies of a sequence for a state of {units} units, and at most "
            f"{_EXACT_UNITS} are made: choose a smaller --hidden, or leave --exact out"
        )
    if layer.batch_first:
        return input[:1] if lengths is None else input[:1, : int(lengths[0])]
    return input[:, :1] if lengths is None else input[: int(lengths[0]), :1]


def _forget_products(
    layer: Recurrent, input: Tensor, lengths: Tensor | None, vectors: Tensor
) -> Tensor:
    with torch.enable_grad(), watch_states(layer) as watched:
        layer(input, lengths=lengths)
    return forget_products(watched[""][-1], vectors)


def _name(name: str, layer: Recurrent, flow: Flow) -> str:
    if layer.num_layers > 1:
        name += f", layer {flow.layer + 1}"
    if layer.bidirectional:
        name += ", backward" if flow.direction else ", forward"
    return name


def fresh_layers(
    cells: Iterable[str],
    hidden: int,
    features: int,
    init: RecurrentInit,
    forget_biases: Sequence[float],
) -> Iterator[tuple[str, Recurrent]]:
    """Layers as training begins with them, in float64, by name; an LSTM for each forget bias."""
    for cell in cells:
        make, options = CELLS[cell]
        for bias in forget_biases if make is LSTM else [None]:
            layer = make(features, hidden, **options)
            name = _NAMES[cell]
            if init != "uniform" and make is RNN:
                initialise(layer, recurrent=init)
                name += f", {init}"
            if bias is not None:
                initialise(layer, forget_bias=bias)
                name += f", forget bias {bias:g}"
            yield name, layer.double()


def layers_of_checkpoint(
    checkpoint: Path, config: Path, options: Sequence[str]
) -> Iterator[tuple[str, Recurrent, Tensor, Tensor | None]]:
    """The layers of a trained model, in float64, and what each reads in a batch.

    Args:
        checkpoint: Of a run.
        config: Its configuration.
        options: More of `rnnkit validate`.

    Yields:
        Name, layer, input and lengths.
    """
    inputs = f"{InputsOfLayers.__module__}.{InputsOfLayers.__qualname__}"
    arguments = [
        *("validate", "-c", str(config), "--ckpt_path", str(checkpoint)),
        *("--trainer.limit_val_batches", "1", "--trainer.enable_progress_bar", "false"),
        *("--trainer.logger", "false", "--trainer.callbacks+", inputs),
        *options,
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # Lightning's table of one batch
        done = run(arguments)
    found = next(each for each in done.trainer.callbacks if isinstance(each, InputsOfLayers))  # type: ignore[attr-defined]
    modules = dict(done.model.named_modules())
    stepwise = [name for name, (input, _) in found.inputs.items() if len(input) == 1]
    stepwise += [
        name
        for name, each in modules.items()
        if isinstance(each, (nn.RNNCellBase, nn.RNNBase)) and name not in found.inputs
    ]
    if stepwise:
        names = ", ".join(stepwise)
        print(visible(f"left out: {names}, with one step a call, or none of rnnkit's layers"))
    for name, (input, lengths) in found.inputs.items():
        layer: Any = modules[name]
        if name not in stepwise:
            given = input.transpose(0, 1) if layer.batch_first else input
            yield name, layer.double().eval(), given.double(), lengths


def panels(curves: Sequence[Curve]) -> list[Panel]:
    """What is drawn of curves: one panel for each loss that there is."""
    drawn: dict[str, list[Line]] = {"last": [], "sum": [], "cell": []}
    names = list(dict.fromkeys(curve.name for curve in curves))
    for curve in curves:
        colour, lines = names.index(curve.name), drawn[curve.loss]
        values = curve.cell if curve.loss == "cell" and curve.cell is not None else curve.both
        lines.append(Line(curve.name, values.tolist(), colour))
        if curve.exact is not None:
            lines.append(Line(_EXACT, curve.exact.tolist(), colour, "--"))
        if curve.bound is not None:
            lines.append(Line(_BOUND, curve.bound.tolist(), colour, ":"))
        if curve.forget is not None:
            lines.append(Line(_FORGET, curve.forget.tolist(), colour, "--"))
    pair = r"\partial(h_t, c_t)"
    titles = {
        "last": ("loss at the last step", rf"$\|u^\top\,\partial(h_T, c_T)\,/\,{pair}\|$"),
        "sum": ("loss at every step", rf"$\|\partial L\,/\,{pair}\|$,  $L = \sum_t u^\top h_t$"),
        "cell": ("cell state alone", r"$\|u^\top\,\partial c_T\,/\,\partial c_t\|$"),
    }
    return [Panel(*titles[loss], lines) for loss, lines in drawn.items() if lines]


def write_csv(curves: Sequence[Curve], path: Path) -> None:
    """Every norm, a row a step; what a curve has not is empty."""
    columns = ("hidden", "cell", "both", "bound", "forget", "exact")
    with atomic_write(path) as beside, beside.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "loss", "step", *columns])
        for curve in curves:
            values = [getattr(curve, column) for column in columns]
            for t in range(len(curve.hidden)):
                row = ["" if value is None else f"{float(value[t]):.8g}" for value in values]
                writer.writerow([curve.name, curve.loss, t + 1, *row])


def table(curves: Sequence[Curve]) -> Table:
    """Norms at some steps before the last one, of a loss at the last step and of c_T."""
    steps = max(len(curve.hidden) for curve in curves)
    back = [*(k for k in _BACK if k < steps - 1), steps - 1]
    found = Table(box=None, header_style="bold", pad_edge=False)
    found.add_column("steps before the last")
    for k in back:
        found.add_column(str(k), justify="right")
    for curve in curves:
        if curve.loss == "sum":
            continue
        values = curve.cell if curve.loss == "cell" and curve.cell is not None else curve.both
        name = f"{curve.name}, c alone" if curve.loss == "cell" else curve.name
        found.add_row(visible(name), *(_text(values, k) for k in back))
    return found


def _text(norms: Tensor, back: int) -> str:
    known = back < len(norms) and not norms[-1 - back].isnan()
    return f"{float(norms[-1 - back]):.2g}" if known else ""


def main(argv: list[str]) -> int:
    """Run `rnnkit gradients` with the arguments that follow these two words.

    Args:
        argv: Arguments, for example `["--cells", "tanh", "lstm"]`.

    Returns:
        Exit status: 0.

    Raises:
        ValueError: An argument makes no sense, or the checkpoint has no recurrent layer.
    """
    own, options = argv, []
    if "--" in argv:
        cut = argv.index("--")
        own, options = argv[:cut], argv[cut + 1 :]
    parser = Parser(prog="rnnkit gradients", description=_DESCRIPTION)
    add = parser.add_argument
    add("--cells", nargs="+", choices=CELLS, metavar="NAME",
        help=f"of {', '.join(CELLS)} (default: {' '.join(_FRESH['cells'])})")  # fmt: skip
    add("--forget-bias", nargs="+", type=float, metavar="B",
        help="of the LSTMs, one of them for each (default: 0 1 3)")  # fmt: skip
    add("--init", choices=("uniform", "orthogonal", "identity"),
        help="of R in tanh and relu (default: uniform, as torch.nn has it)")  # fmt: skip
    add("--steps", type=int, metavar="T", help="default: 100")
    add("--hidden", type=int, metavar="H", help="units (default: 128)")
    add("--input", type=int, metavar="D", help="features of the input (default: 32)")
    add("--sequences", type=int, metavar="B", help="to average over (default: 16)")
    add("--seed", type=int, default=0, metavar="N", help="of weights, inputs and u (default: 0)")
    add("--ckpt", type=Path, metavar="FILE", help="the layers of this checkpoint instead; options "
        "of rnnkit validate may follow behind --")  # fmt: skip
    add("--config", type=Path, metavar="FILE",
        help="of the checkpoint's run (default: config.yaml in its folder)")  # fmt: skip
    add("--exact", action="store_true",
        help=f"the norm of each Jacobian too, of states of up to {_EXACT_UNITS} units")  # fmt: skip
    add("--out", type=Path, default=Path("gradients.png"), metavar="FILE",
        help="the picture, as its ending says: .png, .svg, .pdf; the CSV stands beside it "
        "(default: gradients.png)")  # fmt: skip
    arguments = parser.parse_args(own)
    _check(arguments, options)
    curves: list[Curve] = []
    for name, layer, input, lengths in _sources(arguments, options):
        with waiting(f"{name} …"):
            curves += measure(name, layer, input, lengths, arguments.seed, arguments.exact)
    write_csv(curves, arguments.out.with_suffix(".csv"))
    draw_gradients(
        panels(curves), arguments.out, "steps before the last one, t − T", _note(arguments)
    )
    Console(highlight=False).print(table(curves))
    print(visible(f"{arguments.out}, {arguments.out.with_suffix('.csv')}"))
    return 0


def _check(arguments: Any, options: Sequence[str]) -> None:
    """Refuse what would be passed over, and put defaults where nothing was given."""
    given = [
        f"--{name.replace('_', '-')}" for name in _FRESH if getattr(arguments, name) is not None
    ]
    if arguments.ckpt is not None and given:
        raise ValueError(
            f"{', '.join(given)} is for fresh cells, and --ckpt takes those of a checkpoint and a "
            "batch of its data: leave one of the two out"
        )
    if arguments.ckpt is None and (options or arguments.config):
        raise ValueError("--config and options behind -- are of a checkpoint: name it with --ckpt")
    for name, default in _FRESH.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
    for name, least in (("steps", 2), ("hidden", 1), ("input", 1), ("sequences", 1)):
        if getattr(arguments, name) < least:
            raise ValueError(
                f"expected --{name} of {least} or more, got {getattr(arguments, name)}"
            )


def _sources(
    arguments: Any, options: Sequence[str]
) -> Iterator[tuple[str, Recurrent, Tensor, Tensor | None]]:
    if arguments.ckpt is None:
        torch.manual_seed(arguments.seed)
        input = torch.randn(arguments.steps, arguments.sequences, arguments.input)
        sizes = (arguments.hidden, arguments.input, arguments.init, arguments.forget_bias)
        for name, layer in fresh_layers(arguments.cells, *sizes):
            yield name, layer, input.double(), None
        return
    config = arguments.config or arguments.ckpt.absolute().parent.parent / "config.yaml"
    if not config.is_file():
        raise ValueError(
            f"there is no {config}, by which the checkpoint's run could be known: name its "
            "configuration with --config"
        )
    with waiting(f"reading {arguments.ckpt} and a batch of its data …"):
        layers = list(layers_of_checkpoint(arguments.ckpt, config, options))
    if not layers:
        raise ValueError(f"{arguments.ckpt} has no recurrent layer of rnnkit")
    yield from layers


def _note(arguments: Any) -> str:
    if arguments.ckpt is not None:
        return f"{arguments.ckpt}, one batch of its validation data; u: a random unit vector"
    return (
        f"H = {arguments.hidden}, D = {arguments.input}, inputs from N(0, 1), mean over "
        f"{arguments.sequences} sequences, u: a random unit vector for each; seed {arguments.seed}"
    )
