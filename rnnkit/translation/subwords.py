"""Byte-pair encoding of lines, and back: no character is unknown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any

from rnnkit.data.vocabulary import Vocabulary
from rnnkit.translation.words import SPECIAL, UNKNOWN, WORD_START, Level

if TYPE_CHECKING:
    from tokenizers import Tokenizer


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

    def decode(self, ids: Iterable[int], unknown: Iterable[str] = repeat("<unk>")) -> str:
        """The line of some ids; padding, begin and end are left out.

        Bytes that are no UTF-8 become U+FFFD, and a line end, which no line holds, a blank.

        Args:
            ids: Those of the tokens.
            unknown: What stands for each unknown token, in their order. No text has one, but a
                model that has learnt little may write it.

        Raises:
            ValueError: An id is outside the vocabulary.
        """
        parts: list[list[int]] = [[]]
        for i in ids:
            if not 0 <= i < len(self):
                raise ValueError(f"expected ids from 0 to {len(self) - 1}, got {i}")
            if i == UNKNOWN:
                parts.append([])
            elif i >= len(SPECIAL):
                parts[-1].append(i - len(SPECIAL))
        words = iter(unknown)
        line: str = self._bpe.decode(parts[0])
        for part in parts[1:]:
            line += f" {next(words)}{self._bpe.decode(part)}"
        return line.replace("\n", " ").removeprefix(" ")

    def written(self, line: str) -> list[str]:
        """The tokens of a line as they stand in it: one for each id."""
        return self.shown(self.encode(line))

    def shown(self, ids: Iterable[int]) -> list[str]:
        """Each token of some ids as people can read it, special ones too.

        A blank is U+2581, as SentencePiece shows it, and a byte that is but a part of a character
        is written as such: `<0xC3>`.
        """
        return [_readable(token) for token in self.vocabulary.decode(ids)]

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


def _readable(token: str) -> str:
    """A token in the letters that stand for bytes, as text."""
    if token in SPECIAL:
        return token
    text = bytes(map(_byte, token)).decode("utf-8", errors="surrogateescape")
    text = re.sub("[\udc80-\udcff]", lambda found: f"<0x{ord(found[0]) - 0xDC00:02X}>", text)
    return text.replace(" ", WORD_START)


def _byte(letter: str) -> int:
    """The byte of a letter: of 188 its own, of those that print nothing, in order, from 256 on."""
    code = ord(letter)
    return code if code < 256 else _UNPRINTED[code - 256]


# As GPT-2 has it (Radford et al. 2019), and the library with it.
_UNPRINTED = [*range(0x21), *range(0x7F, 0xA1), 0xAD]
