"""The states of layers that run by their definition, where autograd itself knows every step."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rnnkit_kernels import reference
from rnnkit_kernels.ops.placement import Placement
from rnnkit_kernels.ops.states import LayerStates
from rnnkit_kernels.recurrence.rows import Rows

Steps: TypeAlias = list[list[tuple[slice, tuple[Tensor, ...]]]]
"""Of each direction the rows and the state of every step, as nodes of the graph."""


class StatesByDefinition(LayerStates):
    """States whose gradients hooks note on their way back."""

    _norms: Any = None

    def follow(self, y: Tensor, steps: Steps, norms: Any = None) -> None:
        """Note the states, and let autograd tell the rest.

        Args:
            y: as the definition returns it.
            steps: of each direction the rows and the state of every step, as nodes of the graph.
            norms: what normalises, as the definition took it.
        """
        self.output = y
        self._norms, self.normalised = norms, norms is not None
        members, _, width = self.inputs[7].shape
        self._y = y.detach().reshape(-1, members, width)
        own = self.inputs[8]
        if own is not None:
            self._states = y.new_zeros(*self._y.shape[:2], 1, own.shape[2])
            for m, states in enumerate(steps):
                for now, (_, cell) in states:
                    self._states[now, m, 0] = cell.detach()
        self.listen(y, steps)

    def listen(self, y: Tensor, steps: Steps) -> None:
        """Have the gradients noted that a backward pass brings to the nodes."""
        for m, states in enumerate(steps):
            for now, state in states:
                for which, value in enumerate(state):
                    if value.requires_grad:
                        node: Any = value
                        node.register_hook(partial(self._hear, which + 1, now, m))
        if y.requires_grad:
            output: Any = y
            output.register_hook(self._hear_output)

    def handed_back(self) -> tuple[Tensor, ...]:
        """Unknown: the definition keeps no gates.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(
            "what a step hands back is made from its gates, and the definition, by which layers "
            "with layer_norm run, keeps none: watch with graph=True"
        )

    def _hear_output(self, gradient: Tensor) -> None:
        d_output, *_ = self.room()
        d_output.copy_(gradient.detach().reshape(d_output.shape))

    def _hear(self, which: int, now: slice, m: int, gradient: Tensor) -> None:
        known = self._gradients or self.room()  # a loss of the last state alone skips the output
        value = known[which]
        assert value is not None
        value[now, m] = gradient.detach()


class StatesOnGraph(StatesByDefinition):
    """States whose gradients `differentiate` notes, with the graph that they hang on."""

    def __init__(
        self, cell: str, layer: int, engine: str, inputs: tuple[Any, ...], placement: Placement
    ) -> None:
        super().__init__(cell, layer, engine, inputs, placement)
        self._live = inputs
        self._nodes: Steps = []

    def listen(self, y: Tensor, steps: Steps) -> None:
        """Keep the nodes."""
        self._nodes = steps

    def nodes(self) -> list[Tensor]:
        """The states of all steps, and the output."""
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

    def handed_back(self) -> tuple[Tensor, ...]:
        """As LayerStates', as a function of all that the layer read: nothing is constant."""
        x, *weights, h0, c0, zoneout = self._live[:10]
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
    on_graph = [layer for layer in layers if isinstance(layer, StatesOnGraph)]
    if len(on_graph) < len(layers):
        raise RuntimeError("a layer was not watched with graph=True")
    nodes = [layer.nodes() for layer in on_graph]
    flat = [node for of_layer in nodes for node in of_layer]
    gradients = iter(torch.autograd.grad(loss, flat, create_graph=True, allow_unused=True))
    for layer, of_layer in zip(on_graph, nodes, strict=True):
        layer.note([next(gradients) for _ in of_layer])
