"""`LSTMCell`, `GRUCell` and `RNNCell`: one step, with torch.nn's parameters.

Without gradients the native CPU engine takes the step where it can, by the tolerance rule. With
them there is nothing to gain in one step, so torch's own cells do the work, bit for bit; the
reset-before GRU, which torch lacks, runs its definition.
"""

from typing import Any

import torch
from torch import Tensor, nn

from rnnkit.nn.inputs import check_pair, is_tensor
from rnnkit.nn.tracing import recorded_call, refuse_scripting
from rnnkit_kernels.functional import FastPath, gru_reset_before


def _step(
    module: nn.RNNCellBase, cell: str, input: Tensor, states: Any
) -> tuple[Tensor, ...] | None:
    """One step without gradients on a CPU, or None where that takes the general way."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not isinstance(input, Tensor):
        return None
    own = module._parameters
    if list(own) != _NAMES:
        return None
    weights: Any = tuple(own.values())
    if (
        weights[2] is None and weights[3] is None
    ):  # not `bias`, which torch's cells don't ask either
        weights = weights[:2]
    fast_path = module.__dict__.get("_fast_path")
    if fast_path is None:
        fast_path = module.__dict__["_fast_path"] = FastPath()
    found: tuple[Tensor, ...] | None = fast_path.cell(cell, weights, input, states)
    return found


_NAMES = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]


def _check_state(cell: nn.RNNCellBase, input: Tensor, hx: Tensor, which: str) -> None:
    """Refuse an initial state that torch would fail on from deep inside, or broadcast."""
    if not is_tensor(hx):
        raise TypeError(
            f"{type(cell).__name__}: expected {which} to be a tensor, got {type(hx).__name__}"
        )
    if hx.dim() not in (1, 2):
        raise ValueError(
            f"{type(cell).__name__}: Expected hidden to be 1D or 2D, got {hx.dim()}D instead"
        )
    if hx.dim() != input.dim() or hx.shape != (*input.shape[:-1], cell.hidden_size):
        expected = (*input.shape[:-1], cell.hidden_size)
        raise RuntimeError(
            f"{type(cell).__name__}: expected {which} of shape {tuple(expected)} for an input of "
            f"shape {tuple(input.shape)}, got {tuple(hx.shape)}"
        )


def _check_input(cell: nn.RNNCellBase, input: Tensor) -> None:
    if not is_tensor(input):
        raise TypeError(
            f"{type(cell).__name__}: expected a tensor as input, got {type(input).__name__}"
        )
    if input.dim() not in (1, 2):
        raise ValueError(
            f"{type(cell).__name__}: Expected input to be 1D or 2D, got {input.dim()}D instead"
        )
    if input.shape[-1] != cell.input_size:
        raise RuntimeError(
            f"input has inconsistent input_size: got {input.shape[-1]} expected {cell.input_size}"
        )


class LSTMCell(nn.LSTMCell):
    """One LSTM step: (B, D) or (D,), (h, c) -> (h', c').

    Args, shapes and parameters are torch.nn.LSTMCell's; equations in `rnnkit.LSTM`.
    """

    __prepare_scriptable__ = refuse_scripting

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step; `hx` is (h, c), zeros if left out."""
        if hx is None or type(hx) is tuple:
            found = _step(self, "lstm", input, hx)
            if found is not None:
                return found[0], found[1]
        node = recorded_call(self, input, hx)
        if node is not None:
            return node  # type: ignore[no-any-return]
        _check_input(self, input)
        if hx is not None:
            check_pair("LSTMCell", hx)
            for which, value in zip(("h", "c"), hx, strict=True):
                _check_state(self, input, value, which)
        return super().forward(input, hx)


class GRUCell(nn.GRUCell):
    """One GRU step: (B, D) or (D,), h -> h'.

    Args, shapes and parameters are torch.nn.GRUCell's, with `reset_after` as in `rnnkit.GRU`.
    """

    __prepare_scriptable__ = refuse_scripting

    def __init__(self, *args: Any, reset_after: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reset_after = reset_after

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """One step; `hx` is h, zeros if left out."""
        cell = "gru" if self.reset_after else "gru_reset_before"
        found = _step(self, cell, input, None if hx is None else (hx,))
        if found is not None:
            return found[0]
        node = recorded_call(self, input, hx)
        if node is not None:
            return node  # type: ignore[no-any-return]
        _check_input(self, input)
        if hx is not None:
            _check_state(self, input, hx, "h")
        if self.reset_after:
            return super().forward(input, hx)
        h = input.new_zeros(*input.shape[:-1], self.hidden_size) if hx is None else hx
        x_gates = nn.functional.linear(input, self.weight_ih, self.bias_ih)
        return gru_reset_before(x_gates, (h,), self.weight_hh, self.bias_hh)[0]

    def extra_repr(self) -> str:
        """torch's, plus the place of the reset gate."""
        text = str(super().extra_repr())
        return text if self.reset_after else f"{text}, reset_after=False"


class RNNCell(nn.RNNCell):
    """One Elman step: (B, D) or (D,), h -> h'.

    Args, shapes and parameters are torch.nn.RNNCell's; equation in `rnnkit.RNN`.
    """

    __prepare_scriptable__ = refuse_scripting

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """One step; `hx` is h, zeros if left out."""
        found = _step(self, f"rnn_{self.nonlinearity}", input, None if hx is None else (hx,))
        if found is not None:
            return found[0]
        node = recorded_call(self, input, hx)
        if node is not None:
            return node  # type: ignore[no-any-return]
        _check_input(self, input)
        if hx is not None:
            _check_state(self, input, hx, "h")
        return super().forward(input, hx)
