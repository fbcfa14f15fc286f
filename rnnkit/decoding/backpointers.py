"""Backpointers: all tokens a search has chosen, each with the one before it.

Every chosen token is a node. Hypotheses that begin alike share nodes, so nothing is copied when
beams split, and sentences are read back from their last nodes once the search is over.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from rnnkit.decoding.steps import Hypothesis


class Backpointers:
    """Nodes of one search, numbered as they are added; -1 stands before the first tokens.

    Example:
        >>> nodes = Backpointers()
        >>> first = nodes.append(torch.tensor([7, 8]), torch.tensor([-1, -1]), torch.zeros(2))
        >>> second = nodes.append(torch.tensor([9]), first[1:], torch.tensor([-0.5]))
        >>> nodes.hypotheses(second.view(1, 1), torch.tensor([[-0.5]]), end=9)
        [[Hypothesis(tokens=[8, 9], log_probability=-0.5, score=-0.5, finished=True, \
attention=None)]]
    """

    def __init__(self) -> None:
        self._count = 0
        self._tokens: list[Tensor] = []
        self._previous: list[Tensor] = []
        self._totals: list[Tensor] = []
        self._attention: list[Tensor] = []

    def append(
        self, tokens: Tensor, previous: Tensor, totals: Tensor, attention: Tensor | None = None
    ) -> Tensor:
        """Add the tokens of one step.

        Args:
            tokens: int64 (N,).
            previous: Node that each one follows, int64 (N,).
            totals: Log-probability of the sentence up to each one, float32 (N,).
            attention: Weights with which each one was chosen, (N, S); in every step or in none.

        Returns:
            Their nodes, int64 (N,).
        """
        self._tokens.append(tokens)
        self._previous.append(previous)
        self._totals.append(totals)
        if attention is not None:
            self._attention.append(attention)
        self._count += len(tokens)
        return torch.arange(self._count - len(tokens), self._count, device=tokens.device)

    def hypotheses(self, last: Tensor, scores: Tensor, end: int | None) -> list[list[Hypothesis]]:
        """Read sentences back, from their last tokens.

        Args:
            last: Nodes of the last tokens, int64 (B, N).
            scores: What they are ranked by, float32 (B, N); -inf where there is no hypothesis.
            end: Token with which a sentence is finished.

        Returns:
            For each of the B sentences its hypotheses, N or fewer, in the given order.

        Raises:
            FloatingPointError: The model gave NaN for a log-probability.
        """
        tokens, previous, totals = (
            torch.cat(parts).tolist() for parts in (self._tokens, self._previous, self._totals)
        )
        sentences: list[list[Hypothesis]] = []
        paths: list[list[int]] = []
        for nodes, row in zip(last.tolist(), scores.tolist(), strict=True):
            sentences.append([])
            for node, score in zip(nodes, row, strict=True):
                if math.isnan(score):
                    raise FloatingPointError(
                        f"the model gave NaN log-probabilities for sentence {len(sentences) - 1} "
                        "of the batch: look for NaN in its parameters or its source"
                    )
                if score == -math.inf:
                    continue
                path = self._path(node, previous)
                paths.append(path)
                words = [tokens[i] for i in path]
                sentences[-1].append(Hypothesis(words, totals[node], score, words[-1] == end))
        return self._with_attention(sentences, paths) if self._attention and paths else sentences

    def _with_attention(
        self, sentences: list[list[Hypothesis]], paths: list[list[int]]
    ) -> list[list[Hypothesis]]:
        nodes = torch.tensor([node for path in paths for node in path])
        weights = torch.cat(self._attention)
        parts = iter(torch.split(weights[nodes.to(weights.device)], [len(path) for path in paths]))
        return [[replace(one, attention=next(parts)) for one in some] for some in sentences]

    @staticmethod
    def _path(node: int, previous: list[int]) -> list[int]:
        path = []
        while node >= 0:
            path.append(node)
            node = previous[node]
        return path[::-1]
