"""Layers whose weights are missing, replaced by plain tensors, or computed before every call."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from tests.nn.layers import ALL, STANDARD, assert_equal, build, gradients, twins


@pytest.mark.parametrize("kind", ALL)
def test_a_layer_may_be_moved_while_a_weight_is_missing(kind: str) -> None:
    layer = build(kind, 3, 5, backend="torch") if kind in STANDARD else build(kind, 3, 5)
    input = torch.randn(4, 2, 3)
    expected = layer(input)
    weight = layer.weight_hh_l0
    del layer.weight_hh_l0
    assert layer._flat_weights[1] is None
    layer.to("cpu").double().float().flatten_parameters()
    with pytest.raises(RuntimeError, match="has no weight_hh_l0: set it before the call"):
        layer(input)
    layer.weight_hh_l0 = weight
    assert_equal(layer(input), expected)


@pytest.mark.parametrize("kind", ALL)
def test_a_plain_tensor_does_as_a_weight(kind: str) -> None:
    layer = build(kind, 3, 5)
    input = torch.randn(4, 2, 3)
    weight = layer.weight_hh_l0.detach()
    expected = gradients(layer(input), [layer.weight_ih_l0])
    del layer.weight_hh_l0
    layer.weight_hh_l0 = weight
    layer.to("cpu").flatten_parameters()
    assert layer._flat_weights[1] is weight
    assert_equal(gradients(layer(input), [layer.weight_ih_l0]), expected)


class WeightDrop(nn.Module):
    """The dropped weights of AWD-LSTM's published program (Merity et al. 2018), in its own words.

    It changes the layer where it is: the weight becomes a tensor that is set before every call.
    """

    def __init__(self, module: Any, weights: list[str], probability: float, variational: bool):
        super().__init__()
        self.module, self.weights = module, weights
        self.probability, self.variational = probability, variational
        if issubclass(type(module), nn.RNNBase):
            module.flatten_parameters = self.do_nothing
        for name in weights:
            weight = getattr(module, name)
            del module._parameters[name]
            module.register_parameter(name + "_raw", nn.Parameter(weight.data))

    def do_nothing(self, *_: Any, **__: Any) -> None:
        return

    def forward(self, *arguments: Any) -> Any:
        for name in self.weights:
            raw = getattr(self.module, name + "_raw")
            if self.variational:
                mask = dropout(torch.ones(raw.size(0), 1).to(raw), self.probability, training=True)
                weight = mask.expand_as(raw) * raw
            else:
                weight = dropout(raw, self.probability, training=self.training)
            setattr(self.module, name, weight)
        return self.module.forward(*arguments)


@pytest.mark.parametrize("variational", [False, True])
@pytest.mark.parametrize("kind", STANDARD)
def test_the_weight_drop_of_awd_lstm_trains_as_on_torch(kind: str, variational: bool) -> None:
    names = ["weight_hh_l0", "weight_hh_l1"]
    input = torch.randn(4, 2, 3)

    def train(layer: Any) -> list[Tensor]:
        model = WeightDrop(layer, names, 0.5, variational).to("cpu")
        optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
        torch.manual_seed(1)
        for _ in range(3):
            optimiser.zero_grad()
            model.to("cpu")(input)[0].square().sum().backward()
            optimiser.step()
        model.eval()
        return [*model.parameters(), *model.state_dict().values(), model(input)[0]]

    ours, theirs = twins(kind, 3, 5, num_layers=2, backend="torch")
    before = ours.weight_hh_l0.detach().clone()
    found = train(ours)
    assert not torch.equal(ours.weight_hh_l0_raw, before)
    assert_equal(found, train(theirs))
