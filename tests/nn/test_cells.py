"""One step: torch's cells, with gradients bit for bit, and the reset-before GRU's by its layer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

import rnnkit
from tests.nn.layers import (
    assert_close,
    assert_equal,
    assert_follows_the_rule,
    cast,
    gradients,
    leaf,
    tensors,
)
from tests.nn.test_errors import assert_refused_alike, zeros

CELLS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "LSTM": (rnnkit.LSTMCell, nn.LSTMCell, {}),
    "GRU": (rnnkit.GRUCell, nn.GRUCell, {}),
    "RNN tanh": (rnnkit.RNNCell, nn.RNNCell, {}),
    "RNN relu": (rnnkit.RNNCell, nn.RNNCell, {"nonlinearity": "relu"}),
}


def make(kind: str, **options: Any) -> tuple[Any, Any]:
    made = []
    for cell_class in CELLS[kind][:2]:
        torch.manual_seed(0)
        made.append(cell_class(3, 5, **CELLS[kind][2], **options))
    return made[0], made[1]


def random_hx(kind: str, *shape: int, **options: Any) -> Any:
    h = torch.randn(*shape, **options)
    return (h, torch.randn(*shape, **options)) if kind == "LSTM" else h


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("batch", [(), (0,), (1,), (4,)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", CELLS)
def test_a_step_gives_the_bits_of_torch(
    kind: str, dtype: torch.dtype, bias: bool, batch: tuple[int, ...], state: bool
) -> None:
    ours, theirs = make(kind, bias=bias, dtype=dtype)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_equal(list(ours.parameters()), list(theirs.parameters()))
    input = torch.randn(*batch, 3, dtype=dtype)
    hx = random_hx(kind, *batch, 5, dtype=dtype) if state else None
    results, found = [], []
    for cell in (ours, theirs):
        x, h = leaf(input), leaf(hx)
        results.append(cell(x, h))
        found.append(gradients(results[-1], [x, *tensors(h), *cell.parameters()]))
    assert_equal(*results)
    assert_equal(*found)


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("batch", [(), (0,), (1,), (4,)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", CELLS)
def test_a_step_without_gradients_follows_the_rule(
    kind: str, dtype: torch.dtype, bias: bool, batch: tuple[int, ...], state: bool
) -> None:
    """The native engine takes it where it can."""
    ours, theirs = make(kind, bias=bias, dtype=dtype)
    input = torch.randn(*batch, 3, dtype=dtype)
    hx = random_hx(kind, *batch, 5, dtype=dtype) if state else None
    with torch.no_grad():
        if batch == (0,):
            assert_equal(ours(input, hx), theirs(input, hx))
        else:
            assert_follows_the_rule(
                ours(input, hx), theirs, lambda cell: cell(cast(input, cell), cast(hx, cell))
            )


@pytest.mark.parametrize("kind", CELLS)
def test_a_state_dict_goes_both_ways(kind: str) -> None:
    ours, theirs = make(kind)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    input = torch.randn(2, 3)
    assert not torch.equal(tensors(ours(input))[0], tensors(theirs(input))[0])
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_equal(ours(input), theirs(input))
    make(kind)[1].load_state_dict(ours.state_dict(), strict=True)


WRONG: dict[str, tuple[Callable[[Any, Any], Any], tuple[object, ...]]] = {
    "width": (lambda cell, _: cell(zeros(2, 7)), (3, 7)),
    "unbatched width": (lambda cell, _: cell(zeros(7)), (3, 7)),
    "3-D": (lambda cell, _: cell(zeros(1, 2, 3)), ("1D", "2D", "3D")),
    "0-D": (lambda cell, _: cell(zeros(())), ("1D", "2D", "0D")),
    "other sequences": (lambda cell, s: cell(zeros(2, 3), s(9, 5)), ("(2, 5)", "(9, 5)")),
    "other units": (lambda cell, s: cell(zeros(2, 3), s(2, 8)), ("(2, 5)", "(2, 8)")),
    "3-D state": (lambda cell, s: cell(zeros(2, 3), s(1, 2, 5)), ("1D", "2D", "3D")),
    "double input": (lambda cell, _: cell(zeros(2, 3).double()), ()),
    "integer input": (lambda cell, _: cell(zeros(2, 3).long()), ()),
    "no input": (lambda cell, _: cell(), ("'input'",)),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", CELLS)
def test_a_wrong_call_is_refused_as_by_torch(kind: str, wrong: str) -> None:
    call, mentioned = WRONG[wrong]

    def state(*shape: int) -> Any:
        return (zeros(*shape), zeros(*shape)) if kind == "LSTM" else zeros(*shape)

    cells = make(kind)
    assert_refused_alike(lambda which: call(cells[which], state), *mentioned)


@pytest.mark.parametrize("kind", CELLS)
def test_a_state_that_torch_would_broadcast_is_refused(kind: str) -> None:
    cell, _ = make(kind)
    for shape in ((1, 5), (5,)):
        hx = (zeros(*shape), zeros(*shape)) if kind == "LSTM" else zeros(*shape)
        with pytest.raises(RuntimeError, match=rf"\(2, 5\).*\(2, 3\), got \({shape[0]}"):
            cell(zeros(2, 3), hx)


@pytest.mark.parametrize(
    ("hx", "expected", "got"),
    [
        (zeros(2, 5), RuntimeError, "Tensor"),
        ((zeros(2, 5),), RuntimeError, r"Tensor \(1 of 2\)"),
        ((zeros(2, 5),) * 3, RuntimeError, r"Tensor \(3 of 2\)"),
        ((1, 2), TypeError, "int, int"),
        ("hc", TypeError, "str"),
        ((None, None), TypeError, "NoneType, NoneType"),
    ],
    ids=["tensor", "one", "three", "numbers", "text", "nones"],
)
def test_an_lstm_cell_takes_a_pair(hx: Any, expected: type[Exception], got: str) -> None:
    with pytest.raises(expected, match=rf"LSTMCell.*pair \(h, c\) of tensors, got.*{got}"):
        rnnkit.LSTMCell(3, 5)(zeros(2, 3), hx)


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_refuses_what_is_no_tensor(kind: str) -> None:
    cell, _ = make(kind)
    with pytest.raises(TypeError, match=f"{type(cell).__name__}: expected a tensor.*got list"):
        cell([1, 2, 3])
    if kind != "LSTM":
        with pytest.raises(TypeError, match=f"{type(cell).__name__}: expected h to be.*got tuple"):
            cell(zeros(2, 3), (zeros(2, 5),))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("batch", [(), (4,)], ids=str)
def test_a_reset_before_cell_is_one_step_of_its_layer(
    batch: tuple[int, ...], state: bool, bias: bool
) -> None:
    options = {"bias": bias, "dtype": torch.float64}
    cell = rnnkit.GRUCell(3, 5, reset_after=False, **options)
    layer = rnnkit.GRU(3, 5, reset_after=False, **options)
    layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    x = leaf(torch.randn(*batch, 3, dtype=torch.float64))
    h = leaf(torch.randn(*batch, 5, dtype=torch.float64)) if state else None
    found = cell(x, h)
    output, _ = layer(x[None], None if h is None else h[None])
    assert found.shape == (*batch, 5)
    assert_close(found, output[0], rtol=1e-13, atol=1e-14)
    leaves = [x, *tensors(h)]
    assert_close(
        gradients(found, [*leaves, *cell.parameters()]),
        gradients(output[0], [*leaves, *layer.parameters()]),
        rtol=1e-12,
        atol=1e-13,
    )


@pytest.mark.parametrize("wrong", WRONG)
def test_a_reset_before_cell_refuses_what_the_gru_cell_refuses(wrong: str) -> None:
    call, mentioned = WRONG[wrong]
    cells = rnnkit.GRUCell(3, 5, reset_after=False), nn.GRUCell(3, 5)
    assert_refused_alike(lambda which: call(cells[which], zeros), *mentioned)


def test_the_gradient_of_a_reset_before_cell() -> None:
    cell = rnnkit.GRUCell(2, 3, reset_after=False, dtype=torch.float64)
    names = [name for name, _ in cell.named_parameters()]

    def run(x: Any, h: Any, *parameters: Any) -> Any:
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(cell, given, (x, h))

    x = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    h = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(run, (x, h, *[leaf(p) for p in cell.parameters()]))


def test_a_reset_before_cell_says_so() -> None:
    assert repr(rnnkit.GRUCell(3, 5)) == "GRUCell(3, 5)"
    assert repr(rnnkit.GRUCell(3, 5, reset_after=False)) == "GRUCell(3, 5, reset_after=False)"


@pytest.mark.parametrize("kind", [*CELLS, "GRU reset before"])
def test_biases_act_whatever_bias_says_later(kind: str) -> None:
    cell = make("GRU" if kind == "GRU reset before" else kind)[0]
    if kind == "GRU reset before":
        cell.reset_after = False
    input = torch.randn(2, 3)
    expected = cell(input)
    cell.bias = False  # which torch's cells read in their constructor alone
    with torch.no_grad():
        assert_close(cell(input), expected)
