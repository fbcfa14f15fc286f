"""What decoding and a model say to each other: the steps, the rows of a state, the hypotheses.

A search keeps R rows going, one a sentence or several (beams). It calls `start` once and `step`
for every token, and between two steps it chooses which rows go on: it reorders beams and drops
sentences that are done. The model's state may be anything whose rows can be chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


class StepModel(Protocol):
    """A model that can be asked for one token after the other.

    A state is any nesting of tuples, named tuples, lists, dicts and None, whose tensors all have
    the batch as their FIRST dimension; see `select_rows`. Where it is a named tuple with a field
    `attention` (B, S), weights over the source's S positions, the searches keep them for every
    token. Put the model in evaluation mode before it is searched, or its dropout acts.
    """

    def start(self, source: Any) -> Any:
        """State after reading the sources of B sentences."""

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Log-probabilities (B, V) of what follows tokens, int64 (B,), and the state after them.

        Every log-probability is 0 or less, -inf where a token cannot follow.
        """


@dataclass(frozen=True)
class Hypothesis:
    """One decoded sentence.

    Attributes:
        tokens: Those after the begin token, with the end token where it is finished.
        log_probability: Sum of the tokens' log-probabilities.
        score: What it is ranked by: the log-probability, for a beam search over a penalty.
        finished: Whether it ends with the end token; else it was cut at the maximum length.
        attention: Weights over the source for every token, (len(tokens), S). None: the model's
            state has none.
    """

    tokens: list[int]
    log_probability: float
    score: float
    finished: bool
    attention: Tensor | None = field(default=None, compare=False)


def select_rows(state: Any, rows: Tensor) -> Any:
    """State of chosen sentences or beams.

    Args:
        state: Nested tuples, named tuples, lists, dicts and None, with tensors (R, ...).
        rows: Which rows, in which order, int64 (N,); a row may be chosen several times.

    Returns:
        The same nesting, with tensors (N, ...).

    Raises:
        TypeError: There is something else in the state.

    Example:
        >>> state = (torch.tensor([[1.0], [2.0]]), {"memory": None})
        >>> select_rows(state, torch.tensor([1, 1, 0]))
        (tensor([[2.],
                [2.],
                [1.]]), {'memory': None})
    """
    if state is None:
        return None
    if isinstance(state, Tensor):
        return state.index_select(0, rows)
    if isinstance(state, dict):
        return {name: select_rows(part, rows) for name, part in state.items()}
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*(select_rows(part, rows) for part in state))
    if isinstance(state, (tuple, list)):
        return type(state)(select_rows(part, rows) for part in state)
    raise TypeError(
        "expected a state of tensors in tuples, named tuples, lists, dicts or None, got a "
        f"{type(state).__name__}: rows cannot be chosen from it"
    )


def attention_of(state: Any) -> Tensor | None:
    """Attention weights (R, S) of a state that is a named tuple with such a field, else None."""
    attention = getattr(state, "attention", None) if isinstance(state, tuple) else None
    return attention if isinstance(attention, Tensor) else None


def length_limits(begin: Tensor, max_length: int, limits: Tensor | None) -> Tensor:
    """Most tokens that each sentence may get.

    Args:
        begin: Begin tokens, int64 (B,).
        max_length: For every sentence.
        limits: For each sentence, integers (B,). None: no other.

    Returns:
        The smaller of the two for each sentence, int64 (B,), on the device of `begin`.

    Raises:
        ValueError: A shape or type is wrong, or a limit is below 1.
    """
    if begin.dim() != 1 or begin.dtype != torch.int64:
        raise ValueError(
            f"expected begin tokens as int64 (B,), got {begin.dtype} {tuple(begin.shape)}"
        )
    if limits is None:
        return torch.full_like(begin, max_length)
    if limits.shape != begin.shape or limits.is_floating_point():
        raise ValueError(
            f"expected limits as integers {tuple(begin.shape)}, one for each begin token, got "
            f"{limits.dtype} {tuple(limits.shape)}"
        )
    if len(limits) and (least := int(limits.min())) < 1:
        raise ValueError(f"expected limits of 1 or more, got {least}")
    return limits.to(begin).clamp(max=max_length)


def check_at_least_one(name: str, value: int) -> None:
    """Refuse a setting below 1.

    Raises:
        ValueError: It is.
    """
    if value < 1:
        raise ValueError(f"expected {name} of 1 or more, got {value}")
