"""Truncated gradients against those of loops that are cut by hand, and in expectation."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rnnkit
from rnnkit.nn import Stack
from rnnkit.nn.truncation import Truncation, map_state

CUT, STEPS, LENGTH = 0.3, 2, 7  # probability, K and T: three places
PLACES = 3


LAYERS: dict[str, Any] = {
    "rnn": lambda: rnnkit.RNN(3, 4),
    "gru": lambda: rnnkit.GRU(3, 4, num_layers=2),
    "lstm": lambda: rnnkit.LSTM(3, 4, num_layers=2),
    "stack": lambda: Stack(rnnkit.LSTM, 3, [5, 4]),
    "plain stack": lambda: Stack(rnnkit.LSTM, 3, [4, 4]),
    "residual": lambda: Stack(rnnkit.GRU, 3, [4, 4], "residual", "layer"),
}


def make(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layer = LAYERS[kind]().double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.7)  # so that what is long ago still matters
    return layer, torch.randn(LENGTH, 2, 3, dtype=torch.float64)


def run(layer: nn.Module, input: Tensor, truncation: Truncation) -> tuple[Tensor, Any]:
    if isinstance(layer, Stack):
        return layer(input, truncation=truncation)
    return truncation.run(layer, input, None)


def flat(state: Any) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else [t for part in state for t in flat(part)]


def gradient(layer: nn.Module, output: Tensor) -> Tensor:
    """Of a loss that has a term at every step, with respect to all parameters."""
    loss = output.square().sum() + output.sin().sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(layer.parameters()))])


@pytest.mark.parametrize("kind", LAYERS)
def test_the_expectation_over_all_patterns_is_the_gradient_of_the_window(kind: str) -> None:
    layer, input = make(kind)
    full = gradient(layer, layer(input)[0])
    expectation, total = torch.zeros_like(full), 0.0
    for cuts in product([True, False], repeat=PLACES):
        probability = 1.0
        for cut in cuts:
            probability *= CUT if cut else 1 - CUT
        factors = [0.0 if cut else 1 / (1 - CUT) for cut in cuts]
        output, _ = run(layer, input, Truncation(STEPS, factors))
        expectation += probability * gradient(layer, output)
        total += probability
    assert total == pytest.approx(1)
    assert torch.allclose(expectation, full, rtol=1e-12, atol=1e-12 * float(full.abs().max()))


@pytest.mark.parametrize("kind", LAYERS)
def test_the_regular_truncation_is_biased_and_equals_windows_of_its_own(kind: str) -> None:
    layer, input = make(kind)
    output, _ = run(layer, input, Truncation.draw(LENGTH, STEPS, 1.0))
    truncated = gradient(layer, output)
    expected, state = torch.zeros_like(truncated), None
    for piece in input.split(STEPS):
        output, state = layer(piece, state)
        state = map_state(state, Tensor.detach)
        expected += gradient(layer, output)
    assert torch.allclose(truncated, expected, rtol=1e-12, atol=1e-12)
    full = gradient(layer, layer(input)[0])
    assert (truncated - full).norm() > 0.05 * full.norm()


@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_and_states_are_those_of_one_call(kind: str) -> None:
    layer, input = make(kind)
    expected, expected_state = layer(input)
    output, state = run(layer, input, Truncation(STEPS, [0.0, 2.0, 0.0]))
    assert torch.allclose(output, expected, rtol=1e-12)
    for part, expected_part in zip(flat(state), flat(expected_state), strict=True):
        assert torch.allclose(part, expected_part, rtol=1e-12)


@pytest.mark.parametrize("kind", ["lstm", "stack"])
def test_a_gradient_passes_no_cut_and_is_scaled_where_it_passes(kind: str) -> None:
    layer, input = make(kind)

    def reach(factors: list[float]) -> Tensor:
        """Derivative of the last step's output with respect to every step's input."""
        read = input.clone().requires_grad_()
        output, _ = run(layer, read, Truncation(STEPS, factors))
        return torch.autograd.grad(output[-1].sum(), read)[0]

    plain, scaled, cut = reach([1.0, 1.0, 1.0]), reach([5.0, 3.0, 2.0]), reach([1.0, 0.0, 1.0])
    for step, factor in enumerate([30, 30, 6, 6, 2, 2, 1]):
        assert torch.allclose(scaled[step], factor * plain[step], rtol=1e-12)
    assert not cut[:4].any()
    assert torch.equal(cut[4:], plain[4:])


def test_patterns_are_drawn_with_their_probabilities() -> None:
    torch.manual_seed(0)
    counts: dict[tuple[float, ...], int] = {}
    draws = 4000
    for _ in range(draws):
        factors = tuple(Truncation.draw(LENGTH, STEPS, CUT).factors)
        counts[factors] = counts.get(factors, 0) + 1
    for cuts in product([True, False], repeat=PLACES):
        probability = CUT ** sum(cuts) * (1 - CUT) ** (PLACES - sum(cuts))
        seen = counts.pop(tuple(0.0 if cut else 1 / (1 - CUT) for cut in cuts))
        # Four standard deviations of a binomial.
        band = 4 * (draws * probability * (1 - probability)) ** 0.5
        assert seen == pytest.approx(draws * probability, abs=band)
    assert not counts


@pytest.mark.parametrize(("length", "places"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2)])
def test_a_place_lies_between_two_pieces(length: int, places: int) -> None:
    assert len(Truncation.draw(length, 2, 1.0).factors) == places
    output, _ = Truncation.draw(length, 2, 0.5).run(
        rnnkit.RNN(3, 4), torch.zeros(length, 1, 3), None
    )
    assert len(output) == length


def test_a_missing_factor_is_told() -> None:
    with pytest.raises(ValueError, match=r"7 steps in pieces of 2 have 3 places .* got 2 factors"):
        Truncation(2, [0.0, 0.0]).run(rnnkit.RNN(3, 4), torch.zeros(7, 1, 3), None)
