"""Words and their vectors: neighbours by the cosine, and analogies.

With unit vectors and a : b = c : ?, the answer is the word d, none of a, b and c, that has the most

    3CosAdd (Mikolov et al. 2013, arXiv 1301.3781)   cos(d, b) - cos(d, a) + cos(d, c)
    3CosMul (Levy & Goldberg 2014)                   s(d, b) s(d, c) / (s(d, a) + 0.001)

with s = (cos + 1) / 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rnnkit.data.registry import DataError
from rnnkit.data.vectors import read_vectors

Method = Literal["add", "mul"]

_EPSILON = 0.001  # Levy & Goldberg's


class WordVectors:
    """Words and their vectors; those of the most frequent words come first, as files have them.

    Args:
        words: V of them, each once.
        vectors: (V, D).

    Attributes:
        words: As given.
        vectors: As given.
        unit: The vectors at length 1, float32 (V, D); zeros stay zeros.
        ids: The place of each word.

    Raises:
        ValueError: Words and vectors are not as many, or a word is there twice.

    Example:
        >>> words = WordVectors(["up", "above", "down"], torch.tensor([[0.0, 2], [1, 3], [0, -1]]))
        >>> words.similar("up", 1)
        [('above', 0.9486833214759827)]
    """

    def __init__(self, words: Sequence[str], vectors: Tensor) -> None:
        if vectors.dim() != 2 or len(words) != len(vectors):
            raise ValueError(
                f"expected a vector for each of {len(words)} words, got {tuple(vectors.shape)}"
            )
        self.words = [*words]
        self.vectors = vectors
        self.ids = {word: number for number, word in enumerate(self.words)}
        if len(self.ids) < len(self.words):
            raise ValueError(f"{len(self.words)} words are {len(self.ids)} different ones")
        self.unit = normalize(vectors.float())

    @classmethod
    def read(cls, path: str | Path, limit: int | None = None) -> WordVectors:
        """Read a file of word2vec's or GloVe's, see `rnnkit.data.vectors.read_vectors`."""
        return cls(*read_vectors(path, limit=limit))

    def first(self, count: int) -> WordVectors:
        """The first so many words, in most files the most frequent ones."""
        return WordVectors(self.words[:count], self.vectors[:count])

    def find(self, word: str) -> int:
        """The place of a word.

        Raises:
            DataError: It is not there; names the nearest spellings.
        """
        if word in self.ids:
            return self.ids[word]
        if word.lower() in self.ids:
            raise DataError(f"there is no vector of {word!r}, but one of {word.lower()!r}")
        near = get_close_matches(word, self.words, 3)
        advice = f": the nearest spellings are {', '.join(near)}" if near else ""
        raise DataError(f"there is no vector of {word!r} among {len(self.words):,} words{advice}")

    def similar(self, word: str, count: int = 10) -> list[tuple[str, float]]:
        """The nearest words by the cosine, and it, without the word itself.

        Raises:
            DataError: The word is not there.
        """
        number = self.find(word)
        return self._best(self.unit @ self.unit[number], [number], count)

    def analogy(
        self, plus: Iterable[str], minus: Iterable[str], count: int = 10, method: Method = "add"
    ) -> list[tuple[str, float]]:
        """Words near some and far from others, as king and woman without man, and their scores.

        Args:
            plus: Words to be near to.
            minus: Words to be far from.
            count: How many are returned.
            method: add, 3CosAdd, or mul, 3CosMul.

        Raises:
            DataError: A word is not there.
        """
        near, far = ([self.find(word) for word in side] for side in (plus, minus))
        scores = combined(self.unit @ self.unit[near].T, self.unit @ self.unit[far].T, method)
        return self._best(scores, near + far, count)

    def _best(self, scores: Tensor, without: list[int], count: int) -> list[tuple[str, float]]:
        scores[without] = -torch.inf
        count = min(count, len(self.words) - len({*without}))
        values, places = scores.topk(count)
        return [(self.words[i], v) for i, v in zip(places.tolist(), values.tolist(), strict=True)]


def combined(near: Tensor, far: Tensor, method: Method) -> Tensor:
    """Scores from the cosines to words that count for (..., N) and against (..., M).

    Raises:
        ValueError: There is no such method.
    """
    if method == "add":
        return near.sum(-1) - far.sum(-1)
    if method == "mul":
        return ((near + 1) / 2).prod(-1) / ((far + 1) / 2 + _EPSILON).prod(-1)
    raise ValueError(f"expected method add or mul, got {method!r}")
