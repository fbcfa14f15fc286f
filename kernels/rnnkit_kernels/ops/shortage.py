"""What an operator was about to do when the memory of its device ran out, told with its error."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.ops.planned import planned

Operator = TypeVar("Operator", bound=Callable[..., Any])


def is_shortage(error: Exception) -> bool:
    """Whether memory has run out. Torch has a class of errors for that on a GPU alone."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def tells_shortage(operator: Operator) -> Operator:
    """Decorator of an operator of a recurrent layer: its plan and its bytes, where memory runs out.

    Args:
        operator: with arguments named as those of `rnnkit::recurrence`.
    """
    signature = inspect.signature(operator)

    @functools.wraps(operator)
    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return operator(*args, **kwargs)
        except RuntimeError as error:
            if not is_shortage(error):
                raise
            given = signature.bind(*args, **kwargs).arguments
            backward = "dy" in given
            raise torch.OutOfMemoryError(f"{_layer(given, backward)}: {error}") from error

    return told  # type: ignore[return-value]


def _layer(given: dict[str, Any], backward: bool) -> str:
    cell, x, h0 = CELLS[given["cell"]], given["x"], given["h0"]
    members, batch = h0.shape[:2]  # directions, or layers of a stack
    steps = math.prod(x.shape[:-1])
    gates = cell.gates_at[-1]
    hidden = given["weight_hh"].shape[1] // gates
    size = steps * members * hidden * x.element_size()
    states = int(cell.has_cell_state) * steps * members * hidden * max(x.element_size(), 4)
    kept = 0 if given.get("recompute") else size * cell.saved_at[-1]
    needed = size * (gates + 1) + kept + states  # pre-activations, outputs, what is saved
    less = "" if given.get("recompute", True) else ", or keep less with recompute=True"
    where = f"{'backward' if backward else 'forward'} pass of the {cell.name} layer"
    return (
        f"memory ran out in the {where} in mode {_mode(given)}: {steps:,} steps, of {batch:,} "
        f"sequences, times {members} layers or directions of {hidden:,} units take {needed:,} "
        f"bytes beside the weights; lower the batch size or the number of steps{less}"
    )


def _mode(given: dict[str, Any]) -> str:
    """The mode of `Plan` that a plan's rule has led to, or as it was given."""
    mode: str = given["mode"]
    if mode in ("rule", "alone"):
        with contextlib.suppress(RuntimeError):
            return planned(CELLS[given["cell"]], given["weight_hh"], given["h0"], mode).mode
    return mode
