"""States of a stack's layers: in common as one layer with `num_layers` has them, or apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from rnnkit.nn.truncation import State


def apart(
    state: State | None, hidden_sizes: Sequence[int], directions: int, is_pair: bool
) -> Sequence[State | None]:
    """A state for each layer.

    Args:
        state: (L·directions, ...), for an LSTM a pair of such; or one for each layer; or None.
        hidden_sizes: Of the L layers.
        directions: 1 or 2.
        is_pair: Whether one layer's state is a pair.

    Returns:
        L states (directions, ...), or L times None.

    Raises:
        RuntimeError: The state is of another number of layers, or in common for layers of several
            sizes.
    """
    count = len(hidden_sizes)
    if state is None:
        return [None] * count
    common: Sequence[Tensor] | None = None
    if isinstance(state, Tensor):
        common = [state]
    elif is_pair and isinstance(state[0], Tensor):
        common = cast(Sequence[Tensor], state)
    if common is None:
        if len(state) != count:
            raise RuntimeError(f"expected a state for each of {count} layers, got {len(state)}")
        return cast(Sequence[State], state)
    if len(set(hidden_sizes)) > 1:
        raise RuntimeError(
            f"layers of the sizes {', '.join(map(str, hidden_sizes))} have no state in common: "
            f"give a tuple of {count}, one for each layer"
        )
    found = [each.shape[0] for each in common]
    if found != [count * directions] * len(found):
        raise RuntimeError(
            f"expected states of {count * directions} (layers times directions), got "
            f"{' and '.join(map(str, found))}: they are (num_layers·directions, batch, hidden), "
            "also with batch_first=True"
        )
    parts = [torch.split(each, directions) for each in common]
    return parts[0] if isinstance(state, Tensor) else list(zip(*parts, strict=True))


def together(states: Sequence[State]) -> State:
    """What `apart` took apart, of layers of one size.

    Args:
        states: (directions, ...) of each of L layers, or pairs of such.

    Returns:
        (L·directions, ...), or a pair of such.
    """
    if isinstance(states[0], Tensor):
        return torch.cat(cast(list[Tensor], states))
    return tuple(torch.cat(parts) for parts in zip(*states, strict=True))
