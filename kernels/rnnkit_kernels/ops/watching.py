"""Who watches layers while they run, and is told of their states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import local
from typing import Any

import torch
from torch import Tensor

from rnnkit_kernels.ops.context import traces
from rnnkit_kernels.ops.states import LayerStates

_watching = local()


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
        if not ctx.states.settled:
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
