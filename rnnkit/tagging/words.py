"""What a tagger sees of a word: its id, its casing and its characters.

word        id in a vocabulary, of the word in lower case with its digits as 0
casing      one of `CASINGS`, of the word as it is written
characters  ids of what it is written with, each distinct word of a batch once

What is written but not seen, such as a soft hyphen, counts only where a word has nothing else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnkit.data.vocabulary import UNKNOWN, Vocabulary

PADDING = 0
"""Id of padding, of words and of characters."""

UNKNOWN_ID = 1
"""Id of a word or character that the vocabulary does not hold."""

SPECIAL = ("", UNKNOWN)
"""The tokens with these ids; no word of a text is empty, so none is taken for padding."""

CASINGS = ("lower", "title", "upper", "mixed", "number", "digits", "other")
"""Kinds of casing: all lower case; an upper-case letter first and lower case after it; all upper
case; any other mix; digits with at most signs and marks; letters and digits; no letter or digit."""

_DIGIT = re.compile(r"\d")

IGNORABLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
"""Characters that nobody sees, for a class of a regular expression: Unicode's property
Default_Ignorable_Code_Point without the two joiners, which many scripts need to spell words."""

JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
"""Those two."""

_ignorable = re.compile(f"[{IGNORABLE}]+")
# Those, blanks of any width, controls, and Braille without a dot.
_nothing_seen = re.compile(rf"[\s\x00-\x1f\x7f-\x9f\u2800{IGNORABLE}{JOINERS}]+")


def casing(word: str) -> int:
    """Index in `CASINGS` of a word's casing."""
    letters = [character for character in word if character.isalpha()]
    digits = any(character.isdigit() for character in word)
    if digits:
        name = "digits" if letters else "number"
    elif not letters:
        name = "other"
    elif word.islower():
        name = "lower"
    elif word.isupper() and len(letters) > 1:
        name = "upper"
    elif letters[0].isupper() and not any(letter.isupper() for letter in letters[1:]):
        name = "title"
    else:  # also letters of a script that knows no case
        name = "mixed"
    return CASINGS.index(name)


class Sentences(NamedTuple):
    """A batch of B sentences, time first, with the characters of its U distinct words.

    Attributes:
        words: Ids, int64 (T, B), then `PADDING`.
        casing: Indices in `CASINGS`, int64 (T, B); 0 on padding.
        spelling: Which of the distinct words stands there, int64 (T, B); 0 on padding.
        characters: Ids of the distinct words' characters, int64 (C, U), then `PADDING`.
        character_lengths: Their numbers, int64 (U,), at least 1; they stay on the CPU.
        lengths: Words of each sentence, int64 (B,), at least 1; they stay on the CPU.
    """

    words: Tensor
    casing: Tensor
    spelling: Tensor
    characters: Tensor
    character_lengths: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Tensor:
        """Which positions hold a word, bool (T, B)."""
        steps = torch.arange(len(self.words), device=self.words.device)
        lengths = self.lengths.to(self.words.device, non_blocking=True)
        return steps.unsqueeze(1) < lengths

    def to(self, device: torch.device) -> Sentences:
        """The batch on a device, but for the two lengths: the host reads them."""
        words, casing, spelling, characters = (
            part.to(device, non_blocking=True)
            for part in (self.words, self.casing, self.spelling, self.characters)
        )
        return Sentences(words, casing, spelling, characters, self.character_lengths, self.lengths)


