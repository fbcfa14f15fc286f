"""Stacks against torch's layers one by one, each sequence alone, in float64."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnkit
from rnnkit.nn import Stack
from rnnkit.nn.dropout import LockedDropout
from rnnkit.nn.truncation import Truncation
from tests.nn.layers import assert_equal, tensors

CELLS: dict[str, tuple[Any, Any]] = {
    "lstm": (rnnkit.LSTM, nn.LSTM),
    "gru": (rnnkit.GRU, nn.GRU),
    "rnn": (rnnkit.RNN, nn.RNN),
}
CONNECTIONS = ("plain", "residual", "highway", "dense")
NORMS = (None, "layer", "batch")
LENGTHS = torch.tensor([4, 6, 0, 1])
STEPS, BATCH, SIZE = 6, 4, 4  # with one direction the first layer reads as much as it gives


def make(cell: str = "lstm", *arguments: Any, sizes: Any = (SIZE,) * 3, **options: Any) -> Stack:
    """A stack in float64 whose every parameter is drawn, the norms' and gates' too."""
    reads = options.pop("input_size", SIZE * (2 if options.get("bidirectional") else 1))
    stack = Stack(CELLS[cell][0], reads, sizes, *arguments, **options).double()
    for parameter in stack.parameters():
        nn.init.normal_(parameter, std=0.6)
    return stack


def draw(stack: Stack, steps: int = STEPS) -> Tensor:
    return torch.randn(steps, BATCH, stack.input_size, dtype=torch.float64)


def normalised(stack: Stack, index: int, sequences: list[Tensor]) -> list[Tensor]:
    """By the formulas of the two papers, batch statistics over all that is real."""
    if stack.norm is None:
        return sequences
    rows = torch.cat(sequences)
    norm: Any = stack.norms[index] if stack.norm == "layer" else stack.norms[index].norm
    if stack.norm == "layer":
        mean, variance = rows.mean(1, keepdim=True), rows.var(1, keepdim=True, correction=0)
    elif stack.training:
        mean, variance = rows.mean(0), rows.var(0, correction=0)
    else:
        mean, variance = norm.running_mean, norm.running_var
    rows = (rows - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias
    return list(rows.split([len(each) for each in sequences]))


def run_alone(stack: Stack, cell: str, sequences: list[Tensor]) -> tuple[list[Tensor], list[Any]]:
    """Outputs and last states, by torch's layers, of sequences that have no padding."""
    earlier, states = [sequences], []
    for index, layer in enumerate(stack.layers):
        below = earlier[-1]
        if stack.connection == "dense":
            below = [torch.cat(parts, 1) for parts in zip(*earlier, strict=True)]
        read = normalised(stack, index, below)
        alone = CELLS[cell][1](
            layer.input_size, layer.hidden_size, bidirectional=layer.bidirectional
        ).double()
        weights = dict(layer.named_parameters())
        outputs, last = [], []
        for sequence, path in zip(read, below, strict=True):
            output, state = torch.func.functional_call(alone, weights, (sequence,))
            if stack.connection == "residual":
                around: Any = stack.connections[index].projection
                identity = isinstance(around, nn.Identity)
                output = output + (path if identity else path @ around.weight.T)
            elif stack.connection == "highway":
                transform: Any = stack.connections[index].transform
                gate = 1 / (1 + torch.exp(-(path @ transform.weight.T + transform.bias)))
                output = output * gate + path * (1 - gate)
            outputs.append(output)
            last.append(state)
        earlier.append(outputs)
        states.append(last)
    return earlier[-1], states


def loss_of(outputs: list[Tensor]) -> Tensor:
    return torch.cat(
        [(output.sin() * torch.arange(1, 1 + len(output)).unsqueeze(1)) for output in outputs]
    ).sum()


def gradients(loss: Tensor, *of: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, of, allow_unused=True)
    return [torch.zeros_like(each) if g is None else g for g, each in zip(found, of, strict=True)]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("connection", CONNECTIONS)
