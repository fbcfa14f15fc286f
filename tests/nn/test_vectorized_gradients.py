"""Many gradients at once, as torch.nn's layers give them: vmap over the backward pass."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from rnnkit_kernels.functional import crf, linear_cross_entropy
from tests.nn.layers import ALL, BACKENDS, STANDARD, assert_close, build, tensors, twins

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
LENGTHS = torch.tensor([1, 3])
FORMS = ["batched", "packed", "lengths"]
EXACT = {"dtype": torch.float64}


def results(layer: Any, form: str, x: Tensor) -> tuple[Tensor, ...]:
    if form == "packed":
        output, last = layer(pack_padded_sequence(x, LENGTHS, enforce_sorted=False))
    else:
        output, last = layer(x, lengths=LENGTHS) if form == "lengths" else layer(x)
    data = output.data if isinstance(output, PackedSequence) else output
    return (data, *tensors(last))


@pytest.mark.parametrize("form", ["batched", "packed"])
@pytest.mark.parametrize("backend", [*BACKENDS, "eager"])
@pytest.mark.parametrize("kind", STANDARD)
def test_the_vectorized_jacobian_is_torchs(kind: str, backend: str, form: str) -> None:
    ours, theirs = twins(kind, 2, 3, backend=backend, **EXACT)
    x = torch.randn(3, 2, 2, **EXACT)
    found, expected = (
        jacobian(lambda v: results(layer, form, v), x, vectorize=True)  # noqa: B023
        for layer in (ours, theirs)
    )
    assert_close(found, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ALL)
def test_the_vectorized_jacobian_is_that_of_single_gradients(kind: str, form: str) -> None:
    layer = build(kind, 2, 3, bidirectional=True, **EXACT)
    x = torch.randn(3, 2, 2, **EXACT)

    def run(v: Tensor) -> tuple[Tensor, ...]:
        return results(layer, form, v)

    expected = jacobian(run, x)
    for create_graph in (False, True):
        found = jacobian(run, x, create_graph=create_graph, vectorize=True)
        assert_close(found, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU reset before"])
def test_the_vectorized_hessian_is_that_of_single_gradients(kind: str, form: str) -> None:
    layer = build(kind, 2, 3, **EXACT)
    x = torch.randn(3, 2, 2, **EXACT)

    def run(v: Tensor) -> Tensor:
        return sum((value.square().sum() for value in results(layer, form, v)), x.new_zeros(()))

    assert_close(hessian(run, x, vectorize=True), hessian(run, x))


def batched_gradients(result: Tensor, leaves: list[Tensor]) -> None:
    """Three gradients of all leaves: by both ways of batching, and one after another."""
    arriving = torch.randn(3, *result.shape, dtype=result.dtype)

    def single(gradient: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(result, leaves, gradient, retain_graph=True)

    expected = [torch.stack(values) for values in zip(*map(single, arriving), strict=True)]
    found = torch.autograd.grad(result, leaves, arriving, retain_graph=True, is_grads_batched=True)
    assert_close(found, expected)
    assert_close(torch.func.vmap(single)(arriving), expected)


@pytest.mark.parametrize("options", [{"zoneout": 0.4}, {"dropout": 0.5}, {"layer_norm": True}])
@pytest.mark.parametrize("form", FORMS)
def test_parameters_have_batched_gradients(form: str, options: dict[str, Any]) -> None:
    layer = build("LSTM", 2, 3, 2, bidirectional=True, **EXACT, **options)
    x = torch.randn(3, 2, 2, **EXACT, requires_grad=True)
    batched_gradients(results(layer, form, x)[0], [x, *layer.parameters()])


def test_a_crf_has_batched_gradients() -> None:
    shapes = ((3, 2, 4), (4, 4), (4,), (4,))
    leaves = [torch.randn(shape, **EXACT, requires_grad=True) for shape in shapes]
    batched_gradients(crf(*leaves, LENGTHS), leaves)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_vocabulary_has_batched_gradients(reduction: Any) -> None:
    leaves = [torch.randn(shape, **EXACT, requires_grad=True) for shape in ((5, 3), (7, 3), (7,))]
    target = torch.randint(7, (5,))
    batched_gradients(linear_cross_entropy(*leaves, target, reduction=reduction), leaves)
