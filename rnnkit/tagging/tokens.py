"""Words and marks of a line of text, by where they stand.

What cannot be seen is no token of its own. Unicode's default ignorable characters (soft hyphen,
word joiner, variation selectors and marks of direction among them) belong to the token that they
follow, U+200B separates as a blank does, and what an emoji is joined of stays one.
"""

from __future__ import annotations

import re
import unicodedata

from rnnkit.tagging.words import IGNORABLE, JOINERS

Place = tuple[int, int]
"""First character of a token in its line, from 0, and the one behind its last."""

_BREAK = "\N{ZERO WIDTH SPACE}"
_GLUE = IGNORABLE.replace(_BREAK, "")

# What goes on with a word, though \w leaves it out: the vowel signs of many scripts, accents that
# are characters of their own, what joins letters or keeps them apart, and what nobody sees.
_SIGN = "[{}{}{}]".format(
    JOINERS,
    _GLUE,
    "".join(
        sign for sign in map(chr, range(0x300, 0x1F000)) if unicodedata.category(sign)[0] == "M"
    ),
)
_WORD = rf"\w+(?:{_SIGN}\w*)*"  # not one class of both, which takes twice as long
_MARK = rf"[^\w\s{_BREAK}{_GLUE}{JOINERS}]"

# Abbreviations with their dots; numbers with their marks; an English genitive or contraction; words
# with the hyphens in them; a flag, which is two letters of its country; any other mark by itself,
# with what it is joined to.
_TOKEN = re.compile(
    r"(?:[^\W\d_]\.){2,}|\d+(?:[.,:/-]\d+)+"
    rf"|['’](?:(?<=\w.)|(?<={_SIGN}.))[^\W\d_]{{1,2}}\b|{_WORD}(?:-{_WORD})*"
    rf"|[\U0001f1e6-\U0001f1ff]{{2}}"
    rf"|{_MARK}(?:{_SIGN}|[\U0001f3fb-\U0001f3ff]|(?<=\u200d){_MARK})*"
)

# As the reader of columns has it: no-break spaces occur within tokens.
_BETWEEN_BLANKS = re.compile("[^ \t]+")


def places(line: str) -> list[Place]:
    """Where the words and marks of a line of text stand."""
    return [match.span() for match in _TOKEN.finditer(line)]


def places_between_blanks(line: str) -> list[Place]:
    """Where the tokens of a line stand that blanks or tabs separate, and nothing else does."""
    return [match.span() for match in _BETWEEN_BLANKS.finditer(line)]


def tokenize(line: str) -> list[str]:
    """Words and marks of a line of text.

    Example:
        >>> tokenize("Ada Lovelace's U.S. tour cost $1,200.")
        ['Ada', 'Lovelace', "'s", 'U.S.', 'tour', 'cost', '$', '1,200', '.']
    """
    return [line[start:end] for start, end in places(line)]
