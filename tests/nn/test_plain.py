"""Layers whose options, names or second list of weights no longer say what torch runs."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import rnnkit
from tests.nn.layers import CLASSES, assert_equal

Change = Callable[[Any], object]


def double_the_flat_weights(layer: Any) -> None:
    layer._flat_weights = [weight * 2 for weight in layer._flat_weights]


def write_into_the_flat_weights(layer: Any) -> None:
    layer._flat_weights[1] = layer._flat_weights[1] * 2


def shorten_the_flat_weights(layer: Any) -> None:
    del layer._flat_weights[-1]


def set_to(name: str, value: Any) -> Change:
    return lambda layer: setattr(layer, name, value)


FLAT = "its _flat_weights, which torch runs, aren't its weights"
CHANGES: dict[str, tuple[str, dict[str, Any], Change, str]] = {
    "flat weights": ("LSTM", {}, double_the_flat_weights, FLAT),
    "one flat weight": ("GRU", {}, write_into_the_flat_weights, FLAT),
    "too few flat weights": ("GRU", {}, shorten_the_flat_weights, FLAT),
    "a mode": ("RNN", {}, set_to("mode", "RNN_RELU"), "its mode contradicts"),
    "a nonlinearity": ("RNN", {}, set_to("nonlinearity", "relu"), "its mode contradicts"),
    "other names": (
        "LSTM",
        {"num_layers": 2},
        lambda layer: layer._flat_weights_names.reverse(),
        "its _flat_weights_names contradicts",
    ),
    "names by layer": ("GRU", {}, set_to("_all_weights", []), "its _all_weights contradicts"),
    "fewer layers": (
        "GRU",
        {"num_layers": 2},
        set_to("num_layers", 1),
        "its _flat_weights_names contradicts",
    ),
    "more layers": ("LSTM", {}, set_to("num_layers", 2), "its _flat_weights_names contradicts"),
    "one direction": (
        "GRU",
        {"bidirectional": True},
        set_to("bidirectional", False),
        "its _flat_weights_names contradicts",
    ),
    "both directions": (
        "LSTM",
        {},
        set_to("bidirectional", True),
        "its _flat_weights_names contradicts",
    ),
    "no bias": ("GRU", {}, set_to("bias", False), "its _flat_weights_names contradicts"),
    "no projection": (
        "LSTM",
        {"proj_size": 2},
        set_to("proj_size", 0),
        "its _flat_weights_names contradicts",
    ),
    "a hidden size": ("GRU", {}, set_to("hidden_size", 2), r"its weight_ih_l0 has shape \(12, 3"),
    "an input size": ("GRUCell", {}, set_to("input_size", 2), r"its weight_ih has shape \(12, 3"),
    "no size": ("LSTMCell", {}, set_to("hidden_size", "4"), "there is no layer of its options"),
}


def outcome(model: nn.Module, input: Any) -> Any:
    """The result, or the error that torch raises."""
    try:
        return model(input)
    except (RuntimeError, TypeError, ValueError) as error:
        return str(error)


@pytest.mark.parametrize("what", CHANGES)
def test_a_layer_that_contradicts_its_options_is_left_alone(what: str) -> None:
    name, options, change, reason = CHANGES[what]
    model = nn.Sequential(getattr(nn, name)(3, 4, **options))
    layer = model[0]
    change(layer)
    input = torch.randn(2, 3) if "Cell" in name else torch.randn(5, 2, 3)
    expected = outcome(model, input)
    found = rnnkit.replace_rnns(model)
    assert found == 0
    assert re.search(reason, found.left["0"])
    assert model[0] is layer
    again = outcome(model, input)
    if isinstance(expected, str):
        assert again == expected
    else:
        assert_equal(again, expected)


@pytest.mark.parametrize("name", ["num_layers", "hidden_size", "bidirectional", "bias"])
def test_a_layer_of_rnnkits_that_contradicts_its_options_cannot_go_to_torch(name: str) -> None:
    layer: Any = rnnkit.LSTM(3, 4, 2, bidirectional=True)
    setattr(layer, name, {"num_layers": 1, "hidden_size": 2}.get(name, False))
    with pytest.raises(ValueError, match="contradicts its options"):
        rnnkit.to_torch(nn.Sequential(layer))


def register(layer: Any) -> None:
    layer.register_parameter("weight_hh_l0", nn.Parameter(layer.weight_hh_l0.detach() * 2))


def collect(layer: Any) -> None:
    layer.weight_hh_l0 = nn.Parameter(layer.weight_hh_l0.detach() * 2)
    layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]


def load(layer: Any) -> None:
    layer.load_state_dict({k: v * 2 for k, v in layer.state_dict().items()}, assign=True)


def shrink(layer: Any) -> None:
    layer.input_size = 2
    layer.weight_ih_l0 = nn.Parameter(layer.weight_ih_l0.detach()[:, :2].clone())


CONSISTENT: list[Change] = [
    register,
    collect,
    load,
    shrink,
    set_to("batch_first", True),
    lambda layer: layer.to("meta").to_empty(device="cpu").reset_parameters(),
]


@pytest.mark.parametrize("change", CONSISTENT)
@pytest.mark.parametrize("name", CLASSES)
def test_a_layer_with_other_weights_or_options_that_fit_is_replaced(
    name: str, change: Change
) -> None:
    model = nn.Sequential(CLASSES[name][1](3, 4))
    change(model[0])
    input = torch.randn(5, 2, model[0].input_size)
    expected = model(input)
    assert rnnkit.replace_rnns(model, backend="torch") == 1
    assert_equal(model(input), expected)


def test_explaining_draws_no_random_numbers() -> None:
    model = nn.Sequential(nn.LSTM(3, 4), nn.GRUCell(3, 4))
    before = torch.get_rng_state()
    rnnkit.explain(model)
    assert torch.equal(torch.get_rng_state(), before)
