"""What programs read of torch's layers although it is private there."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import rnnkit
from tests.nn.layers import STANDARD, assert_equal, random_state, twins

OPTIONS: list[dict[str, Any]] = [{}, {"num_layers": 2, "bidirectional": True, "bias": False}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", STANDARD)
def test_weights_and_mode_are_named_as_in_torch(kind: str, options: dict[str, Any]) -> None:
    ours, theirs = twins(kind, 3, 5, **options)
    assert ours.mode == theirs.mode
    assert ours._all_weights == theirs._all_weights
    assert ours._flat_weights_names == theirs._flat_weights_names
    for mine, name in zip(ours._flat_weights, ours._flat_weights_names, strict=True):
        assert mine is getattr(ours, name)
    assert_equal(tuple(ours._flat_weights), tuple(theirs._flat_weights))
    assert_equal(ours.all_weights, theirs.all_weights)


@pytest.mark.parametrize("kind", STANDARD)
def test_arguments_are_checked_and_states_permuted_as_in_torch(kind: str) -> None:
    ours, theirs = twins(kind, 3, 5, num_layers=2, bidirectional=True)
    input, hx = torch.randn(4, 2, 3), random_state(ours, 2)
    order = torch.tensor([1, 0])
    assert_equal(ours.permute_hidden(hx, order), theirs.permute_hidden(hx, order))
    assert ours.permute_hidden(hx, None) is hx
    sizes = ["get_expected_hidden_size"] + ["get_expected_cell_size"] * ("LSTM" in kind)
    for name in sizes:
        for batch_sizes in (None, torch.tensor([3, 1])):
            found = [getattr(layer, name)(input, batch_sizes) for layer in (ours, theirs)]
            assert found[0] == found[1]
    wrong_state = random_state(ours, 3)
    for call in (
        lambda layer: layer.check_forward_args(input, hx, None),
        lambda layer: layer.check_forward_args(input, wrong_state, None),
        lambda layer: layer.check_forward_args(input[..., :2], hx, None),
        lambda layer: layer.check_input(input[0], None),
        lambda layer: layer.check_input(input.double(), None),
        lambda layer: layer.check_hidden_size(input, (4, 2, 5)),
    ):
        messages = []
        for layer in (ours, theirs):
            try:
                messages.append((None, call(layer)))
            except (RuntimeError, ValueError) as error:
                messages.append((type(error), str(error)))
        assert messages[0] == messages[1]


@pytest.mark.parametrize("kind", STANDARD)
def test_a_pruned_weight_is_seen_among_the_flat_weights(kind: str) -> None:
    layer, _ = twins(kind, 3, 5)
    number = len(layer._flat_weights)
    prune.l1_unstructured(layer, "weight_ih_l0", 0.5)
    parameters = [isinstance(weight, nn.Parameter) for weight in layer._flat_weights]
    assert sum(parameters) == number - 1
    prune.remove(layer, "weight_ih_l0")
    assert all(isinstance(weight, nn.Parameter) for weight in layer._flat_weights)


def test_writing_into_the_flat_weights_is_refused() -> None:
    layer: Any = rnnkit.LSTM(3, 5)
    with pytest.raises(TypeError):
        layer._flat_weights[1] = torch.zeros(20, 5)
    with pytest.raises(AttributeError):
        layer._flat_weights = []


@pytest.mark.parametrize("module", [rnnkit, rnnkit.compat])
def test_the_flat_weights_may_be_collected_anew(module: Any) -> None:
    layer = module.GRU(3, 5)
    layer.weight_hh_l0 = nn.Parameter(torch.zeros(15, 5))
    for collect in (layer._init_flat_weights, layer._update_flat_weights):
        assert collect() is None
        assert layer._flat_weights[1] is layer.weight_hh_l0
