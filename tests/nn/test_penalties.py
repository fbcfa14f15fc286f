"""Penalties against loops over Jacobians, finite differences, and what their authors computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

import rnnkit
from rnnkit.nn.gradient_flow import gradient_flow, unit_vectors
from rnnkit.nn.initialisation import initialise
from rnnkit.nn.penalties import (
    contraction,
    identity_penalty,
    jacobian_penalty,
    omega,
    recurrent_blocks,
    spectral_norm_penalty,
    spectral_radius_penalty,
)
from rnnkit.nn.states import LayerStates, differentiate, watch_states

STEPS, BATCH, FEATURES, HIDDEN = 7, 3, 2, 4
LAYERS: dict[str, Callable[[], Any]] = {
    "tanh": lambda: rnnkit.RNN(FEATURES, HIDDEN),
    "gru": lambda: rnnkit.GRU(FEATURES, HIDDEN),
    "lstm": lambda: rnnkit.LSTM(FEATURES, HIDDEN),
    "peephole": lambda: rnnkit.LSTM(FEATURES, HIDDEN, peephole=True),
    "projection": lambda: rnnkit.LSTM(FEATURES, HIDDEN, proj_size=3),
}


def layer_of(name: str) -> Any:
    torch.manual_seed(5)
    return LAYERS[name]().double()


def drawn() -> Tensor:
    return torch.randn(STEPS, BATCH, FEATURES, generator=torch.Generator().manual_seed(1)).double()


def loss_of(output: Tensor) -> Tensor:
    """One of all steps, which is not linear: the gradients of states depend on the states."""
    return (output.square() * torch.arange(1, len(output) + 1).view(-1, 1, 1)).sum()


def watched(layer: Any, graph: bool = False, lengths: Tensor | None = None) -> LayerStates:
    with watch_states(layer, graph) as states:
        output, _ = layer(drawn(), lengths=lengths)
    if graph:
        differentiate(loss_of(output), states[""])
    else:
        torch.autograd.grad(loss_of(output), list(layer.parameters()), retain_graph=True)
    return states[""][0]


def ratios(layer: Any) -> Tensor:
    """‖v_t ∂s_t/∂s_{t-1}‖ / ‖v_t‖, (T, B), by running one step after the other, with its graph."""
    data = drawn()
    width = layer.proj_size or HIDDEN
    sizes = (width, HIDDEN)[: layer._states]
    nodes = [tuple(torch.zeros(1, BATCH, size).double().requires_grad_() for size in sizes)]
    outputs = []
    for x in data:
        state = nodes[-1] if len(sizes) == 2 else nodes[-1][0]
        _, after = layer(x[None], state)
        # A copy, so that the gradient of h is that of the output and of the next step together.
        nodes.append(tuple(p.clone() for p in (after if len(sizes) == 2 else (after,))))
        outputs.append(nodes[-1][0])
    loss = loss_of(torch.cat(outputs))
    flat = [part for state in nodes for part in state]
    gradients = torch.autograd.grad(loss, flat, create_graph=True, allow_unused=True)
    gradients = tuple(
        torch.zeros_like(n) if g is None else g for g, n in zip(gradients, flat, strict=True)
    )
    found = []
    for t in range(1, STEPS + 1):
        arrived = gradients[t * len(sizes) : (t + 1) * len(sizes)]

        def step(*state: Tensor, x: Tensor = data[t - 1]) -> tuple[Tensor, ...]:
            _, after = layer(x[None], state if len(sizes) == 2 else state[0])
            return after if len(sizes) == 2 else (after,)  # type: ignore[no-any-return]

        blocks = jacobian(step, nodes[t - 1], create_graph=True)
        of_sequence = []
        for b in range(BATCH):
            rows = [torch.cat([part[0, b, :, 0, b] for part in row], 1) for row in blocks]
            v = torch.cat([part[0, b] for part in arrived])
            of_sequence.append((v @ torch.cat(rows)).norm() / v.norm())
        found.append(torch.stack(of_sequence))
    return torch.stack(found)


@pytest.mark.parametrize("name", LAYERS)
def test_omega_is_that_of_a_loop_over_jacobians(name: str) -> None:
    layer = layer_of(name)
    expected = ratios(layer).detach()
    for graph in (False, True):
        states = watched(layer, graph)
        squared = (expected.square() - 1).square().mean()
        torch.testing.assert_close(omega(states).detach(), squared)
        norm = (expected - 1).square().sum(0).mean()
        torch.testing.assert_close(omega(states, "norm").detach(), norm)


@pytest.mark.parametrize("name", LAYERS)
def test_its_full_gradient_is_that_of_the_loop(name: str) -> None:
    layer = layer_of(name)
    weights = list(layer.parameters())
    expected = torch.autograd.grad((ratios(layer).square() - 1).square().mean(), weights)
    found = torch.autograd.grad(omega(watched(layer, graph=True)), weights)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("form", ["squared", "norm"])
def test_its_immediate_gradient_is_that_of_the_authors_program(form: Any) -> None:
    """v_t ⊙ (1 − h_t²), a constant, times R: the loop of trainingRNNs, RNN.py."""
    layer = layer_of("tanh")
    states = watched(layer)
    weight = layer.weight_hh_l0.detach().clone().requires_grad_()
    terms = []
    for v, h in zip(states.hidden_gradient[:, :, 0], states.hidden[:, :, 0], strict=True):
        past = (v * (1 - h.square())) @ weight
        terms.append(past.square().sum(1) / v.square().sum(1))
    ratio = torch.stack(terms)
    if form == "squared":
        expected = (ratio - 1).square().mean()
    else:
        expected = (ratio.sqrt() - 1).square().sum(0).mean()
    (found,) = torch.autograd.grad(omega(states, form), layer.weight_hh_l0)
    torch.testing.assert_close(found, torch.autograd.grad(expected, weight)[0])


def test_steps_past_a_length_and_vanished_gradients_are_left_out() -> None:
    layer, lengths = layer_of("gru"), torch.tensor([7, 2, 4])
    with watch_states(layer) as states:
        output, _ = layer(drawn(), lengths=lengths)
    loss_of(output).backward()
    together = omega(states[""][0]) * lengths.sum()
    alone = []
    for b, length in enumerate(lengths.tolist()):
        with watch_states(layer) as states:
            output, _ = layer(drawn()[:length, b : b + 1])
        loss_of(output).backward()
        alone.append(omega(states[""][0]) * length)
    torch.testing.assert_close(together, sum(alone))
    # A loss at the end of 100 steps, in float32: what reaches the first of them is below 1e-20.
    torch.manual_seed(0)
    tanh = rnnkit.RNN(2, 50)
    with watch_states(tanh) as states:
        output, _ = tanh(torch.randn(100, 4, 2))
    output[-1].sum().backward()
    assert states[""][0].hidden_gradient[0].square().sum(-1).max() < 1e-20
    for form in ("squared", "norm"):
        penalty = omega(states[""][0], form)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(penalty, tanh.weight_hh_l0)
        assert penalty.isfinite()
        assert gradient.isfinite().all()
        assert gradient.any()


@pytest.mark.parametrize("name", LAYERS)
def test_products_over_several_steps_are_those_of_the_jacobian(name: str) -> None:
    layer, k = layer_of(name), 3
    states = watched(layer)
    own = [states.hidden[:, :, 0]]
    own += [] if states.cell_state is None else [states.cell_state[:, :, 0]]
    sizes = [part.shape[2] for part in own]
    starts = range(0, STEPS - k + 1, k)
    pieces = [(a, b) for a in starts for b in range(BATCH)]
    unit = unit_vectors(sizes, len(pieces), drawn(), torch.Generator().manual_seed(2))
    u = torch.cat(unit, 1)
    expected = []
    for (a, b), vector in zip(pieces, u, strict=True):
        begin = [torch.zeros_like(part[0, b]) if a == 0 else part[a - 1, b] for part in own]

        def run(*state: Tensor, a: int = a, b: int = b) -> Tensor:
            inner = [part.view(1, 1, -1) for part in state]
            data = drawn()[a : a + k, b : b + 1]
            _, last = layer(data, tuple(inner) if len(inner) == 2 else inner[0])
            return torch.cat([part.flatten() for part in (last if len(inner) == 2 else (last,))])

        rows = jacobian(run, tuple(begin), create_graph=True)
        expected.append((vector @ torch.cat(rows, 1)).square().sum())
    squares = torch.stack(expected)
    draw = torch.Generator().manual_seed(2)
    found = contraction(layer, states, k, draw)
    torch.testing.assert_close(found, squares.mean())
    weights = list(layer.parameters())
    theirs = torch.autograd.grad((squares.sqrt() - 1).square().mean(), weights)
    ours = jacobian_penalty(layer, states, k, draw.manual_seed(2))
    torch.testing.assert_close(torch.autograd.grad(ours, weights), theirs)


def test_those_of_the_backward_direction_run_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives what a layer with its weights gives that reads the turned sequences."""

    def ones(sizes: Any, batch: int, like: Tensor, generator: Any) -> list[Tensor]:
        return [like.new_ones(batch, size) / sum(sizes) ** 0.5 for size in sizes]

    monkeypatch.setattr("rnnkit.nn.penalties.unit_vectors", ones)
    torch.manual_seed(0)
    both, lengths, data = rnnkit.LSTM(2, 4, bidirectional=True).double(), [6, 3, 6], drawn()
    state = tuple(torch.randn(2, BATCH, 4, dtype=torch.float64) for _ in range(2))
    turned = torch.zeros_like(data)
    for b, length in enumerate(lengths):
        turned[:length, b] = data[:length, b].flip(0)
    values = []
    for m, (read, suffix) in enumerate(((data, ""), (turned, "_reverse"))):
        one = rnnkit.LSTM(2, 4).double()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(one, f"{name}_l0").data = getattr(both, f"{name}_l0{suffix}").data
        with watch_states(one) as states:
            one(read, tuple(part[m : m + 1] for part in state), lengths=torch.tensor(lengths))
        values.append(contraction(one, states[""][0], 3))
    with watch_states(both) as states:
        both(data, state, lengths=torch.tensor(lengths))
    torch.testing.assert_close(contraction(both, states[""][0], 3), sum(values) / 2)
    assert values[0] != values[1]


