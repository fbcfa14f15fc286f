"""Dropped recurrent weights: drawn by torch's dropout, once a call, and nowhere kept."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.nn.functional import dropout
from torch.nn.utils.rnn import pack_padded_sequence

import rnnkit
from tests.nn.layers import (
    ALL,
    STANDARD,
    assert_close,
    assert_equal,
    build,
    differentiable,
    gradients,
    leaf,
    random_state,
    tensors,
    twins,
)

OPTIONS: dict[str, Any] = {"num_layers": 2, "bidirectional": True}


def drop(layer: Any, probability: float) -> dict[str, Tensor]:
    """Every parameter, those of the recurrent products as torch's dropout leaves them."""
    return {
        name: dropout(value, probability) if name.startswith("weight_hh") else value
        for name, value in layer.named_parameters()
    }


@pytest.mark.parametrize("form", ["dense", "lengths", "packed"])
@pytest.mark.parametrize("kind", ALL)
def test_it_is_the_layer_with_weights_that_torch_dropped(kind: str, form: str) -> None:
    layer, plain = (build(kind, 3, 5, **OPTIONS, weight_drop=p) for p in (0.4, 0.0))
    plain.load_state_dict(layer.state_dict())
    input, hx, lengths = torch.randn(6, 3, 3), random_state(layer, 3), torch.tensor([2, 6, 0])
    given: Any = input
    if form == "packed":
        lengths = torch.tensor([2, 6, 1])
        given = pack_padded_sequence(input, lengths, enforce_sorted=False)
    options = {"lengths": lengths} if form == "lengths" else {}
    torch.manual_seed(3)
    result = layer(given, hx, **options)
    found = gradients(differentiable(result), list(layer.parameters()))
    torch.manual_seed(3)
    expected = functional_call(plain, drop(plain, 0.4), (given, hx), options)
    assert_equal(result, expected)
    assert_equal(found, gradients(differentiable(expected), list(plain.parameters())))
    assert not torch.equal(differentiable(layer(given, hx, **options))[0], tensors(expected)[0])


@pytest.mark.parametrize("kind", STANDARD)
def test_torchs_own_layer_gives_the_same_bits_on_dropped_weights(kind: str) -> None:
    ours, theirs = twins(kind, 3, 5, **OPTIONS, backend="torch")
    ours.weight_drop = 0.4
    input = torch.randn(6, 3, 3)
    torch.manual_seed(3)
    result = ours(input)
    torch.manual_seed(3)
    theirs.load_state_dict(drop(ours, 0.4))
    assert_equal(result, theirs(input))


@pytest.mark.parametrize("kind", STANDARD)
def test_without_it_or_in_evaluation_torchs_bits_remain(kind: str) -> None:
    ours, theirs = twins(kind, 3, 5, **OPTIONS, dropout=0.5, backend="torch")
    input = torch.randn(6, 3, 3)
    for training, probability in ((True, 0.0), (False, 0.7)):
        ours.weight_drop = probability
        results = []
        for layer in (ours, theirs):
            torch.manual_seed(1)
            results.append(layer.train(training)(input))
        assert_equal(*results)


@pytest.mark.parametrize("kind", ALL)
def test_certain_dropping_leaves_no_recurrent_product(kind: str) -> None:
    layer, plain = (build(kind, 3, 5, **OPTIONS, weight_drop=p) for p in (1.0, 0.0))
    state = layer.state_dict()
    plain.load_state_dict(
        {n: torch.zeros_like(v) if "weight_hh" in n else v for n, v in state.items()}
    )
    input = torch.randn(6, 3, 3)
    assert_close(layer(input), plain(input))
    layer(input)[0].sum().backward()
    assert torch.count_nonzero(layer.weight_hh_l1_reverse.grad) == 0
    assert torch.count_nonzero(layer.weight_ih_l1_reverse.grad) > 0