def test_every_sequence_is_as_alone_layer_by_layer(
    connection: str, norm: str | None, bidirectional: bool
) -> None:
    for cell, training in product(CELLS, (True, False)):
        # Layers one by one for the plain stack too.
        sizes = (SIZE, SIZE, SIZE + 1) if connection == "plain" else (SIZE,) * 3
        stack = make(cell, connection, norm, sizes=sizes, bidirectional=bidirectional)
        stack(draw(stack))  # running estimates that are not the first ones
        stack.train(training)
        input = draw(stack)
        padding = torch.arange(STEPS).unsqueeze(1) >= LENGTHS
        input[padding] = float("nan")
        input.requires_grad_()
        real = [index for index, length in enumerate(LENGTHS) if length > 0]
        sequences = [input[: int(LENGTHS[index]), index] for index in real]
        expected, expected_states = run_alone(stack, cell, sequences)
        output, state = stack(input, lengths=LENGTHS)
        assert not output[padding].any()
        found = [output[: int(LENGTHS[index]), index] for index in real]
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        sides = 1 + bidirectional
        for part, kind in enumerate(("h", "c") if cell == "lstm" else ("h",)):
            for layer, last in enumerate(expected_states):
                if stack.equal_sizes:
                    whole = state[part] if cell == "lstm" else state
                    here = whole[layer * sides : (layer + 1) * sides]
                else:
                    here = state[layer][part] if cell == "lstm" else state[layer]
                wanted = torch.stack([s[part] if cell == "lstm" else s for s in last], 1)
                torch.testing.assert_close(here[:, real], wanted, rtol=1e-10, atol=1e-10, msg=kind)
                assert not here[:, 2].any()  # the empty sequence keeps its state
        of = [input, *stack.parameters()]
        for one, other in zip(
            gradients(loss_of(found), *of), gradients(loss_of(expected), *of), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("connection", ["plain", "residual", "dense"])
def test_widths_differ_where_a_connection_lets_them(connection: str) -> None:
    stack = make("gru", connection, "layer", input_size=3, sizes=(5, 2, 4))
    reads = {"plain": [3, 5, 2], "residual": [3, 5, 2], "dense": [3, 8, 10]}[connection]
    assert [layer.input_size for layer in stack.layers] == reads
    input = draw(stack)
    expected, states = run_alone(stack, "gru", list(input.unbind(1)))
    output, state = stack(input)
    torch.testing.assert_close(output, torch.stack(expected, 1), rtol=1e-10, atol=1e-10)
    for one, other in zip(state, states, strict=True):
        torch.testing.assert_close(one, torch.stack(other, 1), rtol=1e-10, atol=1e-10)
    assert stack.output_size == output.shape[-1] == 4


def test_a_residual_path_is_projected_only_where_the_width_changes() -> None:
    stack = Stack(rnnkit.LSTM, 3, [4, 4], "residual", bidirectional=True)
    shapes = {name: tuple(p.shape) for name, p in stack.connections.named_parameters()}
    assert shapes == {"0.projection.weight": (8, 3)}


# What a call takes: as one layer does


OPTIONS: list[dict[str, Any]] = [
    {"connection": "residual", "norm": "layer"},
    {"connection": "highway", "norm": "batch"},
    {"connection": "dense", "bidirectional": True},
    {"sizes": (4, 3), "norm": "batch"},
]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_padded_batch_may_come_batch_first_packed_or_unbatched(
    cell: str, options: dict[str, Any]
) -> None:
    stack = make(cell, **options)
    input, lengths = draw(stack), torch.tensor([3, 6, 1, 5])
    first = stack(input)[1]
    hx = rnnkit.nn.truncation.map_state(first, torch.randn_like)
    output, state = stack(input, hx, lengths=lengths)
    turned = make(cell, **options, batch_first=True)
    turned.load_state_dict(stack.state_dict())
    found, found_state = turned(input.transpose(0, 1), hx, lengths=lengths)
    assert_equal((found.transpose(0, 1), found_state), (output, state))
    packed = pack_padded_sequence(input, lengths, enforce_sorted=False)
    found, found_state = stack(packed, hx)
    for one, other in zip(
        tensors((pad_packed_sequence(found)[0], found_state)), tensors((output, state)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    stack.eval()
    whole, ends = stack(input, hx)
    one = rnnkit.nn.truncation.map_state(hx, lambda each: each[:, 1])
    alone, end = stack(input[:, 1], one)
    torch.testing.assert_close(alone, whole[:, 1], rtol=1e-10, atol=1e-10)
    for part, other in zip(tensors(end), tensors(ends), strict=True):
        torch.testing.assert_close(part, other[:, 1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS[:2] + OPTIONS[3:])
def test_a_carried_state_makes_one_sequence_of_two(options: dict[str, Any]) -> None:
    for cell in CELLS:
        stack = make(cell, **options).eval()
        input = draw(stack, 9)
        expected, expected_state = stack(input)
        first, state = stack(input[:4])
        second, state = stack(input[4:], state)
        torch.testing.assert_close(torch.cat([first, second]), expected, rtol=1e-10, atol=1e-10)
        for one, other in zip(tensors(state), tensors(expected_state), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_states_may_be_given_apart_where_they_are_returned_together() -> None:
    for cell in CELLS:
        stack = make(cell, "residual")
        input = draw(stack)
        state = rnnkit.nn.truncation.map_state(stack(input)[1], torch.randn_like)
        apart = [each.split(1) for each in ([state] if isinstance(state, Tensor) else state)]
        layers = apart[0] if len(apart) == 1 else tuple(zip(*apart, strict=True))
        assert_equal(stack(input, layers), stack(input, state))


def test_a_reset_begins_anew_in_every_layer() -> None:
    for cell, connection in product(CELLS, ("residual", "dense")):
        stack = make(cell, connection, "layer")
        input = draw(stack)
        anew = rnnkit.nn.truncation.map_state(stack(input)[1], lambda s: torch.randn_like(s[:, 0]))
        resets = torch.zeros(STEPS, BATCH, dtype=torch.bool)
        resets[4] = True
        start = rnnkit.nn.truncation.map_state(
            anew, lambda s: s.unsqueeze(1).expand(-1, BATCH, -1).contiguous()
        )
        expected = torch.cat([stack(input[:4])[0], stack(input[4:], start)[0]])
        found, _ = stack(input, resets=resets, hx_reset=anew)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        turned = make(cell, connection, "layer", batch_first=True)
        turned.load_state_dict(stack.state_dict())
        found, _ = turned(input.transpose(0, 1), resets=resets.T, hx_reset=anew)
        torch.testing.assert_close(found.transpose(0, 1), expected, rtol=1e-10, atol=1e-10)


# The plain stack


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 3])
def test_a_plain_stack_is_one_layer_and_calls_it_once(cell: str, layers: int) -> None:
    options = {"bidirectional": True, "batch_first": True, "weight_drop": 0.2}
    torch.manual_seed(5)
    stack = Stack(CELLS[cell][0], 3, [4] * layers, dropout=0.3, **options)
    torch.manual_seed(5)
    between = {"dropout": 0.3} if layers > 1 else {}
    layer = CELLS[cell][0](3, 4, layers, **between, **options)
    assert [repr(each) for each in stack.layers] == [repr(layer)]
    assert stack.simplified() is stack.layers[0]
    assert list(stack.children()) == [stack.layers]  # nothing else
    input, lengths = torch.randn(2, 5, 3), torch.tensor([5, 2])
    state = layer(input)[1]
    calls: list[Any] = []
    stack.layers[0].register_forward_hook(lambda *call: calls.append(call))
    for given in ({}, {"lengths": lengths}):
        torch.manual_seed(6)
        expected = layer(input, state, **given)
        torch.manual_seed(6)
        assert_equal(stack(input, state, **given), expected)
    assert len(calls) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"connection": "residual"},
        {"norm": "layer"},
        {"locked_dropout": True},
        {"sizes": (4, 4, 5)},
    ],
)
def test_another_stack_has_one_layer_for_each(options: dict[str, Any]) -> None:
    stack = make(**options)
    assert [layer.num_layers for layer in stack.layers] == [1, 1, 1]
    assert stack.simplified() is stack


