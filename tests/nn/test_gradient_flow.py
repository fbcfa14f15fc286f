from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rnnkit
from rnnkit.nn.gradient_flow import (
    elman_bound,
    forget_products,
    gradient_flow,
    jacobian_norms,
    unit_vectors,
)
from rnnkit.nn.states import watch_states


def filled(layer: Any, **values: float) -> Any:
    """The layer in float64, some of its parameters filled with a number."""
    for name, value in values.items():
        nn.init.constant_(getattr(layer, f"{name}_l0"), value)
    return layer.double()


@pytest.mark.parametrize("loss", ["last", "sum"])
def test_a_relu_cell_that_is_always_on_is_linear(loss: Any) -> None:
    layer = filled(rnnkit.RNN(3, 6, nonlinearity="relu"))
    for parameter in layer.parameters():
        parameter.data.abs_()
    weight, steps = layer.weight_hh_l0.detach(), 40
    (u,) = unit_vectors([6], 2, weight)
    (flow,) = gradient_flow(layer, torch.rand(steps, 2, 3, dtype=torch.float64), loss, vectors=[u])
    expected, row = [u], u
    for _ in range(steps - 1):
        row = row @ weight if loss == "last" else row @ weight + u
        expected.append(row)
    norms = torch.linalg.vector_norm(torch.stack(expected[::-1]), dim=-1)
    torch.testing.assert_close(flow.hidden, norms, rtol=1e-10, atol=0)
    assert flow.cell is None
    torch.testing.assert_close(flow.mean(flow.hidden), norms.mean(1))


def test_an_lstm_with_an_open_forget_gate_keeps_the_gradient_of_its_cell_for_1000_steps() -> None:
    layer = filled(rnnkit.LSTM(3, 8), bias_hh=0)
    bias = torch.zeros(4, 8, dtype=torch.float64)
    bias[0], bias[1] = -30, 30
    layer.bias_ih_l0.data = bias.flatten()
    (flow,) = gradient_flow(layer, torch.randn(1000, 2, 3, dtype=torch.float64), "cell")
    assert flow.cell is not None
    torch.testing.assert_close(flow.cell, torch.ones_like(flow.cell), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_norms_are_those_of_jacobians_of_torchs_own_layers(name: str) -> None:
    layer = filled(getattr(rnnkit, name)(3, 5))
    twin = rnnkit.to_torch(filled(getattr(rnnkit, name)(3, 5)))
    twin.load_state_dict(layer.state_dict())
    states = 2 if name == "LSTM" else 1
    input = torch.randn(6, 1, 3, dtype=torch.float64)
    u = torch.cat(unit_vectors([5] * states, 1, input), 1)

    def rest(state: Tensor, t: int) -> Tensor:
        given = state.view(states, 1, 1, 5).unbind()
        _, last = twin(input[t:], given if states == 2 else given[0])
        return torch.cat([part.flatten() for part in (last if states == 2 else (last,))])

    (flow,) = gradient_flow(layer, input, vectors=list(u.split(5, 1)))
    exact = jacobian_norms(layer, input)
    for t in range(1, 6):
        _, state = twin(input[:t])
        given = torch.cat([part.flatten() for part in (state if states == 2 else (state,))])
        jacobian = torch.autograd.functional.jacobian(lambda s, t=t: rest(s, t), given.detach())
        torch.testing.assert_close(flow.both[t - 1, 0], torch.linalg.vector_norm(u[0] @ jacobian))
        torch.testing.assert_close(exact[t - 1], torch.linalg.matrix_norm(jacobian, 2))
    assert bool((flow.both[:, 0] <= exact * (1 + 1e-12)).all())


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_the_bound_of_an_elman_network_holds_with_the_singular_value(
    nonlinearity: str, residual: bool
) -> None:
    layer = filled(rnnkit.RNN(3, 6, nonlinearity=nonlinearity, residual=residual))
    input = torch.randn(9, 1, 3, dtype=torch.float64)
    bound = elman_bound(layer, 9)
    assert bool((jacobian_norms(layer, input) <= bound * (1 + 1e-12)).all())
    assert bound[-1] == 1
    with pytest.raises(ValueError, match="got GRU"):
        elman_bound(rnnkit.GRU(3, 6), 9)


@pytest.mark.parametrize("options", [{}, {"peephole": True}, {"coupled": True}])
def test_without_recurrent_weights_the_cell_hands_back_its_forget_gates_alone(options: Any) -> None:
    layer = filled(rnnkit.LSTM(3, 6, **options), weight_hh=0)
    if "peephole" in options:  # its gates would see c
        layer.weight_c_l0.data.zero_()
    input = torch.randn(9, 2, 3, dtype=torch.float64)
    (u,) = unit_vectors([6], 2, input)
    (flow,) = gradient_flow(layer, input, "cell", vectors=[u])
    with watch_states(layer) as watched:
        layer(input)
    torch.testing.assert_close(forget_products(watched[""][0], u), flow.cell)


def test_layers_and_directions_are_told_apart() -> None:
    layer = filled(rnnkit.GRU(3, 4, num_layers=2, bidirectional=True, batch_first=True))
    found = gradient_flow(layer, torch.randn(2, 30, 3, dtype=torch.float64))
    assert [(each.layer, each.direction) for each in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for each in found[2:]:  # of the topmost layer both fade on their own way back
        assert each.hidden[-1].min() > 100 * each.hidden[0].max()
    with pytest.raises(ValueError, match="1 sequences and 2 directions"):
        jacobian_norms(layer, torch.randn(1, 30, 3, dtype=torch.float64))


@pytest.mark.parametrize("direction", [0, 1])
def test_sequences_of_several_lengths_are_compared_by_their_ends(direction: int) -> None:
    layer = filled(rnnkit.LSTM(3, 4, bidirectional=True))
    input, lengths = torch.randn(6, 3, 3, dtype=torch.float64), torch.tensor([4, 6, 1])
    vectors = unit_vectors([8, 8], 3, input)
    flow = gradient_flow(layer, input, vectors=vectors, lengths=lengths)[direction]
    alone = []
    for b, length in enumerate(lengths.tolist()):
        own = [vector[b : b + 1] for vector in vectors]
        found = gradient_flow(layer, input[:length, b : b + 1], vectors=own)[direction].both[:, 0]
        torch.testing.assert_close(flow.both[:length, b], found)
        alone.append(nn.functional.pad(found, (6 - length, 0), value=torch.nan))
    torch.testing.assert_close(flow.mean(flow.both), torch.stack(alone).nanmean(0))
    assert flow.real.sum(0).tolist() == lengths.tolist()


def test_drawn_vectors_have_length_one_and_come_from_the_generator() -> None:
    like = torch.zeros((), dtype=torch.float64)
    first = unit_vectors([3, 5], 7, like, torch.Generator().manual_seed(1))
    again = unit_vectors([3, 5], 7, like, torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    norms = torch.linalg.vector_norm(torch.cat(first, 1), dim=1)
    torch.testing.assert_close(norms, torch.ones(7, dtype=torch.float64))


def test_a_loss_of_the_cell_state_needs_one() -> None:
    with pytest.raises(ValueError, match="GRU has none"):
        gradient_flow(rnnkit.GRU(3, 4), torch.randn(5, 2, 3), "cell")
