"""One file a cell: its gate maths, forward and backward, written once for Triton and for PyTorch.

A cell's functions are plain Python over `+ - *`, comparisons and the activations that they are
handed. The Triton kernels compile them (`triton.jit(function)`); the PyTorch time loop calls them
with tensors. `reference.py` says the same a second time, independently, through autograd.

A step runs in *stages*. A stage multiplies one operand by its rows of `weight_hh` and then does
the gate maths. LSTM, GRU and Elman have one stage whose operand is h; a GRU that resets before the
product has two (r and z from h, then n from r⊙h).

A forward stage is called as

    stage(x_gates, h_gates, saved, state, weights, sigmoid, tanh, relu) -> (saved, result)

with `x_gates` = W_ih x + b_ih and `h_gates` = W_hh operand + b_hh (this stage's gates only),
`saved` what the stages before it saved, `state` = (h,) or (h, c) of the step before, `weights` the
cell's vectors of one value a unit (peepholes), which broadcast against a tile. `result` is the new
state after the last stage, else `(operand of the next stage,)`. A backward stage, last stage first:

    stage(saved, before, after, gradient, carry, weights, tanh) -> (columns, carry)

with `saved` of the whole step, `before` and `after` the states around the step, `gradient` what
arrives at the stage's result (∂L/∂h for the last stage), `carry` the gradients that reach the step
before without passing through `weight_hh`, `columns` the gradients of the pre-activations. The
gradient of `weights` is a sum over all rows of what `weight_gradients(columns, before, after)`
gives, with the columns of the whole step; it waits until the loop is done.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from rnnkit_kernels.cells import elman, gru, lstm, lstm_coupled, lstm_peephole, residual

Stage = Callable[..., tuple[Any, Any]]


@dataclass(frozen=True)
class Cell:
    """What the time loop has to know of a cell; it knows no cell by name.

    Attributes:
        name: the cell's name in plans, operators and error messages.
        gates: rows of `weight_hh`, in units of the hidden size, that each stage multiplies.
        saved: values per unit that each forward stage keeps for the backward pass.
        columns: gradients per unit that each backward stage writes, in memory order; the last of
            them are those of `weight_hh`'s rows, in weight order.
        forward: the forward stages.
        backward: the backward stages, indexed like `forward`.
        carry: the state gradients that bypass `weight_hh`, in the order of the carry tuple.
        input_columns: the gradient columns of W_ih x, in weight order.
        operand: `(saved, h) -> operand` of every stage after the first, for its weight gradient.
        weights: vectors of one value per unit, such as peepholes.
        weight_gradients: `(columns, before, after) -> values`, one for each of `weights`, whose sum
            over all rows is its gradient; None for cells without.
    """

    name: str
    gates: tuple[int, ...]
    saved: tuple[int, ...]
    columns: tuple[int, ...]
    forward: tuple[Stage, ...]
    backward: tuple[Stage, ...]
    carry: tuple[Literal["hidden", "cell"], ...] = ()
    input_columns: tuple[int, ...] = ()
    operand: tuple[Callable[..., Any], ...] = ()
    weights: int = 0
    weight_gradients: Callable[..., tuple[Any, ...]] | None = None

    @property
    def gates_at(self) -> tuple[int, ...]:
        """First gate of each stage, then the number of gates."""
        return (0, *accumulate(self.gates))

    @property
    def saved_at(self) -> tuple[int, ...]:
        """First saved value of each stage, then their number."""
        return (0, *accumulate(self.saved))

    @property
    def columns_at(self) -> tuple[int, ...]:
        """First gradient column of each stage, then their number."""
        return (0, *accumulate(self.columns))

    @property
    def hidden_columns(self) -> int:
        """The first gradient column of `weight_hh`: those lie last, in weight order."""
        return self.columns_at[-1] - self.gates_at[-1]

    @property
    def has_cell_state(self) -> bool:
        """Whether a second state, c, is carried beside h."""
        return "cell" in self.carry

    def carried(self, zoneout: bool) -> tuple[Literal["hidden", "cell"], ...]:
        """The state gradients that bypass `weight_hh`; with zoneout that of h always does."""
        return self.carry if "hidden" in self.carry or not zoneout else (*self.carry, "hidden")


LSTM = Cell(
    "lstm",
    gates=(4,),
    saved=(4,),
    columns=(4,),
    forward=(lstm.forward,),
    backward=(lstm.backward,),
    carry=("cell",),
    input_columns=(0, 1, 2, 3),
)
LSTM_PEEPHOLE = Cell(
    "lstm_peephole",
    gates=(4,),
    saved=(4,),
    columns=(4,),
    forward=(lstm_peephole.forward,),
    backward=(lstm_peephole.backward,),
    carry=("cell",),
    input_columns=(0, 1, 2, 3),
    weights=3,
    weight_gradients=lstm_peephole.weight_gradients,
)
LSTM_COUPLED = Cell(
    "lstm_coupled",
    gates=(3,),
    saved=(3,),
    columns=(3,),
    forward=(lstm_coupled.forward,),
    backward=(lstm_coupled.backward,),
    carry=("cell",),
    input_columns=(0, 1, 2),
)
LSTM_COUPLED_PEEPHOLE = Cell(
    "lstm_coupled_peephole",
    gates=(3,),
    saved=(3,),
    columns=(3,),
    forward=(lstm_coupled.peephole_forward,),
    backward=(lstm_coupled.peephole_backward,),
    carry=("cell",),
    input_columns=(0, 1, 2),
    weights=2,
    weight_gradients=lstm_coupled.peephole_weight_gradients,
)
GRU = Cell(
    "gru",
    gates=(3,),
    saved=(4,),
    columns=(4,),
    forward=(gru.forward,),
    backward=(gru.backward,),
    carry=("hidden",),
    input_columns=(1, 2, 0),
)
GRU_RESET_BEFORE = Cell(
    "gru_reset_before",
    gates=(2, 1),
    saved=(2, 1),
    columns=(1, 2),
    forward=(gru.reset_forward, gru.candidate_forward),
    backward=(gru.reset_backward, gru.candidate_backward),
    carry=("hidden",),
    input_columns=(0, 1, 2),
    operand=(gru.reset_operand,),
)
RNN_TANH = Cell(
    "rnn_tanh",
    gates=(1,),
    saved=(0,),
    columns=(1,),
    forward=(elman.tanh_forward,),
    backward=(elman.tanh_backward,),
    input_columns=(0,),
)
RNN_RELU = Cell(
    "rnn_relu",
    gates=(1,),
    saved=(0,),
    columns=(1,),
    forward=(elman.relu_forward,),
    backward=(elman.relu_backward,),
    input_columns=(0,),
)
GRU_RESIDUAL = Cell(
    "gru_residual",
    gates=(3,),
    saved=(4,),
    columns=(4,),
    forward=(residual.gru_forward,),
    backward=(residual.gru_backward,),
    carry=("hidden",),
    input_columns=(1, 2, 0),
)
RNN_TANH_RESIDUAL = Cell(
    "rnn_tanh_residual",
    gates=(1,),
    saved=(1,),
    columns=(1,),
    forward=(residual.tanh_forward,),
    backward=(residual.tanh_backward,),
    carry=("hidden",),
    input_columns=(0,),
)
RNN_RELU_RESIDUAL = Cell(
    "rnn_relu_residual",
    gates=(1,),
    saved=(1,),
    columns=(1,),
    forward=(residual.relu_forward,),
    backward=(residual.relu_backward,),
    carry=("hidden",),
    input_columns=(0,),
)

CELLS = {
    cell.name: cell
    for cell in (
        LSTM,
        LSTM_PEEPHOLE,
        LSTM_COUPLED,
        LSTM_COUPLED_PEEPHOLE,
        GRU,
        GRU_RESET_BEFORE,
        RNN_TANH,
        RNN_RELU,
        GRU_RESIDUAL,
        RNN_TANH_RESIDUAL,
        RNN_RELU_RESIDUAL,
    )
}
