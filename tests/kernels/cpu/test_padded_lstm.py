"""Padded LSTM layers on a CPU: nothing of the padding may show."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnnkit_kernels import functional, layers
from rnnkit_kernels.cpu import padded_lstm

STEPS, BATCH, FEATURES, HIDDEN = 9, 5, 3, 4
LENGTHS = [
    [7, 4, 5, 7, 4],  # one group
    [9, 0, 9, 9, 9],
    [1, 1, 1, 1, 1],
    [2, 9, 0, 4, 8],  # three groups
    [9, 1, 1, 1, 1],
]


def setup(dtype: torch.dtype = torch.float32, **options: Any) -> tuple[nn.LSTM, Tensor, Any]:
    torch.manual_seed(0)
    layer = nn.LSTM(FEATURES, HIDDEN, **options).to(dtype)
    members = layer.num_layers * (2 if layer.bidirectional else 1)
    state = tuple(torch.randn(members, BATCH, HIDDEN, dtype=dtype) for _ in range(2))
    return layer, torch.randn(STEPS, BATCH, FEATURES, dtype=dtype), state


def run(layer: nn.LSTM, x: Tensor, state: Any, lengths: list[int], **options: Any) -> Any:
    return functional.lstm(
        x, state, layer._flat_weights, has_biases=layer.bias, num_layers=layer.num_layers,
        bidirectional=layer.bidirectional, lengths=torch.tensor(lengths),
        **{"backend": "torch"} | options,
    )  # fmt: skip


def one_by_one(layer: nn.LSTM, x: Tensor, state: Any, lengths: list[int]) -> list[Tensor]:
    """Every sequence alone, by torch: output, h_n and c_n."""
    width = HIDDEN * (2 if layer.bidirectional else 1)
    output = x.new_zeros(STEPS, BATCH, width)
    last = [value.clone() for value in state]
    for b, length in enumerate(lengths):
        if length:
            own = tuple(value[:, b : b + 1].contiguous() for value in state)
            output[:length, b : b + 1], states = layer(x[:length, b : b + 1], own)
            for value, found in zip(last, states, strict=True):
                value[:, b : b + 1] = found
    return [output, *last]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that the padded way is taken."""
    found: list[int] = []

    def counted(*given: Any) -> Any:
        found.append(1)
        return padded_lstm.padded_lstm(*given)

    monkeypatch.setattr(layers, "padded_lstm", counted)
    return found


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True}, {"bias": False}],
    ids=str,
)
def test_results_and_gradients_are_those_of_each_sequence_alone(
    options: dict[str, Any], lengths: list[int], calls: list[int]
) -> None:
    layer, x, state = setup(**options)
    leaves = [x.requires_grad_(), *(value.requires_grad_() for value in state)]
    found = run(layer, x, state, lengths)
    assert calls == [1]
    exact_layer = copy.deepcopy(layer).double()
    expected = one_by_one(exact_layer, x.double(), [v.double() for v in state], lengths)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)
    for b, length in enumerate(lengths):
        assert found[0][length:, b].abs().sum() == 0
    torch.manual_seed(1)
    arriving = [torch.randn_like(value) for value in found]
    gradients = torch.autograd.grad(found, leaves, arriving)
    exact = torch.autograd.grad(expected, leaves, [value.double() for value in arriving])
    for a, c in zip(gradients, exact, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-5)
    for b, length in enumerate(lengths):
        assert gradients[0][length:, b].abs().sum() == 0


def test_gradients_of_weights_are_those_of_packing() -> None:
    layer, x, state = setup(num_layers=2, bidirectional=True)
    lengths = LENGTHS[0]
    y, h_n, c_n = run(layer, x, state, lengths)
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    output, (h, c) = layer(packed, state)
    padded, _ = pad_packed_sequence(output, total_length=STEPS)
    weights = list(layer.parameters())
    torch.manual_seed(1)
    arriving = [torch.randn_like(value) for value in (y, h_n, c_n)]
    found = torch.autograd.grad([y, h_n, c_n], weights, arriving)
    expected = torch.autograd.grad([padded, h, c], weights, arriving)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_what_lies_past_a_length_may_be_anything(value: float, calls: list[int]) -> None:
    layer, x, state = setup(bidirectional=True)
    expected = run(layer, x, state, LENGTHS[0])
    beyond = torch.arange(STEPS)[:, None] >= torch.tensor(LENGTHS[0])
    dirty = x.masked_fill(beyond.unsqueeze(-1), value).requires_grad_()
    found = run(layer, dirty, state, LENGTHS[0])
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    sum(part.sum() for part in found).backward()
    assert dirty.grad is not None
    assert dirty.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert calls == [1, 1]


