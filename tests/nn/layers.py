"""Twins: an rnnkit layer and torch's with the same parameters, and what they are compared by.

With `backend="torch"` the two agree bit for bit; what "auto" takes follows the tolerance rule.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import rnnkit
from tests.conftest import needs_engine
from tests.kernels.layers import assert_as_exact

# What is compared with torch.nn: bit for bit, and by the tolerance rule.
BACKENDS = ["torch", "auto", pytest.param("native", marks=needs_engine)]
CLASSES: dict[str, tuple[Any, Any]] = {
    "LSTM": (rnnkit.LSTM, nn.LSTM),
    "GRU": (rnnkit.GRU, nn.GRU),
    "RNN": (rnnkit.RNN, nn.RNN),
}
# What torch.nn offers, and what it lacks. Layers that draw random numbers, or are slow, have tests
# of their own.
STANDARD: dict[str, tuple[str, dict[str, Any]]] = {
    "LSTM": ("LSTM", {}),
    "LSTM with projection": ("LSTM", {"proj_size": 2}),
    "GRU": ("GRU", {}),
    "RNN tanh": ("RNN", {}),
    "RNN relu": ("RNN", {"nonlinearity": "relu"}),
}
ALL = STANDARD | {
    "GRU reset before": ("GRU", {"reset_after": False}),
    "LSTM with peepholes": ("LSTM", {"peephole": True}),
    "LSTM coupled": ("LSTM", {"peephole": True, "coupled": True}),
    "LSTM recomputed": ("LSTM", {"recompute": True}),
    "GRU residual": ("GRU", {"residual": True}),
    "RNN residual": ("RNN", {"residual": True}),
}


def build(kind: str, *sizes: int, **options: Any) -> Any:
    """The rnnkit layer of a kind of `ALL`."""
    name, extra = ALL[kind]
    return CLASSES[name][0](*sizes, **extra, **options)


def twins(
    kind: str, *sizes: int, seed: int = 0, backend: str = "auto", **options: Any
) -> tuple[Any, Any]:
    """The rnnkit layer of a kind of `STANDARD` and torch's, each drawn from the same seed."""
    name, extra = STANDARD[kind]
    made = []
    for layer_class, own in zip(CLASSES[name], ({"backend": backend}, {}), strict=True):
        torch.manual_seed(seed)
        made.append(layer_class(*sizes, **extra, **options, **own))
    return made[0], made[1]


def random_state(
    layer: Any, batch: int | None, generator: torch.Generator | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """An initial state for `layer`; without the batch dimension if `batch` is None."""
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = (layer.proj_size or layer.hidden_size, layer.hidden_size)
    dtype = next(layer.parameters()).dtype
    values = [
        torch.randn(
            (rows, size) if batch is None else (rows, batch, size),
            generator=generator,
            dtype=dtype,
        )
        for size in sizes
    ]
    return (values[0], values[1]) if type(layer).__name__ == "LSTM" else values[0]


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a result, in order."""
    if isinstance(value, PackedSequence):
        return tensors(tuple(value))
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value or () for tensor in tensors(item)]


def differentiable(value: Any) -> list[Tensor]:
    """The floating-point tensors in a result: not a PackedSequence's sizes and indices."""
    return [tensor for tensor in tensors(value) if tensor.is_floating_point()]


def gradients(result: Any, leaves: list[Tensor], seed: int = 0) -> list[Tensor]:
    """Gradients of a random weighted sum of all results: no two of them can trade places."""
    generator = torch.Generator().manual_seed(seed)
    outputs = differentiable(result)
    weights = [
        torch.randn(tuple(output.shape), generator=generator, dtype=torch.float64).to(output.dtype)
        for output in outputs
    ]
    return list(torch.autograd.grad(outputs, leaves, weights))


def leaf(value: Any) -> Any:
    """The same tensors as new leaves that require a gradient, in the same nesting."""
    if isinstance(value, PackedSequence):
        return value._replace(data=leaf(value.data))
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_()
    return None if value is None else tuple(leaf(item) for item in value)


def assert_equal(ours: Any, theirs: Any) -> None:
    """Same structure, shapes, strides, dtypes and bits."""
    assert type(ours) is type(theirs)
    for mine, other in _pairs(ours, theirs):
        assert mine.shape == other.shape
        assert mine.dtype == other.dtype
        assert torch.equal(mine, other)


def assert_as_torch(ours: Any, theirs: Any, run: Callable[[Any], Any]) -> None:
    """With `backend="torch"` the same bits; else the tolerance rule.

    Args:
        ours: rnnkit's layer.
        theirs: torch's, with the same parameters.
        run: makes results of a layer, in the layer's dtype (`cast`).
    """
    result = run(ours)
    if ours.backend == "torch":
        assert_equal(result, run(theirs))
    else:
        assert_follows_the_rule(result, theirs, run)


def assert_follows_the_rule(result: Any, theirs: Any, run: Callable[[Any], Any]) -> None:
    """Error against torch's layer in float64 ≤ 2 × that of its loop in our dtype, and a band."""
    with torch.backends.mkldnn.flags(enabled=False):  # step by step in ATen
        plain = run(theirs)
    exact = run(copy.deepcopy(theirs).double())
    assert type(result) is type(exact)
    found = differentiable(result)
    assert_as_exact(found, differentiable(plain), differentiable(exact), found[0].dtype)


def cast(value: Any, layer: Any) -> Any:
    """The same tensors as leaves in the layer's dtype, in the same nesting."""
    dtype = next(layer.parameters()).dtype
    if isinstance(value, PackedSequence):
        return value._replace(data=cast(value.data, layer))
    if isinstance(value, Tensor):
        return value.detach().to(dtype, copy=True).requires_grad_()
    return None if value is None else tuple(cast(item, layer) for item in value)


def assert_close(ours: Any, theirs: Any, **tolerances: float) -> None:
    """Same structure, shapes and dtypes, and values within `torch.testing`'s tolerances."""
    for mine, other in _pairs(ours, theirs):
        torch.testing.assert_close(mine, other, **tolerances)


def _pairs(ours: Any, theirs: Any) -> Iterator[tuple[Tensor, Tensor]]:
    mine, others = tensors(ours), tensors(theirs)
    assert mine
    yield from zip(mine, others, strict=True)
