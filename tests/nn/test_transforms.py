"""torch.func and forward-mode AD by their values: a lost tangent is a silent zero."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from tests.nn.layers import (
    ALL,
    BACKENDS,
    STANDARD,
    assert_as_torch,
    assert_close,
    build,
    random_state,
    tensors,
    twins,
)

STEP = 1e-6  # of central differences: their error is about 1e-10 in float64
Parameters = dict[str, Tensor]


def make(kind: str, dtype: torch.dtype = torch.float64) -> tuple[Any, Tensor, Parameters]:
    torch.manual_seed(0)
    layer = build(kind, 2, 4, num_layers=2, bidirectional=True, dtype=dtype)
    input = torch.randn(3, 2, 2, dtype=dtype)
    return layer, input, {name: p.detach() for name, p in layer.named_parameters()}


def slope(function: Callable[[float], Any]) -> list[Tensor]:
    """The derivative at 0 of a function of one number."""
    after, before = tensors(function(STEP)), tensors(function(-STEP))
    return [(a - b).detach() / (2 * STEP) for a, b in zip(after, before, strict=True)]


@pytest.mark.parametrize("kind", ALL)
def test_jvp_of_the_input_and_of_the_state(kind: str) -> None:
    layer, input, _ = make(kind)
    state = random_state(layer, 2)
    direction, state_direction = torch.randn_like(input), random_state(layer, 2)

    def run(x: Tensor, *h: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors(layer(x, h if len(h) > 1 else h[0])))

    primals = (input, *tensors(state))
    tangents = (direction, *tensors(state_direction))
    _, found = jvp(run, primals, tangents)
    expected = slope(lambda s: run(*(p + s * t for p, t in zip(primals, tangents, strict=True))))
    assert all(value.abs().max() > 1e-3 for value in expected)
    assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ALL)
def test_jvp_of_the_parameters(kind: str) -> None:
    layer, input, parameters = make(kind)
    directions = {name: torch.randn_like(value) for name, value in parameters.items()}

    def run(given: Parameters) -> Tensor:
        return functional_call(layer, given, (input,))[0]

    _, found = jvp(run, (parameters,), (directions,))
    expected = slope(
        lambda s: run({name: value + s * directions[name] for name, value in parameters.items()})
    )
    assert expected[0].abs().max() > 1e-3
    assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("through", ["input", "parameters"])
@pytest.mark.parametrize("kind", ALL)
def test_forward_mode_carries_a_tangent_in_every_dtype(
    kind: str, through: str, dtype: torch.dtype
) -> None:
    layer, input, parameters = make(kind, dtype)
    direction = torch.randn_like(input)
    weight_direction = {name: torch.randn_like(value) for name, value in parameters.items()}
    with forward_ad.dual_level():
        if through == "input":
            output = layer(forward_ad.make_dual(input, direction))[0]
        else:
            duals = {
                name: forward_ad.make_dual(value, weight_direction[name])
                for name, value in parameters.items()
            }
            output = functional_call(layer, duals, (input,))[0]
        tangent = forward_ad.unpack_dual(output).tangent
    assert tangent is not None
    exact = layer.double()

    def run(s: float) -> Tensor:
        if through == "input":
            return exact(input.double() + s * direction.double())[0]
        moved = {
            name: value.double() + s * weight_direction[name].double()
            for name, value in parameters.items()
        }
        return functional_call(exact, moved, (input.double(),))[0]

    (expected,) = slope(run)
    assert expected.abs().max() > 1e-3
    tolerance = 1e-4 if dtype == torch.float32 else 1e-6
    torch.testing.assert_close(tangent.double(), expected, rtol=tolerance, atol=tolerance / 10)


def test_forward_mode_through_onednn_is_refused_as_by_torch() -> None:
    for layer in twins("LSTM", 2, 4, backend="torch"):
        with (
            forward_ad.dual_level(),
            pytest.raises(NotImplementedError, match="forward AD with mkldnn_rnn_layer"),
        ):
            layer(forward_ad.make_dual(torch.randn(3, 2, 2), torch.randn(3, 2, 2)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", STANDARD)
def test_func_gradients_are_those_of_torch(kind: str, dtype: torch.dtype, backend: str) -> None:
    options = {"num_layers": 2, "bidirectional": True, "dtype": dtype}
    ours, theirs = twins(kind, 2, 4, **options, backend=backend)
    input = torch.randn(3, 2, 2, dtype=dtype)

    def loss(layer: Any) -> Callable[[Tensor, Parameters], Tensor]:
        return lambda x, p: functional_call(layer, p, (x,))[0].sin().sum()

    def run(layer: Any) -> list[Tensor]:
        parameters = {name: p.detach() for name, p in layer.named_parameters()}
        x = input.to(layer.weight_ih_l0.dtype)
        of_input, of_parameters = grad(loss(layer), argnums=(0, 1))(x, parameters)
        assert of_input.abs().max() > 1e-3
        return [of_input, *of_parameters.values()]

    assert_as_torch(ours, theirs, run)


@pytest.mark.parametrize("kind", ALL)
def test_func_gradients_are_those_of_backward(kind: str) -> None:
    layer, input, _ = make(kind)
    leaf = input.clone().requires_grad_()
    output = layer(leaf)[0]
    output.sin().sum().backward()
    found = grad(lambda x: layer(x)[0].sin().sum())(input)
    torch.testing.assert_close(found, leaf.grad, rtol=1e-10, atol=1e-12)
    (pulled,) = vjp(lambda x: layer(x)[0], input)[1](output.detach().cos())
    torch.testing.assert_close(pulled, leaf.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ALL)
def test_jacobians_and_the_hessian_agree_with_reverse_mode(kind: str) -> None:
    layer, input, _ = make(kind)

    def run(x: Tensor) -> Tensor:
        return layer(x)[0]

    # Row by row, without a transform.
    expected = torch.autograd.functional.jacobian(run, input)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(jacrev(run)(input), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(jacfwd(run)(input), expected, rtol=1e-10, atol=1e-12)
    twice = torch.autograd.functional.hessian(lambda x: run(x).sin().sum(), input)
    assert twice.abs().max() > 1e-3
    found = hessian(lambda x: run(x).sin().sum())(input)
    torch.testing.assert_close(found, twice, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ALL)
def test_gradients_of_each_sample_under_vmap(kind: str) -> None:
    layer, _, parameters = make(kind)
    samples = torch.randn(3, 3, 2, 2, dtype=torch.float64)

    def loss(given: Parameters, x: Tensor) -> Tensor:
        return functional_call(layer, given, (x,))[0].sin().sum()

    found = vmap(grad(loss), (None, 0))(parameters, samples)
    for i, sample in enumerate(samples):
        expected = grad(loss)(parameters, sample)
        for name, value in expected.items():
            assert value.abs().max() > 1e-6, name
            torch.testing.assert_close(found[name][i], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ALL)
def test_vmap_gives_the_values_of_a_loop(kind: str) -> None:
    """Where torch.nn refuses, too."""
    layer, _, _ = make(kind)
    samples = torch.randn(3, 3, 2, 2, dtype=torch.float64)
    if kind in STANDARD:
        _, theirs = twins(kind, 2, 4, dtype=torch.float64)
        with pytest.raises(RuntimeError, match="Batching rule not implemented"):
            vmap(lambda x: theirs(x)[0])(samples)
    expected = torch.stack([layer(x)[0] for x in samples])
    found = vmap(lambda x: layer(x)[0])(samples)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


LENGTHS = torch.tensor([2, 3])


@pytest.mark.parametrize("kind", ALL)
def test_func_gradients_of_the_parameters_with_lengths(kind: str) -> None:
    layer, input, parameters = make(kind)

    def loss(given: Parameters) -> Tensor:
        return functional_call(layer, given, (input,), {"lengths": LENGTHS})[0].sin().sum()

    loss(dict(layer.named_parameters())).backward()
    found = grad(loss)(parameters)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("transform", ["vjp", "jvp"])
@pytest.mark.parametrize("kind", ALL)
def test_func_derivatives_of_the_input_with_lengths(kind: str, transform: str) -> None:
    layer, input, _ = make(kind)
    direction = torch.randn_like(input)

    def run(x: Tensor) -> Tensor:
        return layer(x, lengths=LENGTHS)[0]

    (expected,) = slope(lambda s: run(input + s * direction))
    if transform == "jvp":
        _, found = jvp(run, (input,), (direction,))
    else:
        (pulled,) = vjp(run, input)[1](torch.ones_like(expected))
        found, expected = (pulled * direction).sum(), expected.sum()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.compiler
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "GRU reset before"])
def test_transforms_inside_a_compiled_function(kind: str) -> None:
    """Traced, a layer is an operator that would swallow the tangent."""
    torch.manual_seed(0)
    layer = build(kind, 2, 4, dtype=torch.float64)
    input = torch.randn(2, 2, 2, dtype=torch.float64)
    direction = torch.randn_like(input)

    def loss(x: Tensor) -> Tensor:
        return layer(x)[0].square().sum()

    def tangent(x: Tensor) -> Tensor:
        return jvp(loss, (x,), (direction,))[1]

    assert tangent(input).abs() > 1e-3
    for function in (tangent, grad(loss)):
        traced = torch.compile(function, backend="aot_eager")
        torch.testing.assert_close(traced(input), function(input))
