"""Tags read as entities, which a score counts.

A tag is `O` outside of entities, or a letter, a hyphen and the entity's type; the schemes that say
which letter stands where are drawn in `rnnkit.data.schemes`, which writes them. Or each tag is the
label of its word and no part of an entity, as a part of speech is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

Scheme = Literal["IOB1", "BIO", "BILOU", "BIOES", "labels"]

SCHEMES: tuple[Scheme, ...] = tuple(scheme for scheme in get_args(Scheme) if scheme != "labels")
"""Those that write entities."""

# The letters of the last of several tokens and of a single one, where a scheme has such.
_CLOSING = {"BILOU": ("L", "U"), "BIOES": ("E", "S")}


class Entity(NamedTuple):
    """An entity: its type and the tokens start to end - 1 of its sentence."""

    type: str
    start: int
    end: int


def entities(tags: Sequence[str], scheme: Scheme) -> list[Entity]:
    """Entities of a sentence, from left to right.

    IOB1 and BIO are read as conlleval reads them, see `lenient`. BILOU and BIOES are read strictly:
    an entity is a U-, or a B-, any number of I- and an L-, all of one type; tags that are part of
    none are dropped. Labels hold no entity.

    Args:
        tags: One tag a token.
        scheme: How they are meant.

    Raises:
        ValueError: A tag is not of the scheme's form, or there is no such scheme.

    Example:
        >>> entities(["B-PER", "L-PER", "O", "B-LOC"], "BILOU")
        [Entity(type='PER', start=0, end=2)]
    """
    if scheme == "labels":
        return []
    last, single = closing_letters(scheme)
    parts = split_tags(tags, scheme)
    if not last:
        return lenient(tags)
    found = []
    open_type, start = "", 0
    for position, (letter, type_) in enumerate(parts):
        goes_on = letter in ("I", last) and type_ == open_type
        if not goes_on:
            open_type, start = type_ if letter == "B" else "", position
        if letter == single or (goes_on and letter == last):
            found.append(Entity(type_, start, position + 1))
            open_type = ""
    return found


def lenient(tags: Sequence[str]) -> list[Entity]:
    """Entities of a sentence as conlleval reads them, whichever scheme the tags are to follow.

    What can't go on with the entity before it begins one, so whatever the tags, every one but O is
    part of an entity of its type. L and U are read as E and S.

    Args:
        tags: One tag a token.

    Raises:
        ValueError: A tag is of no scheme's form.

    Example:
        >>> lenient(["I-PER", "I-LOC", "O", "B-LOC", "I-LOC"])  # doctest: +NORMALIZE_WHITESPACE
        [Entity(type='PER', start=0, end=1), Entity(type='LOC', start=1, end=2),
         Entity(type='LOC', start=3, end=5)]
    """
    found = []
    open_type, start = "", 0  # no type is empty: none is open
    for position, (letter, type_) in enumerate([*split_tags(tags, None), ("O", "")]):
        if open_type and not (letter in "ILE" and type_ == open_type):
            found.append(Entity(open_type, start, position))
            open_type = ""
        if not open_type:
            open_type, start = type_, position
        if letter in "LEUS":
            found.append(Entity(open_type, start, position + 1))
            open_type = ""
    return found


def closing_letters(scheme: Scheme) -> tuple[str, str]:
    """Letters of an entity's last token and of its only one; empty where a scheme has none."""
    if scheme not in SCHEMES:
        raise ValueError(f"expected a scheme of {', '.join(SCHEMES)}, got {scheme!r}")
    return _CLOSING.get(scheme, ("", ""))


def scheme_letters(scheme: Scheme | None) -> str:
    """Letters of a scheme, of all for none."""
    return "BI" + "".join(closing_letters(scheme)) if scheme else "BILUES"


# A corpus has few distinct tags and pairs of them, and each is met many thousand times.
@lru_cache(maxsize=4096)
def split_tag(tag: str, scheme: Scheme | None) -> tuple[str, str] | None:
    """Letter and type of a tag, the type empty for O; none where the scheme has no such tag."""
    if tag == "O":
        return "O", ""
    letter, _, type_ = tag.partition("-")
    known = len(letter) == 1 and letter in scheme_letters(scheme)
    return (letter, type_) if known and type_ else None


def split_tags(tags: Sequence[str], scheme: Scheme | None) -> list[tuple[str, str]]:
    """Letter and type of each tag.

    Raises:
        ValueError: A tag is not of the scheme's form, or for none of any scheme's.
    """
    parts = []
    for position, tag in enumerate(tags):
        part = split_tag(tag, scheme)
        if part is None:
            raise ValueError(f"tag {position}: {malformed(tag, scheme)}")
        parts.append(part)
    return parts


def malformed(tag: str, scheme: Scheme | None) -> str:
    """Why a tag is none of a scheme's, in words."""
    *forms, final = (f"{letter}-TYPE" for letter in scheme_letters(scheme))
    return (
        f"{tag!r} is no tag of {scheme or 'any scheme'}: expected O, {', '.join(forms)} or {final}"
    )
