"""A tagged line, and how it is written: in columns, as JSON, as spaCy reads it, or in colours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.text import Text

from rnnkit.data.schemes import Entity, Scheme, to_tags
from rnnkit.screen.terminal import UNSAFE, json_line
from rnnkit.tagging.tokens import Place

# Backgrounds on which black is readable, for as many types as one tells apart.
_COLOURS = ("#ffd166", "#8ecae6", "#95d5b2", "#f4acb7", "#cdb4db", "#e9c46a", "#a8dadc", "#d9d9d9")

NO_CONFIDENCE = "_"
"""What stands in the column of confidences outside of entities, as CoNLL writes an empty field."""


class TaggedLine(NamedTuple):
    """A line with its tags.

    Attributes:
        text: The line.
        places: Where its tokens stand in it.
        scheme: Of the tags.
        tags: One for each token.
        entities: What the tags say; none where they are labels.
        confidences: Of each entity, or of each label, see `Tagger.confidences`.
    """

    text: str
    places: Sequence[Place]
    scheme: Scheme
    tags: list[str]
    entities: list[Entity]
    confidences: list[float]

    @property
    def words(self) -> list[str]:
        """The tokens."""
        return [self.text[start:end] for start, end in self.places]

    def in_scheme(self, scheme: Scheme) -> TaggedLine:
        """The same entities with tags of a scheme."""
        tags = to_tags(self.entities, len(self.places), scheme)
        return self._replace(scheme=scheme, tags=tags)

    def place(self, entity: Entity) -> Place:
        """Where an entity stands in the line."""
        return self.places[entity.start][0], self.places[entity.end - 1][1]


def conll(line: TaggedLine, confidence: bool = False) -> str:
    """A word a line with its tag in the last column; tabs between.

    Args:
        line: A tagged line.
        confidence: Whether a column before the tag tells how sure the entity or label is.
    """
    columns = [list(map(_printable, line.words))]
    if confidence and line.scheme == "labels":
        columns.append([f"{value:.4f}" for value in line.confidences])
    elif confidence:
        sure = [NO_CONFIDENCE] * len(line.places)
        for entity, value in zip(line.entities, line.confidences, strict=True):
            sure[entity.start : entity.end] = [f"{value:.4f}"] * (entity.end - entity.start)
        columns.append(sure)
    columns.append(list(map(_printable, line.tags)))
    return "".join("\t".join(row) + "\n" for row in zip(*columns, strict=True))


def as_json(line: TaggedLine) -> str:
    """One JSON object: text, tokens, tags, and entities with their text, places and confidence.

    Where the tags are labels it has the confidence of each instead of entities.
    """
    parts: dict[str, Any] = {"text": line.text, "tokens": line.words, "tags": line.tags}
    if line.scheme == "labels":
        return json_line(parts | {"confidences": [round(value, 4) for value in line.confidences]})
    found = []
    for entity, confidence in zip(line.entities, line.confidences, strict=True):
        start, end = line.place(entity)
        found.append(
            {
                "type": entity.type,
                "text": line.text[start:end],
                "start": entity.start,
                "end": entity.end,
                "start_char": start,
                "end_char": end,
                "confidence": round(confidence, 4),
            }
        )
    return json_line(parts | {"entities": found})


def as_spacy(line: TaggedLine) -> str:
    """One JSON object that `spacy.tokens.Doc.from_json` reads: text, tokens and entities or labels.

    To spaCy the blank behind a token is a part of it, and other white space a token of its own.
    """
    pieces: list[tuple[int, int, str]] = []
    done = 0
    for (start, end), tag in zip(line.places, line.tags, strict=True):
        if done < start:
            pieces.append((done, start, ""))
        pieces.append((start, end, tag))
        done = end + (line.text[end : end + 1] == " ")
    if done < len(line.text):
        pieces.append((done, len(line.text), ""))
    tokens = [
        {"id": i, "start": start, "end": end} | ({"tag": tag} if line.scheme == "labels" else {})
        for i, (start, end, tag) in enumerate(pieces)
    ]
    found = []
    for entity in line.entities:
        start, end = line.place(entity)
        found.append({"start": start, "end": end, "label": entity.type})
    return json_line({"text": line.text, "ents": found, "tokens": tokens})


def coloured(line: TaggedLine, colours: Mapping[str, str]) -> Text:
    """The line with its entities, or its labelled words, on a ground of their type's colour.

    Args:
        line: A tagged line.
        colours: Of each type or label.
    """
    if line.scheme == "labels":  # without percentages: they are as many as words
        marked = [(*place, tag, "") for place, tag in zip(line.places, line.tags, strict=True)]
    else:
        sure = [f" {100 * confidence:.0f}%" for confidence in line.confidences]
        marked = [
            (*line.place(entity), entity.type, each)
            for entity, each in zip(line.entities, sure, strict=True)
        ]
    text, done = Text(), 0
    for start, end, type_, each in marked:
        text.append(_printable(line.text[done:start]))
        ground = colours.get(type_, _COLOURS[-1])
        text.append(f" {_printable(line.text[start:end])} ", style=f"black on {ground}")
        text.append(f"{_printable(type_)}{each} ", style=f"italic #555555 on {ground}")
        done = end
    return text.append(_printable(line.text[done:]))


def colours_of(tags: Iterable[str], scheme: Scheme) -> dict[str, str]:
    """A colour for each type of a model's tags, or for each label."""
    types = dict.fromkeys(
        tag if scheme == "labels" else tag.partition("-")[2]
        for tag in tags
        if scheme == "labels" or tag != "O"
    )
    return {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(types)}


def _printable(text: str) -> str:
    """Text without what would move the cursor or turn it around; a tab is a blank."""
    return UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text.replace("\t", " "))
