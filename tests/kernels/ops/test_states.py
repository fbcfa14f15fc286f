"""The gradients of every state, against those of the initial state of a sequence cut there."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.dispatch.choice import Extras
from rnnkit_kernels.functional import LayerStates, differentiate, recurrent, watched_states
from tests.conftest import needs_engine
from tests.kernels.layers import assert_as_exact

STEPS, BATCH, FEATURES, HIDDEN = 5, 3, 4, 6
ENGINES = ["eager", pytest.param("native", marks=needs_engine)]


class Case:
    """A layer in one direction, and a loss of its output and its last state."""

    def __init__(self, cell: str, projection: int = 0, **options: Any) -> None:
        kind, draw = CELLS[cell], torch.Generator().manual_seed(3)

        def tensor(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64)

        gates, out = kind.gates_at[-1] * HIDDEN, projection or HIDDEN
        self.cell, self.options = cell, {"has_projections": projection > 0, **options}
        self.weights = [tensor(gates, FEATURES), tensor(gates, out), tensor(gates), tensor(gates)]
        self.weights += [tensor(projection, HIDDEN)] if projection else []
        self.weights += [tensor(kind.weights, HIDDEN)] if kind.weights else []
        if options.get("extras", Extras()).layer_norm:
            self.weights += [tensor(gates) for _ in range(4)]
            self.weights += [tensor(HIDDEN) for _ in range(2 * kind.has_cell_state)]
        self.weights = [weight / 2 for weight in self.weights]
        self.input = tensor(STEPS, BATCH, FEATURES)
        sizes = (out, HIDDEN)[: 1 + kind.has_cell_state]
        self.state = tuple(tensor(1, BATCH, size) for size in sizes)
        self.of_output = tensor(STEPS, BATCH, out)
        self.of_last = tuple(tensor(1, BATCH, size) for size in sizes)

    def run(
        self, begin: int, end: int, state: tuple[Tensor, ...], backend: Any = "eager"
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        dtype = state[0].dtype
        weights = [weight.to(dtype).requires_grad_() for weight in self.weights]
        data = self.input[begin:end].to(dtype)
        if self.options.get("extras", Extras()).layer_norm:
            backend = "auto"
        return recurrent(self.cell, data, state, weights, backend=backend, **self.options)

    def loss(self, begin: int, output: Tensor, last: tuple[Tensor, ...]) -> Tensor:
        """What steps from `begin` on add to it."""
        own = (self.of_output[begin:] * output).sum()
        return own + sum((a * b).sum() for a, b in zip(self.of_last, last, strict=True))

    def cut(self) -> tuple[list[Tensor], list[list[Tensor]]]:
        """The states after every step, and their gradients, by two calls for each of them."""
        states, gradients = [], []
        for t in range(1, STEPS + 1):
            _, state = self.run(0, t, self.state)
            state = tuple(value.detach().requires_grad_() for value in state)
            rest = self.run(t, STEPS, state) if t < STEPS else (self.of_output[:0], state)
            loss = self.loss(t, *rest)
            loss = loss + (self.of_output[t - 1] * state[0][0]).sum()  # y of step t is h
            gradients.append([g[0] for g in torch.autograd.grad(loss, state)])
            states.append([value[0] for value in state])
        return [torch.stack(part) for part in zip(*states, strict=True)], [
            torch.stack(part) for part in zip(*gradients, strict=True)
        ]

    def watched(self, backend: str, dtype: torch.dtype = torch.float64) -> LayerStates:
        state = tuple(value.to(dtype) for value in self.state)
        with watched_states() as layers:
            output, last = self.run(0, STEPS, state, backend)
        self.loss(0, output, last).backward()
        (found,) = layers
        return found


CASES = {cell: Case(cell) for cell in CELLS} | {
    "projection": Case("lstm", projection=4),
    "zoneout": Case("lstm", extras=Extras(zoneout=(0.3, 0.2))),
    "zoneout without a hidden carry": Case("rnn_tanh", extras=Extras(zoneout=(0.3,))),
    "zoneout in two stages": Case("gru_reset_before", extras=Extras(zoneout=(0.3,))),
    "recomputed": Case("lstm", extras=Extras(recompute=True)),
}


def parts(found: LayerStates) -> list[Tensor]:
    """h, and c where there is one, and then their gradients."""
    values = [found.hidden, found.cell_state, found.hidden_gradient, found.cell_gradient]
    return [value[:, :, 0] for value in values if value is not None]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_a_sequence_that_is_cut(name: str, engine: str) -> None:
    case = CASES[name]
    states, gradients = case.cut()
    found = case.watched(engine)
    assert found.engine == engine
    for ours, expected in zip(parts(found), [*states, *gradients], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(found.output_gradient[:, :, 0], case.of_output)


def handed_back(found: LayerStates) -> list[Tensor]:
    """Of all steps: what is told, and what states get less what the output gives them."""
    told = [value[:, :, 0] for value in found.handed_back()]
    given = [found.hidden_gradient - found.output_gradient, found.cell_gradient]
    expected = [value[:-1, :, 0] for value in given if value is not None]
    return [a[1:] - b for a, b in zip(told, expected, strict=True)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_what_a_step_hands_back_is_what_the_state_before_gets(name: str, engine: str) -> None:
    case = CASES[name]
    found = case.watched(engine)
    for difference in handed_back(found):
        torch.testing.assert_close(difference, torch.zeros_like(difference), rtol=0, atol=1e-12)
    state = tuple(value.clone().requires_grad_() for value in case.state)
    gradients = torch.autograd.grad(case.loss(0, *case.run(0, STEPS, state)), state)
    for told, expected in zip(found.handed_back(), gradients, strict=True):
        torch.testing.assert_close(told[0, :, 0], expected[0], rtol=1e-10, atol=1e-12)


def on_the_graph(case: Case) -> LayerStates:
    with watched_states(graph=True) as layers:
        output, last = case.run(0, STEPS, case.state)
    differentiate(case.loss(0, output, last), layers)
    return layers[0]


@pytest.mark.parametrize("name", [*CASES, "layer_norm"])
def test_states_on_the_graph_have_the_same_gradients(name: str) -> None:
    case = CASES[name] if name in CASES else Case("lstm", extras=Extras(layer_norm=True))
    states, gradients = case.cut()
    found = on_the_graph(case)
    assert found.engine == "reference"
    for ours, expected in zip(parts(found), [*states, *gradients], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(found.output_gradient[:, :, 0], case.of_output)
    for difference in handed_back(found):
        torch.testing.assert_close(difference, torch.zeros_like(difference), rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", ["lstm_peephole", "gru", "gru_reset_before", "rnn_tanh"])
def test_what_is_handed_back_on_the_graph_may_be_differentiated(cell: str) -> None:
    case = Case(cell)

    def told(*weights: Tensor) -> tuple[Tensor, ...]:
        with watched_states(graph=True) as layers:
            output, last = recurrent(cell, case.input, case.state, weights)
        differentiate(case.loss(0, output, last).square(), layers)
        return layers[0].handed_back()

    weights = tuple(weight.clone().requires_grad_() for weight in case.weights)
    assert torch.autograd.gradcheck(told, weights, fast_mode=True)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_so_are_those_of_layer_normalisation_by_its_definition(cell: str) -> None:
    case = Case(cell, extras=Extras(layer_norm=True))
    states, gradients = case.cut()
    found = case.watched("auto")
    assert found.engine == "reference"
    for ours, expected in zip(parts(found), [*states, *gradients], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "rnn_relu"])
def test_those_of_the_triton_kernels_are_as_exact_as_a_plain_loop(cell: str) -> None:
    case = CASES[cell]
    exact, plain = (parts(case.watched("eager", dtype)) for dtype in (torch.float64, torch.float32))
    found = case.watched("launch", torch.float32)
    assert found.engine == "launch"
    assert_as_exact(parts(found), plain, exact, torch.float32)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_torchs_own_layers_leave_their_place_to_an_engine_that_keeps_states(backend: str) -> None:
    found = Case("lstm").watched(backend)
    assert found.engine in ("native", "eager")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", ["lengths", "packed"])
def test_sequences_of_several_lengths_keep_their_places(form: str, engine: Any) -> None:
    case, lengths = CASES["lstm"], torch.tensor([2, 5, 3])
    state = tuple(value.clone().requires_grad_() for value in case.state)
    weights = case.weights
    with watched_states() as layers:
        if form == "lengths":
            _, last = recurrent("lstm", case.input, state, weights, lengths=lengths, backend=engine)
        else:
            packed = pack_padded_sequence(case.input, lengths, enforce_sorted=False)
            order = packed.sorted_indices
            own = tuple(value[:, order] for value in state)
            _, last = recurrent(
                "lstm", packed.data, own, weights, batch_sizes=packed.batch_sizes,
                order=order, backend=engine,
            )  # fmt: skip
            last = tuple(value[:, packed.unsorted_indices] for value in last)
    sum((a * b).sum() for a, b in zip(case.of_last, last, strict=True)).backward()
    (found,) = layers
    for b, length in enumerate(lengths.tolist()):
        alone = Case("lstm")
        alone.input, alone.of_output = case.input[:length, b : b + 1], case.of_output[:length] * 0
        one = tuple(value[:, b : b + 1].detach() for value in case.state)
        with watched_states() as single:
            _, ends = recurrent("lstm", alone.input, one, [w.requires_grad_() for w in weights])
        loss = sum((a[:, b : b + 1] * e).sum() for a, e in zip(case.of_last, ends, strict=True))
        loss.backward()
        for ours, theirs in zip(parts(found), parts(single[0]), strict=True):
            torch.testing.assert_close(ours[:length, b], theirs[:, 0])
            assert not ours[length:, b].any()
    assert found.input.shape == case.input.shape
    assert found.lengths is not None
    assert found.lengths.tolist() == lengths.tolist()
    torch.testing.assert_close(found.initial[1][0], case.state[1][0])


@pytest.mark.parametrize("engine", ENGINES)
def test_both_directions_of_two_layers_are_two_entries(engine: Any) -> None:
    torch.manual_seed(0)
    sizes = [(4 * HIDDEN, FEATURES), (4 * HIDDEN, 2 * HIDDEN)]
    weights = []
    for size in sizes:
        for _ in range(2):
            weights += [torch.randn(*size) / 4, torch.randn(4 * HIDDEN, HIDDEN) / 4]
    state = (torch.zeros(4, BATCH, HIDDEN),) * 2
    data = torch.randn(STEPS, BATCH, FEATURES, requires_grad=True)
    options: Any = {"has_biases": False, "num_layers": 2, "bidirectional": True}
    with watched_states() as layers:
        output, _ = recurrent("lstm", data, state, weights, backend=engine, **options)
        output[-1].sum().backward()
    assert [each.layer for each in layers] == [0, 1]
    first, second = layers
    assert first.hidden.shape == second.hidden.shape == (STEPS, BATCH, 2, HIDDEN)
    torch.testing.assert_close(second.hidden.flatten(2), output.detach())
    # The loss sees the last step alone, where the backward direction has just begun.
    assert second.hidden_gradient[:-1, :, 0].abs().amin((1, 2)).all()
    assert not second.hidden_gradient[:-1, :, 1].any()
    assert first.hidden_gradient.abs().amin((1, 2, 3)).all()


def test_gradients_are_unknown_before_the_backward_pass_and_without_gradients() -> None:
    case = CASES["gru"]
    with watched_states() as layers:
        case.run(0, STEPS, case.state)
    assert not layers[0].differentiated
    with pytest.raises(RuntimeError, match="no backward pass"):
        _ = layers[0].hidden_gradient
    with watched_states() as layers, torch.no_grad():
        case.run(0, STEPS, case.state)
    with pytest.raises(RuntimeError, match="without gradients"):
        _ = layers[0].hidden


def test_nothing_is_noted_outside() -> None:
    case = CASES["gru"]
    with watched_states() as outer:
        with watched_states() as inner:
            case.run(0, STEPS, case.state)
        case.run(0, STEPS, case.state)
    case.run(0, STEPS, case.state)
    assert (len(outer), len(inner)) == (2, 1)


def test_two_who_watch_are_told_the_same() -> None:
    case = CASES["lstm"]
    with watched_states() as outer, watched_states() as inner:
        output, last = case.run(0, STEPS, case.state)
    case.loss(0, output, last).backward()
    assert torch.equal(outer[0].hidden_gradient, inner[0].hidden_gradient)


def test_sequences_that_begin_anew_are_refused() -> None:
    case = CASES["gru"]
    resets = torch.zeros(STEPS, BATCH, dtype=torch.bool)
    resets[2] = True
    with watched_states(), pytest.raises(ValueError, match="resets"):
        recurrent("gru", case.input, case.state, case.weights, resets=resets)