def test_what_contracts_makes_gradients_vanish_and_its_counterpart_keeps_them() -> None:
    reached = {}
    for penalty in (contraction, jacobian_penalty):
        layer = rnnkit.RNN(2, 20).double()
        torch.manual_seed(3)
        layer.reset_parameters()
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
        data = torch.randn(50, 8, 2, dtype=torch.float64)
        before = gradient_flow(layer, data)[0].hidden[0].mean()
        for _ in range(60):
            with watch_states(layer) as states:
                layer(data)
            optimizer.zero_grad()
            penalty(layer, states[""][0], 5).backward()
            optimizer.step()
        reached[penalty.__name__] = gradient_flow(layer, data)[0].hidden[0].mean() / before
    assert reached["contraction"] < 1e-3
    assert reached["jacobian_penalty"] > 1e3


def test_identity_is_a_mean_over_the_elements_of_every_gate() -> None:
    layer = rnnkit.LSTM(3, 4, num_layers=2, bidirectional=True).double()
    expected = [
        (weight.view(4, 4, 4) - torch.eye(4).double()).square().sum()
        for name, weight in layer.named_parameters()
        if name.startswith("weight_hh")
    ]
    torch.testing.assert_close(identity_penalty(layer), sum(expected) / (4 * 4 * 16))
    assert recurrent_blocks(layer).shape == (16, 4, 4)
    initialise(irnn := rnnkit.RNN(3, 4), "identity")
    assert identity_penalty(irnn) == 0


