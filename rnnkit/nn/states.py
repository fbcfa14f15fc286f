"""The states of a model's recurrent layers at every step, and the gradients that reach them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from rnnkit.nn.base import Recurrent
from rnnkit_kernels.functional import LayerStates, differentiate, watched_states

__all__ = ["LayerStates", "differentiate", "watch_states"]


@contextmanager
def watch_states(model: nn.Module, graph: bool = False) -> Iterator[dict[str, list[LayerStates]]]:
    """Note every state of the recurrent layers in a model, by the names that they have there.

    The layers run fused as ever: one forward and one backward pass tell h_t and c_t of all steps,
    and ∂L/∂h_t and ∂L/∂c_t, which autograd alone can't see. The backward pass may come after this
    has ended. Layers that torch would run are run by an engine of ours meanwhile; results then
    differ in rounding, and dropout between layers draws other masks.

    Args:
        model: Holds rnnkit's layers, or is one. Others, torch's own among them, are not seen.
        graph: Run the layers by their definition, slowly, so that the gradients of states may be
            differentiated once more, see `differentiate`; a backward pass does not note them then.

    Yields:
        For each layer that was called, by its name in `model.named_modules()`, one entry for each
        of its `num_layers` and calls; both directions are in one. See `LayerStates`: tensors are
        (T, B, directions, H), time first also with batch_first, zero past a sequence's length.

    Raises:
        ValueError: No module of the model is a recurrent layer of rnnkit.

    Example:
        >>> layer = rnnkit.LSTM(3, 4)
        >>> with watch_states(layer) as states:
        ...     output, _ = layer(torch.randn(100, 2, 3))
        ...     output[-1].sum().backward()
        >>> states[""][0].hidden_gradient.shape
        torch.Size([100, 2, 1, 4])
    """
    layers = {name: each for name, each in model.named_modules() if isinstance(each, Recurrent)}
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no recurrent layer of rnnkit whose states could be "
            "watched: rnnkit.replace_rnns(model) turns torch's into such"
        )
    found: dict[str, list[LayerStates]] = {}
    with watched_states(graph) as noted:
        handles = []

        def follow(name: str, layer: nn.Module) -> None:
            def after(*_: Any) -> None:
                found.setdefault(name, []).extend(noted)
                noted.clear()

            def before(*_: Any) -> None:
                noted.clear()  # of layers that are none of the model's

            handles.append(layer.register_forward_pre_hook(before))
            handles.append(layer.register_forward_hook(after))

        for name, layer in layers.items():
            follow(name, layer)
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()
