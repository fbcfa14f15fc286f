"""Encoder, bridge and decoder: padding, equations, and steps against whole sentences."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rnnkit.nn.encoder_decoder import Bridge, Decoder, DecoderState, Encoded, Encoder
from rnnkit.nn.stack import Stack

V, E, H, C = 11, 5, 6, 8
S, T, B = 7, 4, 3
LENGTHS = torch.tensor([7, 2, 4])

# attention, inside, input feeding
FORMS = [
    ("additive", True, False), ("general", True, False), ("additive", False, False),
    ("general", False, False), ("general", False, True), ("additive", False, True),
    ("none", False, False),
]  # fmt: skip


def source() -> Tensor:
    torch.manual_seed(1)
    words = torch.randint(4, V, (S, B))
    return words.masked_fill(torch.arange(S)[:, None] >= LENGTHS, 0)


def encoded(layers: int = 1, states: int = 1) -> Encoded:
    torch.manual_seed(2)
    mask = torch.arange(S) < LENGTHS[:, None]
    last = tuple(torch.randn(layers, B, C) for _ in range(states))
    return Encoded(torch.randn(B, S, C), mask, last)


def decoder(attention: str, inside: bool, feeding: bool, **options: Any) -> Decoder:
    torch.manual_seed(3)
    form: dict[str, Any] = {"attention": attention, "inside": inside, "input_feeding": feeding}
    return Decoder(V, E, H, C, **form, **options)


def first_state(model: Decoder, cell: str = "gru", layers: int = 1) -> DecoderState:
    states = 1 + (cell == "lstm")
    torch.manual_seed(4)
    hidden = tuple(torch.randn(B, layers, H) for _ in range(states))
    return model.start(encoded(), hidden)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("between", [(), ("residual", "layer"), ("dense", "batch")])
def test_a_sentence_is_encoded_as_if_it_were_alone(
    cell: Any, bidirectional: bool, between: Any
) -> None:
    torch.manual_seed(0)
    encoder = Encoder(V, E, 4, 2, cell, bidirectional, 0.0, 0, *between).eval()
    assert isinstance(encoder.rnn, Stack) == bool(between)
    found = encoder(source(), LENGTHS)
    assert found.memory.shape == (B, S, encoder.output_size)
    assert found.mask.sum(1).tolist() == LENGTHS.tolist()
    assert len(found.last) == 1 + (cell == "lstm")
    for b, length in enumerate(LENGTHS.tolist()):
        alone = encoder(source()[:length, b : b + 1], LENGTHS[b : b + 1])
        torch.testing.assert_close(found.memory[b, :length], alone.memory[0])
        assert found.memory[b, length:].abs().sum() == 0
        for both, one in zip(found.last, alone.last, strict=True):
            torch.testing.assert_close(both[:, b], one[:, 0])


def test_last_states_lie_side_by_side_for_every_layer() -> None:
    torch.manual_seed(0)
    encoder = Encoder(V, E, 4, 2, "lstm")
    plain = nn.LSTM(E, 4, 2, bidirectional=True)
    plain.load_state_dict(encoder.rnn.state_dict())
    words = source()[:, :1]
    _, (h, c) = plain(encoder.embedding(words))
    for found, state in zip(encoder(words, LENGTHS[:1]).last, (h, c), strict=True):
        for layer in range(2):
            both = torch.cat([state[2 * layer, 0], state[2 * layer + 1, 0]])
            torch.testing.assert_close(found[layer, 0], both)


@pytest.mark.parametrize(("form", "cell", "layers"), [
    *((form, "gru", 1) for form in FORMS), *((form, "lstm", 2) for form in FORMS),
    (FORMS[0], "rnn", 2),
])  # fmt: skip
def test_steps_give_what_the_whole_target_gives(form: Any, cell: Any, layers: int) -> None:
    model = decoder(*form, cell=cell, num_layers=layers)
    state = first_state(model, cell, layers)
    tokens = torch.randint(4, V, (T, B))
    whole = model.forced(tokens, state)
    assert whole.shape == (T, B, E)
    for t in range(T):
        output, state = model.step(tokens[t], state)
        torch.testing.assert_close(output, whole[t])
        assert (state.attention is None) == (form[0] == "none")
        if state.attention is not None:
            torch.testing.assert_close(state.attention.sum(1), torch.ones(B))
            assert state.attention[~state.mask].abs().sum() == 0


def test_what_needs_no_step_runs_in_one_call() -> None:
    needs = {form: decoder(*form).step_by_step for form in FORMS}
    assert [form for form, steps in needs.items() if not steps] == [
        ("additive", False, False), ("general", False, False), ("none", False, False),
    ]  # fmt: skip


def cell_of(model: Decoder, size: int) -> nn.GRUCell:
    cell = nn.GRUCell(size, H)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in model.rnn.state_dict().items()})
    return cell


def look(model: Decoder, state: DecoderState, query: Tensor) -> Tensor:
    assert model.attention is not None
    assert state.keys is not None
    return model.attention(query[:, None], state.keys, state.memory, state.mask)[0][:, 0]


def test_the_equations_of_attention_inside_the_recurrence() -> None:
    model = decoder("additive", True, False)
    state = first_state(model)
    tokens = torch.randint(4, V, (T, B))
    cell, s = cell_of(model, E + C), state.hidden[0][:, 0]
    for word, found in zip(model.embedding(tokens), model.forced(tokens, state), strict=True):
        context = look(model, state, s)
        s = cell(torch.cat([word, context], 1), s)
        o = torch.tanh(model.output(torch.cat([s, context, word], 1)))
        torch.testing.assert_close(found, o)


def test_the_equations_of_attention_after_the_recurrence_with_input_feeding() -> None:
    model = decoder("general", False, True)
    state = first_state(model)
    tokens = torch.randint(4, V, (T, B))
    cell, s, o = cell_of(model, 2 * E), state.hidden[0][:, 0], torch.zeros(B, E)
    for word, found in zip(model.embedding(tokens), model.forced(tokens, state), strict=True):
        s = cell(torch.cat([word, o], 1), s)
        o = torch.tanh(model.output(torch.cat([s, look(model, state, s), word], 1)))
        torch.testing.assert_close(found, o)


def test_the_equations_without_attention() -> None:
    model = decoder("none", False, False)
    state = first_state(model)
    tokens = torch.randint(4, V, (T, B))
    cell, s, context = cell_of(model, E + C), state.hidden[0][:, 0], encoded().last[0][-1]
    for word, found in zip(model.embedding(tokens), model.forced(tokens, state), strict=True):
        s = cell(torch.cat([word, context], 1), s)
        torch.testing.assert_close(
            found, torch.tanh(model.output(torch.cat([s, context, word], 1)))
        )


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_learns(form: Any) -> None:
    model = decoder(*form)
    model.forced(torch.randint(4, V, (T, B)), first_state(model)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_input_feeding_goes_with_attention_after_the_recurrence() -> None:
    for attention, inside in itertools.product(["additive", "none"], [True, False]):
        if (attention, inside) != ("additive", False):
            with pytest.raises(ValueError, match="input_feeding goes with attention after"):
                decoder(attention, inside, True)


@pytest.mark.parametrize("states", [1, 2])
def test_the_bridge_starts_every_layer(states: int) -> None:
    last = encoded(layers=2, states=states).last
    torch.manual_seed(0)
    bridge = Bridge("tanh", states, 2, C, 3, H)
    found = bridge(last)
    assert [state.shape for state in found] == [(B, 3, H)] * states
    for i, state in enumerate(found):
        for layer in range(3):
            linear = bridge.linear[3 * i + layer]
            expected = torch.tanh(linear(last[i][min(layer, 1)]))
            torch.testing.assert_close(state[:, layer], expected)
    same = Bridge("last", states, 2, C, 2, C)(last)
    for state, given in zip(same, last, strict=True):
        assert torch.equal(state.transpose(0, 1), given)
    for state in Bridge("zero", states, 2, C, 3, H)(last):
        assert torch.equal(state, torch.zeros(B, 3, H))


def test_a_bridge_between_other_shapes_names_both() -> None:
    with pytest.raises(ValueError, match=r"got 2 layers of 8 in the encoder .* and 1 of 6"):
        Bridge("last", 1, 2, C, 1, H)
