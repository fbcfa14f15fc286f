"""`rnnkit gradients`: how far back gradients reach, in fresh cells or in those of a checkpoint."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from rnnkit.nn import GRU, LSTM, RNN
from rnnkit.nn.base import Recurrent
from rnnkit.nn.initialisation import RecurrentInit, initialise
from rnnkit.screen.atomic_file import atomic_write
from rnnkit.screen.gradient_picture import Line, Panel, draw_gradients
from rnnkit.screen.terminal import Parser, visible, waiting
from rnnkit.training.gradient_curves import EXACT_UNITS, Curve, layers_of_checkpoint, measure

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
        help=f"the norm of each Jacobian too, of states of up to {EXACT_UNITS} units")  # fmt: skip
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
