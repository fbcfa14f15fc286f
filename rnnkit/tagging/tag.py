"""`rnnkit tag`: entities in lines of text."""

from __future__ import annotations

import io
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from rich.console import Console
from rich.text import Text

from rnnkit.data.schemes import Entity, entities
from rnnkit.screen.terminal import UNSAFE, Parser, json_line
from rnnkit.tagging.task import Tagger
from rnnkit.tagging.words import WordEncoder
from rnnkit.training.lines import Notes, add_options, batches, decoded_lines, prepare, read_ahead
from rnnkit.training.loading import check_vocabularies, load_for_use, usable

# What goes on with a word, though \w leaves it out: the vowel signs of many scripts, accents that
# are characters of their own, and what joins letters or keeps them apart.
_SIGN = "[\u200c\u200d{}]".format(
    "".join(
        sign for sign in map(chr, range(0x300, 0x1F000)) if unicodedata.category(sign)[0] == "M"
    )
)
_WORD = rf"\w+(?:{_SIGN}\w*)*"  # not one class of both, which takes twice as long

# Abbreviations with their dots; numbers with their marks; an English genitive or contraction; words
# with the hyphens in them; any other mark by itself.
_TOKEN = re.compile(
    r"(?:[^\W\d_]\.){2,}|\d+(?:[.,:/-]\d+)+"
    rf"|['’](?:(?<=\w.)|(?<={_SIGN}.))[^\W\d_]{{1,2}}\b|{_WORD}(?:-{_WORD})*|[^\w\s]"
)

# Backgrounds on which black is readable, for as many types as one tells apart.
_COLOURS = ("#ffd166", "#8ecae6", "#95d5b2", "#f4acb7", "#cdb4db", "#e9c46a", "#a8dadc", "#d9d9d9")


class TaggedLine(NamedTuple):
    """A line with its tags.

    Attributes:
        words: Its tokens.
        tags: One for each.
        entities: What the tags say.
        confidences: Of each entity, see `Tagger.confidences`.
    """

    words: list[str]
    tags: list[str]
    entities: list[Entity]
    confidences: list[float]


def tokenize(line: str) -> list[str]:
    """Words and marks of a line of text.

    Example:
        >>> tokenize("Ada Lovelace's U.S. tour cost $1,200.")
        ['Ada', 'Lovelace', "'s", 'U.S.', 'tour', 'cost', '$', '1,200', '.']
    """
    return _TOKEN.findall(line)


@dataclass(frozen=True)
class EntityTagger:
    """A tagger with the encoder of the words that it was trained with.

    Attributes:
        model: In evaluation mode.
        encoder: Of the sentences that it reads.
    """

    model: Tagger
    encoder: WordEncoder

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str]) -> EntityTagger:
        """Load a checkpoint of `Tagger` trained on `TaggingData`, on the CPU.

        Args:
            path: The checkpoint.

        Raises:
            CheckpointError: It is missing, damaged or of another task.
        """
        with usable(path, "tagger"):
            model, data = load_for_use(path, Tagger, "TaggingData", "tagger")
            encoder = WordEncoder.from_state_dict(data["encoder"])
            check_vocabularies(
                model,
                vocabulary_size=len(encoder.words),
                character_vocabulary_size=len(encoder.characters),
            )
            return cls(model, encoder)

    @torch.no_grad()
    def tag(self, sentences: Sequence[Sequence[str]]) -> list[TaggedLine]:
        """Tag some sentences at once.

        Args:
            sentences: The words of each; one without words has no tags.
        """
        found = [TaggedLine([], [], [], []) for _ in sentences]
        full = [i for i, words in enumerate(sentences) if words]
        if not full:
            return found
        batch = self.encoder.encode([sentences[i] for i in full]).to(self.model.device)
        emissions = self.model(batch)
        tags = self.model.decode(emissions, batch)
        spans = [entities(each, self.model.scheme) for each in tags]
        sure = self.model.confidences(emissions, batch, tags, spans)
        for i, *parts in zip(full, tags, spans, sure, strict=True):
            found[i] = TaggedLine(list(sentences[i]), *parts)  # type: ignore[arg-type]
        return found

    def tag_lines(
        self, lines: Iterable[str], split: Callable[[str], list[str]], batch_size: int
    ) -> Iterator[TaggedLine]:
        """Tag lines as they come.

        Args:
            lines: A sentence each.
            split: Cuts a line into words.
            batch_size: Lines at once; with 1 each is tagged before the next is asked for.

        Yields:
            One for every line, in order.
        """
        for chunk in read_ahead(lines, batch_size):
            sentences = [split(line) for line in chunk]
            found: dict[int, TaggedLine] = {}
            lengths = {i: len(words) for i, words in enumerate(sentences)}
            for batch in batches(lengths, batch_size):
                found |= zip(batch, self.tag([sentences[i] for i in batch]), strict=True)
            for i in range(len(chunk)):
                yield found[i]


