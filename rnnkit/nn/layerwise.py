"""Recurrent layers run one after the other, for what lies between them: dropout of any kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from rnnkit.nn.dropout import LockedDropout
from rnnkit.nn.truncation import State, Truncation


class Layerwise(nn.Module):
    """A stack of recurrent layers that need not be as wide as each other.

    Args:
        layers: Each takes the width that the one below gives; (input, state) -> (output, state).
        dropout: Applied to the output of every layer but the last, over all steps at once.

    Example:
        >>> stack = Layerwise([nn.LSTM(4, 9), nn.LSTM(9, 4)], nn.Dropout(0.5))
        >>> output, (first, second) = stack(torch.randn(7, 2, 4))
        >>> output.shape, first[0].shape
        (torch.Size([7, 2, 4]), torch.Size([1, 2, 9]))
    """

    def __init__(self, layers: Sequence[nn.Module], dropout: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.dropout = dropout

    def forward(
        self,
        input: Tensor,
        state: tuple[State, ...] | None = None,
        truncation: Truncation | None = None,
    ) -> tuple[Tensor, tuple[State, ...]]:
        """Run all layers.

        Args:
            input: (T, B, D).
            state: A state for each layer, as the layer has it; None: the layers' own.
            truncation: Where to cut gradients, of all layers alike; None: nowhere.

        Returns:
            Output of the last layer (T, B, H), and the states after the last step.
        """
        states: list[State] = []
        for index, layer in enumerate(self.layers):
            if index > 0:
                input = self.dropout(input)
            before = None if state is None else state[index]
            if truncation is None:
                input, after = layer(input, before)
            else:
                input, after = truncation.run(layer, input, before)
            states.append(after)
        return input, tuple(states)


def recurrent_layers(
    cell: Callable[..., nn.Module],
    widths: Sequence[int],
    dropout: float,
    locked: bool,
    **options: Any,
) -> nn.Module:
    """Layers of some widths in the one module that can run them all, or else in a `Layerwise`.

    Args:
        cell: `rnnkit.LSTM`, `GRU` or `RNN`.
        widths: Of the input, then of every layer.
        dropout: Probability to zero an element of the output of a layer that is not the last.
        locked: Whether the same elements are zero at all steps.
        options: Of `cell`, for every layer.
    """
    first, *hidden = widths
    if len(hidden) == 1:
        return cell(first, hidden[0], **options)
    if len(set(hidden)) == 1 and not locked:
        return cell(first, hidden[0], len(hidden), dropout=dropout, **options)
    between = LockedDropout(dropout) if locked else nn.Dropout(dropout)
    return Layerwise([cell(*pair, **options) for pair in pairwise(widths)], between)
