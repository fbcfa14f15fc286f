"""Weights that torch.nn.utils.parametrizations makes anew at every call; norms of torch.nn."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import rnnkit
from rnnkit.nn.initialisation import initialise
from rnnkit.nn.penalties import identity_penalty, spectral_norm_penalty
from tests.nn.layers import twins


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN tanh"])
@pytest.mark.parametrize(
    "norm",
    [
        parametrizations.weight_norm,
        # Until it no longer matters how often a layer asks for its weight, which iterates anew.
        partial(parametrizations.spectral_norm, n_power_iterations=500),
        parametrizations.orthogonal,
    ],
    ids=["weight_norm", "spectral_norm", "orthogonal"],
)
def test_a_parametrised_layer_is_torch_s(norm: Callable[..., Any], kind: str, backend: str) -> None:
    ours, theirs = twins(kind, 3, 4, num_layers=2, dtype=torch.float64)
    ours.backend = backend
    for layer in (ours, theirs):
        for name in ("weight_hh_l0", "weight_hh_l1"):
            torch.manual_seed(2)  # spectral_norm draws a first vector
            norm(layer, name)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    mine, other = ours(x)[0], theirs(x)[0]
    torch.testing.assert_close(mine, other)
    mine.square().sum().backward()
    other.square().sum().backward()
    expected = dict(theirs.named_parameters())
    found = dict(ours.named_parameters())
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        torch.testing.assert_close(parameter.grad, expected[name].grad)


def test_penalties_see_the_weight_that_is_made() -> None:
    layer = rnnkit.RNN(3, 4)
    parametrizations.spectral_norm(layer, "weight_hh_l0", n_power_iterations=200)
    penalty = spectral_norm_penalty(layer.eval())
    torch.testing.assert_close(penalty, torch.zeros(()), atol=1e-6, rtol=0)
    identity_penalty(layer).backward()
    assert layer.parametrizations.weight_hh_l0.original.grad.any()
    with pytest.raises(ValueError, match="initialise it first"):
        initialise(layer, "orthogonal")


def test_group_and_instance_norm_are_a_line_of_torch_nn() -> None:
    """The lines that docs/gradients.md shows, by their definitions."""
    y = torch.randn(7, 3, 8)  # (T, B, H)
    grouped = nn.GroupNorm(2, 8)(y.flatten(0, 1)).view_as(y)
    groups = y.unflatten(2, (2, 4))
    mean, spread = groups.mean(3, keepdim=True), groups.var(3, correction=0, keepdim=True)
    torch.testing.assert_close(grouped, ((groups - mean) / (spread + 1e-5).sqrt()).flatten(2))
    of_time = nn.InstanceNorm1d(8)(y.permute(1, 2, 0)).permute(2, 0, 1)
    mean, spread = y.mean(0), y.var(0, correction=0)
    torch.testing.assert_close(of_time, (y - mean) / (spread + 1e-5).sqrt())
