"""Truncated backpropagation inside a window: where gradients are cut, and what makes up for it.

A window of T steps has places at which its gradient may be cut, every K steps. With s the state
there, going backwards,

    ds := 0                    with probability c
    ds := ds / (1 - c)         else

The expectation of this is ds, at one place as over all of them, so that the gradient of the window
has its expectation too: it is unbiased (Tallec and Ollivier 2017, arXiv 1705.08209, ARTBP). With
c = 1 every gradient is cut: truncated backpropagation as usual, which is biased, for it never sees
what a step does to the loss more than K steps later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

State = Tensor | tuple["State", ...]
"""State of a recurrent layer, or of several: tensors, or tuples of states."""


def map_state(state: State, function: Callable[[Tensor], Tensor]) -> State:
    """A state of the same nesting, a function applied to each of its tensors."""
    if isinstance(state, Tensor):
        return function(state)
    return tuple(map_state(part, function) for part in state)


class Truncation:
    """The truncation of one window.

    Args:
        steps: K, steps from one place to the next.
        factors: What the gradient is multiplied by at each place; 0 cuts it.

    Example:
        >>> truncation = Truncation(steps=3, factors=[0.0, 2.0])
        >>> output, state = truncation.run(nn.LSTM(4, 5), torch.randn(9, 2, 4), None)
        >>> output.shape
        torch.Size([9, 2, 5])
    """

    def __init__(self, steps: int, factors: Sequence[float]) -> None:
        self.steps = steps
        self.factors = factors

    @classmethod
    def draw(cls, length: int, steps: int, probability: float) -> Truncation:
        """Cut each gradient with a probability, by torch's generator on the CPU.

        Args:
            length: T, steps of the window.
            steps: K.
            probability: c, from 0 to 1; 1 draws nothing.
        """
        places = (length - 1) // steps
        if probability == 1:
            return cls(steps, [0.0] * places)
        passes = 1 / (1 - probability)
        return cls(steps, [passes * (draw >= probability) for draw in torch.rand(places).tolist()])

    def run(self, layer: nn.Module, input: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Call a recurrent layer, or several at once, piece by piece.

        Args:
            layer: `rnnkit.LSTM` or another whose call is (input, state) -> (output, state); what it
                draws for a call, as its `weight_drop`, it draws for each piece.
            input: (T, B, D).
            state: At the start; None: the layer's own.

        Returns:
            Output (T, B, H) and the state after the last step, those of one call on all of it.

        Raises:
            ValueError: There is no factor for a place.
        """
        first, *pieces = torch.split(input, self.steps)
        if len(pieces) != len(self.factors):
            raise ValueError(
                f"{len(input)} steps in pieces of {self.steps} have {len(pieces)} places between "
                f"them, got {len(self.factors)} factors"
            )
        output, last = layer(first, state)
        outputs = [output]
        for piece, factor in zip(pieces, self.factors, strict=True):
            output, last = layer(piece, map_state(last, partial(_scale_gradient, factor=factor)))
            outputs.append(output)
        return torch.cat(outputs), last


def _scale_gradient(value: Tensor, factor: float) -> Tensor:
    if factor == 0:
        return value.detach()
    return _ScaleGradient.apply(value, factor)  # type: ignore[no-any-return, no-untyped-call]


class _ScaleGradient(torch.autograd.Function):
    """The identity, whose derivative is a factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None
