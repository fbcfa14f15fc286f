"""`LSTM`, `GRU` and `RNN`: torch.nn's layers with `lengths=` and a choice of backend.

Parameters carry torch's names, shapes, order and initialisation, so a `state_dict` goes both ways
and one seed gives one model. The classes derive from `nn.Module`, not `nn.RNNBase`: Dynamo refuses
every instance of that, so `isinstance(layer, torch.nn.LSTM)` is False; it is True of the layers in
`rnnkit.compat`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnkit.nn.base import Recurrent
from rnnkit.nn.inputs import check_pair, is_tensor
from rnnkit.nn.options import Zoneout, check_flag
from rnnkit.nn.tracing import recorded_call
from rnnkit_kernels.functional import Backend


class LSTM(Recurrent):
    """`torch.nn.LSTM` on rnnkit's kernels.

        i, f, o = σ(W x + R h + b),  g = tanh(W x + R h + b)
        c' = f ⊙ c + i ⊙ g,  h' = o ⊙ tanh(c')

    (Hochreiter & Schmidhuber 1997; Gers et al. 2000; projection: Sak et al. 2014.) With `peephole`
    i and f also see c and o sees c', one weight a unit: p_i ⊙ c, p_f ⊙ c, p_o ⊙ c' (Gers &
    Schmidhuber 2000). With `coupled` the input gate is i = 1 − f (Greff et al. 2017).

    Parameters are torch's; `peephole` adds `weight_c_l{k}`, (3, H) in the order p_i, p_f, p_o.
    Coupled gates have 3H rows for 4H, in the order f, g, o, and two peepholes, p_f and p_o.

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
        peephole: whether the gates see the cell state.
        coupled: whether the input gate is one minus the forget gate.
        zoneout: probability with which a unit keeps its state for a step while training, and the
            share of it that it keeps otherwise (Krueger et al. 2017): one number for h and c, or a
            pair. Not with `proj_size`.
        weight_drop: probability of zeroing an element of a weight_hh while training, drawn once a
            call and scaled by 1 / (1 − p) as dropout is (DropConnect: Wan et al. 2013, Merity et
            al. 2018). The parameters themselves stay as they are. On a GPU torch's own layers then
            copy their weights on every training call, and torch warns of it.
        layer_norm: whether W x, R h and, inside h', c' are normalised over their units (Ba et al.
            2016), with parameters `gain_ih_l{k}`, `shift_ih_l{k}`, `gain_hh_l{k}`, `shift_hh_l{k}`
            and `gain_c_l{k}`, `shift_c_l{k}`. It runs by its definition, step by step in PyTorch on
            every device: slow. Not with `recompute` or `backend="triton"`.
        recompute: whether the backward pass computes the gates again instead of keeping them. Of
            a step it keeps h and c in place of h, c and all gates, and multiplies by W and R once
            more, over all steps at once. Gradients differ by rounding alone. torch's own layers
            can't, so rnnkit's engines run.
        backend: "auto" (`rnnkit.explain` says what that is here), whose error against float64 is at
            most twice a plain loop's and a small band; "torch", whose results are torch.nn's bit
            for bit; "native", the CPU engine; "triton", the kernels for GPUs; or for measurements
            one engine: "resident", "data", "counter", "launch" or "eager".

    Raises:
        TypeError, ValueError: as torch.nn raises them, and for options that exclude each other.

    Example:
        >>> layer = LSTM(10, 20, num_layers=2)
        >>> output, (h_n, c_n) = layer(torch.randn(5, 3, 10), lengths=torch.tensor([5, 0, 2]))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    _states = 2

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        peephole: bool = False,
        coupled: bool = False,
        zoneout: Zoneout = 0.0,
        weight_drop: float = 0.0,
        layer_norm: bool = False,
        recompute: bool = False,
        backend: Backend = "auto",
    ) -> None:
        check_flag("peephole", peephole)
        check_flag("coupled", coupled)
        self.peephole = peephole
        self.coupled = coupled
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
            zoneout=zoneout,
            weight_drop=weight_drop,
            layer_norm=layer_norm,
            recompute=recompute,
            backend=backend,
        )

    @property
    def _gates(self) -> int:
        return 3 if self.coupled else 4

    @property
    def _peepholes(self) -> int:
        return (2 if self.coupled else 3) if self.peephole else 0

    @property
    def _cell(self) -> str:
        return "lstm" + "_coupled" * self.coupled + "_peephole" * self.peephole

    def _extra_defaults(self) -> dict[str, Any]:
        return {"peephole": False, "coupled": False, **super()._extra_defaults()}

    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        hx_reset: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """Run the layer.

        Args:
            input: (T, B, D), (B, T, D) with `batch_first`, (T, D) unbatched, or a PackedSequence.
            hx: h0 (L·directions, B, P or H) and c0 (L·directions, B, H); zeros if left out. Without
                the batch dimension for an unbatched input.
            lengths: integers (B,), unsorted, zeros allowed: steps of each sequence that are real.
            resets: booleans (T, B), or (B, T) with `batch_first`: true where a sequence begins anew
                at a step, such as the first of an episode. The state before that step is
                `hx_reset`, whatever it was, and no gradient passes; backward in time the state
                after that step goes no further. True past a length changes nothing. On a GPU the
                host waits for them.
            hx_reset: the state after a reset, (L·directions, P or H) and (L·directions, H), one for
                all sequences; zeros if left out. It may be a parameter.

        Returns:
            output (T, B, directions·(P or H)), zero past each length, shaped and packed as the
            input; and (h_n, c_n) shaped as `hx`, at each sequence's last real step.

        Raises:
            ValueError: a wrong dtype or number of dimensions, lengths outside [0, T], or resets
                with an input that is packed or unbatched.
            RuntimeError: a wrong width, initial state or device.
        """
        plain = lengths is None and (hx is None or type(hx) is tuple)
        if resets is not None and plain and (hx_reset is None or type(hx_reset) is tuple):
            begun = self._before_one_step(input, hx, resets, hx_reset)
            if begun is not None:
                hx, resets, hx_reset = (begun[0], begun[1]), None, None
        if plain and resets is None and hx_reset is None:
            found = self._run_fast_path(input, hx)
            if found is not None:
                return found[0], (found[1], found[2])
        node = recorded_call(self, input, hx, lengths, resets, hx_reset)
        if node is not None:
            return node  # type: ignore[no-any-return]
        if hx is not None:
            check_pair("LSTM", hx)
        if hx_reset is not None:
            check_pair("LSTM", hx_reset, "hx_reset")
            hx_reset = (hx_reset[0], hx_reset[1])
        start = None if hx is None else tuple(hx)
        output, (h_n, c_n) = self._run(input, start, lengths, resets, hx_reset)
        return output, (h_n, c_n)


