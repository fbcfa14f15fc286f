"""Tokenizers of lines and their inverses: words with their marks split off, and byte-pair encoding.

Both turn a line into ids from 4 on; the ids below are the same in every vocabulary:

    0 <pad>    1 <bos>    2 <eos>    3 <unk>

A tokenizer and its inverse are one object, whose state is plain data for a checkpoint.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rnnkit.data.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PADDING, BEGIN, END, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
"""The tokens of these ids."""

Level = Literal["word", "bpe"]

JOINER = "\uffed"
"""On the side of a token that touches its neighbour: no blank lies between them."""

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


class WordTokenizer:
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
        >>> tokenizer.decode([4, 6, 7, 5, 2])
        'a dog, cat'
    """

    level: Level = "word"

    def __init__(self, vocabulary: Vocabulary, lowercase: bool = False) -> None:
        if vocabulary.tokens[: len(SPECIAL)] != SPECIAL:
            raise ValueError(
                f"expected a vocabulary that begins with {', '.join(SPECIAL)}, got "
                f"{', '.join(vocabulary.tokens[: len(SPECIAL)])}"
            )
        self.vocabulary = vocabulary
        self.lowercase = lowercase

    @classmethod
    def train(
        cls, lines: Iterable[str], *, min_count: int = 1, lowercase: bool = False
    ) -> WordTokenizer:
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
            counts.update(tokenize(line.lower() if lowercase else line))
        known = Vocabulary.from_counts(counts, min_count=min_count)
        return cls(Vocabulary([*SPECIAL, *known.tokens]), lowercase)

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, line: str) -> list[int]:
        """Ids of a line's tokens, without begin and end; `UNKNOWN` for tokens not kept."""
        tokens = tokenize(line.lower() if self.lowercase else line)
        return [self.vocabulary.index(token) for token in tokens]

    def encode_lines(self, lines: Sequence[str]) -> list[list[int]]:
        """`encode` for many lines."""
        return [self.encode(line) for line in lines]

    def decode(self, ids: Iterable[int]) -> str:
        """The line of some ids; the four special ones are left out.

        Raises:
            ValueError: An id is outside the vocabulary.
        """
        return detokenize(self.vocabulary.decode(i for i in ids if not 0 <= i < len(SPECIAL)))

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
    def from_state_dict(cls, state: Mapping[str, Any]) -> WordTokenizer:
        """The tokenizer that `state_dict` describes."""
        return cls(Vocabulary.from_state_dict(state["tokens"]), state["lowercase"])


class BPETokenizer:
    """Byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909) of UTF-8 bytes, and back.

    Every line can be encoded and comes back exactly, white space included: no id is unknown.
    Needs the package `tokenizers`, which the extra `train` brings along.

    Args:
        bpe: A trained byte-level model without special tokens; its ids are moved up by 4.
        lowercase: Lower-case a line first.

    Example:
        >>> tokenizer = BPETokenizer.train(["low lower lowest"] * 9, size=264)
        >>> tokenizer.decode(tokenizer.encode("slow été"))
        'slow été'
    """

    level: Level = "bpe"

    def __init__(self, bpe: Tokenizer, lowercase: bool = False) -> None:
        self._bpe = bpe
        self.lowercase = lowercase

    @classmethod
    def train(cls, lines: Iterable[str], *, size: int, lowercase: bool = False) -> BPETokenizer:
        """Tokenizer with the merges that are most frequent in some lines.

        Args:
            lines: The training text.
            size: Size of the vocabulary with the special tokens and the 256 bytes. It stays
                smaller where the text has no pair left that occurs twice.
            lowercase: Lower-case the text.

        Raises:
            ValueError: `size` is below 260.
        """
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        if size < len(SPECIAL) + len(alphabet):
            raise ValueError(
                f"expected a BPE vocabulary of {len(SPECIAL) + len(alphabet)} or more "
                f"({len(SPECIAL)} special tokens, {len(alphabet)} bytes), got {size}"
            )
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size - len(SPECIAL),
            min_frequency=2,
            initial_alphabet=alphabet,
            show_progress=False,
        )
        tokenizer = cls(bpe, lowercase)
        bpe.train_from_iterator((tokenizer._prepare(line) for line in lines), trainer)
        return tokenizer

    def _prepare(self, line: str) -> str:
        # A word's first token begins with the blank before it, in front of a line as within.
        return f" {line.lower() if self.lowercase else line}"

    def __len__(self) -> int:
        return self._bpe.get_vocab_size() + len(SPECIAL)

    def encode(self, line: str) -> list[int]:
        """Ids of a line's tokens, without begin and end; none for a line without a character."""
        return self.encode_lines([line])[0]

    def encode_lines(self, lines: Sequence[str]) -> list[list[int]]:
        """`encode` for many lines, which is faster."""
        encoded = self._bpe.encode_batch([self._prepare(line) for line in lines])
        return [
            [i + len(SPECIAL) for i in ids.ids] if line else []
            for line, ids in zip(lines, encoded, strict=True)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """The line of some ids; the four special ones are left out.

        Bytes that are no UTF-8 become U+FFFD, and a line end, which no line holds, a blank.

        Raises:
            ValueError: An id is outside the vocabulary.
        """
        kept = []
        for i in ids:
            if not 0 <= i < len(self):
                raise ValueError(f"expected ids from 0 to {len(self) - 1}, got {i}")
            if i >= len(SPECIAL):
                kept.append(i - len(SPECIAL))
        line: str = self._bpe.decode(kept)
        return line.replace("\n", " ").removeprefix(" ")

    def count_unknown(self, ids: Iterable[int]) -> int:
        """How many of a line's ids stand for unknown tokens: none, but where one was put in."""
        return sum(i == UNKNOWN for i in ids)

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens in the order of their ids, bytes in the model's own letters."""
        ids = self._bpe.get_vocab()
        return Vocabulary([*SPECIAL, *sorted(ids, key=ids.__getitem__)])

    def state_dict(self) -> dict[str, Any]:
        """The tokenizer as plain data."""
        return {"level": self.level, "lowercase": self.lowercase, "bpe": self._bpe.to_str()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> BPETokenizer:
        """The tokenizer that `state_dict` describes."""
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_str(state["bpe"]), state["lowercase"])


LineTokenizer = WordTokenizer | BPETokenizer


def from_state_dict(state: Mapping[str, Any]) -> LineTokenizer:
    """The tokenizer that the `state_dict` of one of either kind describes."""
    kind = BPETokenizer if state["level"] == "bpe" else WordTokenizer
    return kind.from_state_dict(state)


def difference(saved: LineTokenizer, here: LineTokenizer) -> str | None:
    """First difference of two tokenizers in words; None where they give the same ids."""
    for name in ("level", "lowercase"):
        if getattr(saved, name) != getattr(here, name):
            return f"{name} {getattr(saved, name)} and {getattr(here, name)}"
    different = saved.vocabulary.difference(here.vocabulary)
    if different is None and _merges(saved) != _merges(here):
        return f"{len(saved)} and {len(here)} tokens, the same ones, merged in another order"
    return different


def _merges(tokenizer: LineTokenizer) -> object:
    if isinstance(tokenizer, WordTokenizer):
        return None
    return json.loads(tokenizer.state_dict()["bpe"])["model"]["merges"]
