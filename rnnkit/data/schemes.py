"""Tagging schemes: entities written as one tag a token, and read back.

A tag is `O` outside of entities, or a letter, a hyphen and the entity's type; a type may hold
hyphens itself. Two people, then a place, in the four schemes:

                Ada    Lovelace  Alan   met  in  New    York   City
        IOB1    I-PER  I-PER     B-PER  O    O   I-LOC  I-LOC  I-LOC
        BIO     B-PER  I-PER     B-PER  O    O   B-LOC  I-LOC  I-LOC
        BILOU   B-PER  L-PER     U-PER  O    O   B-LOC  I-LOC  L-LOC
        BIOES   B-PER  E-PER     S-PER  O    O   B-LOC  I-LOC  E-LOC

IOB1 is Ramshaw and Marcus 1995 (cmp-lg/9505040): B- only where an entity touches one of its own
type. BIO, also IOB2, is Tjong Kim Sang and Veenstra 1999 (cs/9907006). BILOU is Ratinov and Roth
2009; BIOES, also IOBES, is the same with E and S for L and U.

`labels` is what is left where tags write no entities, as parts of speech: whatever a tag is, it is
the label of its word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from rnnkit.metrics.tags import (
    SCHEMES,
    Entity,
    Scheme,
    closing_letters,
    entities,
    lenient,
    malformed,
    scheme_letters,
    split_tag,
    split_tags,
)
from rnnkit.nn.crf import Constraints

__all__ = [
    "SCHEMES",
    "Entity",
    "Scheme",
    "Violation",
    "constraints",
    "convert",
    "detect",
    "entities",
    "lenient",
    "split_tag",
    "tag_names",
    "tag_types",
    "to_tags",
    "violations",
]


class Violation(NamedTuple):
    """A tag that breaks its scheme: where it stands, and what the scheme demands there."""

    position: int
    tag: str
    reason: str


def to_tags(entities: Iterable[Entity], length: int, scheme: Scheme) -> list[str]:
    """Tags of a sentence, the inverse of `entities`.

    Args:
        entities: In any order.
        length: Tokens of the sentence.
        scheme: The scheme to write.

    Raises:
        ValueError: An entity has no type, has no token, or reaches out of the sentence, two share
            a token, or there is no such scheme.

    Example:
        >>> to_tags([Entity("PER", 0, 2), Entity("LOC", 3, 4)], 4, "BILOU")
        ['B-PER', 'L-PER', 'O', 'U-LOC']
    """
    last, single = closing_letters(scheme)
    tags = ["O"] * length
    before = Entity("", 0, 0)
    for entity in sorted(entities, key=lambda entity: entity.start):
        type_, start, end = entity
        if not type_ or not 0 <= start < end <= length:
            raise ValueError(
                f"expected a type and 0 <= start < end <= {length} in a sentence of {length} "
                f"tokens, got {entity}"
            )
        if start < before.end:
            raise ValueError(
                f"{before} and {entity} share token {start}: tags can write only one of them"
            )
        tags[start:end] = [f"I-{type_}"] * (end - start)
        touches_its_like = start == before.end and type_ == before.type
        if scheme != "IOB1" or touches_its_like:
            tags[start] = f"B-{type_}"
        if last:
            tags[end - 1] = f"{single if end - start == 1 else last}-{type_}"
        before = entity
    return tags


def convert(tags: Sequence[str], source: Scheme, target: Scheme) -> list[str]:
    """The same entities in another scheme; converting back gives the same tags.

    Args:
        tags: One tag a token, valid in `source`.
        source: The scheme of `tags`.
        target: The scheme to write.

    Raises:
        ValueError: A tag breaks `source`, so a conversion could lose or add an entity, or there
            is no such scheme, or it is labels. To read such tags all the same:
            `to_tags(lenient(...), ...)`.

    Example:
        >>> convert(["I-PER", "B-PER", "O"], "IOB1", "BIOES")
        ['S-PER', 'S-PER', 'O']
    """
    closing_letters(source)  # labels are valid, and write no entity
    broken = violations(tags, source)
    if broken:
        raise ValueError(
            f"{len(tags)} tags break {source} {len(broken)} times and can't be converted, first at "
            f"token {broken[0].position}: {broken[0].reason}"
        )
    return to_tags(entities(tags, source), len(tags), target)


def violations(tags: Sequence[str], scheme: Scheme) -> list[Violation]:
    """What in a sentence breaks a scheme, from left to right; empty for a valid sentence.

    A tag is held against the one before it, unless that is none of the scheme's tags itself; an
    entity that the sentence's end leaves open is reported at the last tag. Labels break nothing.

    Args:
        tags: One tag a token.
        scheme: How they are meant.

    Raises:
        ValueError: There is no such scheme.

    Example:
        >>> violations(["O", "I-PER"], "BIO")[0].reason
        'I-PER follows O: BIO begins an entity with B-PER'
    """
    if scheme == "labels":
        return []
    closing_letters(scheme)
    found = []
    before = None
    for position, tag in enumerate(tags):
        if reason := _fault(before, tag, scheme):
            found.append(Violation(position, tag, reason))
        before = tag
    if before is not None and (reason := _fault(before, None, scheme)):
        found.append(Violation(len(tags) - 1, before, reason))
    return found


def detect(sentences: Iterable[Sequence[str]]) -> Scheme:
    """The scheme in which every sentence is valid.

    One sentence with an entity decides: its first entity is valid in one scheme only.

    Args:
        sentences: The tags of each, best those of the whole corpus.

    Raises:
        ValueError: There is no entity, or each scheme is broken by some sentence.

    Example:
        >>> detect([["O", "I-PER"], ["I-LOC", "O"]])
        'IOB1'
    """
    sentences = list(sentences)
    evidence = []
    for scheme in SCHEMES:
        broken = [(n, one) for n, tags in enumerate(sentences) for one in violations(tags, scheme)]
        if not broken and any(tag != "O" for tags in sentences for tag in tags):
            return scheme
        if broken:
            number, first = broken[0]
            evidence.append(
                f"{scheme}, broken {len(broken)} times, first at token {first.position} of "
                f"sentence {number}: {first.reason}"
            )
    if not evidence:
        raise ValueError(
            f"no scheme can be told from {len(sentences)} sentences without an entity: name it"
        )
    raise ValueError(
        "the tags fit no scheme; correct them, or name the scheme that is meant:\n"
        + "\n".join(evidence)
    )


def tag_names(types: Iterable[str], scheme: Scheme) -> list[str]:
    """Every tag of a scheme: `O`, then the tags of each type in the order of the types.

    Args:
        types: Entity types; labels, which are tags by themselves.
        scheme: The scheme.

    Raises:
        ValueError: A type is empty or is given twice, or there is no such scheme.

    Example:
        >>> tag_names(["PER", "LOC"], "BIO")
        ['O', 'B-PER', 'I-PER', 'B-LOC', 'I-LOC']
    """
    letters = "" if scheme == "labels" else scheme_letters(scheme)
    counts = Counter(types)
    for type_, count in counts.items():
        if not type_ or count > 1:
            raise ValueError(
                f"expected distinct types that are not empty, got {type_!r} {count} times"
            )
    if scheme == "labels":
        return [*counts]
    return ["O", *(f"{letter}-{type_}" for type_ in counts for letter in letters)]


def tag_types(tags: Sequence[str], scheme: Scheme) -> list[str]:
    """Type of each tag, empty for O; a label is its own.

    Args:
        tags: Of the scheme.
        scheme: Theirs.

    Raises:
        ValueError: A tag is not of the scheme's form, or there is no such scheme.

    Example:
        >>> tag_types(["B-PER", "I-PER", "O"], "BIO")
        ['PER', 'PER', '']
    """
    if scheme == "labels":
        return [*tags]
    return [type_ for _, type_ in split_tags(tags, scheme)]


def constraints(tags: Sequence[str], scheme: Scheme) -> Constraints:
    """Which tags of a model may start a sentence, end it and follow each other.

    Args:
        tags: K tags, in the order of their ids.
        scheme: Their scheme, no labels: of these any may follow any other.

    Returns:
        `start` and `end`, bool (K,), and `transitions`, bool (K, K): row from, column to. A
        sentence that keeps to them has no `violations`.

    Raises:
        ValueError: A tag is not of the scheme's form, or there is no such scheme.
    """
    split_tags(tags, scheme)
    return Constraints(
        start=torch.tensor([_fault(None, tag, scheme) is None for tag in tags]),
        end=torch.tensor([_fault(tag, None, scheme) is None for tag in tags]),
        transitions=torch.tensor(
            [[_fault(before, tag, scheme) is None for tag in tags] for before in tags]
        ),
    )


@lru_cache(maxsize=65536)
def _fault(before: str | None, tag: str | None, scheme: Scheme) -> str | None:
    """What is wrong with a tag after another, if anything; none for the ends of a sentence."""
    this = split_tag(tag, scheme) if tag is not None else ("O", "")
    that = split_tag(before, scheme) if before is not None else ("O", "")
    if this is None:
        return malformed(str(tag), scheme)
    if that is None:
        return None
    letter, type_ = this
    letter_before, type_before = that
    last, single = closing_letters(scheme)
    place = f"{tag} follows {before}" if before is not None else f"{tag} starts the sentence"
    if tag is None:
        place = f"{before} ends the sentence"
    same = type_ == type_before
    if last and letter_before in "BI" and not (same and letter in ("I", last)):
        return f"{place}: {scheme} goes on with I-{type_before} or {last}-{type_before}"
    if last and letter_before not in "BI" and letter in ("I", last):
        return f"{place}: {scheme} begins an entity with B-{type_} or {single}-{type_}"
    if scheme == "BIO" and letter == "I" and not same:
        return f"{place}: BIO begins an entity with B-{type_}"
    if scheme == "IOB1" and letter == "B" and not same:
        return f"{place}: IOB1 begins an entity with I-{type_} unless it touches another {type_}"
    return None
