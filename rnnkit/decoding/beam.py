r"""Beam search: keep the K most probable beginnings of each sentence, rank by normalised sums.

    score(Y) = log P(Y | X) / lp(Y)        lp(Y) = ((5 + |Y|) / 6)^α

Wu et al. 2016 (arXiv 1609.08144), equation 14, without the coverage penalty; |Y| counts the end
token. Of the K best continuations in a step those that end leave the beam for the sentence's
hypotheses and the others are continued. A sum of log-probabilities only falls and lp only grows,
so no continuation of a sum s can score above s / lp(longest): a sentence is done once that is no
more than what the last of its n best hypotheses has.
"""

from __future__ import annotations

import math
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
class BeamSearch:
    """Keeps the most probable beginnings of each sentence.

    Of equal continuations the one of the earlier beam comes first, in a beam the one with the
    lower token id; of equal hypotheses the one that was found first.

    Args:
        beam_size: K, beginnings kept for each sentence.
        length_penalty: α. 0 ranks by log-probability; more favours longer sentences.
        max_length: Most tokens for a sentence, the end token included. What has not ended there
            competes as it is, unfinished.
        n_best: Hypotheses to return for each sentence.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> class Coin:
        ...     def start(self, source):
        ...         return None
        ...     def step(self, tokens, state):
        ...         return torch.tensor([[0.6, 0.4]]).log().expand(len(tokens), 2), state
        >>> search = BeamSearch(beam_size=2, length_penalty=0.0, max_length=3, n_best=2)
        >>> best, second = search(Coin(), None, begin=torch.tensor([0]), end=1)[0]
        >>> best.tokens, second.tokens, round(second.log_probability, 3)
        ([1], [0, 1], -1.427)
    """

    beam_size: int = 5
    length_penalty: float = 0.6
    max_length: int = 100
    n_best: int = 1

    def __post_init__(self) -> None:
        for name in ("beam_size", "max_length", "n_best"):
            check_at_least_one(name, getattr(self, name))
        if self.n_best > self.beam_size:
            raise ValueError(
                f"expected n_best of beam_size or less, got {self.n_best} and {self.beam_size}"
            )
        if not (self.length_penalty >= 0 and math.isfinite(self.length_penalty)):
            raise ValueError(f"expected a length_penalty of 0 or more, got {self.length_penalty}")

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
            For each sentence its `n_best` hypotheses, best first; fewer where fewer were found,
            for nothing with a log-probability of -inf is a hypothesis.

        Raises:
            ValueError: A shape or a limit is wrong.
            FloatingPointError: The model gave NaN for a log-probability.
        """
        limits = length_limits(begin, self.max_length, limits)
        if not len(begin):
            return []
        device, longest = begin.device, int(limits.max())
        chosen = Backpointers()
        with torch.inference_mode():
            penalties = gnmt_penalty(torch.arange(longest + 1), self.length_penalty).to(device)
            tokens, state = begin.unsqueeze(-1), model.start(source)
            # The beams that go on, (B, K); one a sentence in the first step.
            totals = torch.zeros(len(begin), 1, device=device)
            nodes = torch.full_like(tokens, -1)
            sentences = torch.arange(len(begin), device=device)
            # The best hypotheses of all sentences so far, best first.
            scores = torch.full((len(begin), self.n_best), -torch.inf, device=device)
            last = torch.full_like(scores, -1, dtype=torch.int64)
            for length in range(1, longest + 1):
                log_probabilities, state = model.step(tokens.flatten(), state)
                width = tokens.shape[1]
                totals, tokens, beams = _continue(totals, log_probabilities, self.beam_size)
                rows = beams + width * torch.arange(len(beams), device=device).unsqueeze(-1)
                nodes = chosen.append(
                    tokens.flatten(),
                    nodes.flatten()[rows.flatten()],
                    totals.flatten(),
                    select_rows(attention_of(state), rows.flatten()),
                ).view_as(tokens)

                leaving = (length >= limits).unsqueeze(-1).expand_as(tokens)
                if end is not None:
                    leaving = leaving | (tokens == end)
                found = (totals / penalties[length]).masked_fill(~leaving, -torch.inf)
                ranked, order = _best(torch.cat([scores[sentences], found], dim=1), self.n_best)
                scores[sentences] = ranked
                last[sentences] = torch.cat([last[sentences], nodes], dim=1).gather(1, order)

                totals = totals.masked_fill(leaving, -torch.inf)
                bound = totals.amax(dim=1) / penalties[limits]
                # The host waits here and in `_most_probable`. NaN goes on, to be reported.
                going = (~(bound <= ranked[:, -1])).nonzero().squeeze(-1)
                if not len(going):
                    break
                if len(going) < len(tokens):
                    tokens, totals, nodes, rows, limits, sentences = (
                        part[going] for part in (tokens, totals, nodes, rows, limits, sentences)
                    )
                state = select_rows(state, rows.flatten())
        return chosen.hypotheses(last, scores, end)


def gnmt_penalty(lengths: Tensor, alpha: float) -> Tensor:
    """What a hypothesis's log-probability is divided by: lp(Y) = ((5 + |Y|) / 6)^α.

    Args:
        lengths: |Y|, the number of tokens with the end token, integers of any shape.
        alpha: α, 0 or more; with 0 nothing changes.

    Returns:
        float32, of the shape of `lengths`.

    Example:
        >>> gnmt_penalty(torch.tensor([1, 7, 13]), alpha=1.0)
        tensor([1., 2., 3.])
    """
    return ((5 + lengths.double()) / 6).pow(alpha).float()


def _continue(
    totals: Tensor, log_probabilities: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations of each sentence's beams, best first.

    Args:
        totals: Log-probabilities of the beams, float32 (B, W).
        log_probabilities: Of their next tokens, floating point (B W, V).
        count: K.

    Returns:
        Log-probabilities, tokens and beams that they continue, (B, K) each; fewer where W V < K.
    """
    # The K best of a sentence are among the K best of each of its beams.
    values, tokens = _most_probable(log_probabilities.float(), count)  # (B W, k)
    each = values.shape[-1]
    candidates = totals.unsqueeze(-1) + values.view(*totals.shape, each)  # (B, W, k)
    totals, order = _best(candidates.flatten(1), count)
    tokens = tokens.view(len(totals), -1).gather(1, order)
    return totals, tokens, order.div(each, rounding_mode="floor")


def _most_probable(log_probabilities: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Values and ids of the K most probable tokens, best first, (R, K) from float32 (R, V)."""
    values, tokens = log_probabilities.topk(min(count + 1, log_probabilities.shape[-1]))
    if values.shape[-1] > count:
        # `topk` takes any of several equal values: a sort settles the rows where it had to choose.
        least, next_ = values[:, count - 1], values[:, count]
        rows = ((least == next_) & (least != -torch.inf)).nonzero().squeeze(-1)
        tokens = tokens[:, :count]
        if len(rows):
            tokens[rows] = _best(log_probabilities[rows], count)[1]
    tokens = tokens.sort(dim=-1).values
    values, order = _best(log_probabilities.gather(-1, tokens), count)
    return values, tokens.gather(-1, order)


def _best(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest values of each row and where they are, best first, of equals the first."""
    ordered, indices = values.sort(dim=-1, descending=True, stable=True)
    return ordered[:, :count], indices[:, :count]