def conll(line: TaggedLine) -> str:
    """A word a line with its tag and, within an entity, that entity's confidence; tabs between."""
    sure = [""] * len(line.words)
    for entity, confidence in zip(line.entities, line.confidences, strict=True):
        sure[entity.start : entity.end] = [f"{confidence:.4f}"] * (entity.end - entity.start)
    rows = zip(map(_printable, line.words), map(_printable, line.tags), sure, strict=True)
    return "".join("\t".join(row).rstrip("\t") + "\n" for row in rows)


def as_json(line: TaggedLine) -> str:
    """One JSON object: tokens, tags, and entities with text, place and confidence."""
    found = [
        {
            "type": entity.type,
            "text": " ".join(line.words[entity.start : entity.end]),
            "start": entity.start,
            "end": entity.end,
            "confidence": round(confidence, 4),
        }
        for entity, confidence in zip(line.entities, line.confidences, strict=True)
    ]
    parts = {"tokens": line.words, "tags": line.tags, "entities": found}
    return json_line(parts)


def coloured(line: TaggedLine, colours: dict[str, str]) -> Text:
    """The line with its entities on a ground of their type's colour.

    Args:
        line: A tagged line.
        colours: Of each type.
    """
    starts = {entity.start: n for n, entity in enumerate(line.entities)}
    text, step = Text(), 0
    while step < len(line.words):
        if step:
            text.append(" ")
        if (n := starts.get(step)) is None:
            text.append(_printable(line.words[step]))
            step += 1
            continue
        entity = line.entities[n]
        words = " ".join(map(_printable, line.words[entity.start : entity.end]))
        ground = colours.get(entity.type, _COLOURS[-1])
        text.append(f" {words} ", style=f"black on {ground}")
        label = f"{_printable(entity.type)} {100 * line.confidences[n]:.0f}% "
        text.append(label, style=f"italic #555555 on {ground}")
        step = entity.end
    return text


def colours_of(tags: Iterable[str]) -> dict[str, str]:
    """A colour for each type of a model's tags."""
    types = dict.fromkeys(tag.partition("-")[2] for tag in tags if tag != "O")
    return {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(types)}


def _printable(word: str) -> str:
    """A word without what would move the cursor or turn the text around."""
    return UNSAFE.sub("\N{REPLACEMENT CHARACTER}", word)


def main(argv: list[str]) -> int:
    """Run `rnnkit tag` with the arguments that follow these two words.

    Args:
        argv: Arguments, for example `["--ckpt", "best.ckpt"]`.

    Returns:
        Exit status: 0.

    Raises:
        ValueError: The checkpoint or an argument cannot be used.
    """
    parser = Parser(
        prog="rnnkit tag",
        description="Find entities in standard input, a sentence a line.",
        epilog="rnnkit tag --ckpt best.ckpt < text.txt",
    )
    add = parser.add_argument
    add_options(parser)
    add(
        "--format",
        choices=("colour", "conll", "json"),
        help="colour: entities on colours, with type and confidence; conll: a word a line with its "
        "tag and confidence; json: an object a line (default: colour on a terminal, else conll)",
    )
    add("--tokenized", action="store_true", help="blanks stand between all words and marks already")
    arguments = parser.parse_args(argv)
    if arguments.batch_size < 1:
        raise ValueError(f"expected batch_size of 1 or more, got {arguments.batch_size}")
    tagger = EntityTagger.from_checkpoint(arguments.ckpt)
    prepare(tagger.model, arguments.device)
    shown = arguments.format or ("colour" if sys.stdout.isatty() else "conll")
    # Colours that are asked for are written, also into a pipe to a pager. Into memory first: a pipe
    # that is closed is told by our own print, for rich ends the program itself.
    console = Console(file=io.StringIO(), force_terminal=True)
    colours = colours_of(tagger.model.tags)
    notes = Notes("rnnkit tag")
    split: Callable[[str], list[str]] = str.split if arguments.tokenized else tokenize
    lines = decoded_lines(sys.stdin.buffer, notes)
    for line in tagger.tag_lines(lines, split, arguments.batch_size):
        if shown == "colour":
            with console.capture() as written:
                console.print(coloured(line, colours))
            print(written.get(), end="")
        else:
            print(as_json(line) if shown == "json" else conll(line))
        if arguments.batch_size == 1:
            sys.stdout.flush()
    notes.close()
    return 0
