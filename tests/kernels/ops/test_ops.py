"""The operators: fakes, autograd, double backward, what they save."""

import pytest
import torch
from torch import Tensor

from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.ops.recurrence import recurrence
from rnnkit_kernels.ops.recurrence_backward import recurrence_backward
from tests.kernels.layers import Layer, assert_as_exact, random_layer

TESTS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")


def arguments(layer: Layer, mode: str, save: bool = True) -> tuple[object, ...]:
    return (*layer.operator_inputs(), layer.cell, layer.reverse, mode, save, False)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "launch", "resident", "native"])
@pytest.mark.parametrize("storage", ["dense", "padded"])
def test_forward_operator_passes_opcheck(storage: str, mode: str) -> None:
    layer = random_layer("lstm", storage, hidden=5).to(torch.float32)
    torch.library.opcheck(recurrence, arguments(layer, mode), test_utils=TESTS)


@pytest.mark.parametrize("mode", ["eager", "native"])
@pytest.mark.parametrize("cell", CELLS)
def test_operator_passes_opcheck_for_every_cell(cell: str, mode: str) -> None:
    layer = random_layer(cell, "packed", hidden=5)
    torch.library.opcheck(recurrence, arguments(layer, mode), test_utils=TESTS)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "native"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_backward_operator_passes_opcheck(cell: str, recompute: bool, mode: str) -> None:
    layer = random_layer(cell, hidden=5, zoneout=recompute)
    inputs = layer.operator_inputs()
    with torch.no_grad():
        y, _, _, saved, states = recurrence(*inputs, cell, True, mode, True, recompute)
    dy, *last = layer.gradients
    arriving = (dy, last[0][None], last[1][None] if len(last) > 1 else None)
    given = (*arriving, *inputs, y, saved, states, cell, True, mode, recompute, True)
    torch.library.opcheck(recurrence_backward, given, test_utils=TESTS)


@pytest.mark.parametrize("projection", [0, 3])
def test_fakes_have_the_real_shapes_and_dtypes(projection: int) -> None:
    for cell in CELLS if projection == 0 else ("lstm",):
        for save in (True, False):
            layer = random_layer(cell, "packed", hidden=5, projection=projection)
            real = recurrence(*arguments(layer.to(torch.float16), "eager", save))
            meta = Layer(
                layer.cell,
                [None if t is None else t.detach().half().to("meta") for t in layer.inputs],
                layer.rows,
                layer.reverse,
                [],
            )
            fake = recurrence(*arguments(meta, "eager", save))
            for a, b in zip(real, fake, strict=True):
                assert (a.shape, a.dtype) == (b.shape, b.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["dense", "packed", "padded"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("mode", ["eager", "native"])
def test_first_and_second_gradients_are_exact(
    mode: str, cell: str, reverse: bool, storage: str
) -> None:
    layer = random_layer(cell, storage, reverse, hidden=4, features=3)
    leaves = [tensor for tensor in layer.inputs if tensor is not None]

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        given = iter(values)
        layer.inputs = [None if t is None else next(given) for t in layer.inputs]
        results = recurrence(*arguments(layer, mode))[:3]
        return results if CELLS[cell].has_cell_state else results[:2]

    torch.autograd.gradcheck(run, leaves, fast_mode=True)
    torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("mode", ["eager", "native"])
def test_projected_lstm_is_differentiable_twice(mode: str) -> None:
    layer = random_layer("lstm", "packed", hidden=4, projection=2)
    leaves = [tensor for tensor in layer.inputs if tensor is not None]

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        given = iter(values)
        layer.inputs = [None if t is None else next(given) for t in layer.inputs]
        return recurrence(*arguments(layer, mode))[:3]

    torch.autograd.gradcheck(run, leaves, fast_mode=True)
    torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("mode", ["launch", "resident"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "rnn_tanh"])
def test_second_gradients_of_the_triton_kernels_are_as_exact_as_a_plain_loop(
    cell: str, mode: str
) -> None:
    """In float32, where gradgradcheck sees nothing: ∂(Σ g²) of the gradient g of the input."""

    def second(mode: str, dtype: torch.dtype) -> list[Tensor]:
        layer = random_layer(cell, hidden=16, features=4).to(dtype)
        layer.inputs = [
            None if t is None else t.detach().requires_grad_(t.is_floating_point())
            for t in layer.inputs
        ]
        leaves = [t for t in layer.inputs if t is not None]
        y = recurrence(*arguments(layer, mode))[0]
        (gradient,) = torch.autograd.grad(y.square().sum(), leaves[:1], create_graph=True)
        found = torch.autograd.grad(gradient.square().sum(), leaves, allow_unused=True)
        return [each for each in found if each is not None]

    exact, plain = second("eager", torch.float64), second("eager", torch.float32)
    assert len(exact) >= 6
    assert_as_exact(second(mode, torch.float32), plain, exact, torch.float32)


def test_nothing_is_saved_without_a_backward_pass() -> None:
    for mode in ("eager", "launch", "resident", "native"):
        for cell in ("lstm", "gru_reset_before"):
            layer = random_layer(cell).to(torch.float32)
            kept = recurrence(*arguments(layer, mode, save=True))
            y, h_n, c_n, saved, states = recurrence(*arguments(layer, mode, save=False))
            assert saved.numel() == states.numel() == 0
            for a, b in zip((y, h_n, c_n), kept, strict=False):
                assert torch.equal(a, b)


@pytest.mark.parametrize("mode", ["eager", "native"])
def test_input_that_wants_no_gradient_gets_none(mode: str) -> None:
    layer = random_layer("lstm")
    assert layer.inputs[0] is not None
    layer.inputs[0].requires_grad_(False)
    y = recurrence(*arguments(layer, mode))[0]
    y.sum().backward()
    assert layer.inputs[0].grad is None
    assert all(tensor.grad is not None for tensor in layer.inputs[1:5])  # type: ignore[union-attr]


def test_kernels_refuse_what_they_cannot_run() -> None:
    with pytest.raises(RuntimeError, match="float32, float16 and bfloat16, not"):
        recurrence(*arguments(random_layer("lstm"), "launch"))
    projected = random_layer("lstm", projection=3).to(torch.float32)
    with pytest.raises(RuntimeError, match="no projection"):
        recurrence(*arguments(projected, "launch"))
    large = random_layer("lstm", hidden=300).to(torch.float32)
    with pytest.raises(RuntimeError, match="hidden size 300 does not stay on chip"):
        recurrence(*arguments(large, "resident"))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("storage", ["dense", "packed", "padded"])
@pytest.mark.parametrize("mode", ["launch", "resident", "eager", "native"])
def test_many_gradients_at_once_are_those_of_one_after_another(mode: str, storage: str) -> None:
    layer = random_layer("lstm", storage, hidden=4, batch=2, lengths=None).to(torch.float32)
    y = recurrence(*arguments(layer, mode))[0]
    arriving = torch.randn(2, *y.shape)
    leaves = layer.leaves()
    found = torch.autograd.grad(y, leaves, arriving, retain_graph=True, is_grads_batched=True)
    single = (torch.autograd.grad(y, leaves, g, retain_graph=True) for g in arriving)
    for a, b in zip(found, map(torch.stack, zip(*single, strict=True)), strict=True):
        torch.testing.assert_close(a, b)
