"""Lines of a file as rows of columns: what separates them where nobody says so."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

from rnnkit.data.packing import ENDINGS
from rnnkit.data.registry import DataError
from rnnkit.screen.terminal import visible

_log = logging.getLogger(__name__)

DOCUMENT_START = "-DOCSTART-"
"""First column of a line that begins a document."""

# Not str.split(): it splits at no-break spaces too, and these occur within tokens.
_BLANKS = " \t"
_split_at_blanks = re.compile(f"[{_BLANKS}]+").split

_CSV_SEPARATORS = (",", ";", "\t")


class Row(NamedTuple):
    """A line of a file.

    Attributes:
        line: Its number, counted from 1.
        fields: What stands in its columns; none of a blank line.
    """

    line: int
    fields: list[str]


def first_of(rows: list[Row]) -> Row | None:
    """The row of a token, whose number of columns is every token's."""
    # A file may hold no other sentence than the token #, which looks like a comment.
    others = (row for row in rows if row.fields and row.fields[0] != DOCUMENT_START)
    return next(tokens_of(rows), None) or next(others, None)


def tokens_of(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows that are no blank line, no beginning of a document and can't be a comment."""
    for row in rows:
        if row.fields and not row.fields[0].startswith("#") and row.fields[0] != DOCUMENT_START:
            yield row


def ending(path: Path) -> str:
    """Ending of a file's name in lower case, that of its compression left out."""
    name = path.name.lower()
    for packed in ENDINGS:
        name = name.removesuffix(packed)
    return PurePath(name).suffix


def split_rows(path: Path, lines: list[str], separator: str | None) -> tuple[list[Row], str | None]:
    """Lines in their columns, and what separates these; None: any blanks and tabs.

    Blanks around a column are no part of it. In a file whose name ends in `.csv`, and in any whose
    separator is a comma or a semicolon, columns may stand in quotes.

    Args:
        path: Where the lines come from, for errors and notes.
        lines: The lines.
        separator: What stands between two columns. None: in a `.csv` file the first of comma,
            semicolon and tab that its first line has; else tabs alone where they give every token
            one number of columns, which is told where blanks would give another; else any blanks
            and tabs.

    Raises:
        DataError: A quote has no end in its line.
    """
    delimiter = _csv_delimiter(path, lines, separator)
    if delimiter:
        return _rows(_csv_records(path, lines, delimiter)), delimiter
    if separator is None:
        rows = _rows(map(_at_blanks, lines))
        if not _tabs_alone(path, lines, rows):
            return rows, None
        separator = "\t"
    # An empty first or last column is no blank at an end of the line.
    margin = "".join(blank for blank in _BLANKS if blank not in separator)
    rows = _rows(
        [field.strip(_BLANKS) for field in line.strip(margin).split(separator)] for line in lines
    )
    return rows, separator


def likely_separator(rows: list[Row]) -> str | None:
    """What would separate the tokens of one column into several, as many in each row."""
    tokens = list(tokens_of(rows))
    for separator in (",", ";", "|"):
        counts = {row.fields[0].count(separator) for row in tokens}
        if len(counts) == 1 and counts != {0}:
            return separator
    return None


def _rows(lines: Iterable[list[str]]) -> list[Row]:
    """Rows of fields; of blank lines that follow each other the first, for it ends the sentence."""
    rows: list[Row] = []
    blank = False
    for number, fields in enumerate(lines, start=1):
        if any(fields):
            rows.append(Row(number, fields))
        elif not blank:
            rows.append(Row(number, []))
        blank = not rows[-1].fields
    return rows


def _at_blanks(line: str) -> list[str]:
    text = line.strip(_BLANKS)
    return _split_at_blanks(text) if text else []


def _tabs_alone(path: Path, lines: list[str], rows: list[Row]) -> bool:
    """Whether tabs separate the columns, and blanks stand within them or in comments only."""
    if not any("\t" in line for line in lines):
        return False
    tokens = list(tokens_of(rows))
    widths = {len(row.fields) for row in tokens}
    tabs = {lines[row.line - 1].count("\t") for row in tokens}
    if len(tabs) != 1 or tabs == {0}:
        return False
    width = tabs.pop() + 1
    if widths == {width}:
        return True
    if len(widths) == 1 and not all(_one_tag_last(lines[row.line - 1]) for row in tokens):
        return False
    other = next(row.line for row in tokens if len(row.fields) != width)
    _log.warning(
        "Note: tabs alone separate the columns of %s, for blanks would give line %d another number "
        "of columns.",
        *(visible(str(path)), other),
    )
    return True


def _one_tag_last(line: str) -> bool:
    """Whether tabs leave no column empty, as they do in a row, and no blank in the last, a tag."""
    *others, last = (field.strip(_BLANKS) for field in line.split("\t"))
    return all(others) and len(_at_blanks(last)) == 1


def _csv_delimiter(path: Path, lines: list[str], separator: str | None) -> str | None:
    if separator in (",", ";"):
        return separator
    if ending(path) != ".csv" or separator not in (None, *_CSV_SEPARATORS):
        return None
    if separator is None:
        first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
        separator = next((one for one in _CSV_SEPARATORS if one in first), None)
    return separator


def _csv_records(path: Path, lines: list[str], delimiter: str) -> Iterator[list[str]]:
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    line = 1
    try:
        for record in reader:
            if reader.line_num != line:
                raise csv.Error("it ends in another line")
            yield [field.strip(_BLANKS) for field in record]
            line += 1
    except csv.Error as error:
        raise DataError(
            f"{path} is no CSV: a quote in line {line} does not end as it should ({error}); a "
            'quote that is a token is written as """"'
        ) from error
