"""First and second derivatives of every layer against finite differences in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence

from tests.nn.layers import ALL, STANDARD, build, differentiable, leaf, random_state, tensors


def as_function(layer: Any, hx: Any, **options: Any) -> tuple[Any, list[Tensor]]:
    """The layer as a function of its input, its states and its parameters, and the latter two."""
    names = [name for name, _ in layer.named_parameters()]
    states = tensors(hx)

    def run(input: Any, *rest: Tensor) -> tuple[Tensor, ...]:
        given: Any = rest[: len(states)]
        parameters = dict(zip(names, rest[len(states) :], strict=True))
        given = given if isinstance(hx, tuple) else given[0]
        return tuple(tensors(functional_call(layer, parameters, (input, given), options)))

    return run, [*tensors(leaf(hx)), *[leaf(p) for p in layer.parameters()]]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("kind", ALL)
def test_the_gradient_of_every_input_state_and_parameter(kind: str, both: bool, bias: bool) -> None:
    torch.manual_seed(0)
    layer = build(kind, 2, 3, num_layers=2, bidirectional=both, bias=bias, dtype=torch.float64)
    run, leaves = as_function(layer, random_state(layer, 2))
    input = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(run, (input, *leaves), fast_mode=True)


@pytest.mark.parametrize("kind", [*STANDARD, "GRU reset before", "LSTM coupled"])
def test_the_gradient_entry_by_entry(kind: str) -> None:
    torch.manual_seed(0)
    layer = build(kind, 2, 3, bidirectional=True, dtype=torch.float64)
    run, leaves = as_function(layer, random_state(layer, 2))
    input = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(run, (input, *leaves))


@pytest.mark.parametrize("kind", ALL)
def test_the_gradient_with_lengths(kind: str) -> None:
    torch.manual_seed(0)
    layer = build(kind, 2, 3, num_layers=2, bidirectional=True, dtype=torch.float64)
    run, leaves = as_function(layer, random_state(layer, 3), lengths=torch.tensor([2, 0, 3]))
    input = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(run, (input, *leaves), fast_mode=True)


def test_the_gradient_of_a_packed_reset_before_gru() -> None:
    torch.manual_seed(0)
    layer = build("GRU reset before", 2, 3, bidirectional=True, dtype=torch.float64)
    run, leaves = as_function(layer, random_state(layer, 3))

    def packed(input: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        lengths = torch.tensor([2, 1, 3])
        results = run(pack_padded_sequence(input, lengths, enforce_sorted=False), *rest)
        return tuple(differentiable(results))

    input = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(packed, (input, *leaves), fast_mode=True)


@pytest.mark.parametrize("kind", ALL)
def test_the_second_derivative(kind: str) -> None:
    torch.manual_seed(0)
    layer = build(kind, 2, 3, dtype=torch.float64)
    run, leaves = as_function(layer, random_state(layer, 2))
    input = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(run, (input, *leaves), fast_mode=True)
