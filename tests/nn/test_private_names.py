"""What programs read of torch's layers although it is private there."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import rnnkit
import rnnkit.compat
from tests.nn.layers import CLASSES, STANDARD, assert_close, assert_equal, random_state, twins

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


@pytest.mark.parametrize("module", [rnnkit, rnnkit.compat])
@pytest.mark.parametrize("name", CLASSES)
def test_private_names_may_be_set_to_what_they_are(name: str, module: Any) -> None:
    layer = getattr(module, name)(3, 5, 2)
    input = torch.randn(4, 2, 3)
    del layer.weight_hh_l1
    weight = layer.weight_hh_l1 = torch.randn_like(layer.weight_hh_l0)
    expected = layer(input)
    theirs = CLASSES[name][1](3, 5, 2)
    layer.mode = theirs.mode
    layer._all_weights = theirs._all_weights
    layer._flat_weights_names = theirs._flat_weights_names
    layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]
    index = layer._flat_weights_names.index("weight_hh_l1")
    layer._flat_weights[index] = weight
    layer._flat_weights[index - len(layer._flat_weights)] = weight
    layer.flatten_parameters()
    assert_equal(layer(input), expected)
    assert_equal(copy.deepcopy(layer)(input), expected)


@pytest.mark.parametrize("module", [rnnkit, rnnkit.compat])
def test_to_set_private_names_to_anything_else_is_refused(module: Any) -> None:
    layer = module.RNN(3, 5)
    input = torch.randn(4, 2, 3)
    expected = layer(input)
    by_name = r"set each by setattr\(layer, name, weight\)"
    with pytest.raises(TypeError, match=by_name):
        layer._flat_weights[1] = torch.zeros(5, 5)
    for value in ([], [weight * 2 for weight in layer._flat_weights], layer._flat_weights[::-1]):
        with pytest.raises(AttributeError, match=by_name):
            layer._flat_weights = value
    with pytest.raises(AttributeError, match="mode of RNN is 'RNN_TANH' and stays so: it follows"):
        layer.mode = "RNN_RELU"
    for name in ("_flat_weights_names", "_all_weights"):
        with pytest.raises(AttributeError, match=f"{name} of RNN is .* and stays so: build"):
            setattr(layer, name, [])
    assert_equal(layer(input), expected)


@pytest.mark.compiler
def test_a_forward_that_looks_at_the_weights_compiles_whole() -> None:
    layer = rnnkit.GRU(3, 5)

    def forward(input: Tensor) -> Tensor:
        layer.flatten_parameters()
        h = next(layer.parameters()).new_zeros(1, 2, 5)
        return layer(input, h)[0] + layer._flat_weights[1].sum()

    input = torch.randn(4, 2, 3)
    compiled = torch.compile(forward, backend="eager", fullgraph=True)
    assert_close(compiled(input), forward(input))


@pytest.mark.parametrize("module", [rnnkit, rnnkit.compat])
def test_the_flat_weights_may_be_collected_anew(module: Any) -> None:
    layer = module.GRU(3, 5)
    layer.weight_hh_l0 = nn.Parameter(torch.zeros(15, 5))
    for collect in (layer._init_flat_weights, layer._update_flat_weights):
        assert collect() is None
        assert layer._flat_weights[1] is layer.weight_hh_l0
