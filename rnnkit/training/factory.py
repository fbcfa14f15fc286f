"""What makes the optimizer and the scheduler of a model, shared by all its copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Factory:
    """A callable that a copy of the model shares, as it shares a function.

    Those that jsonargparse makes of a configuration have locks inside, which cannot be copied.

    Args:
        make: The callable.
    """

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What it makes."""
        return self._make(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Factory:
        return self
