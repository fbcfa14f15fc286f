"""Calls that don't fit together: the engine must read no memory but that of its tensors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import rnnkit
from rnnkit_kernels.ops.recurrence import recurrence
from tests.conftest import needs_engine

pytestmark = needs_engine
X = torch.randn(3, 2, 4)


def layer(**changed: Tensor) -> Any:
    """A layer that runs natively, some of its parameters replaced."""
    made = rnnkit.GRU(4, 5, backend="native")
    for name, value in changed.items():
        setattr(made, name, nn.Parameter(value))
    return made


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight_hh_l0", torch.randn(15, 2)),
        ("weight_ih_l0", torch.randn(2, 4)),
        ("bias_ih_l0", torch.randn(2)),
        ("bias_hh_l0", torch.randn(15, dtype=torch.float64)),
        ("bias_hh_l0", torch.randn(15, device="meta")),
    ],
    ids=["narrow W_hh", "short W_ih", "short bias", "bias of another dtype", "bias elsewhere"],
)
def test_parameters_that_do_not_fit_are_named(name: str, value: Tensor, grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        changed = layer(**{name: value})
        with pytest.raises(RuntimeError, match=f"expected ({name[:-3]} of shape|all tensors)"):
            changed(X)


def test_a_parameter_that_is_replaced_between_calls_is_seen() -> None:
    made = layer()
    with torch.no_grad():
        made(X)
        made.weight_hh_l0 = nn.Parameter(torch.randn(15, 2))
        with pytest.raises(RuntimeError, match="expected weight_hh of shape"):
            made(X)


@pytest.mark.parametrize(
    "sizes", [[2], [1, 2], [200_000, 2], [2, 2], [2, -5], [2, 0, 1], []], ids=str
)
def test_a_packed_sequence_whose_sizes_are_wrong_is_refused(sizes: list[int]) -> None:
    packed = PackedSequence(torch.randn(3, 4), torch.tensor(sizes, dtype=torch.int64))
    with pytest.raises((RuntimeError, IndexError)):
        layer()(packed)


def test_batch_sizes_of_another_dtype_are_refused() -> None:
    packed = PackedSequence(torch.randn(3, 4), torch.tensor([2, 1], dtype=torch.int32))
    with pytest.raises(RuntimeError, match="expected batch sizes"):
        layer()(packed)


@pytest.mark.parametrize("grad", [True, False])
def test_a_view_that_is_negated_when_read_is_negated(grad: bool) -> None:
    made, h0 = layer(), torch.randn(1, 2, 5)
    with torch.set_grad_enabled(grad):
        assert torch.equal(made(torch._neg_view(X))[0], made(-X)[0])
        assert torch.equal(made(X, torch._neg_view(h0))[0], made(X, -h0)[0])


def freed() -> Tensor:
    tensor = torch.randn(3, 2, 4)
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("make", [freed, lambda: torch._efficientzerotensor(3, 2, 4)])
def test_a_tensor_without_memory_is_refused(make: Callable[[], Tensor], grad: bool) -> None:
    with (
        torch.set_grad_enabled(grad),
        pytest.raises(RuntimeError, match=r"without memory|expected"),
    ):
        layer()(make())


@pytest.mark.parametrize("batch", [1, 20_000])
def test_the_operator_wants_as_many_states_as_sequences(batch: int) -> None:
    shapes = ((3, 2, 4), (1, 15, 4), (1, 15, 5))
    given = [*(torch.randn(shape) for shape in shapes), *[None] * 4, torch.randn(1, batch, 5)]
    with pytest.raises(RuntimeError, match="expected x of shape"):
        recurrence(*given, *[None] * 4, "gru", False, "native", False, False)


def test_weights_of_another_kind_than_tensors_take_the_general_way() -> None:
    class Kind(Tensor):
        pass

    made = layer()
    made._parameters["weight_hh_l0"] = nn.Parameter(torch.randn(15, 5)).as_subclass(Kind)
    with torch.no_grad(), pytest.raises(RuntimeError, match="a Kind is no plain tensor"):
        made(X)