def test_layers_one_after_the_other_equal_the_one_that_has_them_all() -> None:
    for cell in CELLS:
        whole = CELLS[cell][0](3, 4, num_layers=3)
        apart = Stack(CELLS[cell][0], 3, [4, 4, 4], locked_dropout=True)
        apart.load_state_dict(
            {f"layers.{name[-1]}.{name[:-1]}0": value for name, value in whole.state_dict().items()}
        )
        first, second = torch.randn(5, 2, 3), torch.randn(4, 2, 3)
        found = apart(second, apart(first)[1])
        expected = whole(second, whole(first)[1])
        for one, other in zip(tensors(found), tensors(expected), strict=True):
            torch.testing.assert_close(one, other)


# Dropout


@pytest.mark.parametrize("connection", CONNECTIONS)
@pytest.mark.parametrize("locked", [False, True])
def test_dropout_acts_on_what_layers_read_and_never_on_the_way_around(
    connection: str, locked: bool
) -> None:
    stack = make("gru", connection, "layer", dropout=0.4, locked_dropout=locked)
    input = draw(stack)
    torch.manual_seed(3)
    output, _ = stack(input)
    torch.manual_seed(3)
    earlier = [input]
    for index, layer in enumerate(stack.layers):
        below = torch.cat(earlier, 2) if connection == "dense" else earlier[-1]
        read = stack.norms[index](below)
        if index > 0:
            mask = torch.ones(1, *read.shape[1:], dtype=read.dtype) if locked else None
            read = F.dropout(read, 0.4) if mask is None else read * F.dropout(mask, 0.4)
        given = layer(read)[0]
        if connection == "residual":
            given = given + below
        elif connection == "highway":
            gate = stack.connections[index].transform(below).sigmoid()
            given = given * gate + below * (1 - gate)
        earlier.append(given)
    torch.testing.assert_close(output, earlier[-1], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(stack.eval()(input)[0], output)


def test_a_packed_sequence_has_one_mask_for_all_its_steps() -> None:
    stack = make("rnn", "residual", sizes=(4, 4), dropout=0.5, locked_dropout=True)
    read: list[Any] = []
    stack.layers[1].register_forward_pre_hook(lambda _, given: read.append(given[0]))
    input, lengths = draw(stack), torch.tensor([3, 6, 1, 5])
    stack(pack_padded_sequence(input, lengths, enforce_sorted=False))
    stack.eval()
    stack(pack_padded_sequence(input, lengths, enforce_sorted=False))
    dropped, whole = (pad_packed_sequence(each)[0] for each in read)
    masks = torch.where(whole == 0, torch.nan, dropped / whole)
    for index, length in enumerate(lengths.tolist()):
        mask = masks[:length, index]
        torch.testing.assert_close(mask, mask[:1].expand_as(mask))
    assert sorted(masks[0].flatten().round().int().unique().tolist()) == [0, 2]
    assert not torch.equal(masks[0, 0], masks[0, 1])


@pytest.mark.parametrize("option", ["weight_drop", "zoneout"])
def test_the_layers_own_dropouts_act_in_each_of_them(option: str) -> None:
    stack = make("lstm", "residual", **{option: 0.5})
    assert [getattr(layer, option) for layer in stack.layers] == [0.5] * 3
    input = draw(stack)
    assert not torch.allclose(stack(input)[0], stack(input)[0])
    stack.eval()
    assert_equal(stack(input), stack(input))


# Norms and gates


def test_batch_statistics_leave_padding_out() -> None:
    # Of 400 steps of a padded batch 46 % are no steps.
    lengths = torch.tensor([20, 4, 12, 5, 16, 3, 18, 7, 10, 13])
    real = torch.arange(20).unsqueeze(1) < lengths
    assert float(real.double().mean()) == pytest.approx(0.54)
    input = 3 + 2 * torch.randn(20, 10, 4, dtype=torch.float64)
    padded = input.masked_fill(~real.unsqueeze(2), 0.0)
    rows = input[real]
    stack = make("lstm", norm="batch", sizes=(4, 4))
    stack(padded, lengths=lengths)
    found: Any = stack.norms[0].norm
    torch.testing.assert_close(found.running_mean, 0.1 * rows.mean(0))
    torch.testing.assert_close(found.running_var, 0.9 + 0.1 * rows.var(0))
    # What torch's norm makes of the padding: 1.6 and 4.4 where 3 and 4 are true.
    over_all = nn.BatchNorm1d(4, momentum=1.0).double()
    over_all(padded.flatten(0, 1))
    assert float(over_all.running_mean.mean()) == pytest.approx(0.54 * 3, abs=0.2)
    assert float(over_all.running_var.mean()) == pytest.approx(4.4, abs=0.4)
    assert float(rows.mean()) == pytest.approx(3, abs=0.2)
    # One step in evaluation, by the running estimate.
    stack.eval()
    step = stack.norms[0](padded[:1])
    expected = (padded[:1] - found.running_mean) / (found.running_var + 1e-5).sqrt()
    torch.testing.assert_close(step, expected * found.weight + found.bias)


def test_a_fresh_highway_hands_most_of_its_input_on() -> None:
    stack = Stack(rnnkit.LSTM, 50, [50] * 3, "highway")
    biases = [gate.transform.bias for gate in stack.connections]
    assert all((bias == -2).all() for bias in biases)
    torch.nn.init.zeros_(stack.connections[0].transform.weight)
    input = torch.randn(2, 3, 50)
    carried = stack.connections[0](torch.zeros_like(input), input) / input
    torch.testing.assert_close(carried, torch.full_like(input, 0.8807971))


def test_what_goes_around_layers_brings_gradients_to_any_depth() -> None:
    reach: dict[str, float] = {}
    for connection in CONNECTIONS:
        stack = Stack(rnnkit.LSTM, 32, [32] * 8, connection)
        input = torch.randn(10, 4, 32, requires_grad=True)
        output, _ = stack(input)
        (gradient,) = torch.autograd.grad(output, input, torch.randn_like(output))
        reach[connection] = float(gradient.norm())
    assert reach["plain"] < 1e-2 * min(reach["dense"], reach["highway"])
    assert reach["dense"] < reach["residual"]
    assert reach["highway"] < reach["residual"]


# Truncation beyond what test_truncation.py has


def test_a_truncation_goes_with_whole_windows_alone() -> None:
    truncation = Truncation(2, [0.0, 0.0])
    input = torch.randn(6, 4, 4)
    for options in ({}, {"connection": "residual"}):
        stack = Stack(rnnkit.GRU, 4, [4, 4], **options)
        turned = Stack(rnnkit.GRU, 4, [4, 4], batch_first=True, **options)
        for call in (
            lambda stack=stack: stack(input, lengths=LENGTHS, truncation=truncation),
            lambda stack=turned: stack(input, truncation=truncation),
        ):
            with pytest.raises(ValueError, match="no batch_first, no PackedSequence, no lengths"):
                call()


def test_torch_fx_takes_a_stack_for_one_node() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = Stack(rnnkit.LSTM, 4, [4, 4], "residual")

        def forward(self, input: Tensor, lengths: Tensor) -> Any:
            return self.stack(input, lengths=lengths)[0]

    holder, input = Holder(), torch.randn(STEPS, BATCH, 4)
    traced = torch.fx.symbolic_trace(holder)
    assert_equal(traced(input, LENGTHS), holder(input, LENGTHS))


# Bad input


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3, [4, 4], "highway"), {}, "one reads 3 and gives 4"),
        ((4, [4, 5], "highway"), {}, "one reads 4 and gives 5"),
        ((4, [4, 4], "highway"), {"bidirectional": True}, "one reads 4 and gives 8"),
        ((4, [4, 4], "skip"), {}, "connection plain, residual, highway or dense, got 'skip'"),
        ((4, [4, 4], "plain", "group"), {}, "norm layer, batch or None, got 'group'"),
        ((4, []), {}, r"one size for every layer, got \[\]"),
        ((4, 4), {}, "one size for every layer, got 4"),
        ((4, [4, 0]), {}, "hidden_sizes must be greater than zero, got 0"),
        ((4, [4, 4], "residual"), {"dropout": 1.5}, "dropout should be .* got 1.5"),
    ],
)
def test_a_stack_that_cannot_be_is_refused(
    arguments: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Stack(rnnkit.LSTM, *arguments, **options)


def test_batch_statistics_of_one_real_step_are_refused() -> None:
    stack = Stack(rnnkit.LSTM, 4, [4, 4], norm="batch")
    input, lengths = torch.randn(5, 3, 4), torch.tensor([0, 1, 0])
    with pytest.raises(ValueError, match="needs 2 or more while training, got 1 of 15 steps"):
        stack(input, lengths=lengths)
    with pytest.raises(ValueError, match="got 1 of 1 steps"):
        stack(input[:1, :1])
    stack.eval()
    assert stack(input, lengths=lengths)[0][0, 1].any()
    assert not stack(input, lengths=torch.zeros(3, dtype=torch.int64))[0].any()


def test_a_call_that_does_not_fit_is_refused_as_by_a_layer() -> None:
    stack = Stack(rnnkit.LSTM, 4, [5, 5], "residual", "layer")
    layer = rnnkit.LSTM(4, 5, 2)
    input, state = torch.randn(6, 3, 4), torch.zeros(2, 3, 5)
    calls: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        (([1.0],), {}, "expected a tensor or a PackedSequence, got list"),
        ((input[..., :3],), {}, "Expected 4, got 3"),
        ((input,), {"lengths": torch.tensor([1, 2])}, r"shape \(3,\), got \(2,\)"),
        ((input,), {"lengths": torch.tensor([1, 2, 7])}, "6 steps, got 7 for sequence 2"),
        ((input,), {"lengths": [1, 2, 3]}, "lengths to be a tensor of integers, got list"),
        ((input, (state[:1], state[:1])), {}, "2.* got .*1"),
        ((input, state), {}, r"pair \(h, c\)"),
        ((input,), {"resets": torch.zeros(3, 6, dtype=torch.bool)}, r"got \(3, 6\)"),
    ]
    for arguments, options, message in calls:
        kinds = []
        for module in (stack, layer):
            with pytest.raises((TypeError, ValueError, RuntimeError), match=message) as raised:
                module(*arguments, **options)
            kinds.append(raised.type)
        assert kinds[0] is kinds[1]
    several = Stack(rnnkit.GRU, 4, [5, 3])
    with pytest.raises(RuntimeError, match="layers of the sizes 5, 3 have no state in common"):
        several(input, torch.zeros(2, 3, 5))
    with pytest.raises(RuntimeError, match="a state for each of 2 layers, got 1"):
        several(input, (torch.zeros(1, 3, 5),))


def test_locked_dropout_is_the_one_of_its_file() -> None:
    stack = Stack(rnnkit.GRU, 4, [4, 4], dropout=0.25, locked_dropout=True)
    assert type(stack.dropout) is LockedDropout
    assert stack.dropout.p == 0.25
