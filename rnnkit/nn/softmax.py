"""Output layers of language models: a distribution over V words from a hidden state.

    full          p(w | h) = exp(z_w) / Σ_v exp(z_v),   z = W h + b
    adaptive      p(w | h) = p(w's cluster | h) p(w | cluster, h)    Grave et al. 2017, 1609.04309
    sampled       full, but trained on the target and some words drawn by chance: a module of its
                  own, like
    hierarchical  p(w | h) = Π σ(±(v_n · h + b_n)) over the nodes n on w's path in a binary tree

All are exact where they are asked for probabilities; the sampled one's `loss` is an estimate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnnkit_kernels.functional import linear_cross_entropy


class OutputLayer(nn.Module, ABC):
    """What all output layers have in common.

    Args:
        hidden_size: H.
        vocabulary_size: V.

    Raises:
        ValueError: A size below 1.
    """

    def __init__(self, hidden_size: int, vocabulary_size: int) -> None:
        super().__init__()
        for name, size in (("hidden_size", hidden_size), ("vocabulary_size", vocabulary_size)):
            if size < 1:
                raise ValueError(f"expected {name} of 1 or more, got {size}")
        self.hidden_size = hidden_size
        self.vocabulary_size = vocabulary_size

    def loss(self, hidden: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
        """What training minimises, summed.

        Args:
            hidden: (N, H).
            target: Words, int64 (N,).
            ignore_index: The target of rows that do not count.

        Returns:
            Scalar, in nats.
        """
        return self.negative_log_likelihood(hidden, target, ignore_index).sum()

    @abstractmethod
    def negative_log_likelihood(
        self, hidden: Tensor, target: Tensor, ignore_index: int = -100
    ) -> Tensor:
        """-log p(target | h), exact: (N,), 0 for rows that do not count.

        Args:
            hidden, target, ignore_index: As for `loss`.
        """

    @abstractmethod
    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """log p(w | h) of all words, exact: (..., V) for hidden (..., H)."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Scores whose softmax is the distribution: (..., V) for hidden (..., H)."""
        return self.log_probabilities(hidden)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.hidden_size}, {self.vocabulary_size}"

    def _check(self, hidden: Tensor, target: Tensor) -> None:
        if hidden.dim() != 2 or hidden.shape[1] != self.hidden_size:
            raise RuntimeError(
                f"expected hidden of shape (N, {self.hidden_size}), got {tuple(hidden.shape)}"
            )
        if target.shape != hidden.shape[:1]:
            raise ValueError(
                f"expected one target a row of hidden, shape ({hidden.shape[0]},), got "
                f"{tuple(target.shape)}"
            )

    def _counted(
        self, hidden: Tensor, target: Tensor, ignore_index: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Which rows count, bool (N,), and hidden and target with zeros in the others."""
        self._check(hidden, target)
        kept = target != ignore_index
        target = target.masked_fill(~kept, 0)
        outside = (target < 0) | (target >= self.vocabulary_size)
        if target.device.type == "cpu" and bool(outside.any()):
            n = int(outside.nonzero()[0])
            raise IndexError(
                f"target {int(target[n])} of row {n} is out of range for {self.vocabulary_size} "
                f"words and is not ignore_index, {ignore_index}"
            )
        return kept, hidden.masked_fill(~kept.unsqueeze(1), 0), target


def exact(scores: Tensor) -> Tensor:
    """Scores in float32 at least, in which logarithms are taken."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


class FullSoftmax(OutputLayer):
    """Linear layer and softmax; no N × V logits are held for the loss.

    To tie it to an embedding (Press and Wolf 2017), assign that one's weight to `weight`.

    Args:
        hidden_size: H.
        vocabulary_size: V.

    Example:
        >>> layer = FullSoftmax(8, 100)
        >>> layer.loss(torch.randn(5, 8), torch.tensor([1, 2, 3, 4, -100])).shape
        torch.Size([])
    """

    def __init__(self, hidden_size: int, vocabulary_size: int) -> None:
        super().__init__(hidden_size, vocabulary_size)
        self.weight = nn.Parameter(torch.empty(vocabulary_size, hidden_size))
        self.bias = nn.Parameter(torch.empty(vocabulary_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw from U(-1/√H, 1/√H), as nn.Linear does."""
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -(self.hidden_size**-0.5), self.hidden_size**-0.5)

    def loss(self, hidden: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
        """The exact one."""
        self._check(hidden, target)
        return linear_cross_entropy(
            hidden, self.weight, self.bias, target, ignore_index=ignore_index
        )

    def negative_log_likelihood(
        self, hidden: Tensor, target: Tensor, ignore_index: int = -100
    ) -> Tensor:
        """By the same operator, (N,)."""
        self._check(hidden, target)
        return linear_cross_entropy(
            hidden, self.weight, self.bias, target, ignore_index=ignore_index, reduction="none"
        )

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """The normalised logits, (..., V)."""
        return exact(self.forward(hidden)).log_softmax(-1)

    def forward(self, hidden: Tensor) -> Tensor:
        """The logits z, (..., V)."""
        return F.linear(hidden, self.weight, self.bias)


class AdaptiveSoftmax(OutputLayer):
    """Frequent words by a small softmax, rare ones in clusters of ever narrower ones.

    `nn.AdaptiveLogSoftmaxWithLoss` inside, which counts on words ordered by falling frequency.

    Args:
        hidden_size: H.
        vocabulary_size: V, at least 2.
        cutoffs: First word of each cluster, rising. None: V / 5, and from 50,000 words on V / 2
            too, about what Grave et al. found fastest.

    Raises:
        ValueError: Fewer than two words; cutoffs that are not rising numbers from 1 to V - 1.
    """

    def __init__(
        self, hidden_size: int, vocabulary_size: int, cutoffs: list[int] | None = None
    ) -> None:
        super().__init__(hidden_size, vocabulary_size)
        if vocabulary_size < 2:
            raise ValueError(
                f"an adaptive softmax needs a head and a cluster, 2 words, got {vocabulary_size}"
            )
        if cutoffs is None:
            cutoffs = [max(1, vocabulary_size // 5)]
            cutoffs += [vocabulary_size // 2] * (vocabulary_size >= 50_000)
        rising = [0, *cutoffs, vocabulary_size]
        if not cutoffs or any(a >= b for a, b in pairwise(rising)):
            raise ValueError(
                f"expected cutoffs that rise from 1 to at most {vocabulary_size - 1}, got {cutoffs}"
            )
        self.adaptive = nn.AdaptiveLogSoftmaxWithLoss(
            hidden_size, vocabulary_size, cutoffs, head_bias=True
        )

    def negative_log_likelihood(
        self, hidden: Tensor, target: Tensor, ignore_index: int = -100
    ) -> Tensor:
        """By the target's cluster alone, (N,)."""
        kept, hidden, target = self._counted(hidden, target, ignore_index)
        if len(hidden) == 0:  # torch's own fails on that
            return hidden.sum(1)
        found: Tensor = self.adaptive(hidden, target).output
        return -found.masked_fill(~kept, 0)

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """By all clusters, (..., V)."""
        found: Tensor = self.adaptive.log_prob(hidden.flatten(0, -2))
        return found.view(*hidden.shape[:-1], self.vocabulary_size)


class CountedOutputLayer(OutputLayer):
    """An output layer that depends on how often words occur, which its state_dict tells.

    Args:
        hidden_size: H.
        vocabulary_size: V.
        counts: Of the words, integers (V,); None: as Zipf's law has them.

    Raises:
        ValueError: A size below 1, or counts that do not fit.
    """

    counts: Tensor

    def __init__(self, hidden_size: int, vocabulary_size: int, counts: Tensor | None) -> None:
        super().__init__(hidden_size, vocabulary_size)
        if counts is None:
            # By Zipf's law, the last word once.
            counts = vocabulary_size // torch.arange(1, vocabulary_size + 1)
        self.register_buffer("counts", torch.zeros(vocabulary_size, dtype=torch.int64))
        self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
            CountedOutputLayer._after_loading
        )
        self.set_counts(counts)

    def set_counts(self, counts: Tensor) -> None:
        """Take counts of words, of which those never seen are taken as seen once.

        Args:
            counts: Integers (V,).

        Raises:
            ValueError: Another number of counts than of words, or a negative one.
        """
        if counts.shape != (self.vocabulary_size,):
            raise ValueError(
                f"expected one count a word, shape ({self.vocabulary_size},), got "
                f"{tuple(counts.shape)}"
            )
        if int(counts.min()) < 0:
            raise ValueError(f"expected counts of 0 or more, got {int(counts.min())}")
        self.counts.copy_(counts)
        self._prepare()

    @abstractmethod
    def _prepare(self) -> None:
        """Make what follows from the counts."""

    def _after_loading(self, incompatible: Any) -> None:
        self._prepare()