def test_a_cell_state_passes_the_padding_unchanged_whatever_the_weights() -> None:
    """Forget gates that are shut and input gates that are open everywhere else."""
    layer, x, state = setup()
    with torch.no_grad():
        layer.bias_ih_l0[:HIDDEN] = 300.0
        layer.bias_ih_l0[HIDDEN : 2 * HIDDEN] = -300.0
    c_n = run(layer, x, state, LENGTHS[0])[2]
    for a, b in zip(c_n, one_by_one(layer, x, state, LENGTHS[0])[2], strict=True):
        torch.testing.assert_close(a, b)


def test_sequences_of_less_than_half_the_length_are_groups_of_their_own() -> None:
    order, sizes = padded_lstm._groups(torch.tensor([4, 9, 0, 5, 2, 1, 8]))
    assert order.tolist() == [1, 6, 3, 0, 4, 5, 2]
    assert sizes == [3, 2, 2]  # 9, 8, 5; 4, 2; 1 and what has no step
    assert padded_lstm._groups(torch.tensor([5, 9, 9]))[1] == [3]


def test_float64_and_no_steps_at_all_are_packed(calls: list[int]) -> None:
    layer, x, state = setup(torch.float64)
    found = run(layer, x, state, LENGTHS[3])
    for a, b in zip(found, one_by_one(layer, x, state, LENGTHS[3]), strict=True):
        torch.testing.assert_close(a, b)
    layer, x, state = setup()
    output, *last = run(layer, x, state, [0] * BATCH)
    assert output.abs().sum() == 0
    assert all(torch.equal(a, b) for a, b in zip(last, state, strict=True))
    assert calls == []


def test_without_onednn_and_under_autocast_sequences_are_packed(calls: list[int]) -> None:
    layer, x, state = setup()
    with torch.backends.mkldnn.flags(enabled=False):
        run(layer, x, state, LENGTHS[0])
    with torch.autocast("cpu", torch.bfloat16):
        run(layer, x, state, LENGTHS[0])
    run(layer, x, state, LENGTHS[0], backend="eager")
    assert calls == []
    run(layer, x, state, LENGTHS[0], backend="torch")
    assert calls == [1]


def test_dropout_acts_between_layers_in_training_alone() -> None:
    layer, x, state = setup(num_layers=2)
    plain = run(layer, x, state, LENGTHS[0], dropout=1.0)
    for a, b in zip(plain, run(layer, x, state, LENGTHS[0]), strict=True):
        assert torch.equal(a, b)
    dropped = run(layer, x, state, LENGTHS[0], dropout=1.0, training=True)
    first = (dropped[1][0], plain[1][0])
    assert torch.equal(*first)
    second = nn.LSTM(HIDDEN, HIDDEN)
    second.load_state_dict(
        {k[:-1] + "0": v for k, v in layer.state_dict().items() if k.endswith("l1")}
    )
    zeros = torch.zeros(STEPS, BATCH, HIDDEN)
    expected = run(second, zeros, tuple(value[1:] for value in state), LENGTHS[0])
    torch.testing.assert_close(dropped[0], expected[0])


@pytest.mark.parametrize("lengths", LENGTHS)
def test_it_may_be_differentiated_twice(lengths: list[int]) -> None:
    """By torch's own second derivative, which is that of every sequence alone in float64."""
    found = []
    for dtype in (torch.float32, torch.float64):
        layer, x, state = setup()
        layer, x = layer.to(dtype), x.to(dtype).requires_grad_()
        state = tuple(value.to(dtype) for value in state)
        output = run(layer, x, state, lengths)[0]
        (gradient,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), [x, *layer.parameters()]))
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5)
