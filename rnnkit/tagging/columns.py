"""Sentences with tags from files of columns, the format of CoNLL's shared tasks.

A line holds one token, and in further columns what is known about it; a blank line ends the
sentence:

    U.N.      NNP  I-NP  I-ORG
    official  NN   I-NP  O

Tags are read as they are written, whatever their scheme.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path
from typing import NamedTuple

from rnnkit.data.files import read_lines
from rnnkit.data.registry import DataError

_DOCUMENT_START = "-DOCSTART-"

# Not str.split(): it splits at no-break spaces too, and these occur within tokens.
_BLANKS = " \t"
_split_at_blanks = re.compile(f"[{_BLANKS}]+").split


class Sentence(NamedTuple):
    """One sentence of a tagged corpus.

    Attributes:
        words: Its tokens.
        tags: A tag for each token; empty where the corpus has no tags.
        line: Line of the file that holds the first token, counted from 1.
        document: Document that the sentence belongs to, counted from 0.
    """

    words: list[str]
    tags: list[str]
    line: int
    document: int


class _Row(NamedTuple):
    line: int
    fields: list[str]
    looks_like_comment: bool


def read_columns(
    path: str | Path,
    word_column: int = 0,
    tag_column: int | None = -1,
    separator: str | None = None,
) -> list[Sentence]:
    r"""Read the sentences of a file of columns.

    A line whose first column is `-DOCSTART-` ends sentence and document, whatever else it holds.
    The first document needs no such line, and one without a sentence is not counted.

    A line that begins with `# ` is a comment, as in CoNLL-U, where it stands before the first
    token of a sentence and has another number of columns than the tokens. The token `#` is never
    taken for one: its line has as many columns as every token's.

    Args:
        path: The file, in UTF-8; plain or packed by gzip, bzip2 or xz.
        word_column: Column of the tokens, counted from 0, or from the end if negative.
        tag_column: Column of the tags, counted likewise. None: leave the tags out, as for a file
            that has none.
        separator: What stands between two columns, for example `"\t"` where tokens hold blanks.
            None: any number of blanks and tabs.

    Raises:
        DataError: The file cannot be read, holds no sentence or lacks a column; or its lines
            differ in their numbers of columns; or a token or tag is empty.
        ValueError: `separator` is empty.

    Example:
        >>> path = getfixture("tmp_path") / "train.txt"
        >>> _ = path.write_text("Ada B-PER\nwrites O\n\nParis B-LOC\n")
        >>> read_columns(path)[1]
        Sentence(words=['Paris'], tags=['B-LOC'], line=4, document=0)
    """
    if separator == "":
        raise ValueError("expected a separator of one character or more, got ''")
    path = Path(path).expanduser()
    lines = read_lines(path)
    if not lines:
        raise DataError(f"{path} is empty: expected one token a line and a blank line between")
    blocks = list(_blocks(lines, separator))
    rows = [row for block in blocks if block is not None for row in block]
    # Its number of columns is every token's. A file may hold no other sentence than the token #.
    first = next((row for row in rows if not row.looks_like_comment), rows[0] if rows else None)
    if first is None:
        raise DataError(f"{path} has {len(lines)} lines and no sentence: expected one token a line")
    width = len(first.fields)
    word_index = _index(path, "word", word_column, first)
    tag_index = None if tag_column is None else _index(path, "tag", tag_column, first)
    if word_index == tag_index:
        raise DataError(
            f"word column {word_column} and tag column {tag_column} of {path} are the same of "
            f"{width} in line {first.line}: give tag_column=None if the file has no tags"
        )

    def is_comment(row: _Row) -> bool:
        return row.looks_like_comment and len(row.fields) != width

    sentences: list[Sentence] = []
    document = 0
    for block in blocks:
        if block is None:
            document = sentences[-1].document + 1 if sentences else 0
        elif tokens := list(dropwhile(is_comment, block)):
            for row in tokens:
                if len(row.fields) != width:
                    raise _ragged(path, row, first, separator)
            words = _column(path, "token", word_index, tokens)
            tags = [] if tag_index is None else _column(path, "tag", tag_index, tokens)
            sentences.append(Sentence(words, tags, tokens[0].line, document))
    return sentences


def _blocks(lines: list[str], separator: str | None) -> Iterator[list[_Row] | None]:
    """Rows between blank lines, with the comments that precede them; None: a document begins."""
    # With columns that blanks separate, an empty last column is no blank at the end.
    margin = _BLANKS if separator is None else _BLANKS.replace(separator, "")
    block: list[_Row] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip(margin)
        fields = _split_at_blanks(text) if separator is None else text.split(separator)
        starts_document = fields[0] == _DOCUMENT_START
        if starts_document or not text.strip(_BLANKS):
            if block:
                yield block
                block = []
            if starts_document:
                yield None
        else:
            block.append(_Row(number, fields, text.startswith("# ")))
    if block:
        yield block


def _index(path: Path, kind: str, column: int, first: _Row) -> int:
    """A column counted from 0."""
    width = len(first.fields)
    if not -width <= column < width:
        raise DataError(
            f"{path} has no {kind} column {column}: line {first.line} has {width} columns, "
            f"{-width} to {width - 1}"
        )
    return column % width


def _column(path: Path, kind: str, index: int, rows: list[_Row]) -> list[str]:
    column = [row.fields[index] for row in rows]
    if not all(column):
        line = rows[column.index("")].line
        raise DataError(f"{path} has an empty {kind} in line {line}, column {index}")
    return column


def _ragged(path: Path, row: _Row, first: _Row, separator: str | None) -> DataError:
    if separator is None:
        advice = 'if columns hold blanks, name their separator, as in separator="\\t"'
    else:
        advice = f"they are separated by {separator!r}"
    return DataError(
        f"expected {len(first.fields)} columns as in line {first.line} of {path}, got "
        f"{len(row.fields)} in line {row.line}: {advice}"
    )
