import pytest
import torch
from torch import nn

import rnnkit
from rnnkit.nn.states import watch_states


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reader = rnnkit.LSTM(3, 4, num_layers=2, batch_first=True)
        self.writer = rnnkit.GRU(4, 5, batch_first=True)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output, _ = self.writer(self.reader(input)[0])
        return output[:, -1].sum()  # type: ignore[no-any-return]


def test_states_are_found_by_the_names_of_the_layers() -> None:
    model = Model()
    with watch_states(model) as states:
        loss = model(torch.randn(2, 7, 3))
    loss.backward()
    assert {name: len(layers) for name, layers in states.items()} == {"reader": 2, "writer": 1}
    (writer,) = states["writer"]
    assert writer.hidden_gradient.shape == (7, 2, 1, 5)
    torch.testing.assert_close(writer.hidden_gradient[-1], torch.ones(2, 1, 5))
    for layer in states["reader"]:
        assert layer.cell_gradient is not None
        assert layer.cell_gradient.shape == (7, 2, 1, 4)
        assert layer.cell_gradient[:-1].abs().amin((1, 2, 3)).all()


def test_watching_changes_no_gradient_beyond_rounding() -> None:
    model, input = Model(), torch.randn(2, 7, 3)
    model(input).backward()
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    with watch_states(model):
        model(input).backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_gradients_can_be_differentiated_while_states_are_watched() -> None:
    layer = rnnkit.GRU(3, 4).double()
    input = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)

    def squared_gradient(input: torch.Tensor) -> torch.Tensor:
        (gradient,) = torch.autograd.grad(layer(input)[0].sum(), input, create_graph=True)
        return gradient.pow(2).sum()

    (expected,) = torch.autograd.grad(squared_gradient(input), input)
    with watch_states(layer):
        (found,) = torch.autograd.grad(squared_gradient(input), input)
    torch.testing.assert_close(found, expected)


def test_nothing_stays_on_the_layers() -> None:
    model = Model()
    with watch_states(model):
        pass
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_without_such_layers_is_refused() -> None:
    with (
        pytest.raises(ValueError, match=r"Sequential has no recurrent layer.*replace_rnns"),
        watch_states(nn.Sequential(nn.LSTM(3, 4))),
    ):
        pass


def test_inputs_are_seen_without_gradients_too() -> None:
    layer, input = rnnkit.LSTM(3, 4).eval(), torch.randn(5, 2, 3)
    with torch.no_grad(), watch_states(layer) as states:
        layer(input)
    assert torch.equal(states[""][0].input, input)
