"""The second derivative of an operator, through its definition."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def differentiate_twice(
    run: Callable[..., tuple[Tensor | None, ...]],
    gradients: list[Tensor | None],
    inputs: list[Tensor | None],
    outer: list[Tensor | None],
) -> list[Tensor | None]:
    """The backward of a backward: run a layer by its definition, and differentiate that twice.

    Args:
        run: the definition, of `inputs`.
        gradients: what arrived at its results, None where nothing did.
        inputs: the layer's.
        outer: what arrived at the gradients of the inputs, None where nothing did.

    Returns:
        Gradients of `gradients` and then of `inputs`.
    """
    leaves: list[Any] = [
        None if tensor is None else tensor.detach().requires_grad_()
        for tensor in (*gradients, *inputs)
    ]
    arrived, given = leaves[: len(gradients)], leaves[len(gradients) :]
    with torch.enable_grad():
        pairs = zip(run(*given), arrived, strict=True)
        outputs, output_gradients = zip(
            *((a, b) for a, b in pairs if a is not None and b is not None), strict=True
        )
        present = [leaf for leaf in given if leaf is not None]
        first = iter(
            torch.autograd.grad(
                outputs, present, output_gradients, create_graph=True, allow_unused=True
            )
        )
        weighted = []
        for leaf, factor in zip(given, outer, strict=True):
            gradient = None if leaf is None else next(first)
            if gradient is not None and factor is not None and gradient.requires_grad:
                weighted.append((gradient, factor))
        sought = [leaf for leaf in leaves if leaf is not None]
        second = iter(
            torch.autograd.grad(
                [gradient for gradient, _ in weighted],
                sought,
                [factor for _, factor in weighted],
                allow_unused=True,
            )
            if weighted
            else [None] * len(sought)
        )
    return [None if leaf is None else next(second) for leaf in leaves]
