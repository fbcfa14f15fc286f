"""`lengths=`: what torch computes on packed sequences, and what it can't: zeros, NaN padding."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnkit
from tests.nn.layers import (
    ALL,
    BACKENDS,
    STANDARD,
    assert_as_torch,
    assert_close,
    assert_equal,
    assert_follows_the_rule,
    build,
    cast,
    gradients,
    leaf,
    random_state,
    tensors,
    twins,
)

STEPS = 6
# The longest of the positive ones is shorter than the input, that of the second is not.
POSITIVE, WITH_ZEROS, ALL_ZERO = [3, 5, 1, 4], [3, 0, 6, 0, 1], [0, 0, 0]
SHAPES = [(1, False), (1, True), (2, True)]  # layers, both directions


def make_input(layer: Any, batch: int) -> Tensor:
    input = torch.randn(STEPS, batch, layer.input_size, dtype=next(layer.parameters()).dtype)
    return input.transpose(0, 1) if layer.batch_first else input


def past(lengths: list[int]) -> Tensor:
    """(T, B): the positions past each length."""
    return torch.arange(STEPS)[:, None] >= torch.tensor(lengths)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("layers", "both"), SHAPES)
@pytest.mark.parametrize("kind", STANDARD)
def test_positive_lengths_give_what_torch_gives_for_packed(
    kind: str, layers: int, both: bool, batch_first: bool, state: bool, backend: str
) -> None:
    options = {"num_layers": layers, "bidirectional": both, "batch_first": batch_first}
    ours, theirs = twins(kind, 3, 5, **options, backend=backend)
    input = make_input(ours, len(POSITIVE))
    hx = random_state(ours, len(POSITIVE)) if state else None
    lengths = torch.tensor(POSITIVE)

    def run(layer: Any) -> Any:
        x, h = cast(input, layer), cast(hx, layer)
        if layer is ours:
            result = ours(x, h, lengths=lengths)
        else:
            packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
            output, last = layer(packed, h)
            result = pad_packed_sequence(output, batch_first, total_length=STEPS)[0], last
        return result, gradients(result, [x, *tensors(h), *layer.parameters()])

    # torch's LSTM runs padded on a CPU, in oneDNN, which rounds otherwise than its packed steps.
    if kind == "LSTM":
        assert_follows_the_rule(run(ours), theirs, run)
    else:
        assert_as_torch(ours, theirs, run)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [POSITIVE, WITH_ZEROS, ALL_ZERO], ids=str)
@pytest.mark.parametrize(("layers", "both"), SHAPES)
@pytest.mark.parametrize("kind", ALL)
def test_each_sequence_runs_as_if_alone_and_an_empty_one_keeps_its_state(
    kind: str, layers: int, both: bool, lengths: list[int], batch_first: bool
) -> None:
    options = {"num_layers": layers, "bidirectional": both, "batch_first": batch_first}
    torch.manual_seed(0)
    layer = build(kind, 3, 5, dtype=torch.float64, **options)
    x, h = leaf(make_input(layer, len(lengths))), leaf(random_state(layer, len(lengths)))
    leaves = [x, *tensors(h), *layer.parameters()]

    result = layer(x, h, lengths=torch.tensor(lengths))
    output, *last = tensors(result)
    by_step = output.transpose(0, 1) if batch_first else output
    assert by_step.shape == (STEPS, len(lengths), (1 + both) * (layer.proj_size or 5))
    assert torch.equal(by_step[past(lengths)], torch.zeros_like(by_step[past(lengths)]))

    columns, states = [], []
    for i, length in enumerate(lengths):
        sequence = x[i, :length] if batch_first else x[:length, i]
        alone: Any = tuple(value[:, i] for value in tensors(h))
        if length == 0:
            assert all(torch.equal(a[:, i], b) for a, b in zip(last, alone, strict=True))
            columns.append(torch.zeros_like(by_step[:, i]))
            states.append(alone)
            continue
        alone = layer(sequence, alone if kind.startswith("LSTM") else alone[0])
        columns.append(torch.nn.functional.pad(alone[0], (0, 0, 0, STEPS - length)))
        states.append(tensors(alone[1]))
    expected = [
        torch.stack(columns, 0 if batch_first else 1),
        *(torch.stack(values, 1) for values in zip(*states, strict=True)),
    ]
    assert_close(result, expected, rtol=1e-12, atol=1e-13)
    if any(lengths):
        assert_close(gradients(result, leaves), gradients(expected, leaves), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("lengths", [POSITIVE, WITH_ZEROS], ids=str)
@pytest.mark.parametrize("kind", ALL)
def test_nothing_past_a_length_is_read_and_no_gradient_arrives_there(
    kind: str, lengths: list[int]
) -> None:
    layer = build(kind, 3, 5, num_layers=2, bidirectional=True)
    input = make_input(layer, len(lengths))
    clean, dirty = leaf(input), input.clone()
    dirty[past(lengths)] = float("nan")
    dirty.requires_grad_()
    results = [layer(x, lengths=torch.tensor(lengths)) for x in (clean, dirty)]
    assert_equal(*results)
    found = [
        gradients(result, [x, *layer.parameters()])
        for result, x in zip(results, (clean, dirty), strict=True)
    ]
    assert_equal(*found)
    assert torch.count_nonzero(found[1][0][past(lengths)]) == 0
    assert torch.count_nonzero(found[1][0][~past(lengths)]) > 0


@pytest.mark.parametrize("kind", ALL)
def test_gradients_of_an_empty_batch_of_sequences_are_those_of_the_state(kind: str) -> None:
    layer = build(kind, 3, 5, num_layers=2)
    h = leaf(random_state(layer, 3))
    x = make_input(layer, 3).requires_grad_()
    output, last = layer(x, h, lengths=torch.tensor(ALL_ZERO))
    assert torch.count_nonzero(output) == 0
    assert_equal(last, h)
    found = torch.autograd.grad([v.sum() for v in tensors(last)], tensors(h))
    assert all(torch.equal(gradient, torch.ones_like(gradient)) for gradient in found)


def test_the_reverse_direction_starts_at_each_sequences_last_step() -> None:
    layer = rnnkit.LSTM(3, 5, bidirectional=True)
    input, lengths = make_input(layer, 2), torch.tensor([2, 5])
    output = layer(input, lengths=lengths)[0]
    first_step_read = layer(input[1:2, :1])[0][0, 0, 5:]
    torch.testing.assert_close(output[1, 0, 5:], first_step_read)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_lengths_may_be_any_integers(dtype: torch.dtype) -> None:
    layer = rnnkit.GRU(3, 5)
    input = make_input(layer, 4)
    expected = layer(input, lengths=torch.tensor(POSITIVE))
    assert_equal(layer(input, lengths=torch.tensor(POSITIVE, dtype=dtype)), expected)


@pytest.mark.parametrize(("dtype", "steps"), [(torch.int8, 200), (torch.uint8, 300)])
def test_small_integers_are_lengths_of_a_longer_input(dtype: torch.dtype, steps: int) -> None:
    layer, input = rnnkit.GRU(3, 5), torch.randn(steps, 2, 3)
    lengths = torch.tensor([100, 7])
    assert_equal(layer(input, lengths=lengths.to(dtype)), layer(input, lengths=lengths))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([3, 7]), r"between 0 and the input's 6 steps, got 7 for sequence 1"),
        (torch.tensor([-2, 3]), r"between 0 and the input's 6 steps, got -2 for sequence 0"),
        (torch.tensor([3.0, 6.0]), r"integers, got torch\.float32"),
        (torch.tensor([True, False]), r"integers, got torch\.bool"),
        (torch.tensor([3, 6, 1]), r"shape \(2,\), got \(3,\)"),
        (torch.tensor([[3, 6]]), r"shape \(2,\), got \(1, 2\)"),
        (torch.tensor(3), r"shape \(2,\), got \(\)"),
    ],
    ids=["too long", "negative", "float", "bool", "too many", "2-D", "0-D"],
)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU reset before"])
def test_wrong_lengths_are_refused(
    kind: str, batch_first: bool, lengths: Tensor, message: str
) -> None:
    layer = build(kind, 3, 5, batch_first=batch_first)
    with pytest.raises(ValueError, match=message):
        layer(make_input(layer, 2), lengths=lengths)


def test_lengths_in_a_list_are_refused() -> None:
    with pytest.raises(TypeError, match="lengths to be a tensor of integers, got list"):
        rnnkit.LSTM(3, 5)(torch.zeros(STEPS, 2, 3), lengths=[3, 6])


def test_lengths_go_with_neither_a_packed_sequence_nor_an_unbatched_input() -> None:
    layer, input, lengths = rnnkit.LSTM(3, 5), torch.zeros(STEPS, 2, 3), torch.tensor([6, 3])
    with pytest.raises(ValueError, match="PackedSequence holds its own"):
        layer(pack_padded_sequence(input, lengths), lengths=lengths)
    with pytest.raises(ValueError, match="batched 3-D input, got 2-D"):
        layer(input[:, 0], lengths=lengths[:1])


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("kind", "lengths"),
    [
        *(("LSTM", lengths) for lengths in (POSITIVE, WITH_ZEROS, ALL_ZERO)),
        ("LSTM with projection", WITH_ZEROS),
        ("GRU reset before", WITH_ZEROS),
    ],
    ids=str,
)
def test_lengths_are_compiled_into_one_graph_with_the_same_values(
    kind: str, lengths: list[int]
) -> None:
    torch._dynamo.reset()
    layer = build(kind, 3, 5, num_layers=2, bidirectional=True, dtype=torch.float64)
    x, h = leaf(make_input(layer, len(lengths))), leaf(random_state(layer, len(lengths)))
    with torch.no_grad():
        x[past(lengths)] = float("nan")
    leaves = [x, *tensors(h), *layer.parameters()]
    expected = layer(x, h, lengths=torch.tensor(lengths))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    result = compiled(x, h, lengths=torch.tensor(lengths))
    assert_close(result, expected, rtol=1e-12, atol=1e-13)
    if any(lengths):
        assert_close(gradients(result, leaves), gradients(expected, leaves), rtol=1e-11, atol=1e-12)


@pytest.mark.compiler
def test_wrong_lengths_stop_a_compiled_layer() -> None:
    torch._dynamo.reset()
    layer = rnnkit.LSTM(3, 5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    input = make_input(layer, 2)
    compiled(input, lengths=torch.tensor([3, 6]))
    with pytest.raises(RuntimeError, match="between 0 and the number of steps"):
        compiled(input, lengths=torch.tensor([3, 7]))
