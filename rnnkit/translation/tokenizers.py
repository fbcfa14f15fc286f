"""The tokenizers of lines by their levels: words, characters, byte-pair encodings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rnnkit.translation.subwords import BPETokenizer
from rnnkit.translation.words import (
    JOINER,
    CharacterTokenizer,
    Level,
    WordTokenizer,
    tokenize,
)

LineTokenizer = WordTokenizer | CharacterTokenizer | BPETokenizer

_KINDS: dict[Level, type[WordTokenizer | CharacterTokenizer | BPETokenizer]] = {
    "word": WordTokenizer,
    "character": CharacterTokenizer,
    "bpe": BPETokenizer,
}


def train_tokenizer(
    level: Level, lines: Iterable[str], *, min_count: int, bpe_size: int, lowercase: bool
) -> LineTokenizer:
    """Tokenizer for some lines.

    Args:
        level: Its tokens.
        lines: The training text.
        min_count: Fewest occurrences for a token to be kept, of words and characters.
        bpe_size: Size of the vocabulary, of byte-pair encodings.
        lowercase: Lower-case the text.

    Raises:
        ValueError: There is no such level, a number is out of range, or no token is left.
    """
    if level == "bpe":
        return BPETokenizer.train(lines, size=bpe_size, lowercase=lowercase)
    if level == "character":
        return CharacterTokenizer.train(lines, min_count=min_count, lowercase=lowercase)
    if level == "word":
        return WordTokenizer.train(lines, min_count=min_count, lowercase=lowercase)
    raise ValueError(f"expected level {', '.join(_KINDS)}, got {level!r}")


def from_state_dict(state: Mapping[str, Any]) -> LineTokenizer:
    """The tokenizer that the `state_dict` of one of any level describes."""
    return _KINDS[state["level"]].from_state_dict(state)


def encode_lines(tokenizer: LineTokenizer, lines: Sequence[str]) -> list[list[int]]:
    """Ids of lines to read, none for a line without text, whatever blanks it has."""
    return tokenizer.encode_lines([line if line.strip() else "" for line in lines])


def spaced(line: str, level: Level, lowercase: bool) -> str:
    """A line as tokens with blanks between them, to be compared by.

    Args:
        line: Text.
        level: character: each is a token; else words and marks are.
        lowercase: Lower-case it first.
    """
    line = line.lower() if lowercase else line
    if level == "character":
        return " ".join("".join(line.split()))
    return " ".join(tokenize(line)).replace(JOINER, "")


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
    if not isinstance(tokenizer, BPETokenizer):
        return None
    return json.loads(tokenizer.state_dict()["bpe"])["model"]["merges"]
