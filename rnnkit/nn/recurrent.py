"""`LSTM`, `GRU` and `RNN`: torch.nn's layers with `lengths=` and a choice of backend.

Parameters carry torch's names, shapes, order and initialisation, so a `state_dict` goes both ways
and one seed gives one model. The classes derive from `nn.Module`, not `nn.RNNBase`: Dynamo refuses
every instance of that, so `isinstance(layer, torch.nn.LSTM)` is False.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnnkit.nn.base import Recurrent, check_pair
from rnnkit_kernels.functional import Backend


class LSTM(Recurrent):
    """`torch.nn.LSTM` on rnnkit's kernels.

        i, f, o = σ(W x + R h + b),  g = tanh(W x + R h + b)
        c' = f ⊙ c + i ⊙ g,  h' = o ⊙ tanh(c')

    (Hochreiter & Schmidhuber 1997; Gers et al. 2000; projection: Sak et al. 2014.)

    Args:
        input_size: D, features of the input.
        hidden_size: H, units.
        num_layers: L, layers stacked.
        bias: whether there are biases.
        batch_first: whether input and output are (B, T, ·) instead of (T, B, ·).
        dropout: probability of dropping an output of every layer but the last, while training.
        bidirectional: whether each layer also runs backwards in time.
        proj_size: P, size of the projected h, or 0.
        device: where the parameters lie.
        dtype: of the parameters.
        backend: "auto" (`rnnkit.explain` says what that is here), "triton" or "torch".

    Raises:
        TypeError, ValueError: as torch.nn raises them.

    Example:
        >>> layer = LSTM(10, 20, num_layers=2)
        >>> output, (h_n, c_n) = layer(torch.randn(5, 3, 10), lengths=torch.tensor([5, 0, 2]))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    _states = 2
    _gates = 4

    @property
    def _cell(self) -> str:
        return "lstm"

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """Run the layer.

        Args:
            input: (T, B, D), (B, T, D) with `batch_first`, (T, D) unbatched, or a PackedSequence.
            hx: h0 (L·directions, B, P or H) and c0 (L·directions, B, H); zeros if left out. Without
                the batch dimension for an unbatched input.
            lengths: integers (B,), unsorted, zeros allowed: steps of each sequence that are real.

        Returns:
            output (T, B, directions·(P or H)), zero past each length, shaped and packed as the
            input; and (h_n, c_n) shaped as `hx`, at each sequence's last real step.

        Raises:
            ValueError: a wrong dtype or number of dimensions, or lengths outside [0, T].
            RuntimeError: a wrong width, initial state or device.
        """
        if hx is not None:
            check_pair("LSTM", hx)
        output, (h_n, c_n) = self._run(input, None if hx is None else tuple(hx), lengths)
        return output, (h_n, c_n)


class _OneState(Recurrent):
    """The call of the layers whose only state is h."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run the layer; arguments, results and errors as `LSTM.forward`'s, with hx = h0 alone."""
        if hx is not None and not isinstance(hx, Tensor):
            raise TypeError(
                f"{type(self).__name__}: expected hx to be one tensor h_0, got {type(hx).__name__}"
            )
        output, (h_n,) = self._run(input, None if hx is None else (hx,), lengths)
        return output, h_n


class GRU(_OneState):
    """`torch.nn.GRU` on rnnkit's kernels, with either place of the reset gate.

        r, z = σ(W x + R h + b)
        n = tanh(W_n x + b_n + r ⊙ (R_n h + b_hn))     reset_after=True (arXiv 1406.1078v1, torch)
        n = tanh(W_n x + b_n + R_n (r ⊙ h) + b_hn)     reset_after=False (arXiv 1406.1078v3)
        h' = z ⊙ h + (1 − z) ⊙ n

    z keeps the old state; texts that write (1 − z) ⊙ h + z ⊙ n convert by negating W_z, R_z and
    their biases. Both places of the reset gate have torch's parameters.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device,
            dtype, backend: as for `LSTM`.
        reset_after: whether the reset gate acts after the recurrent product.

    Example:
        >>> output, h_n = GRU(10, 20, reset_after=False)(torch.randn(5, 3, 10))
    """

    _gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        backend: Backend = "auto",
    ) -> None:
        self.reset_after = reset_after
        _refuse_projection(proj_size)
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
            backend=backend,
        )

    @property
    def _cell(self) -> str:
        return "gru" if self.reset_after else "gru_reset_before"

    def _extra_defaults(self) -> dict[str, Any]:
        return {"reset_after": True}


class RNN(_OneState):
    """`torch.nn.RNN` (Elman 1990) on rnnkit's kernels.

        h' = φ(W x + b + R h + b_h),  φ = tanh or ReLU

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device,
            dtype, backend: as for `LSTM`.
        nonlinearity: "tanh" or "relu".

    Example:
        >>> output, h_n = RNN(10, 20, nonlinearity="relu")(torch.randn(5, 3, 10))
    """

    _gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        backend: Backend = "auto",
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        self.nonlinearity = nonlinearity
        _refuse_projection(proj_size)
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
            backend=backend,
        )

    @property
    def _cell(self) -> str:
        return f"rnn_{self.nonlinearity}"


def _refuse_projection(proj_size: int | None) -> None:
    if proj_size is not None:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
