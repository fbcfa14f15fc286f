"""`rnnkit tag`: entities in lines of text, or a label for each word."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from rich.console import Console

from rnnkit.data.schemes import SCHEMES, Entity, entities
from rnnkit.screen.terminal import Parser, waiting
from rnnkit.tagging.formats import TaggedLine, as_json, as_spacy, coloured, colours_of, conll
from rnnkit.tagging.task import Tagger
from rnnkit.tagging.tokens import Place, places, places_between_blanks
from rnnkit.tagging.words import WordEncoder, is_unseen
from rnnkit.training.lines import (
    Notes,
    add_options,
    batches,
    input_lines,
    lines_at_once,
    prepare,
    read_ahead,
)
from rnnkit.training.loading import check_vocabularies, load_for_use, usable

_SCHEMES = {scheme.lower(): scheme for scheme in SCHEMES}


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

        Returns:
            A line for each, its words with a blank between them.
        """
        scheme = self.model.scheme
        found = [TaggedLine("", [], scheme, [], [], []) for _ in sentences]
        full = [i for i, words in enumerate(sentences) if words]
        if not full:
            return found
        batch = self.encoder.encode([sentences[i] for i in full]).to(self.model.device)
        emissions = self.model(batch)
        tags = self.model.decode(emissions, batch)
        spans = [entities(each, scheme) for each in tags]
        asked = spans
        if scheme == "labels":
            asked = [[Entity(tag, i, i + 1) for i, tag in enumerate(each)] for each in tags]
        sure = self.model.confidences(emissions, batch, tags, asked)
        for i, *parts in zip(full, tags, spans, sure, strict=True):
            places, end = [], -1
            for word in sentences[i]:
                places.append((end + 1, end + 1 + len(word)))
                end = places[-1][1]
            text = " ".join(sentences[i])
            found[i] = TaggedLine(text, places, scheme, *parts)  # type: ignore[arg-type]
        return found

    def tag_lines(
        self,
        lines: Iterable[str],
        split: Callable[[str], list[Place]],
        batch_size: int,
        note: Callable[[str], None] = lambda text: None,
    ) -> Iterator[TaggedLine]:
        """Tag lines as they come.

        Args:
            lines: A sentence each.
            split: Finds the words of a line.
            batch_size: Lines at once; with 1 each is tagged before the next is asked for.
            note: Told of every line with words that cannot be seen.

        Yields:
            One for every line, in order.
        """
        begun = 0
        for chunk in read_ahead(lines, batch_size):
            found_places = [split(line) for line in chunk]
            sentences = [
                [line[start:end] for start, end in each]
                for line, each in zip(chunk, found_places, strict=True)
            ]
            for words in sentences:
                begun += 1
                if unseen := sum(map(is_unseen, words)):
                    note(
                        f"line {begun}: nothing can be seen of {unseen} of its {len(words)} tokens"
                    )
            found: dict[int, TaggedLine] = {}
            lengths = {i: len(words) for i, words in enumerate(sentences)}
            for batch in batches(lengths, batch_size):
                found |= zip(batch, self.tag([sentences[i] for i in batch]), strict=True)
            for i, line in enumerate(chunk):
                yield found[i]._replace(text=line, places=found_places[i])


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
        description="rnnkit tag --ckpt best.ckpt < text.txt\n\n"
        "Find entities in standard input, or label its words, a sentence a line; on a terminal\n"
        "it asks for lines.",
    )
    add = parser.add_argument
    add_options(parser)
    add(
        "--format",
        choices=("colour", "conll", "json", "spacy"),
        help="colour: entities on colours, with type and confidence; conll: a word a line with its "
        "tag; json: an object a line, with places and confidences; spacy: one for "
        "spacy.tokens.Doc.from_json (default: colour on a terminal, else conll)",
    )
    add(
        "--scheme",
        choices=_SCHEMES,
        type=str.lower,
        help="how the tags of entities are written in conll and json (default: bio, which "
        "conlleval reads too)",
    )
    add(
        "--confidence",
        action="store_true",
        help="in conll, another column before the tag: how sure the entity or label is, _ outside "
        "of entities",
    )
    add(
        "--tokenized",
        action="store_true",
        help="blanks or tabs stand between all words and marks already",
    )
    arguments = parser.parse_args(argv)
    batch_size = lines_at_once(arguments)
    with waiting(f"loading {arguments.ckpt} …"):
        tagger = EntityTagger.from_checkpoint(arguments.ckpt)
    prepare(tagger.model, arguments.device)
    write, scheme = _writer(arguments, tagger), tagger.model.scheme
    if scheme != "labels":
        scheme = _SCHEMES[arguments.scheme or "bio"]
    elif arguments.scheme is not None:
        raise ValueError("--scheme is for entities, and this model gives labels to words")
    notes = Notes("rnnkit tag")
    split = places_between_blanks if arguments.tokenized else places
    for line in tagger.tag_lines(input_lines(notes), split, batch_size, notes):
        shown = line if scheme == "labels" else line.in_scheme(scheme)
        print(write(shown), flush=batch_size == 1)
    notes.close()
    return 0


def _writer(arguments: argparse.Namespace, tagger: EntityTagger) -> Callable[[TaggedLine], str]:
    """What makes text of a tagged line, without the last line end."""
    shown = arguments.format or ("colour" if sys.stdout.isatty() else "conll")
    if arguments.confidence and shown != "conll":
        raise ValueError(
            f"--confidence is a column of --format conll, got {shown}; json has confidences too"
        )
    if arguments.scheme and shown not in ("conll", "json"):
        raise ValueError(f"--scheme is for the tags of --format conll and json, got {shown}")
    if shown == "conll":
        return partial(conll, confidence=arguments.confidence)
    if shown != "colour":
        return as_json if shown == "json" else as_spacy
    # Colours that are asked for are written, also into a pipe to a pager. Into memory first: a pipe
    # that is closed is told by our own print, for rich ends the program itself.
    console = Console(file=io.StringIO(), force_terminal=True)
    colours = colours_of(tagger.model.tags, tagger.model.scheme)

    def in_colours(line: TaggedLine) -> str:
        with console.capture() as written:
            console.print(coloured(line, colours), end="", soft_wrap=True)
        return written.get()

    return in_colours
