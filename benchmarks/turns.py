"""Two sides that take turns: whether they agree, and what their rates come to."""

from __future__ import annotations

import copy
import statistics
from typing import Any, TypeVar

import lightning
import torch
from torch import Tensor, nn

import rnnkit

from . import machine

Model = TypeVar("Model", bound=nn.Module)

# Largest relative difference of the mean losses: the same arithmetic should give none, and with
# dropout the two sides draw different masks.
AGREEMENT, WITH_DROPOUT = 0.005, 0.03


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def agreeing(ours: list[Tensor], theirs: list[Tensor], share: float) -> dict[str, float]:
    """The mean losses of the two sides, or a ValueError where they differ by more."""
    means = [float(torch.stack(losses).mean()) for losses in (ours, theirs)]
    if abs(means[0] - means[1]) > share * means[1]:
        raise ValueError(f"the two sides disagree: mean loss {means[0]:.4f}, plain {means[1]:.4f}")
    return {"rnnkit": means[0], "plain": means[1]}


def figures_of(rates: list[tuple[float, float]], device: torch.device) -> dict[str, Any]:
    """Pairs of rates, their medians, and what they were measured on."""
    pairs = [{"rnnkit": ours, "plain": plain, "ratio": ours / plain} for ours, plain in rates]
    return {
        "pairs": pairs,
        "median": {key: statistics.median(pair[key] for pair in pairs) for key in pairs[0]},
        "machine": {**machine.describe(device), "lightning": lightning.__version__},
        "commit": machine.commit(),
    }


def twin(model: Model, backend: str) -> Model:
    """A copy of a model whose recurrent layers have another backend."""
    made = copy.deepcopy(model)
    for layer in made.modules():
        if isinstance(layer, (rnnkit.LSTM, rnnkit.GRU, rnnkit.RNN)):
            layer.backend = backend  # type: ignore[assignment]
    return made
