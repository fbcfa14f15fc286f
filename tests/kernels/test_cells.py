"""Each cell's handwritten gate maths against autograd of its own forward, in float64."""

import pytest
import torch
from torch import Tensor

from rnnkit_kernels.cells import CELLS, Cell


def activations() -> tuple[object, object, object]:
    return torch.sigmoid, torch.tanh, torch.relu


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("name", CELLS)
def test_backward_is_the_derivative_of_forward(name: str) -> None:
    """Run the stages over random hidden gates; autograd derives every pre-activation."""
    torch.manual_seed(0)
    cell: Cell = CELLS[name]
    gates, shape = cell.gates_at[-1], (6, 5)
    x_gates = [draw(*shape).requires_grad_() for _ in range(gates)]
    h_gates = [draw(*shape).requires_grad_() for _ in range(gates)]
    state = tuple(draw(*shape).requires_grad_() for _ in range(1 + cell.has_cell_state))
    kept: tuple[Tensor, ...] = ()
    operands = []
    for stage, function in enumerate(cell.forward):
        span = slice(cell.gates_at[stage], cell.gates_at[stage + 1])
        new, result = function(x_gates[span], h_gates[span], kept, state, *activations())
        kept += new
        operands.append(result[0])
    assert len(kept) == cell.saved_at[-1]
    d_h, d_c = draw(*shape), draw(*shape)
    # An inner stage's result goes into a product; here its gradient is drawn instead.
    inner = [draw(*shape) for _ in operands[:-1]]
    outputs = [*operands[:-1], *result]
    weights = [*inner, d_h, d_c][: len(outputs)]
    leaves = [*x_gates, *h_gates, *state]
    expected = torch.autograd.grad(outputs, leaves, weights, allow_unused=True)
    d_x, d_hidden, d_state = (
        expected[:gates],
        expected[gates : 2 * gates],
        expected[2 * gates :],
    )

    carried = tuple(d_c if kind == "cell" else torch.zeros(shape) for kind in cell.carry)
    columns: list[Tensor] = []
    before = tuple(value.detach() for value in state)
    after = tuple(value.detach() for value in result)
    values = tuple(value.detach() for value in kept)
    for stage in reversed(range(len(cell.backward))):
        gradient = d_h if stage == len(cell.backward) - 1 else inner[stage]
        new, carried = cell.backward[stage](values, before, after, gradient, carried, torch.tanh)
        columns = [*new, *columns]
    assert len(columns) == cell.columns_at[-1]
    for gate in range(gates):
        torch.testing.assert_close(columns[cell.input_columns[gate]], d_x[gate])
        torch.testing.assert_close(columns[cell.hidden_columns + gate], d_hidden[gate])
    direct = dict(zip(cell.carry, carried, strict=True))
    if d_state[0] is not None:
        torch.testing.assert_close(direct["hidden"], d_state[0])
    else:
        assert "hidden" not in direct
    if cell.has_cell_state:
        torch.testing.assert_close(direct["cell"], d_state[1])


def test_reset_before_operand_is_what_its_second_stage_multiplies() -> None:
    cell = CELLS["gru_reset_before"]
    h = draw(3, 4)
    gates = [draw(3, 4), draw(3, 4)]
    saved, (operand,) = cell.forward[0](gates, gates, (), (h,), *activations())
    assert torch.equal(cell.operand[0](saved, h), operand)
    assert torch.equal(operand, (2 * gates[0]).sigmoid() * h)