@pytest.mark.parametrize("kind", ALL)
def test_parameters_and_module_stay_as_they_are(kind: str) -> None:
    layer = build(kind, 3, 5, **OPTIONS, weight_drop=0.5)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    parameters, attributes = list(layer.parameters()), set(vars(layer))
    layer(torch.randn(6, 3, 3))[0].sum().backward()
    assert_equal(list(layer.state_dict().values()), list(before.values()))
    assert list(layer.state_dict()) == list(before)
    assert all(a is b for a, b in zip(layer.parameters(), parameters, strict=True))
    assert set(vars(layer)) == attributes


def test_a_share_of_the_elements_is_dropped_and_the_others_scaled() -> None:
    """With the identity as weight and one step, h' = relu(mask ⊙ h / (1 − p))."""
    units = 2000
    layer = rnnkit.RNN(1, units, nonlinearity="relu", bias=False, weight_drop=0.3)
    with torch.no_grad():
        layer.weight_hh_l0.copy_(torch.eye(units))
        layer.weight_ih_l0.zero_()
    output = layer(torch.zeros(1, 1, 1), torch.ones(1, 1, units))[0].flatten()
    kept = output > 0
    torch.testing.assert_close(output[kept], torch.full_like(output[kept], 1 / 0.7))
    assert abs(int(kept.sum()) - 0.7 * units) <= 5 * (units * 0.7 * 0.3) ** 0.5


def test_one_mask_serves_all_steps_and_sequences_of_a_call() -> None:
    layer = rnnkit.RNN(1, 40, nonlinearity="relu", bias=False, weight_drop=0.5)
    with torch.no_grad():
        layer.weight_hh_l0.copy_(torch.eye(40))
        layer.weight_ih_l0.zero_()
    output = layer(torch.zeros(3, 2, 1), torch.ones(1, 2, 40))[0]
    mask = output[0, 0] > 0
    assert 5 < mask.sum() < 35
    for t in range(3):
        for b in range(2):
            torch.testing.assert_close(output[t, b], mask * 2.0 ** (t + 1))


@pytest.mark.parametrize("kind", ["LSTM", "GRU reset before", "LSTM coupled"])
def test_the_gradient_with_a_drawn_mask(kind: str) -> None:
    layer = build(kind, 2, 3, bidirectional=True, weight_drop=0.4, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]

    def run(input: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(5)
        parameters = dict(zip(names, weights, strict=True))
        return tuple(tensors(functional_call(layer, parameters, (input,))))

    input = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(run, (input, *[leaf(p) for p in layer.parameters()]), fast_mode=True)


@pytest.mark.compiler
@pytest.mark.parametrize("kind", ["GRU", "LSTM with peepholes"])
def test_it_compiles_into_one_graph_that_drops(kind: str) -> None:
    torch._dynamo.reset()
    layer = build(kind, 3, 5, **OPTIONS, weight_drop=0.5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    input = torch.randn(4, 2, 3)
    first, second = compiled(input)[0], compiled(input)[0]
    assert not torch.equal(first, second)
    first.sum().backward()
    gradient = layer.weight_hh_l0.grad
    dropped = int((gradient == 0).sum())
    assert 0.25 * gradient.numel() < dropped < 0.75 * gradient.numel()
    torch.testing.assert_close(compiled.eval()(input)[0], layer.eval()(input)[0])


def test_autocast_drops_too() -> None:
    layer = rnnkit.LSTM(3, 5, 2, weight_drop=0.5)
    input = torch.randn(4, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = [layer(input)[0] for _ in range(2)]
    assert outputs[0].dtype == torch.bfloat16
    assert not torch.equal(*outputs)
    outputs[0].float().sum().backward()
    assert layer.weight_hh_l0.grad.dtype == torch.float32


def test_the_checkpoint_is_torchs() -> None:
    layer = rnnkit.LSTM(3, 5, 2, weight_drop=0.5)
    layer(torch.randn(4, 2, 3))
    nn.LSTM(3, 5, 2).load_state_dict(layer.state_dict(), strict=True)
