"""Count-based language models, the yardsticks beside a recurrent one.

Both are scored as the recurrent model is: every token of the text once, the first one after the
start token. Probabilities are float64 and sum to one over the vocabulary in every context.
"""

from __future__ import annotations

import torch
from torch import Tensor


def absolute_discount(counts: Tensor) -> float:
    """Discount D = n_1 / (n_1 + 2 n_2), n_k the number of events that were seen k times.

    Ney, Essen and Kneser 1994, "On structuring probabilistic dependences in stochastic language
    modelling". Without an event seen once (n_1 = 0) the formula discounts nothing and would leave
    unseen events no mass: 1/2 then, half of the smallest count.

    Args:
        counts: Integer tensor (N,) of positive counts.
    """
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once else 0.5


def _check(tokens: Tensor, vocabulary_size: int) -> None:
    if tokens.dim() != 1 or tokens.numel() == 0:
        raise ValueError(f"expected tokens of shape (N,) with N > 0, got {tuple(tokens.shape)}")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary_size:
        wrong = low if low < 0 else high
        raise ValueError(f"expected token ids from 0 to {vocabulary_size - 1}, got {wrong}")


class UnigramModel:
    """Each token by its relative frequency, whatever stands before it.

    Absolute discounting gives unseen tokens their share: with N tokens of U types,

        p(w) = max(c(w) - D, 0) / N + (D U / N) (1 / V)   if some type is unseen (U < V)
        p(w) = c(w) / N                                    else

    Args:
        tokens: Training text, integer tensor (N,) with ids in [0, V).
        vocabulary_size: V.

    Raises:
        ValueError: No token, or an id outside [0, V).
    """

    def __init__(self, tokens: Tensor, vocabulary_size: int) -> None:
        _check(tokens, vocabulary_size)
        self.vocabulary_size = vocabulary_size
        counts = torch.bincount(tokens, minlength=vocabulary_size)
        self.probabilities = _interpolated_with_uniform(counts)
        """Probability of every token: float64 tensor (V,)."""

    def perplexity(self, tokens: Tensor) -> float:
        """Perplexity of a text, every token scored once.

        Args:
            tokens: Integer tensor (N,) with ids in [0, V).

        Raises:
            ValueError: No token, or an id outside [0, V).
        """
        _check(tokens, self.vocabulary_size)
        return float(torch.exp(-self.probabilities[tokens].log().mean()))


class InterpolatedKneserNeyBigram:
    """Interpolated Kneser-Ney bigram model with one absolute discount per order.

        p(w | v) = max(c(v w) - D_2, 0) / c(v)  +  D_2 N(v .) / c(v)  p_1(w)
        p_1(w)   = max(N(. w) - D_1, 0) / N(..) +  D_1 N(.) / N(..)  1 / V

    c(v w) counts bigrams, c(v) = sum_w c(v w); N(v .) is the number of types that follow v,
    N(. w) the number of types that w follows, N(..) the number of bigram types and N(.) the
    number of types with N(. w) > 0. p(w | v) = p_1(w) for a context that was never seen. As with
    `UnigramModel`, p_1 is not smoothed where every type was seen.

    Chen and Goodman 1999, "An empirical study of smoothing techniques for language modeling",
    section 2.7 (Kneser and Ney 1995, interpolated), with D from `absolute_discount`.

    Args:
        tokens: Training text, integer tensor (N,) with ids in [0, V).
        vocabulary_size: V.
        start: Id of the context of a text's first token: `<eos>`.

    Raises:
        ValueError: No token, or an id outside [0, V).
    """

    def __init__(self, tokens: Tensor, vocabulary_size: int, start: int) -> None:
        _check(tokens, vocabulary_size)
        _check(torch.tensor([start]), vocabulary_size)
        self.vocabulary_size = vocabulary_size
        self.start = start
        # A bigram (v, w) has the key v V + w; int64 holds V of three thousand millions.
        self._keys, self._counts = torch.unique(
            self._contexts(tokens) * vocabulary_size + tokens, return_counts=True
        )
        contexts = self._keys // vocabulary_size
        self._discount = absolute_discount(self._counts)
        self._context_counts = torch.zeros(vocabulary_size, dtype=torch.int64).index_add_(
            0, contexts, self._counts
        )
        self._followers = torch.bincount(contexts, minlength=vocabulary_size)
        self._continuation = _interpolated_with_uniform(
            torch.bincount(self._keys % vocabulary_size, minlength=vocabulary_size)
        )

    def _contexts(self, tokens: Tensor) -> Tensor:
        return torch.cat([tokens.new_tensor([self.start]), tokens[:-1]])

    def probability(self, contexts: Tensor, tokens: Tensor) -> Tensor:
        """p(token | context), elementwise.

        Args:
            contexts: Integer tensor (N,) with ids in [0, V).
            tokens: Integer tensor (N,) with ids in [0, V).

        Returns:
            float64 tensor (N,).
        """
        keys = contexts * self.vocabulary_size + tokens
        place = torch.searchsorted(self._keys, keys).clamp_max(len(self._keys) - 1)
        counts = torch.where(self._keys[place] == keys, self._counts[place], 0).double()
        lower = self._continuation[tokens]
        total = self._context_counts[contexts].double()
        seen = (counts - self._discount).clamp_min(0)
        interpolated = seen + self._discount * self._followers[contexts].double() * lower
        return torch.where(total > 0, interpolated / total.clamp_min(1), lower)

    def perplexity(self, tokens: Tensor) -> float:
        """Perplexity of a text, every token scored once, the first one after `start`.

        Args:
            tokens: Integer tensor (N,) with ids in [0, V).

        Raises:
            ValueError: No token, or an id outside [0, V).
        """
        _check(tokens, self.vocabulary_size)
        return float(torch.exp(-self.probability(self._contexts(tokens), tokens).log().mean()))


def _interpolated_with_uniform(counts: Tensor) -> Tensor:
    """Relative frequencies (V,) of counts (V,), discounted in favour of unseen types if any."""
    total, types = counts.sum(), int((counts > 0).sum())
    if types == len(counts):
        return counts.double() / total
    discount = absolute_discount(counts[counts > 0])
    seen = (counts.double() - discount).clamp_min(0)
    return (seen + discount * types / len(counts)) / total
