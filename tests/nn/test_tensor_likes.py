"""Objects with `__torch_function__` that are no tensors: taken where torch.nn takes them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rnnkit
from tests.nn.layers import ALL, STANDARD, assert_equal, build, random_state, tensors, twins


class Boxed:
    """A tensor inside an object, as torch's own tests of the protocol have it."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.value, name)
        if not callable(found):
            return boxed(found)
        return lambda *args, **kwargs: boxed(found(*unboxed(args), **unboxed(kwargs)))

    def __getitem__(self, index: Any) -> Any:
        return boxed(self.value[index])

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        return boxed(function(*unboxed(args), **unboxed(kwargs or {})))


def boxed(value: Any) -> Any:
    if type(value) in (tuple, list):
        return type(value)(map(boxed, value))
    return Boxed(value) if isinstance(value, Tensor) else value


def unboxed(value: Any) -> Any:
    if type(value) in (tuple, list):
        return type(value)(map(unboxed, value))
    if isinstance(value, dict):
        return {name: unboxed(item) for name, item in value.items()}
    return value.value if isinstance(value, Boxed) else value


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("kind", STANDARD)
def test_a_layer_gives_torchs_bits_in_a_box(kind: str, backend: str, grad: bool) -> None:
    ours, theirs = twins(kind, 3, 4, 2, bidirectional=True, backend=backend)
    x, hx = torch.randn(5, 2, 3), random_state(ours, 2)
    with torch.set_grad_enabled(grad):
        expected = theirs(x, hx)
        for given in ((boxed(x), boxed(hx)), (x, boxed(hx))):
            found = ours(*given)
            assert isinstance(found[0], Boxed)
            assert_equal(unboxed(found), expected)
        assert_equal(unboxed(ours(boxed(x))), theirs(x))
        assert_equal(unboxed(ours(boxed(x[:, 0]))), theirs(x[:, 0]))


@pytest.mark.parametrize("kind", sorted(set(ALL) - set(STANDARD)))
def test_a_layer_that_torch_lacks_takes_a_box(kind: str) -> None:
    layer = build(kind, 3, 4, dtype=torch.float64)
    x, hx = torch.randn(5, 2, 3, dtype=torch.float64), random_state(layer, 2)
    for given in ((boxed(x), boxed(hx)), (x, boxed(hx)), (boxed(x),)):
        found, expected = unboxed(layer(*given)), layer(*unboxed(given))
        for mine, other in zip(tensors(found), tensors(expected), strict=True):
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_a_cell_gives_torchs_bits_in_a_box(name: str) -> None:
    ours, theirs = getattr(rnnkit, name)(3, 4), getattr(nn, name)(3, 4)
    ours.load_state_dict(theirs.state_dict())
    x, h = torch.randn(2, 3), torch.randn(2, 4)
    hx = (h, h) if name == "LSTMCell" else h
    for given in ((boxed(x), boxed(hx)), (x, boxed(hx)), (boxed(x),)):
        assert_equal(unboxed(ours(*given)), theirs(*unboxed(given)))


@pytest.mark.parametrize("value", [[[1.0]], "text", object()], ids=["list", "text", "object"])
def test_other_objects_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="expected a tensor or a PackedSequence"):
        rnnkit.GRU(3, 4)(value)
    with pytest.raises(TypeError, match="expected hx to be"):
        rnnkit.GRU(3, 4)(torch.randn(5, 2, 3), value)