class _OneState(Recurrent):
    """The call of the layers whose only state is h.

    Each has a `forward` of its own that hands on to it: Python's errors name the function.
    """

    def _call(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        hx_reset: Tensor | None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        if resets is not None and lengths is None:
            state = None if hx is None else (hx,)
            anew = None if hx_reset is None else (hx_reset,)
            begun = self._before_one_step(input, state, resets, anew)
            if begun is not None:
                hx, resets, hx_reset = begun[0], None, None
        if lengths is None and resets is None and hx_reset is None:
            found = self._run_fast_path(input, None if hx is None else (hx,))
            if found is not None:
                return found[0], found[1]
        node = recorded_call(self, input, hx, lengths, resets, hx_reset)
        if node is not None:
            return node  # type: ignore[no-any-return]
        for which, value in (("hx", hx), ("hx_reset", hx_reset)):
            if value is not None and not is_tensor(value):
                raise TypeError(
                    f"{type(self).__name__}: expected {which} to be one tensor h_0, got "
                    f"{type(value).__name__}"
                )
        start = None if hx is None else (hx,)
        anew = None if hx_reset is None else (hx_reset,)
        output, (h_n,) = self._run(input, start, lengths, resets, anew)
        return output, h_n


class GRU(_OneState):
    """`torch.nn.GRU` on rnnkit's kernels, with either place of the reset gate.

        r, z = σ(W x + R h + b)
        n = tanh(W_n x + b_n + r ⊙ (R_n h + b_hn))     reset_after=True (arXiv 1406.1078v1, torch)
        n = tanh(W_n x + b_n + R_n (r ⊙ h) + b_hn)     reset_after=False (arXiv 1406.1078v3)
        h' = z ⊙ h + (1 − z) ⊙ n

    z keeps the old state; texts that write (1 − z) ⊙ h + z ⊙ n convert by negating W_z, R_z and
    their biases. Both places of the reset gate have torch's parameters. With `residual` the step
    before is added, h' = z ⊙ h + (1 − z) ⊙ n + h, and gradients have a way back through time that
    no gate closes (He et al. 2016, with time for depth); |h| may double from step to step.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device,
            dtype, weight_drop, recompute, backend: as for `LSTM`; of a step stays h alone.
        reset_after: whether the reset gate acts after the recurrent product.
        residual: whether the state before is added to the new one; not with `reset_after=False`.
        zoneout: as for `LSTM`, one number.
        layer_norm: as for `LSTM`, of W x and R h, r and z together and n by itself; not with
            `reset_after=False`.

    Example:
        >>> output, h_n = GRU(10, 20, reset_after=False)(torch.randn(5, 3, 10))
    """

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
        residual: bool = False,
        zoneout: float = 0.0,
        weight_drop: float = 0.0,
        layer_norm: bool = False,
        recompute: bool = False,
        backend: Backend = "auto",
    ) -> None:
        check_flag("residual", residual)
        self.reset_after = reset_after
        self.residual = residual
        if residual and not reset_after:
            raise ValueError(
                "residual=True and reset_after=False exclude each other: the residual GRU resets "
                "after its recurrent product"
            )
        _refuse_projection(proj_size)
        if layer_norm and not reset_after:
            raise ValueError(
                "layer_norm=True and reset_after=False exclude each other: layer normalisation is "
                "defined for the GRU whose three gates all come from R h"
            )
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
            zoneout=zoneout,
            weight_drop=weight_drop,
            layer_norm=layer_norm,
            recompute=recompute,
            backend=backend,
        )

    @property
    def _gates(self) -> int:
        return 3

    @property
    def _cell(self) -> str:
        if self.residual:
            return "gru_residual"
        return "gru" if self.reset_after else "gru_reset_before"

    def _extra_defaults(self) -> dict[str, Any]:
        return {"reset_after": True, "residual": False, **super()._extra_defaults()}

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        hx_reset: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run the layer; arguments, results and errors as `LSTM.forward`'s, with hx = h0 alone."""
        return self._call(input, hx, lengths, resets, hx_reset)


