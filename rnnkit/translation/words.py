"""Tokens of lines that are in the text as they are: words with their marks split off, characters.

A line becomes ids from 4 on; the ids below are the same in every vocabulary:

    0 <pad>    1 <bos>    2 <eos>    3 <unk>

A tokenizer and its inverse are one object, whose state is plain data for a checkpoint.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, ClassVar, Literal

from typing_extensions import Self  # torch brings it; typing has it from Python 3.11

from rnnkit.data.vocabulary import Vocabulary

PADDING, BEGIN, END, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
"""The tokens of these ids."""

Level = Literal["word", "character", "bpe"]

JOINER = "\uffed"
"""On the side of a token that touches its neighbour: no blank lies between them."""

WORD_START = "\u2581"
"""What a blank is shown as: a token that begins with one begins a word."""

_PIECE = re.compile(r"(?P<word>[^\W\d_]+)|\S")


def tokenize(line: str) -> list[str]:
    """Words, digits and marks of a line.

    A word is a run of letters; every digit and every mark is a token of its own. Where two tokens
    touch, the one that is no word carries a joiner on that side, the right one of two:

        a t-shirt (no. 32).    a  t  ￭-￭  shirt  (￭  no  ￭.  3  ￭2  ￭)  ￭.

    So `detokenize` gives the line back, with each run of white space as one blank. Combining
    signs count as marks: for scripts that use many, level bpe is the better choice.
    """
    tokens: list[str] = []
    end = -1
    for match in _PIECE.finditer(line.replace(JOINER, "\u25a0")):
        token = match[0]
        if match.start() == end:
            if match["word"]:
                tokens[-1] += JOINER
            else:
                token = JOINER + token
        tokens.append(token)
        end = match.end()
    return tokens


def detokenize(tokens: Iterable[str]) -> str:
    """The line of tokens: a blank between two of them unless a joiner stands there."""
    line = " ".join(tokens)
    return line.replace(f"{JOINER} ", "").replace(f" {JOINER}", "").replace(JOINER, "")


class _Tokenizer(ABC):
    """Tokens that a vocabulary lists, as ids, and back.

    Args:
        vocabulary: The tokens; its first four are `SPECIAL`.
        lowercase: Lower-case a line first.

    Raises:
        ValueError: The vocabulary begins with other tokens.
    """

    level: ClassVar[Level]

    def __init__(self, vocabulary: Vocabulary, lowercase: bool = False) -> None:
        if vocabulary.tokens[: len(SPECIAL)] != SPECIAL:
            raise ValueError(
                f"expected a vocabulary that begins with {', '.join(SPECIAL)}, got "
                f"{', '.join(vocabulary.tokens[: len(SPECIAL)])}"
            )
        self.vocabulary = vocabulary
        self.lowercase = lowercase

    @staticmethod
    @abstractmethod
    def _cut(line: str) -> list[str]:
        """Tokens of a line."""

    @staticmethod
    @abstractmethod
    def _join(tokens: Iterable[str]) -> str:
        """The line of tokens."""

    @classmethod
    def train(cls, lines: Iterable[str], *, min_count: int = 1, lowercase: bool = False) -> Self:
        """Tokenizer for the tokens of some lines, the most frequent first.

        Args:
            lines: The training text.
            min_count: Fewest occurrences for a token to be kept; rarer ones are unknown.
            lowercase: Lower-case the text.

        Raises:
            ValueError: `min_count` is below 1, or no token is left.
        """
        counts: Counter[str] = Counter()
        for line in lines:
            counts.update(cls._cut(line.lower() if lowercase else line))
        known = Vocabulary.from_counts(counts, min_count=min_count)
        return cls(Vocabulary([*SPECIAL, *known.tokens]), lowercase)

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, line: str) -> list[int]:
        """Ids of a line's tokens, without begin and end; `UNKNOWN` for tokens not kept."""
        tokens = self._cut(line.lower() if self.lowercase else line)
        return [self.vocabulary.index(token) for token in tokens]

    def encode_lines(self, lines: Sequence[str]) -> list[list[int]]:
        """`encode` for many lines."""
        return [self.encode(line) for line in lines]

    def decode(self, ids: Iterable[int], unknown: Iterable[str] = repeat("<unk>")) -> str:
        """The line of some ids; padding, begin and end are left out.

        Args:
            ids: Those of the tokens.
            unknown: What stands for each unknown token, in their order.

        Raises:
            ValueError: An id is outside the vocabulary.
        """
        words = iter(unknown)
        tokens = self.vocabulary.decode(i for i in ids if i not in (PADDING, BEGIN, END))
        return self._join(next(words) if token == SPECIAL[UNKNOWN] else token for token in tokens)

    def written(self, line: str) -> list[str]:
        """The tokens of a line as they stand in it, upper case and all: one for each id."""
        tokens, read = self._cut(line), self._cut(line.lower() if self.lowercase else line)
        # A few letters are two in lower case.
        return tokens if len(tokens) == len(read) else read

    def shown(self, ids: Iterable[int]) -> list[str]:
        """Each token of some ids as people can read it, special ones too."""
        return self.vocabulary.decode(ids)

    def count_unknown(self, ids: Iterable[int]) -> int:
        """How many of a line's ids stand for unknown tokens."""
        return sum(i == UNKNOWN for i in ids)

    def state_dict(self) -> dict[str, Any]:
        """The tokenizer as plain data."""
        return {
            "level": self.level,
            "lowercase": self.lowercase,
            "tokens": self.vocabulary.state_dict(),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Self:
        """The tokenizer that `state_dict` describes."""
        return cls(Vocabulary.from_state_dict(state["tokens"]), state["lowercase"])


class WordTokenizer(_Tokenizer):
    """Words, digits and marks of a line as ids, and back.

    Args:
        vocabulary: The tokens; its first four are `SPECIAL`.
        lowercase: Lower-case a line first.

    Raises:
        ValueError: The vocabulary begins with other tokens.

    Example:
        >>> tokenizer = WordTokenizer.train(["a dog, a cat"])
        >>> tokenizer.encode("a cat, a bird")
        [4, 5, 7, 4, 3]
        >>> tokenizer.decode([4, 6, 7, 5, 3, 2])
        'a dog, cat <unk>'
    """

    level = "word"
    _cut = staticmethod(tokenize)
    _join = staticmethod(detokenize)

    def written(self, line: str) -> list[str]:
        """The tokens of a line as they stand in it, upper case and all: one for each id."""
        return [token.replace(JOINER, "") for token in super().written(line)]


class CharacterTokenizer(_Tokenizer):
    """Characters of a line as ids, blanks too, and back exactly.

    Args:
        vocabulary: The characters; its first four tokens are `SPECIAL`.
        lowercase: Lower-case a line first.

    Raises:
        ValueError: The vocabulary begins with other tokens.

    Example:
        >>> tokenizer = CharacterTokenizer.train(["a cat"])
        >>> tokenizer.decode(tokenizer.encode("at  a bat"))
        'at  a <unk>at'
    """

    level = "character"

    @staticmethod
    def _cut(line: str) -> list[str]:
        return list(line)

    @staticmethod
    def _join(tokens: Iterable[str]) -> str:
        return "".join(tokens)

    def shown(self, ids: Iterable[int]) -> list[str]:
        """Each character of some ids, special ones too, a blank as U+2581."""
        return [token.replace(" ", WORD_START) for token in super().shown(ids)]
