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

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import local
from typing import Any

import torch
from torch import Tensor

from rnnkit_kernels import reference
from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.cpu import native
from rnnkit_kernels.ops.context import gemm_precision, traces
from rnnkit_kernels.ops.layer import member
from rnnkit_kernels.recurrence import eager
from rnnkit_kernels.recurrence.eager import state_dtype
from rnnkit_kernels.recurrence.rows import Rows

_watching = local()


@dataclass(frozen=True)
class Placement:
    """Where the rows of a call lie in (T, B).

    Attributes:
        shape: T and B, as the caller has them.
        rows: those of the operator.
        order: int64, the original index of each of its sequences, or None for the identity.
    """

    shape: tuple[int, int]
    rows: Rows
    order: Tensor | None

    def padded(self, value: Tensor) -> Tensor:
        """(N, ...) as (T, B, ...), zero past each length."""
        steps, batch = self.shape
        if self.rows.batch_sizes is None:
            return value.view(steps, batch, *value.shape[1:])
        counts, offsets = self.rows.batch_sizes, self.rows.offsets
        assert offsets is not None
        sequence = torch.arange(self.rows.batch, device=value.device)
        inside = sequence < counts.to(value.device)[:, None]
        at = (offsets.to(value.device)[:, None] + sequence) * inside
        own = value[at].masked_fill(~inside.view(*inside.shape, *[1] * (value.dim() - 1)), 0)
        if self.order is not None:
            sequence = self.order.to(value.device)
        found = value.new_zeros(steps, batch, *value.shape[1:])
        found[: len(own), sequence] = own
        return found

    def sequences(self, value: Tensor) -> Tensor:
        """(M, ·, ...) of the operator's sequences as (M, B, ...), zero for those without a step."""
        found = value.new_zeros(value.shape[0], self.shape[1], *value.shape[2:])
        order = torch.arange(value.shape[1]) if self.order is None else self.order
        found[:, order.to(value.device)] = value
        return found


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
    """

    def __init__(
        self,
        cell: str,
        layer: int,
        engine: str,
        inputs: tuple[Any, ...],
        placement: Placement,
        graph: bool = False,
    ) -> None:
        self.cell, self.layer, self.engine = cell, layer, engine
        self._live = inputs if graph else None
        self._nodes: list[list[tuple[slice, tuple[Tensor, ...]]]] = []
        self._norms: Any = None
        self.weight_hh: Tensor = inputs[2]
        self.output: Tensor | None = None
        self.watchers = 0
        self._settled = False
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

        Where the layer was watched with `graph` they are functions of all that it read, and
        nothing is constant.

        Returns:
            (T, B, M, P) and, where there is a c, (T, B, M, H).

        Raises:
            RuntimeError: A layer that ran by its definition, with layer normalisation for one,
                keeps no gates.
        """
        if self._live is not None:
            return self._handed_back_by_definition(self._live)
        y, saved = self._known(self._y), self._saved
        if saved is None:
            raise RuntimeError(
                f"what a step hands back is made from its gates, and engine {self.engine}, which "
                "layers with layer_norm run on, keeps none"
            )
        states = self._known(self._states)
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
    def normalised(self) -> bool:
        """Whether the layer is normalised inside of its steps."""
        return self._norms is not None

    def _handed_back_by_definition(self, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
        x, *weights, h0, c0, zoneout = inputs[:10]
        x = x.flatten(0, -2)
        rows = self._placement.rows
        d_hidden, d_cell = self._of_states()
        of_members = []
        for m, nodes in enumerate(self._nodes):
            start = (h0[m],) if c0 is None else (h0[m], c0[m])
            flat = [_in_rows(nodes, which, len(x)) for which in range(len(start))]
            before = [rows.before(*pair, m == 1) for pair in zip(flat, start, strict=True)]
            own = [None if tensor is None else tensor[m] for tensor in weights]
            shares = None if zoneout is None else zoneout[:, m]
            step = (x[None], *own, *before, *[None] * (c0 is None), shares)
            at_once = Rows(1, len(flat[0]))
            norm = None if self._norms is None else self._norms[m]
            _, *new = reference.layer(self.cell, step, at_once, layer_norm=norm)
            arrived = [d_hidden[:, m]] if d_cell is None else [d_hidden[:, m], d_cell[:, m]]
            ends = [value for value in new if value is not None]
            of_members.append(torch.autograd.grad(ends, before, arrived, create_graph=True))
        found = [torch.stack(parts, 1) for parts in zip(*of_members, strict=True)]
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
        self._settled = True

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

    def follow(
        self,
        y: Tensor,
        steps: list[list[tuple[slice, tuple[Tensor, ...]]]],
        norms: Any = None,
    ) -> None:
        """Note the states of a layer that ran by its definition, and let autograd tell the rest.

        Args:
            y: as the definition returns it.
            steps: of each direction the rows and the state of every step, as nodes of the graph.
            norms: what normalises, as the definition took it.
        """
        self.output = y
        self._norms = norms
        members, _, width = self.inputs[7].shape
        self._y = y.detach().reshape(-1, members, width)
        own = self.inputs[8]
        if own is not None:
            self._states = y.new_zeros(*self._y.shape[:2], 1, own.shape[2])
        for m, states in enumerate(steps):
            for now, state in states:
                for which, value in enumerate(state):
                    if which == 1 and self._states is not None:
                        self._states[now, m, 0] = value.detach()
                    if value.requires_grad and self._live is None:
                        node: Any = value
                        node.register_hook(partial(self._hear, which + 1, now, m))
        if self._live is not None:
            self._nodes = steps
        elif y.requires_grad:
            output: Any = y
            output.register_hook(self._hear_output)

    def nodes(self) -> list[Tensor]:
        """The states of all steps, and the output, where the layer was watched with its graph.

        Raises:
            RuntimeError: It was not.
        """
        if self._live is None:
            raise RuntimeError("the layer was not watched with graph=True")
        states = [value for steps in self._nodes for _, state in steps for value in state]
        assert self.output is not None
        return [*states, self.output]

    def note(self, gradients: list[Tensor | None]) -> None:
        """Note the gradients of `nodes`, whatever graph they hang on."""
        *of_states, of_output = gradients
        known = iter(of_states)
        of_members = []
        size = len(self._known(self._y))
        for steps in self._nodes:
            gathered = [
                (now, tuple(_zero_for(next(known), value) for value in state))
                for now, state in steps
            ]
            states = range(len(steps[0][1]))
            of_members.append([_in_rows(gathered, which, size) for which in states])
        parts = [torch.stack(part, 1) for part in zip(*of_members, strict=True)]
        assert self.output is not None
        output = _zero_for(of_output, self.output).reshape(parts[0].shape)
        self._gradients = output, parts[0], parts[1] if parts[1:] else None

    def _hear_output(self, gradient: Tensor) -> None:
        d_output, *_ = self.room()
        d_output.copy_(gradient.detach().reshape(d_output.shape))

    def _hear(self, which: int, now: slice, m: int, gradient: Tensor) -> None:
        known = self._gradients or self.room()  # a loss of the last state alone skips the output
        value = known[which]
        assert value is not None
        value[now, m] = gradient.detach()


def _in_rows(steps: list[tuple[slice, tuple[Tensor, ...]]], which: int, size: int) -> Tensor:
    """One part of the states of all steps, (size, ·), zero in rows of no step."""
    ordered = sorted(steps, key=lambda step: step[0].start)
    value = torch.cat([state[which] for _, state in ordered])
    if len(value) == size:
        return value
    return torch.cat([value, value.new_zeros(size - len(value), value.shape[1])])


def _zero_for(gradient: Tensor | None, value: Tensor) -> Tensor:
    return torch.zeros_like(value) if gradient is None else gradient


def differentiate(loss: Tensor, layers: list[LayerStates]) -> None:
    """Note the gradients of all states of layers that were watched with their graph.

    They may be differentiated once more, with respect to all that they depend on.

    Args:
        loss: a scalar.
        layers: in any order.

    Raises:
        RuntimeError: A layer was watched without its graph; or something between the layers and the
            loss can't be differentiated twice, as torch says.
    """
    nodes = [layer.nodes() for layer in layers]
    flat = [node for of_layer in nodes for node in of_layer]
    gradients = iter(torch.autograd.grad(loss, flat, create_graph=True, allow_unused=True))
    for layer, of_layer in zip(layers, nodes, strict=True):
        layer.note([next(gradients) for _ in of_layer])


class _Watch(torch.autograd.Function):
    """The identity, whose backward pass tells what comes along."""

    @staticmethod
    def forward(ctx: Any, states: LayerStates, *results: Tensor) -> tuple[Tensor, ...]:
        ctx.states = states
        ctx.set_materialize_grads(False)
        return tuple(value.view_as(value) for value in results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        dy, dh_n, *of_cell = gradients
        if not ctx.states._settled:
            ctx.states.differentiate(dy, dh_n, of_cell[0] if of_cell else None)
        return None, *gradients


def watch(states: LayerStates, *results: Tensor) -> tuple[Tensor, ...]:
    """The same y, h_n and c_n, whose gradients are noted on their way back."""
    return _Watch.apply(states, *results)  # type: ignore[no-any-return, no-untyped-call]


class Watchers(list[LayerStates]):
    """What one `watched_states` yields, and who watched before it and goes on to."""

    def __init__(self, outer: Watchers | None, graph: bool) -> None:
        super().__init__()
        self.outer = outer
        self.graph: bool = graph or (outer is not None and outer.graph)

    def append(self, states: LayerStates) -> None:
        """Tell all of them."""
        super().append(states)
        states.watchers += 1
        if self.outer is not None:
            self.outer.append(states)


@contextmanager
def watched_states(graph: bool = False) -> Iterator[list[LayerStates]]:
    """Note the states of every layer that runs in here, and their gradients when these are known.

    The backward pass may come later. Layers run on engines that keep what is asked for: torch's own
    keep nothing, and the native engine or the loop in PyTorch takes their place, with which
    results are equal but for rounding, and dropout between layers draws other masks. Nothing is
    noted of what torch.compile, torch.jit and torch.func trace. Several may watch at once.

    Args:
        graph: run by the definition, slowly, so that states and their gradients are on autograd's
            graph: `differentiate` notes these, no backward pass does.

    Yields:
        One entry a layer, in the order in which they ran; both directions are one entry.

    Example:
        >>> weights = [torch.randn(8, 3), torch.randn(8, 2), torch.zeros(8), torch.zeros(8)]
        >>> with watched_states() as layers: ...
    """
    outer = getattr(_watching, "noted", None)
    _watching.noted = Watchers(outer, graph)
    try:
        yield _watching.noted
    finally:
        _watching.noted = outer


def watched() -> Watchers | None:
    """What the layers of this thread add themselves to; None where nobody watches."""
    if torch.compiler.is_compiling() or traces():
        return None
    return getattr(_watching, "noted", None)
