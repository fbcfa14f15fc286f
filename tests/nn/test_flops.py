"""torch's counter of FLOP sees the layers, and counts as it counts a loop of products."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import rnnkit
from rnnkit_kernels.functional import crf, linear_cross_entropy
from tests.conftest import NATIVE, needs_engine
from tests.nn.layers import STANDARD, build, leaf, random_state, tensors, twins
from tests.nn.test_imports import run

LENGTHS = torch.tensor([2, 5, 3])
BACKENDS = ["auto", "eager", pytest.param("native", marks=needs_engine)]


def counted(run: Any) -> tuple[int, int]:
    """FLOP of a call, and of the backward pass of its results."""
    numbers = []
    with FlopCounterMode(display=False) as counter:
        results = [value for value in tensors(run()) if value.requires_grad]
    numbers.append(counter.get_total_flops())
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(results, [torch.ones_like(value) for value in results])
    return numbers[0], counter.get_total_flops()


def loop(layer: Any, x: Tensor, hx: Any, lengths: Tensor) -> list[Tensor]:
    """The layer's products, as many as it takes, in their order; no cell."""
    states = list(tensors(hx)[0].unbind(0))
    rows = [x[t, lengths > t] for t in range(len(x))]
    for member in range(layer.num_layers):
        weights = layer.all_weights[member]
        weight_hr = weights[-1] if layer.proj_size else None
        gates = linear(torch.cat(rows), weights[0], weights[2])
        h, rows, first = states[member], [], 0
        for t in range(int(lengths.max())):
            inside = lengths > t
            count = int(inside.sum())
            now = gates[first : first + count] + linear(h[inside], weights[1], weights[3])
            value = now[:, : layer.hidden_size].tanh()
            rows.append(value if weight_hr is None else linear(value, weight_hr))
            h = h.index_put((inside,), rows[-1])
            first += count
        states[member] = h
    return [torch.cat(rows), *states]


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("needs_dx", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", STANDARD)
def test_a_layer_counts_as_a_loop(kind: str, backend: str, needs_dx: bool, ragged: bool) -> None:
    if (kind, backend, NATIVE) == ("LSTM", "auto", False):
        pytest.skip("torch's own LSTM is oneDNN's, of which its counter knows nothing")
    layer = build(kind, 4, 6, 2, backend=backend)
    x = torch.randn(5, 3, 4, requires_grad=needs_dx)
    hx = leaf(random_state(layer, 3))
    lengths = LENGTHS if ragged else torch.tensor([5, 5, 5])
    own = {"lengths": LENGTHS} if ragged else {}
    expected = counted(lambda: loop(layer, x, hx, lengths))
    assert expected[0] > 0
    assert counted(lambda: layer(x, hx, **own)) == expected
    if ragged:
        packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
        assert counted(lambda: layer(packed, hx)) == expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["GRU", "RNN tanh", "LSTM with projection"])
def test_a_layer_counts_as_torchs(kind: str, backend: str) -> None:
    ours, theirs = twins(kind, 4, 6, 2, bidirectional=True, backend=backend)
    x, hx = torch.randn(5, 3, 4, requires_grad=True), leaf(random_state(ours, 3))
    assert counted(lambda: ours(x, hx)) == counted(lambda: theirs(x, hx))


@pytest.mark.parametrize(
    ("name", "options", "gates"),
    [
        ("GRU", {"reset_after": False}, 3),
        ("LSTM", {"peephole": True}, 4),
        ("LSTM", {"coupled": True, "zoneout": 0.2}, 3),
    ],
)
def test_what_torch_lacks_is_counted(name: str, options: dict[str, Any], gates: int) -> None:
    layer = getattr(rnnkit, name)(4, 6, **options)
    x = torch.randn(5, 3, 4, requires_grad=True)
    forward = 2 * 15 * gates * 6 * (4 + 6)
    assert counted(lambda: layer(x)) == (forward, 2 * forward)
    layer.recompute = True  # the gates are made again
    assert counted(lambda: layer(x)) == (forward, 3 * forward)


@needs_engine
def test_a_backward_pass_is_seen_whatever_saw_the_forward_pass() -> None:
    layer = rnnkit.GRU(4, 6, backend="native")
    x = torch.randn(5, 3, 4, requires_grad=True)
    output = layer(x)[0]
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 2 * (2 * 15 * 3 * 6 * (4 + 6))


def test_modules_are_told_apart() -> None:
    model = nn.Sequential(rnnkit.LSTM(4, 6, backend="eager"))
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(5, 3, 4))
    assert sum(counter.get_flop_counts()["Sequential.0"].values()) == 2 * 15 * 4 * 6 * (4 + 6)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_vocabulary_counts_as_its_linear_layer(reduction: Any) -> None:
    leaves = [torch.randn(shape, requires_grad=True) for shape in ((5, 3), (7, 3), (7,))]
    target = torch.randint(7, (5,))
    plain = counted(lambda: cross_entropy(linear(*leaves), target, reduction=reduction))
    found = counted(lambda: linear_cross_entropy(*leaves, target, reduction=reduction))
    # Of a sum the gradients are made with the logits; else these are made again for them.
    again = 0 if reduction == "sum" else plain[0]
    assert sum(found) == sum(plain) + again
    assert found[0] == (sum(plain) if reduction == "sum" else plain[0])


def test_a_crf_counts_products_with_its_transitions() -> None:
    leaves = [torch.randn(shape, requires_grad=True) for shape in ((4, 3, 5), (5, 5), (5,), (5,))]

    def loop() -> Tensor:
        alpha = (leaves[0][0] + leaves[2]).exp()
        for step in leaves[0][1:]:
            alpha = (alpha @ leaves[1].exp()) * step.exp()
        return (alpha * leaves[3].exp()).sum(1).log()

    expected = counted(loop)
    assert expected[0] > 0
    assert counted(lambda: crf(*leaves, torch.tensor([4, 2, 3]))) == expected


@pytest.mark.process
def test_a_counter_that_was_made_before_any_call_counts() -> None:
    code = """
    import sys
    import rnnkit, torch
    layer, x = rnnkit.GRU(4, 6, reset_after=False), torch.randn(5, 3, 4)
    layer(x)
    assert "torch.utils.flop_counter" not in sys.modules  # it imports Triton
    from torch.utils.flop_counter import FlopCounterMode
    with FlopCounterMode(display=False) as counter:
        layer(x)[0].sum().backward()
    print(counter.get_total_flops())
    """
    # Nothing needs the gradient of x.
    assert int(run(code)) == 2 * 15 * 18 * (3 * (4 + 6) - 4)