class WordEncoder:
    """Turns sentences into what a tagger sees of them.

    Args:
        words: Vocabulary of words as `normalize` writes them; begins with `SPECIAL`.
        characters: Vocabulary of characters; begins with `SPECIAL`.
        lowercase: Look words up in lower case.
        normalize_digits: Look words up with 0 for every digit.
        max_word_length: Of a longer word, its first and last characters, half of them each.

    Raises:
        ValueError: `max_word_length` is below 2.
    """

    def __init__(
        self,
        words: Vocabulary,
        characters: Vocabulary,
        lowercase: bool = True,
        normalize_digits: bool = True,
        max_word_length: int = 40,
    ) -> None:
        if max_word_length < 2:
            raise ValueError(f"expected max_word_length of 2 or more, got {max_word_length}")
        self.words = words
        self.characters = characters
        self.lowercase = lowercase
        self.normalize_digits = normalize_digits
        self.max_word_length = max_word_length
        self._seen: dict[str, tuple[int, int, list[int]]] = {}

    @classmethod
    def train(
        cls,
        sentences: Iterable[Sequence[str]],
        *,
        min_count: int = 1,
        lowercase: bool = True,
        normalize_digits: bool = True,
        max_word_length: int = 40,
        more_words: Sequence[str] = (),
    ) -> WordEncoder:
        """The encoder of a training text.

        Args:
            sentences: Their words.
            min_count: Rarer words of the text are unknown.
            lowercase: Look words up in lower case.
            normalize_digits: Look words up with 0 for every digit.
            max_word_length: Longest part of a word that is read by its characters.
            more_words: Words that are known even so, as those of a file of vectors.

        Raises:
            ValueError: A number is out of range.
        """
        if min_count < 1:
            raise ValueError(f"expected min_count of 1 or more, got {min_count}")
        words: Counter[str] = Counter()
        characters: Counter[str] = Counter()
        for sentence in sentences:
            for word in sentence:
                words[normalize(word, lowercase, normalize_digits)] += 1
                characters.update(as_seen(word))
        frequent = sorted(words, key=lambda word: (-words[word], word))
        known = [word for word in frequent if words[word] >= min_count and word not in SPECIAL]
        held = {*known, *SPECIAL}
        known += [word for word in dict.fromkeys(more_words) if word not in held]
        alphabet = sorted(characters, key=lambda character: (-characters[character], character))
        return cls(
            Vocabulary([*SPECIAL, *known]),
            Vocabulary([*SPECIAL, *alphabet]),
            lowercase,
            normalize_digits,
            max_word_length,
        )

    def normalize(self, word: str) -> str:
        """A word as it stands in the vocabulary."""
        return normalize(word, self.lowercase, self.normalize_digits)

    def encode(self, sentences: Sequence[Sequence[str]]) -> Sentences:
        """The batch of some sentences.

        Args:
            sentences: The words of each.

        Raises:
            ValueError: There is no sentence, one has no word, or a word no character.
        """
        if not sentences:
            raise ValueError("expected 1 sentence or more, got 0")
        for index, sentence in enumerate(sentences):
            if not sentence:
                raise ValueError(f"expected 1 word or more in sentence {index}, got 0")
        distinct = {word: self._features(word) for sentence in sentences for word in sentence}
        ids, kinds, spelled = zip(*distinct.values(), strict=True)
        # Each sentence once as numbers of distinct words: all else is looked up by these at once.
        numbers = {word: number for number, word in enumerate(distinct)}
        lengths = torch.tensor([len(sentence) for sentence in sentences])
        spelling = padded([[numbers[word] for word in sentence] for sentence in sentences])
        outside = torch.arange(len(spelling)).unsqueeze(1) >= lengths
        return Sentences(
            torch.tensor(ids)[spelling].masked_fill_(outside, PADDING),
            torch.tensor(kinds)[spelling].masked_fill_(outside, 0),
            spelling,
            padded(spelled),
            torch.tensor([len(characters) for characters in spelled]),
            lengths,
        )

    def _features(self, word: str) -> tuple[int, int, list[int]]:
        """Id, casing and ids of the characters of a word, kept: texts repeat their words."""
        found = self._seen.get(word)
        if found is None:
            if not word:
                raise ValueError("expected 1 character or more in a word, got 0")
            shown = plain = as_seen(word)
            if len(plain) > self.max_word_length:
                tail = self.max_word_length // 2
                shown = plain[: self.max_word_length - tail] + plain[-tail:]
            found = (
                self.words.index(self.normalize(word)),
                casing(plain),
                [self.characters.index(character) for character in shown],
            )
            if len(self._seen) >= _MOST_KEPT:
                self._seen.clear()
            self._seen[word] = found
        return found

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to encode sentences, as plain data."""
        return {
            "words": self.words.state_dict(),
            "characters": self.characters.state_dict(),
            "lowercase": self.lowercase,
            "normalize_digits": self.normalize_digits,
            "max_word_length": self.max_word_length,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> WordEncoder:
        """The encoder that `state_dict` describes."""
        return cls(
            Vocabulary.from_state_dict(state["words"]),
            Vocabulary.from_state_dict(state["characters"]),
            state["lowercase"],
            state["normalize_digits"],
            state["max_word_length"],
        )

    def difference(self, other: WordEncoder) -> str | None:
        """First difference from `other` in words; None where both encode alike."""
        for name in ("words", "characters"):
            found = getattr(self, name).difference(getattr(other, name))
            if found is not None:
                return f"{name}: {found}"
        for name in ("lowercase", "normalize_digits", "max_word_length"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name} {mine} and {theirs}"
        return None


# Distinct words whose features are kept: a corpus of a million words has fewer, and a stream of
# text that never ends must not fill the memory.
_MOST_KEPT = 500_000


def padded(rows: Iterable[Sequence[int]]) -> Tensor:
    """Sequences of numbers as the columns of one int64 tensor, shorter ones with zeros after.

    One tensor of all is made several times faster than one of each that are then joined.
    """
    return torch.tensor(list(zip_longest(*rows, fillvalue=0)), dtype=torch.int64)


def as_seen(word: str) -> str:
    """A word without what is written but not seen; as it is where it has nothing else."""
    return _ignorable.sub("", word) or word


def is_unseen(word: str) -> bool:
    """Whether a word has nothing that is seen: a soft hyphen alone, two joiners, a wide blank."""
    return _nothing_seen.fullmatch(word) is not None


def normalize(word: str, lowercase: bool, normalize_digits: bool) -> str:
    """A word as it is seen, in lower case, with 0 for every digit."""
    word = as_seen(word)
    if lowercase:
        word = word.lower()
    return _DIGIT.sub("0", word) if normalize_digits else word
