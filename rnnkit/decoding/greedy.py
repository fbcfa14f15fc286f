"""Greedy search: take the most probable token at every step.

Also the walk that sampling shares with it: one row a sentence, until each one has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rnnkit.decoding.backpointers import Backpointers
from rnnkit.decoding.steps import (
    Hypothesis,
    StepModel,
    attention_of,
    check_at_least_one,
    length_limits,
    select_rows,
)


@dataclass(frozen=True)
class GreedySearch:
    """Takes the most probable token at every step, of equals the one with the lower id.

    Finds what `BeamSearch` of size 1 finds.

    Args:
        max_length: Most tokens for a sentence, the end token included.

    Raises:
        ValueError: `max_length` is below 1.

    Example:
        >>> class Dice:
        ...     def start(self, source):
        ...         return None
        ...     def step(self, tokens, state):
        ...         return torch.tensor([[0.2, 0.5, 0.3]]).log().expand(len(tokens), 3), state
        >>> search = GreedySearch(max_length=2)
        >>> search(Dice(), None, begin=torch.tensor([0]), end=2)[0][0].tokens
        [1, 1]
    """

    max_length: int = 100

    def __post_init__(self) -> None:
        check_at_least_one("max_length", self.max_length)

    def __call__(
        self,
        model: StepModel,
        source: Any,
        begin: Tensor,
        end: int | None,
        limits: Tensor | None = None,
    ) -> list[list[Hypothesis]]:
        """Decode B sentences.

        Args:
            model: Gives the distributions; in evaluation mode, or its dropout acts.
            source: What `model.start` reads.
            begin: Tokens that the first step reads, int64 (B,).
            end: Token that ends a sentence. None: each one goes on to its maximum length.
            limits: Most tokens for each sentence, integers (B,); `max_length` holds as well.

        Returns:
            For each sentence one hypothesis, or none where no token could follow any more.

        Raises:
            ValueError: A shape or a limit is wrong.
            FloatingPointError: The model gave NaN for a log-probability.
        """
        limits = length_limits(begin, self.max_length, limits)
        return walk(model, source, begin, end, limits, lambda scores: scores.argmax(dim=-1))


def walk(
    model: StepModel,
    source: Any,
    begin: Tensor,
    end: int | None,
    limits: Tensor,
    choose: Callable[[Tensor], Tensor],
) -> list[list[Hypothesis]]:
    """Choose one token after the other for B sentences, each until its end.

    Args:
        model, source, begin, end: See `GreedySearch`.
        limits: Most tokens for each sentence, int64 (B,).
        choose: Tokens, int64 (R,), from log-probabilities, float32 (R, V).

    Returns:
        For each sentence one hypothesis, or none where no token could follow any more.
    """
    if not len(begin):
        return []
    chosen = Backpointers()
    with torch.inference_mode():
        tokens, state = begin, model.start(source)
        sentences = torch.arange(len(begin), device=begin.device)  # those that go on, (R,)
        nodes = torch.full_like(begin, -1)
        totals = torch.zeros(len(begin), device=begin.device)
        last, scores = nodes.clone(), totals.clone()  # of all B sentences
        for length in range(1, int(limits.max()) + 1):
            log_probabilities, state = model.step(tokens, state)
            log_probabilities = log_probabilities.float()
            tokens = choose(log_probabilities)
            totals = totals + log_probabilities.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
            nodes = chosen.append(tokens, nodes, totals, attention_of(state))
            last[sentences], scores[sentences] = nodes, totals
            going = (length < limits) & (totals != -torch.inf)
            if end is not None:
                going &= tokens != end
            rows = going.nonzero().squeeze(-1)  # what the host waits for in a step
            if not len(rows):
                break
            if len(rows) < len(tokens):
                tokens, totals, nodes, limits, sentences = (
                    part[rows] for part in (tokens, totals, nodes, limits, sentences)
                )
                state = select_rows(state, rows)
    return chosen.hypotheses(last.unsqueeze(-1), scores.unsqueeze(-1), end)