class RNN(_OneState):
    """`torch.nn.RNN` (Elman 1990) on rnnkit's kernels.

        h' = φ(W x + b + R h + b_h),  φ = tanh or ReLU
        h' = φ(W x + b + R h + b_h) + h     residual=True (He et al. 2016, with time for depth)

    With `residual` gradients have a way back through time that no weight shrinks; |h| may grow by 1
    a step with tanh, up to T, and without bound with ReLU.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device,
            dtype, weight_drop, backend: as for `LSTM`.
        nonlinearity: "tanh" or "relu".
        residual: whether the state before is added to the new one.
        zoneout: as for `LSTM`, one number.
        layer_norm: as for `LSTM`, of W x and R h.
        recompute: as for `LSTM`; there are no gates to keep, so it saves nothing, or with
            `residual` φ.

    Example:
        >>> output, h_n = RNN(10, 20, nonlinearity="relu")(torch.randn(5, 3, 10))
    """

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
        residual: bool = False,
        zoneout: float = 0.0,
        weight_drop: float = 0.0,
        layer_norm: bool = False,
        recompute: bool = False,
        backend: Backend = "auto",
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        check_flag("residual", residual)
        self.nonlinearity = nonlinearity
        self.residual = residual
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
            zoneout=zoneout,
            weight_drop=weight_drop,
            layer_norm=layer_norm,
            recompute=recompute,
            backend=backend,
        )

    @property
    def _gates(self) -> int:
        return 1

    @property
    def _cell(self) -> str:
        return f"rnn_{self.nonlinearity}" + "_residual" * self.residual

    def _extra_defaults(self) -> dict[str, Any]:
        return {"residual": False, **super()._extra_defaults()}

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        hx_reset: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run the layer; arguments, results and errors as `LSTM.forward`'s, with hx = h0 alone."""
        return self._call(input, hx, lengths, resets, hx_reset)


def _refuse_projection(proj_size: int | None) -> None:
    if proj_size is not None:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
