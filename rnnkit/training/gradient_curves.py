"""What reaches each step of a layer, fresh or of a checkpoint: the curves of `rnnkit gradients`."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from rnnkit.nn import RNN
from rnnkit.nn.base import Recurrent
from rnnkit.nn.gradient_flow import (
    Flow,
    elman_bound,
    forget_products,
    gradient_flow,
    jacobian_norms,
    unit_vectors,
)
from rnnkit.nn.states import watch_states
from rnnkit.screen.terminal import visible
from rnnkit.training.command import run

EXACT_UNITS = 256
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
    if units > EXACT_UNITS:
        raise ValueError(
            f"--exact takes {units} copies of a sequence for a state of {units} units, and at most "
            f"{EXACT_UNITS} are made: choose a smaller --hidden, or leave --exact out"
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
