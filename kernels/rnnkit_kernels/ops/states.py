"""The states of every step, and their gradients, of layers that run while somebody watches.

A fused layer hands autograd its output and its last state: what lies between steps is not on the
graph, and `autograd.grad(output[-1], output)` is zero for every earlier step. With s_t = (h_t, c_t)
what step t hands on, and y_t = h_t what the layer gives out,

    ∂L/∂h_t = ∂L/∂y_t + what step t + 1 hands back        ∂L/∂c_t = what step t + 1 hands back

so that a gradient of c_t is that of the pair, with h_t held: c_t's own way to the output of its
step, h_t = o ⊙ tanh(c_t), counts as one of h_t. It is what the initial state of a second call gets
where a sequence is cut behind step t.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.cpu import native
from rnnkit_kernels.ops.context import gemm_precision
from rnnkit_kernels.ops.layer import member
from rnnkit_kernels.ops.placement import Placement
from rnnkit_kernels.recurrence import eager
from rnnkit_kernels.recurrence.eager import state_dtype


class LayerStates:
    """What one layer of a call went through; tensors are detached, and zero past a length.

    Attributes:
        cell: a key of `CELLS`.
        layer: 0 for the first of a call.
        engine: what ran it.
        inputs: the tensors that the layer took, in the order of `rnnkit::recurrence`.
        weight_hh: R of every direction, (M, G·H, P); this and `output` are not detached.
        output: y as the engine gave it, through which every gradient comes; None before it has.
        watchers: how many watch this call.
        normalised: whether the layer is normalised inside of its steps.
        settled: whether a backward pass that comes notes nothing any more.
    """

    normalised = False

    def __init__(
        self,
        cell: str,
        layer: int,
        engine: str,
        inputs: tuple[Any, ...],
        placement: Placement,
    ) -> None:
        self.cell, self.layer, self.engine = cell, layer, engine
        self.weight_hh: Tensor = inputs[2]
        self.output: Tensor | None = None
        self.watchers = 0
        self.settled = False
        self.inputs: tuple[Any, ...] = tuple(None if t is None else t.detach() for t in inputs)
        self._placement = placement
        self._y: Tensor | None = None
        self._states: Tensor | None = None
        self._saved: Tensor | None = None
        self._gradients: tuple[Tensor | None, ...] | None = None

    @property
    def directions(self) -> int:
        """M, 1 or 2."""
        return int(self.inputs[7].shape[0])

    @property
    def lengths(self) -> Tensor | None:
        """int64 (B,), the number of steps of each sequence; None where all have T."""
        own = self._placement.rows.lengths()
        return None if own is None else self._placement.sequences(own[None])[0]

    @property
    def input(self) -> Tensor:
        """x, (T, B, D)."""
        x = self.inputs[0]
        return self._placement.padded(x.flatten(0, -2))

    @property
    def initial(self) -> tuple[Tensor, ...]:
        """h_0 and, where there is one, c_0, (M, B, ·) each."""
        given = self.inputs[7:9]
        return tuple(self._placement.sequences(value) for value in given if value is not None)

    @property
    def hidden(self) -> Tensor:
        """h_t, (T, B, M, P)."""
        return self._placement.padded(self._known(self._y))

    @property
    def cell_state(self) -> Tensor | None:
        """c_t, (T, B, M, H); None for cells without."""
        if not CELLS[self.cell].has_cell_state:
            return None
        return self._placement.padded(self._known(self._states)[:, :, 0])

    @property
    def saved(self) -> Tensor | None:
        """What the cell keeps for its backward pass, (T, B, M, S, H); None where nothing is kept.

        For an LSTM the gates i, f, g, o; with coupled gates f, g, o; for a GRU r, z, n and more.
        """
        kept = self._saved
        return None if kept is None or kept.numel() == 0 else self._placement.padded(kept)

    @property
    def output_gradient(self) -> Tensor:
        """∂L/∂y_t, (T, B, M, P): what the loss, or the layer above, gives step t's output."""
        return self._gradient(0)

    @property
    def hidden_gradient(self) -> Tensor:
        """∂L/∂h_t, (T, B, M, P)."""
        return self._gradient(1)

    @property
    def cell_gradient(self) -> Tensor | None:
        """∂L/∂c_t, (T, B, M, H); None for cells without c."""
        return self._gradient(2) if CELLS[self.cell].has_cell_state else None

    def handed_back(self) -> tuple[Tensor, ...]:
        """What step t hands back to the state before it, from ∂L/∂(h_t, c_t), as a function of R.

        As numbers these are ∂L/∂h_{t-1} less ∂L/∂y_{t-1}, and ∂L/∂c_{t-1}, for all t at once; the
        state before the first step, in the order of the direction, is the initial one. For autograd
        they depend on the products of the backward pass with R, the layer's own `weight_hh`, while
        all that the forward pass made, and ∂L/∂(h_t, c_t), are constants.

        Returns:
            (T, B, M, P) and, where there is a c, (T, B, M, H).

        Raises:
            RuntimeError: The layer ran by its definition and keeps no gates, as with layer
                normalisation; or nothing is known yet.
        """
        y, saved, states = (self._known(each) for each in (self._y, self._saved, self._states))
        *_, weight_hr, cell_weights, h0, c0, zoneout = self.inputs[:10]
        kind, rows, exact = CELLS[self.cell], self._placement.rows, state_dtype(y.dtype)
        names = kind.carried(zoneout is not None)
        of_hidden: list[Tensor] = []
        of_cell: list[Tensor] = []
        d_hidden, d_cell = self._of_states()
        for m in range(self.directions):
            own = member(m, weight_hr, cell_weights, h0, c0)
            shares = None if zoneout is None else zoneout[:, m]
            gradient = d_hidden[:, m]
            if own[0] is not None:
                gradient = gradient.to(y.dtype) @ own[0]
            cell = None if d_cell is None else d_cell[:, m]
            zero = torch.zeros_like(gradient, dtype=exact)
            carried = tuple(cell if name == "cell" and cell is not None else zero for name in names)
            start = None if own[3] is None else own[3].to(exact)
            around = eager.states_around(
                kind, own[2], start, shares, rows, m == 1, y[:, m], states[:, m]
            )
            before, after = (tuple(value.to(exact) for value in part) for part in around)
            vectors = () if own[1] is None else tuple(own[1].to(exact).unbind(0))
            kept = saved[:, m].to(exact).unbind(1)
            shares = None if shares is None else shares.to(exact)
            of_step = (kept, before, after, gradient.to(exact), carried, shares, y.dtype)
            with gemm_precision(y):
                passed, _, carry = eager.step_back(kind, self.weight_hh[m], vectors, *of_step)
            past = dict(zip(names, carry, strict=True))
            of_hidden.append(passed + past["hidden"] if "hidden" in past else passed)
            if c0 is not None:
                of_cell.append(past["cell"])
        found = [torch.stack(parts, 1) for parts in (of_hidden, of_cell) if parts]
        return tuple(self._placement.padded(value) for value in found)

    @property
    def differentiated(self) -> bool:
        """Whether a backward pass has come through."""
        return self._gradients is not None

    def _known(self, value: Tensor | None) -> Tensor:
        if value is None:
            raise RuntimeError(
                "the states of this layer are not known: it ran without gradients, so nothing of "
                "them was kept; run it with gradients on"
            )
        return value

    def _gradient(self, which: int) -> Tensor:
        return self._placement.padded(self._raw_gradient(which))

    def _of_states(self) -> tuple[Tensor, Tensor | None]:
        """∂L/∂h_t and ∂L/∂c_t in the operator's rows."""
        has_cell = CELLS[self.cell].has_cell_state
        return self._raw_gradient(1), self._raw_gradient(2) if has_cell else None

    def _raw_gradient(self, which: int) -> Tensor:
        if self._gradients is None:
            raise RuntimeError(
                "the gradients of this layer's states are not known: no backward pass has come "
                "through it yet"
            )
        found = self._gradients[which]
        assert found is not None
        return found

    def ran(self, y: Tensor, saved: Tensor | None, states: Tensor) -> None:
        """Note what a forward pass kept, as `rnnkit::recurrence` returns it."""
        members, _, width = self.inputs[7].shape
        self.output = y
        self._y = y.detach().reshape(-1, members, width)
        self._saved = None if saved is None else saved.detach()
        self._states = states.detach()

    def settle(self) -> None:
        """Keep the gradients that are known: no later backward pass notes its own."""
        self.settled = True

    def room(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Zeros for the gradients of y, h and c of every step, which are then known."""
        y, c0 = self._known(self._y), self.inputs[8]
        exact = state_dtype(y.dtype)
        d_cell = None if c0 is None else y.new_zeros(*y.shape[:2], c0.shape[2], dtype=exact)
        self._gradients = torch.zeros_like(y), torch.zeros_like(y, dtype=exact), d_cell
        return self._gradients

    @torch.no_grad()
    def differentiate(self, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None) -> None:
        """Note the gradients of all states.

        The native engine writes them down in its own backward pass. The Triton kernels keep theirs
        in registers: the loop in PyTorch makes them anew from what the kernels saved.

        Args:
            dy, dh_n, dc_n: gradients of the operator's first three results; None stands for zero.
        """
        x, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, cell_weights, h0, c0, zoneout = (
            self.inputs[:10]
        )
        kind, rows = CELLS[self.cell], self._placement.rows
        y, saved, states = (self._known(each) for each in (self._y, self._saved, self._states))
        d_output, d_hidden, d_cell = self.room()
        if dy is not None:
            d_output.copy_(dy.reshape(y.shape))
        if self.engine == "native" and native.runs(kind, x):
            inputs = (x, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, cell_weights, h0, c0)
            native.backward(
                kind, dy, dh_n, dc_n, *inputs, zoneout, rows, False, y, saved, states, False,
                of_states=(d_hidden, d_cell),
            )  # fmt: skip
            return
        dh_n = torch.zeros_like(h0) if dh_n is None else dh_n
        dc: Tensor | None = None
        if c0 is not None:
            c0 = c0.to(d_hidden.dtype)
            dc = torch.zeros_like(c0) if dc_n is None else dc_n.to(d_hidden.dtype)
        for m in range(self.directions):
            own = member(m, dh_n, dc, weight_hh, weight_hr, cell_weights, h0, c0)
            shares = None if zoneout is None else zoneout[:, m]
            room = (d_hidden[:, m], None if d_cell is None else d_cell[:, m])
            of_member = (*own, shares, rows, m == 1, y[:, m], saved[:, m], states[:, m], room)
            with gemm_precision(x):
                eager.backward(kind, d_output[:, m], *of_member)
