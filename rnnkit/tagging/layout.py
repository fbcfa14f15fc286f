"""Which column holds what: by its number, by the header of a table or by a name of CoNLL-U."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple, TypeAlias

from rnnkit.data.registry import DataError
from rnnkit.data.schemes import split_tag
from rnnkit.screen.terminal import visible
from rnnkit.tagging import conllu
from rnnkit.tagging.rows import Row, first_of, likely_separator, tokens_of

_log = logging.getLogger(__name__)

Column: TypeAlias = int | str
"""A column by its number, from 0 or from the end if negative, or by its name."""

# What headers call the columns of tokens, tags and sentences' numbers, in letters alone.
_TOKENS = ("word", "words", "token", "tokens", "form")
_TAGS = ("tag", "tags", "label", "labels", "ner", "nertag", "nertags", "pos", "postag", "upos")
_SENTENCES = ("sentence", "sentenceid", "sentenceidx", "sentenceno", "sentencenumber", "sentid")

# Names of columns in an error.
_MOST_NAMES = 20


class Layout(NamedTuple):
    """Where the columns stand.

    Attributes:
        first: A token's row, whose number of columns is every token's.
        word: Column of the tokens, from 0.
        tag: Column of the tags; None: they are not read.
        sentence: Column of the sentences' names or numbers; None: blank lines alone divide them.
    """

    first: Row
    word: int
    tag: int | None
    sentence: int | None


def find_layout(
    path: Path,
    rows: list[Row],
    first: Row,
    word_column: Column | None,
    tag_column: Column | None,
    sentence_column: Column | None,
    of_conllu: bool,
) -> tuple[list[Row], Layout]:
    """The rows without a header, and where their columns stand.

    The first row is a header if a column is named, or if it calls one word, token or form, or that
    of the tags tag, label, ner or pos, and no other row has its tag, which is none of entities. It
    then tells the column of the tokens, and that of the sentences if it calls one sentence,
    sentence_id and the like.

    Raises:
        DataError: There is no such column, one for words and tags, or nothing below a header.
    """
    wanted = {"word": word_column, "tag": tag_column, "sentence": sentence_column}
    indices: dict[str, int | None]
    if of_conllu:
        indices = {kind: conllu.index_of(path, kind, column) for kind, column in wanted.items()}
    elif any(isinstance(each, str) for each in wanted.values()) or _is_header(
        first, rows, tag_column
    ):
        indices = {kind: _named(path, kind, each, first) for kind, each in wanted.items()}
        _tell_header(path, first, indices)
        rows = [row for row in rows if row is not first]
        below = first_of(rows)
        if below is None:
            raise DataError(f"{path} has a header in line {first.line} and no token below it")
        first = below
    else:
        indices = {kind: each for kind, each in wanted.items() if not isinstance(each, str)}
    word, tag, sentence = (
        None if column is None else _counted(path, kind, column, first)
        for kind, column in indices.items()
    )
    word = word or 0
    if word == tag:
        named = word if word_column is None else word_column
        raise _same(path, rows, first, named, tag_column)
    return rows, Layout(first, word, tag, sentence)


def _plain(name: str) -> str:
    return "".join(char for char in name.lower() if char.isalpha())


def _is_header(first: Row, rows: list[Row], tag_column: Column | None) -> bool:
    width = len(first.fields)
    if not isinstance(tag_column, int) or not -width <= tag_column < width:
        return False
    tag = first.fields[tag_column]
    named = _plain(tag) in _TAGS or any(_plain(name) in _TOKENS for name in first.fields)
    if split_tag(tag, None) or not named:
        return False
    others = [row for row in tokens_of(rows) if row is not first and len(row.fields) == width]
    return bool(others) and all(row.fields[tag_column] != tag for row in others)


def _named(path: Path, kind: str, column: Column | None, header: Row) -> int | None:
    """A column by its name; a number stays as it is; None is what the header tells."""
    if isinstance(column, int):
        return column
    if column is None:
        known = {"word": _TOKENS, "sentence": _SENTENCES}.get(kind, ())
        found = [n for n, name in enumerate(header.fields) if _plain(name) in known]
        return found[0] if found else None
    names = [name.lower() for name in header.fields]
    count = names.count(column.lower())
    if count == 1:
        return names.index(column.lower())
    if count:
        raise DataError(
            f"{path} has {count} columns named {column!r}: give the number of the {kind} column"
        )
    is_not = " is not CoNLL-U, ten columns between tabs, and" if conllu.is_column(column) else ""
    raise DataError(
        f"{path}{is_not} has no {kind} column {column!r}: line {header.line} names "
        f"{', '.join(header.fields[:_MOST_NAMES])}"
    )


def _tell_header(path: Path, header: Row, indices: dict[str, int | None]) -> None:
    def name(kind: str) -> str:
        index = indices[kind] or 0
        in_range = -len(header.fields) <= index < len(header.fields)
        return visible(header.fields[index]) if in_range else str(index)

    _log.warning(
        "Note: line %d of %s is read as a header: %s names the tokens%s%s.",
        *(header.line, visible(str(path)), name("word")),
        "" if indices["tag"] is None else f", {name('tag')} the tags",
        "" if indices["sentence"] is None else f", and {name('sentence')} begins the sentences",
    )


def _counted(path: Path, kind: str, column: int, first: Row) -> int:
    """A column counted from 0."""
    width = len(first.fields)
    if not -width <= column < width:
        raise DataError(
            f"{path} has no {kind} column {column}: line {first.line} has {width} columns, "
            f"{-width} to {width - 1}"
        )
    return column % width


def _same(
    path: Path, rows: list[Row], first: Row, word_column: Column, tag_column: Column | None
) -> DataError:
    if len(first.fields) > 1:
        return DataError(
            f"word column {word_column} and tag column {tag_column} of {path} are the same of "
            f"{len(first.fields)} in line {first.line}: choose two with --data.word_column and "
            "--data.tag_column"
        )
    separator = likely_separator(rows)
    advice = f"; if {separator!r} separates them, give --data.separator '{separator}'"
    return DataError(
        f"{path} has one column in line {first.line} and so no tags: expected a word and its tag a "
        f"line{advice if separator else ''}"
    )
