"""A tagged line, and how it is written: in columns, as JSON, as spaCy reads it, or in colours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

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
        tags: One for each token.
        entities: What the tags say.
        confidences: Of each entity, see `Tagger.confidences`.
    """

    text: str
    places: Sequence[Place]
    tags: list[str]
    entities: list[Entity]
    confidences: list[float]

    @property
    def words(self) -> list[str]:
        """The tokens."""
        return [self.text[start:end] for start, end in self.places]

    def in_scheme(self, scheme: Scheme) -> TaggedLine:
        """The same entities with tags of a scheme."""
        return self._replace(tags=to_tags(self.entities, len(self.places), scheme))

    def place(self, entity: Entity) -> Place:
        """Where an entity stands in the line."""
        return self.places[entity.start][0], self.places[entity.end - 1][1]


def conll(line: TaggedLine, confidence: bool = False) -> str:
    """A word a line with its tag in the last column; tabs between.

    Args:
        line: A tagged line.
        confidence: Whether a column before the tag tells how sure the entity is.
    """
    columns = [list(map(_printable, line.words))]
    if confidence:
        sure = [NO_CONFIDENCE] * len(line.places)
        for entity, value in zip(line.entities, line.confidences, strict=True):
            sure[entity.start : entity.end] = [f"{value:.4f}"] * (entity.end - entity.start)
        columns.append(sure)
    columns.append(list(map(_printable, line.tags)))
    return "".join("\t".join(row) + "\n" for row in zip(*columns, strict=True))


def as_json(line: TaggedLine) -> str:
    """One JSON object: text, tokens, tags, and entities with their text, places and confidence."""
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
    parts = {"text": line.text, "tokens": line.words, "tags": line.tags, "entities": found}
    return json_line(parts)


def as_spacy(line: TaggedLine) -> str:
    """One JSON object that `spacy.tokens.Doc.from_json` reads: text, tokens and entities.

    To spaCy the blank behind a token is a part of it, and other white space a token of its own.
    """
    pieces: list[Place] = []
    done = 0
    for start, end in line.places:
        if done < start:
            pieces.append((done, start))
        pieces.append((start, end))
        done = end + (line.text[end : end + 1] == " ")
    if done < len(line.text):
        pieces.append((done, len(line.text)))
    tokens = [{"id": i, "start": start, "end": end} for i, (start, end) in enumerate(pieces)]
    found = []
    for entity in line.entities:
        start, end = line.place(entity)
        found.append({"start": start, "end": end, "label": entity.type})
    return json_line({"text": line.text, "ents": found, "tokens": tokens})


def coloured(line: TaggedLine, colours: Mapping[str, str]) -> Text:
    """The line with its entities on a ground of their type's colour.

    Args:
        line: A tagged line.
        colours: Of each type.
    """
    text, done = Text(), 0
    for entity, confidence in zip(line.entities, line.confidences, strict=True):
        start, end = line.place(entity)
        text.append(_printable(line.text[done:start]))
        ground = colours.get(entity.type, _COLOURS[-1])
        text.append(f" {_printable(line.text[start:end])} ", style=f"black on {ground}")
        label = f"{_printable(entity.type)} {100 * confidence:.0f}% "
        text.append(label, style=f"italic #555555 on {ground}")
        done = end
    return text.append(_printable(line.text[done:]))


def colours_of(tags: Iterable[str]) -> dict[str, str]:
    """A colour for each type of a model's tags."""
    types = dict.fromkeys(tag.partition("-")[2] for tag in tags if tag != "O")
    return {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(types)}


def _printable(text: str) -> str:
    """Text without what would move the cursor or turn it around; a tab is a blank."""
    return UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text.replace("\t", " "))
