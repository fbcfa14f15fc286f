"""How good word vectors are: analogies by groups, and ratings of pairs by people.

What has no vector is left out, and counted: a share of the answered questions says little where few
of them are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rnnkit.data.files import read_text
from rnnkit.data.registry import DataError
from rnnkit.word_vectors.vectors import Method, WordVectors, combined

_SCORES_AT_ONCE = 2**24  # of a question with a word


class Group(NamedTuple):
    """The questions of one kind.

    Attributes:
        name: Of the kind; gram... for grammar.
        right: Answered as the file has it.
        answered: Whose four words have vectors.
        asked: All of them.
    """

    name: str
    right: int
    answered: int
    asked: int

    @property
    def accuracy(self) -> float:
        """Share of the answered ones that are right; NaN where none is answered."""
        return self.right / self.answered if self.answered else float("nan")


class Similarity(NamedTuple):
    """Agreement with ratings of pairs.

    Attributes:
        rho: Spearman's rank correlation of cosines and ratings; NaN for fewer than 3 pairs.
        rated: Pairs whose two words have vectors.
        pairs: All of them.
    """

    rho: float
    rated: int
    pairs: int


def read_questions(path: str | Path) -> dict[str, list[tuple[str, str, str, str]]]:
    """Questions a b c d, a line each, by the groups that lines `: name` begin.

    Raises:
        DataError: A line holds neither; or there is no question.
    """
    groups: dict[str, list[tuple[str, str, str, str]]] = {}
    name = "all"
    for number, line in enumerate(read_text(Path(path)).splitlines(), 1):
        words = line.split()
        if line.startswith(":"):
            name = line[1:].strip()
        elif len(words) == 4:
            groups.setdefault(name, []).append((words[0], words[1], words[2], words[3]))
        elif words:
            raise DataError(f"expected 4 words in line {number} of {path}, got {len(words)}")
    if not groups:
        raise DataError(f"{path} holds no question: expected lines of 4 words")
    return groups


def read_pairs(path: str | Path) -> list[tuple[str, str, float]]:
    """Pairs and their ratings, a line each between tabs, commas or blanks; lines with # are none.

    A first line whose third column is no number names the columns.

    Raises:
        DataError: A line holds less than two words and a number; or there is no pair.
    """
    pairs: list[tuple[str, str, float]] = []
    lines = [
        (number, line)
        for number, line in enumerate(read_text(Path(path)).splitlines(), 1)
        if line.strip() and not line.startswith("#")
    ]
    for number, line in lines:
        columns = line.split("\t") if "\t" in line else line.replace(",", " ").split()
        try:
            rating = float(columns[2])
            if not math.isfinite(rating):
                raise ValueError(f"{rating} is no rating")
            pairs.append((columns[0].strip(), columns[1].strip(), rating))
        except (ValueError, IndexError) as error:
            if (number, line) == lines[0] and len(columns) >= 3:
                continue
            raise DataError(
                f"expected two words and a number in line {number} of {path}, got {line!r}"
            ) from error
    if not pairs:
        raise DataError(f"{path} holds no pair: expected two words and a number in each line")
    return pairs


def analogies(
    vectors: WordVectors,
    questions: dict[str, list[tuple[str, str, str, str]]],
    method: Method = "add",
) -> list[Group]:
    """Answer questions a : b = c : ?; a, b and c are no answers.

    Where the vectors have no word with a capital, questions are read in lower case.

    Args:
        vectors: Of the words that are candidates, too: `vectors.first(30_000)` restricts both.
        questions: By groups, as `read_questions` gives them.
        method: add, 3CosAdd, or mul, 3CosMul.

    Raises:
        ValueError: There is no such method.
    """
    fold = lower_case(vectors)
    at_once = max(1, _SCORES_AT_ONCE // len(vectors.words))
    found = []
    for name, asked in questions.items():
        rows = [[vectors.ids.get(word.lower() if fold else word) for word in q] for q in asked]
        known = torch.tensor([row for row in rows if None not in row], dtype=torch.int64)
        right = 0
        for part in torch.split(known, at_once):
            right += _right(vectors.unit, part, method)
        found.append(Group(name, right, len(known), len(asked)))
    return found


def _right(unit: Tensor, questions: Tensor, method: Method) -> int:
    if not len(questions):
        return 0
    a, b, c, expected = questions.T
    cosines = [unit[each] @ unit.T for each in (b, c, a)]  # (Q, V) each
    scores = combined(torch.stack(cosines[:2], -1), cosines[2].unsqueeze(-1), method)
    scores.scatter_(1, questions[:, :3], -torch.inf)
    return int((scores.argmax(1) == expected).sum())


def similarity(vectors: WordVectors, pairs: Sequence[tuple[str, str, float]]) -> Similarity:
    """Spearman's rank correlation of cosines with ratings.

    Where the vectors have no word with a capital, pairs are read in lower case.

    Args:
        vectors: Of the words.
        pairs: Two words and a rating each, as `read_pairs` gives them.
    """
    from scipy.stats import spearmanr  # type: ignore[import-untyped]  # slow to import

    fold = lower_case(vectors)
    cosines, ratings = [], []
    for one, other, rating in pairs:
        ids = [vectors.ids.get(word.lower() if fold else word) for word in (one, other)]
        if None not in ids:
            a, b = vectors.unit[ids]
            cosines.append(float(a @ b))
            ratings.append(rating)
    rho = float("nan")
    if len(cosines) > 2:
        rho = float(spearmanr(cosines, ratings).statistic)
    return Similarity(rho, len(cosines), len(pairs))


def lower_case(vectors: WordVectors) -> bool:
    """Whether no word has a capital."""
    return not any(word != word.lower() for word in vectors.words)
