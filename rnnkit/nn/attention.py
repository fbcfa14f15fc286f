r"""Attention: what a decoder looks at in the source while it writes.

    α_s = softmax_s(score(q, h_s))        context = Σ_s α_s h_s

    additive  score(q, h) = v⊤ tanh(W q + U h)      Bahdanau et al. 2015 (arXiv 1409.0473); the same
                                                    function as Luong's concat, v⊤ tanh(W [q; h])
    general   score(q, h) = q⊤ W h                  Luong et al. 2015 (arXiv 1508.04025), eq. 8
    dot       score(q, h) = q⊤ h                    the same, of equal sizes

What depends on the source alone, the keys, is computed once a sentence and passed on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Attention(nn.Module, ABC):
    """What the scores have in common.

    Args:
        query_size: Q, of the decoder's state.
        memory_size: C, of an encoder's output.
    """

    def __init__(self, query_size: int, memory_size: int) -> None:
        super().__init__()
        self.query_size = query_size
        self.memory_size = memory_size

    @abstractmethod
    def keys(self, memory: Tensor) -> Tensor:
        """What the scores need of a source: (B, S, ·) from memory (B, S, C)."""

    @abstractmethod
    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """Scores (B, T, S) of queries (B, T, Q)."""

    def forward(
        self, query: Tensor, keys: Tensor, memory: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Look at a source.

        Args:
            query: Decoder states, floating point (B, T, Q).
            keys: Of `keys(memory)`.
            memory: Encoder outputs (B, S, C).
            mask: Which of them are real, bool (B, S); at least one a sentence.

        Returns:
            Contexts (B, T, C), and weights (B, T, S) that sum to one over the real steps and are
            zero elsewhere.
        """
        scores = self.scores(query, keys).masked_fill(~mask.unsqueeze(1), -torch.inf)
        weights = scores.softmax(dim=-1)
        return weights @ memory, weights


class AdditiveAttention(Attention):
    """v⊤ tanh(W q + U h).

    Args:
        query_size: Q.
        memory_size: C.
        size: Width of the sum.

    Example:
        >>> attention = AdditiveAttention(4, 6, 5)
        >>> memory, mask = torch.randn(2, 7, 6), torch.ones(2, 7, dtype=torch.bool)
        >>> context, weights = attention(torch.randn(2, 3, 4), attention.keys(memory), memory, mask)
        >>> context.shape, weights.shape
        (torch.Size([2, 3, 6]), torch.Size([2, 3, 7]))
    """

    def __init__(self, query_size: int, memory_size: int, size: int) -> None:
        super().__init__(query_size, memory_size)
        self.query = nn.Linear(query_size, size, bias=False)
        self.memory = nn.Linear(memory_size, size)
        self.score = nn.Linear(size, 1, bias=False)

    def keys(self, memory: Tensor) -> Tensor:
        """U h."""
        return self.memory(memory)  # type: ignore[no-any-return]

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """For all pairs of T and S."""
        sums = self.query(query).unsqueeze(2) + keys.unsqueeze(1)  # (B, T, S, size)
        return self.score(torch.tanh(sums)).squeeze(-1)  # type: ignore[no-any-return]


class GeneralAttention(Attention):
    """q⊤ W h.

    Args:
        query_size: Q.
        memory_size: C.
    """

    def __init__(self, query_size: int, memory_size: int) -> None:
        super().__init__(query_size, memory_size)
        self.memory = nn.Linear(memory_size, query_size, bias=False)

    def keys(self, memory: Tensor) -> Tensor:
        """W h."""
        return self.memory(memory)  # type: ignore[no-any-return]

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """Of all pairs by one product."""
        return query @ keys.transpose(1, 2)


class DotAttention(Attention):
    """q⊤ h.

    Args:
        query_size: Q.
        memory_size: C, the same.

    Raises:
        ValueError: The two differ.
    """

    def __init__(self, query_size: int, memory_size: int) -> None:
        super().__init__(query_size, memory_size)
        if query_size != memory_size:
            raise ValueError(
                f"dot attention needs states of one size, got {query_size} in the decoder and "
                f"{memory_size} in the encoder (both directions together): use general, or make "
                "them equal"
            )

    def keys(self, memory: Tensor) -> Tensor:
        """The memory itself."""
        return memory

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """Of all pairs by one product."""
        return query @ keys.transpose(1, 2)