def rotation(angle: float, scale: float) -> Tensor:
    """With a complex pair of eigenvalues of that size, and smaller real ones."""
    weight = torch.diag(torch.tensor([0.0, 0.0, 0.3, -0.2], dtype=torch.float64))
    turn = torch.tensor(angle, dtype=torch.float64)
    weight[0, 0] = weight[1, 1] = scale * turn.cos()
    weight[0, 1], weight[1, 0] = -scale * turn.sin(), scale * turn.sin()
    basis = torch.randn(4, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return basis @ weight @ basis.inverse()


def test_the_spectral_radius_of_a_complex_pair_has_the_gradient_of_finite_differences() -> None:
    layer = rnnkit.RNN(2, 4).double()
    layer.weight_hh_l0.data = rotation(0.7, 1.4)
    penalty = spectral_radius_penalty(layer)
    torch.testing.assert_close(penalty.item(), 0.4**2)
    (gradient,) = torch.autograd.grad(penalty, layer.weight_hh_l0)
    assert torch.linalg.eigvals(layer.weight_hh_l0).imag.abs().max() > 0.5
    step, expected = 1e-6, torch.zeros(4, 4, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            for sign in (1, -1):
                layer.weight_hh_l0.data[i, j] += sign * step
                expected[i, j] += sign * spectral_radius_penalty(layer).item() / (2 * step)
                layer.weight_hh_l0.data[i, j] -= sign * step
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)


def test_radius_and_norm_are_two_things() -> None:
    layer = rnnkit.RNN(2, 2).double()
    layer.weight_hh_l0.data = torch.tensor([[1.0, 3.0], [0.0, 0.5]], dtype=torch.float64)
    assert spectral_radius_penalty(layer) == 0
    largest = torch.linalg.svdvals(layer.weight_hh_l0).max()
    torch.testing.assert_close(spectral_norm_penalty(layer), (largest - 1).square())


def test_what_is_out_of_bounds_is_told_with_both_numbers() -> None:
    projected = layer_of("projection")
    with pytest.raises(ValueError, match="4 x 3"):
        identity_penalty(projected)
    with pytest.raises(ValueError, match="4 x 3"):
        spectral_radius_penalty(projected)
    assert spectral_norm_penalty(projected).isfinite()
    layer = layer_of("gru")
    states = watched(layer)
    with pytest.raises(ValueError, match="from 1 to the 7 that a sequence has, got 8"):
        jacobian_penalty(layer, states, 8)
    with pytest.raises(ValueError, match="squared or norm"):
        omega(states, "other")  # type: ignore[arg-type]
    normalised = rnnkit.LSTM(2, 4, layer_norm=True).double()
    with pytest.raises(RuntimeError, match="layer_norm"):
        omega(watched(normalised))
    # LN(R · 0) has a slope of 1 / √ε, which would drown all other steps.
    assert omega(watched(normalised, graph=True)) < 100
    assert jacobian_penalty(normalised, watched(normalised, graph=True), 3) < 100
    with pytest.raises(ValueError, match="from 1 to the 3 that a sequence has, got 4"):
        jacobian_penalty(normalised, watched(normalised, graph=True), 4)
    with watch_states(layer) as noted:
        layer(drawn())
    with pytest.raises(RuntimeError, match="no backward pass"):
        omega(noted[""][0])
