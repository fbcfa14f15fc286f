"""Count-based language models, the yardsticks beside a recurrent one.

Both are scored as the recurrent model is: every token of the text once, the first one after the
start token. Probabilities are float64 and sum to one over the vocabulary in every context.
"""

from __future__ import annotations

from typing import NamedTuple

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


class InterpolatedKneserNey:
    """Interpolated Kneser-Ney model of order n with one absolute discount per order.

        p_k(w | h) = max(c_k(h w) - D_k, 0) / c_k(h)  +  D_k N_k(h .) / c_k(h)  p_{k-1}(w | h')
        p_1(w)     = max(c_1(w) - D_1, 0) / c_1(.)    +  D_1 N_1(.) / c_1(.)    1 / V

    h holds k - 1 tokens, and h' those after the first of them. c_n counts n-grams; below, c_k(g)
    is the number of types that stand before g in the n-grams, so that a token's weight in a new
    context is the number of contexts it is known from. c_k(h) = sum_w c_k(h w), and N_k(h .) is
    the number of types w with c_k(h w) > 0. p_k(w | h) = p_{k-1}(w | h') for a context that was
    never seen. As with `UnigramModel`, p_1 is not smoothed where every type was seen.

    Chen and Goodman 1999, "An empirical study of smoothing techniques for language modeling",
    section 2.7 (Kneser and Ney 1995, interpolated), with D from `absolute_discount`.

    Args:
        tokens: Training text, integer tensor (N,) with ids in [0, V).
        vocabulary_size: V.
        order: n, 1 or more; 2 is a bigram model.
        start: Id of the token that stands n - 1 times before a text: `<eos>`, or the line end.

    Raises:
        ValueError: No token, an id outside [0, V), or an order below 1.

    Example:
        >>> model = InterpolatedKneserNey(torch.tensor([0, 1, 2, 0, 1]), 3, order=2, start=2)
        >>> round(float(model.probability(torch.tensor([[0]]), torch.tensor([1]))), 4)
        0.9333
    """

    def __init__(self, tokens: Tensor, vocabulary_size: int, order: int, start: int) -> None:
        _check(tokens, vocabulary_size)
        _check(torch.tensor([start]), vocabulary_size)
        if order < 1:
            raise ValueError(f"expected an order of 1 or more, got {order}")
        self.vocabulary_size = vocabulary_size
        self.order = order
        self.start = start
        padded = self._padded(tokens)
        # Row k - 2 holds, sorted, the keys of all k-grams: prefix V + w, where prefix is the place
        # of the first k - 1 tokens among the keys of their own order. V^k itself would overflow.
        self._keys: list[Tensor] = []
        ends: list[Tensor] = [padded]  # place of the k-gram that ends at each token of the text
        for _ in range(order - 1):
            keys, places = torch.unique(
                ends[-1][:-1] * vocabulary_size + padded[len(self._keys) + 1 :], return_inverse=True
            )
            self._keys.append(keys)
            ends.append(places)
        real = [places[-len(tokens) :] for places in ends]  # without those that end in the padding
        types, counts = torch.unique(real[-1], return_counts=True)
        self._orders: list[_Order] = []
        for k in range(order, 1, -1):
            keys = self._keys[k - 2]
            table = torch.zeros(len(keys), dtype=torch.int64)
            table[types] = counts
            prefixes = keys // vocabulary_size
            contexts = vocabulary_size if k == 2 else len(self._keys[k - 3])
            self._orders.append(
                _Order(
                    table,
                    torch.zeros(contexts, dtype=torch.int64).index_add_(0, prefixes, table),
                    torch.bincount(prefixes[table > 0], minlength=contexts),
                    absolute_discount(counts),
                )
            )
            # The types of order k, each counted once, by what they end with: any place will do.
            first = torch.empty(len(keys), dtype=torch.int64)
            first[real[k - 1]] = real[k - 2]
            types, counts = torch.unique(first[types], return_counts=True)
        self._orders.reverse()  # the bigrams first
        unigrams = torch.zeros(vocabulary_size, dtype=torch.int64)
        unigrams[types] = counts
        self._unigram = _interpolated_with_uniform(unigrams)

    def _padded(self, tokens: Tensor) -> Tensor:
        return torch.cat([tokens.new_full((self.order - 1,), self.start), tokens]).long()

    def probability(self, contexts: Tensor, tokens: Tensor) -> Tensor:
        """p(token | context), row by row.

        Args:
            contexts: The n - 1 tokens before each token, integer tensor (N, n - 1), ids in [0, V).
            tokens: Integer tensor (N,) with ids in [0, V).

        Returns:
            float64 tensor (N,).

        Raises:
            ValueError: The shapes do not belong together.
        """
        if contexts.shape != (len(tokens), self.order - 1):
            raise ValueError(
                f"expected contexts of shape {(len(tokens), self.order - 1)}, {self.order - 1} "
                f"tokens before each of {len(tokens)}, got {tuple(contexts.shape)}"
            )
        contexts = contexts.long()  # the keys below have no place in fewer bits
        probability = self._unigram[tokens]
        for k, order in enumerate(self._orders, start=2):
            context = contexts[:, -1] if k == 2 else self._place(contexts[:, -(k - 1) :])
            gram = self._look_up(k, context, tokens)
            context_known, gram_known = context >= 0, gram >= 0
            total = torch.where(context_known, order.totals[context], 0).double()
            count = torch.where(gram_known, order.counts[gram], 0).double()
            kept = (count - order.discount).clamp_min(0)
            shared = order.discount * order.followers[context].double()
            interpolated = (kept + shared * probability) / total.clamp_min(1)
            probability = torch.where(total > 0, interpolated, probability)
        return probability

    def _place(self, grams: Tensor) -> Tensor:
        """Places of k-grams (N, k) among those of the training text, -1 for one that is new."""
        places = grams[:, 0]
        for k in range(2, grams.shape[1] + 1):
            places = self._look_up(k, places, grams[:, k - 1])
        return places

    def _look_up(self, k: int, prefixes: Tensor, tokens: Tensor) -> Tensor:
        """Places of k-grams from those of their prefixes, -1 for one that is new."""
        keys = self._keys[k - 2]
        wanted = prefixes * self.vocabulary_size + tokens  # below every key where a prefix is new
        places = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
        return torch.where(keys[places] == wanted, places, -1)

    def perplexity(self, tokens: Tensor) -> float:
        """Perplexity of a text, every token scored once, the first one after `start` only.

        Args:
            tokens: Integer tensor (N,) with ids in [0, V).

        Raises:
            ValueError: No token, or an id outside [0, V).
        """
        _check(tokens, self.vocabulary_size)
        windows = self._padded(tokens).unfold(0, self.order, 1)  # (N, n)
        return float(torch.exp(-self.probability(windows[:, :-1], windows[:, -1]).log().mean()))


class _Order(NamedTuple):
    """What the model knows of the k-grams of one order, by their places and their prefixes'."""

    counts: Tensor  # c_k(h w), int64
    totals: Tensor  # c_k(h), int64, by the place of h
    followers: Tensor  # N_k(h .), int64, by the place of h
    discount: float  # D_k


def _interpolated_with_uniform(counts: Tensor) -> Tensor:
    """Relative frequencies (V,) of counts (V,), discounted in favour of unseen types if any."""
    total, types = counts.sum(), int((counts > 0).sum())
    if types == len(counts):
        return counts.double() / total
    discount = absolute_discount(counts[counts > 0])
    seen = (counts.double() - discount).clamp_min(0)
    return (seen + discount * types / len(counts)) / total
