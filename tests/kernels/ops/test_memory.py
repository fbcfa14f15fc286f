"""What a layer keeps for its backward pass, in bytes a row: a row is one step of one sequence.

Beyond its inputs and parameters a direction may keep y and the activated gates in the dtype of the
computation, and c in float32 (float64 for float64). Recomputing leaves the gates out.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rnnkit_kernels import functional
from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.dispatch.choice import Extras
from rnnkit_kernels.ops.recurrence import recurrence

# Values a unit: a GRU keeps R_n h + b beside its gates, an Elman layer knows its gate from y.
GATES = {
    "lstm": 4,
    "lstm_peephole": 4,
    "lstm_coupled": 3,
    "lstm_coupled_peephole": 3,
    "gru": 4,
    "gru_reset_before": 3,
    "rnn_tanh": 0,
    "rnn_relu": 0,
    "gru_residual": 4,
    "rnn_tanh_residual": 1,
    "rnn_relu_residual": 1,
}
HIDDEN, FEATURES, BATCH = 8, 5, 3
Call = Callable[[Tensor], Any]


def test_the_table_names_every_cell() -> None:
    assert GATES.keys() == CELLS.keys()


def allowed(cell: str, dtype: torch.dtype, recompute: bool) -> int:
    """Bytes a row and direction."""
    values = HIDDEN * (1 + (0 if recompute else GATES[cell]))
    exact = 8 if dtype == torch.float64 else 4
    return values * dtype.itemsize + HIDDEN * exact * CELLS[cell].has_cell_state


def kept(call: Call, x: Tensor, given: list[Tensor]) -> int:
    """Bytes of every storage that the graph holds on to, but for those of what was given."""
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call(x)  # held, or its storage could be another's next
    for tensor in (x, *given):
        found.pop(tensor.untyped_storage().data_ptr(), None)
    assert output is not None
    return sum(found.values())


def kept_a_row(call: Call, dtype: torch.dtype, given: list[Tensor]) -> float:
    """The slope in the number of rows: what depends on no row, such as h_n, is no matter."""
    short, long = (torch.randn(steps, BATCH, FEATURES, dtype=dtype) for steps in (3, 7))
    return (kept(call, long, given) - kept(call, short, given)) / (4 * BATCH)


def weights_of(cell: str, dtype: torch.dtype, members: int, features: int) -> list[Tensor]:
    """W_ih, W_hh, b_ih, b_hh and the cell's own, for so many directions."""
    rows, own = CELLS[cell].gates_at[-1] * HIDDEN, CELLS[cell].weights
    shapes = [(rows, features), (rows, HIDDEN), (rows,), (rows,), *[(own, HIDDEN)] * (own > 0)]
    return [torch.randn(members, *shape, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("mode", "dtype", "members"),
    [
        ("eager", torch.float32, 1),
        ("eager", torch.bfloat16, 2),
        ("eager", torch.float64, 2),
        ("native", torch.float32, 2),
        ("native", torch.float64, 1),
        ("resident", torch.float16, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("cell", GATES)
def test_one_layer_keeps_no_more_than_the_table(
    cell: str, mode: str, dtype: torch.dtype, members: int, recompute: bool
) -> None:
    weight_ih, weight_hh, bias_ih, bias_hh, *own = weights_of(cell, dtype, members, FEATURES)
    h0 = torch.zeros(members, BATCH, HIDDEN, dtype=dtype)
    c0 = torch.zeros_like(h0) if CELLS[cell].has_cell_state else None

    def call(x: Tensor) -> Any:
        return recurrence(
            x,
            weight_ih,
            weight_hh,
            bias_ih,
            bias_hh,
            None,
            own[0] if own else None,
            h0,
            c0,
            None,
            None,
            None,
            cell,
            False,
            mode,
            True,
            recompute,
        )

    found = kept_a_row(call, dtype, [weight_ih, weight_hh, bias_ih, bias_hh, *own])
    assert members * HIDDEN * dtype.itemsize <= found  # y at least: the hooks saw it
    assert found <= members * allowed(cell, dtype, recompute)


def run(cell: str, x: Tensor, weights: list[Tensor], layers: int, recompute: bool) -> Tensor:
    states = 1 + CELLS[cell].has_cell_state
    hx = tuple(x.new_zeros(layers, x.shape[1], HIDDEN) for _ in range(states))
    extras = Extras(recompute=recompute)
    return functional.recurrent(cell, x, hx, weights, num_layers=layers, extras=extras)[0]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(
    ("cell", "recompute"),
    [
        *[(cell, True) for cell in GATES],
        *[(cell, False) for cell in GATES if cell not in ("lstm", "gru", "rnn_tanh", "rnn_relu")],
    ],
)
def test_nothing_around_the_layer_keeps_more(cell: str, recompute: bool, layers: int) -> None:
    dtype = torch.float32
    weights = [
        weight[0].detach().requires_grad_()
        for features in [FEATURES, HIDDEN][:layers]
        for weight in weights_of(cell, dtype, 1, features)
    ]
    found = kept_a_row(lambda x: run(cell, x, weights, layers, recompute), dtype, weights)
    assert layers * HIDDEN * dtype.itemsize <= found
    assert found <= layers * allowed(cell, dtype, recompute)


@pytest.mark.compiler
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_a_compiled_layer_keeps_no_more(cell: str, recompute: bool) -> None:
    torch._dynamo.reset()
    weights = [w[0].detach().requires_grad_() for w in weights_of(cell, torch.float32, 1, FEATURES)]
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=False)
    found = kept_a_row(lambda x: compiled(cell, x, weights, 1, recompute), torch.float32, weights)
    assert HIDDEN * 4 <= found <= allowed(cell, torch.float32, recompute)
