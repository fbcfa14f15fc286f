"""Layer normalisation, which runs by its definition; its equations are in `test_options.py`."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jvp, vmap

import rnnkit
from tests.nn.layers import CLASSES, assert_close, gradients, leaf, random_state, tensors
from tests.nn.test_transforms import slope

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "LSTM": ("LSTM", {}),
    "LSTM coupled": ("LSTM", {"coupled": True, "peephole": True}),
    "GRU": ("GRU", {}),
    "RNN": ("RNN", {}),
}


def build(kind: str, *sizes: int, **options: Any) -> Any:
    name, extra = KINDS[kind]
    return CLASSES[name][0](*sizes, layer_norm=True, dtype=torch.float64, **extra, **options)


def test_a_layer_norm_does_not_see_the_scale_of_its_weights() -> None:
    layer = rnnkit.GRU(3, 4, bias=False, layer_norm=True, dtype=torch.float64)
    input, hx = torch.randn(5, 2, 3, dtype=torch.float64), torch.randn(1, 2, 4).double()
    expected = layer(input, hx)[0]
    with torch.no_grad():
        layer.weight_ih_l0.mul_(1e3)
        layer.weight_hh_l0.mul_(1e3)
    scaled = layer(input, hx)[0]
    with torch.no_grad():
        layer.weight_ih_l0.mul_(7)
        layer.weight_hh_l0.mul_(7)
    # The 1e-5 under the root counts for little here, and for much before.
    torch.testing.assert_close(layer(input, hx)[0], scaled, rtol=1e-6, atol=1e-7)
    assert (scaled - expected).abs().max() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_first_and_second_derivatives(kind: str) -> None:
    layer = build(kind, 2, 3)
    hx = random_state(layer, 2)
    states, names = tensors(hx), [name for name, _ in layer.named_parameters()]

    def run(input: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        given: Any = rest[: len(states)] if isinstance(hx, tuple) else rest[0]
        parameters = dict(zip(names, rest[len(states) :], strict=True))
        return tuple(tensors(functional_call(layer, parameters, (input, given))))

    input = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    leaves = [*tensors(leaf(hx)), *[leaf(p) for p in layer.parameters()]]
    options: dict[str, Any] = {"fast_mode": True, "check_undefined_grad": False}
    assert gradcheck(run, (input, *leaves), **options)
    assert gradgradcheck(run, (input, *leaves), **options)


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("kind", "given"), [*((kind, None) for kind in KINDS), ("LSTM", [3, 0]), ("GRU", [3, 0])]
)
def test_one_graph_trains_as_eager_does(kind: str, given: list[int] | None) -> None:
    torch._dynamo.reset()
    lengths = None if given is None else torch.tensor(given)
    layer = build(kind, 3, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results, found = [], []
    input, hx = torch.randn(3, 2, 3, dtype=torch.float64), random_state(layer, 2)
    for run in (layer, compiled):
        x, h = leaf(input), leaf(hx)
        results.append(run(x, h, lengths=lengths))
        found.append(gradients(results[-1], [x, *tensors(h), *layer.parameters()]))
    assert_close(*results)
    assert_close(*found)


@pytest.mark.parametrize("kind", KINDS)
def test_transforms_give_values(kind: str) -> None:
    layer = build(kind, 2, 4)
    input, direction = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(given: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, given, (x,))[0].sin().sum()

    _, tangent = jvp(lambda x: layer(x)[0], (input,), (direction,))
    (expected,) = slope(lambda s: layer(input + s * direction)[0])
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(tangent, expected, rtol=1e-5, atol=1e-7)

    samples = torch.stack([input, direction])
    outputs = vmap(lambda x: layer(x)[0])(samples)
    each = vmap(grad(loss), (None, 0))(parameters, samples)
    for i, sample in enumerate(samples):
        torch.testing.assert_close(outputs[i], layer(sample)[0])
        for name, value in grad(loss)(parameters, sample).items():
            assert value.abs().max() > 1e-6, name
            torch.testing.assert_close(each[name][i], value, rtol=1e-9, atol=1e-11)


def test_the_kernels_refuse_it_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    layer = build("GRU", 3, 4, backend="triton")
    with pytest.raises(RuntimeError, match="can't run this layer: layer normalisation"):
        layer(torch.randn(5, 2, 3, dtype=torch.float64))


def test_what_cannot_be_normalised_is_refused() -> None:
    with pytest.raises(ValueError, match="layer_norm=True and reset_after=False exclude"):
        rnnkit.GRU(3, 4, reset_after=False, layer_norm=True)
    with pytest.raises(ValueError, match="layer_norm=True and recompute=True exclude"):
        rnnkit.LSTM(3, 4, layer_norm=True, recompute=True)
