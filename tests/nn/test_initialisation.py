from typing import Any

import pytest
import torch
from torch import nn

import rnnkit
from rnnkit.nn.initialisation import initialise

DEEP: dict[str, Any] = {"num_layers": 2, "bidirectional": True}


def weights(layer: nn.Module, kind: str) -> list[torch.Tensor]:
    return [each.detach() for name, each in layer.named_parameters() if name.startswith(kind)]


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_orthogonal_is_so_gate_by_gate(name: str) -> None:
    layer = getattr(rnnkit, name)(3, 5, **DEEP)
    before = weights(layer, "weight_ih") + weights(layer, "bias")
    before = [each.clone() for each in before]
    initialise(layer, "orthogonal", gain=1.3)
    for weight in weights(layer, "weight_hh"):
        for block in weight.split(5):
            torch.testing.assert_close(block.T @ block, 1.69 * torch.eye(5))
    assert len(weights(layer, "weight_hh")) == 4
    after = weights(layer, "weight_ih") + weights(layer, "bias")
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_identity_is_le_et_als_irnn() -> None:
    layer = rnnkit.RNN(3, 5, nonlinearity="relu", **DEEP)
    initialise(layer, "identity")
    assert all(torch.equal(each, torch.eye(5)) for each in weights(layer, "weight_hh"))
    assert not any(each.any() for each in weights(layer, "bias"))


@pytest.mark.parametrize(
    ("options", "gate"), [({}, 1), ({"peephole": True}, 1), ({"coupled": True}, 0)]
)
def test_the_forget_bias_is_the_sum_of_both(options: Any, gate: int) -> None:
    layer = rnnkit.LSTM(3, 5, **DEEP, **options)
    others = [each.clone() for each in weights(layer, "bias")]
    initialise(layer, forget_bias=2.5)
    for index, (a, b) in enumerate(
        zip(weights(layer, "bias_ih"), weights(layer, "bias_hh"), strict=True)
    ):
        total = (a + b).view(-1, 5)
        assert torch.equal(total[gate], torch.full((5,), 2.5))
        rest = [i for i in range(len(total)) if i != gate]
        kept = (others[2 * index] + others[2 * index + 1]).view(-1, 5)
        torch.testing.assert_close(total[rest], kept[rest])


def test_layers_inside_a_model_are_found() -> None:
    model = nn.ModuleDict({"a": rnnkit.GRU(3, 4), "b": nn.Linear(4, 4)})
    initialise(model, "orthogonal")
    block = model["a"].weight_hh_l0.detach()[:4]
    torch.testing.assert_close(block.T @ block, torch.eye(4))


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        (nn.Linear(2, 2), {"recurrent": "orthogonal"}, "Linear has no recurrent layer"),
        (rnnkit.GRU(2, 3), {"recurrent": "identity"}, "GRU has 3 blocks"),
        (rnnkit.GRU(2, 3), {"forget_bias": 1.0}, "GRU has no forget gate"),
        (rnnkit.LSTM(2, 3, bias=False), {"forget_bias": 1.0}, "LSTM has no biases"),
        (rnnkit.RNN(2, 3), {"gain": 2.0}, "gain of 2 needs"),
        (rnnkit.RNN(2, 3), {"recurrent": "eye"}, "got 'eye'"),
    ],
)
def test_what_means_nothing_is_refused(layer: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        initialise(layer, **options)
