"""How long a run takes, about: told before it starts, when nothing of it has been timed."""

from __future__ import annotations

from collections.abc import Sequence

from . import floor
from .cases import Case
from .clock import LEAST
from .suite import Request, cost

# Of a call over `cost` at the rate of a large product, the mean of many cases and peers on a CPU.
SLOWER = 2
# Calls of a case besides the samples: references in float64 and in the dtype, checks, the memory.
BESIDES = 8
# What a case costs whatever its size, and the floor of the machine.
FIXED, FLOOR = 1.0, 15.0


def seconds(request: Request, groups: Sequence[tuple[Case, str, str]]) -> float:
    """Estimate the time of a run, within a factor of two or three.

    Args:
        request: what is measured.
        groups: case, cell and dtype of what is not measured yet.
    """
    size = 1024
    rates = {
        dtype: 2 * size**3 / floor.product_seconds(size, size, size, dtype, request.device)
        for dtype in {dtype for _, _, dtype in groups}
    }
    total = FLOOR if request.floors and groups else 0.0
    turns = len(request.peers) * len(request.modes)
    for case, cell, dtype in groups:
        call = SLOWER * cost(case, cell) / rates[dtype]
        total += turns * max(request.seconds, (LEAST + 1) * call) + BESIDES * call + FIXED
    return total


def in_words(seconds: float) -> str:
    """Such as `about 3 minutes`."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return "a minute or two"
    return f"about {minutes} minutes" if minutes < 100 else f"about {round(minutes / 60)} hours"
