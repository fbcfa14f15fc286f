"""Residual in time, h' = f(h, x) + h, with torch's cells as f."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rnnkit
from tests.conftest import needs_engine


def cells(name: str, options: dict[str, Any]) -> list[nn.Module]:
    kind: Any = {"GRU": nn.GRUCell, "RNN": nn.RNNCell}[name]
    return [kind(width, 4, **options).double() for width in (3, 4)]


def by_hand(steps: list[nn.Module], input: Tensor) -> Tensor:
    """Both layers' outputs, step by step."""
    for cell in steps:
        h, outputs = input.new_zeros(input.shape[1], 4), []
        for x in input:
            h = cell(x, h) + h
            outputs.append(h)
        input = torch.stack(outputs)
    return input


@pytest.mark.parametrize("backend", ["auto", "eager", pytest.param("native", marks=needs_engine)])
@pytest.mark.parametrize(
    ("name", "options"), [("GRU", {}), ("RNN", {}), ("RNN", {"nonlinearity": "relu"})]
)
def test_it_is_torchs_step_and_the_state_before(name: str, options: Any, backend: Any) -> None:
    layer = getattr(rnnkit, name)(3, 4, 2, residual=True, backend=backend, **options).double()
    steps = cells(name, options)
    for index, cell in enumerate(steps):
        cell.load_state_dict(
            {key: getattr(layer, f"{key}_l{index}").data for key in cell.state_dict()}
        )
    input = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    output, _ = layer(input)
    expected = by_hand(steps, input)
    torch.testing.assert_close(output, expected)
    weight = torch.randn_like(output)
    ours = torch.autograd.grad((output * weight).sum(), [input, *layer.parameters()])
    theirs = torch.autograd.grad(
        (expected * weight).sum(), [input, *(each for cell in steps for each in cell.parameters())]
    )
    named = zip([name for name, _ in layer.named_parameters()], ours[1:], strict=True)
    found = dict(named)
    torch.testing.assert_close(ours[0], theirs[0])
    position = 1
    for index, cell in enumerate(steps):
        for key, _ in cell.named_parameters():
            torch.testing.assert_close(found[f"{key}_l{index}"], theirs[position])
            position += 1


def test_with_zero_weights_the_gradient_passes_every_step_unchanged() -> None:
    layer = rnnkit.RNN(3, 4, residual=True)
    nn.init.zeros_(layer.weight_hh_l0)
    h0 = torch.randn(1, 2, 4, requires_grad=True)
    _, last = layer(torch.randn(200, 2, 3), h0)
    (gradient,) = torch.autograd.grad(last.sum(), h0)
    torch.testing.assert_close(gradient, torch.ones_like(gradient))


def test_what_torch_lacks_is_said() -> None:
    layer = rnnkit.GRU(3, 4, residual=True)
    assert "residual=True" in repr(layer)
    assert layer.state_dict().keys() == rnnkit.GRU(3, 4).state_dict().keys()
    with pytest.raises((ValueError, RuntimeError), match="residual"):
        rnnkit.to_torch(layer)
    with pytest.raises(ValueError, match=r"residual=True and reset_after=False"):
        rnnkit.GRU(3, 4, residual=True, reset_after=False)
    assert "residual" not in repr(rnnkit.RNN(3, 4))
