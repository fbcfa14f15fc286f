"""CoNLL-U, the format of Universal Dependencies: ten columns with names that tabs separate.

    1    She    she   PRON  PRP  Case=Nom  2  nsubj  _  _
    2    saw    see   VERB  VBD  _         0  root   _  _
    3-4  l'Ada  _     _     _    _         _  _      _  _
    3    l'     le    DET   DT   _         4  det    _  _
    4    Ada    Ada   PROPN NNP  _         2  obj    _  NER=B-PER|SpaceAfter=No

See https://universaldependencies.org/format.html.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from rnnkit.data.registry import DataError
from rnnkit.screen.terminal import visible
from rnnkit.tagging.rows import DOCUMENT_START, Row, ending

_log = logging.getLogger(__name__)

NAMES = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
"""The ten columns."""

ENTRY = "misc."
"""What an entry of the last column begins with, as in `misc.NER`."""

_MISC = NAMES.index("misc")
_FORM = NAMES.index("form")
_MOST_KEYS = 20  # in a message
_FIRST_ID = re.compile(r"1(-[0-9]+)?|0\.1")
_WORD_ID = re.compile(r"[0-9]+")
_RANGE_ID = re.compile(r"[0-9]+-[0-9]+")
_EMPTY_ID = re.compile(r"[0-9]+\.[0-9]+")


def is_conllu(path: Path, lines: list[str]) -> bool:
    """Whether a file is CoNLL-U, by the ending of its name or by its first token.

    Such a token has ten columns between tabs, the id 1 and a number or nothing for its head.
    """
    if ending(path) in (".conllu", ".conll-u"):
        return True
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    fields = first.split("\t")
    if len(fields) != len(NAMES) or not _FIRST_ID.fullmatch(fields[0]):
        return False
    head = fields[NAMES.index("head")]
    return head == "_" or head.isdecimal()


def is_column(name: str) -> bool:
    """Whether a name is one of CoNLL-U's columns, or an entry of the last one."""
    return name.lower() in NAMES or name.lower().startswith(ENTRY)


def index_of(path: Path, kind: str, column: int | str | None) -> int | None:
    """A column by its name; a number stays as it is; None of the words is the form.

    Raises:
        DataError: There is no such name.
    """
    if column is None or isinstance(column, int):
        return _FORM if column is None and kind == "word" else column
    name = column.lower()
    if kind == "tag" and name.startswith(ENTRY):
        return _MISC
    if name not in NAMES:
        raise DataError(
            f"{path} has no {kind} column {column!r}: the columns of CoNLL-U are "
            f"{', '.join(NAMES)}, and {ENTRY}NER is an entry of the last"
        )
    return NAMES.index(name)


def words_of(path: Path, rows: list[Row], tag_column: int | str | None) -> list[Row]:
    """The rows of words, blank lines and beginnings of documents.

    Ranges of words (`3-4`) and empty nodes (`8.1`), which are no words of the sentence, are left
    out, and their number is told. So are comments, for no id begins with #. Of the last column
    stays the entry that `tag_column` names, if it names one: O in rows that lack it.

    Raises:
        DataError: An id is none, or the tags are to be a column that holds many things.
    """
    kept: list[Row] = []
    ranges: list[int] = []
    empty: list[int] = []
    for row in rows:
        if row.fields and row.fields[0].startswith("#"):
            if len(row.fields) == 1 and row.fields[0].removeprefix("#").split()[:1] == ["newdoc"]:
                kept.append(Row(row.line, [DOCUMENT_START]))
        elif not row.fields or _WORD_ID.fullmatch(row.fields[0]):
            kept.append(row)
        elif _RANGE_ID.fullmatch(row.fields[0]):
            ranges.append(row.line)
        elif _EMPTY_ID.fullmatch(row.fields[0]):
            empty.append(row.line)
        else:
            raise DataError(
                f"{path} has the ID {row.fields[0]!r} in line {row.line}: expected a word's "
                "number, a range (1-2) or an empty node (8.1), as CoNLL-U has them"
            )
    if ranges or empty:
        _log.warning(
            "Note: %s is read as CoNLL-U: %d multiword ranges and %d empty nodes are left out, the "
            "first in line %d.",
            *(visible(str(path)), len(ranges), len(empty), min([*ranges, *empty])),
        )
    return _with_entry(path, kept, tag_column)


def _with_entry(path: Path, rows: list[Row], tag_column: int | str | None) -> list[Row]:
    if index_of(path, "tag", tag_column) not in (_MISC, _MISC - len(NAMES)):
        return rows
    entries = [
        dict(entry.partition("=")[::2] for entry in row.fields[_MISC].split("|"))
        if len(row.fields) == len(NAMES)
        else {}
        for row in rows
    ]
    found = sorted({key for each in entries for key in each} - {"_", ""})
    keys = ", ".join(found[:_MOST_KEYS]) or "nothing"
    key = str(tag_column)[len(ENTRY) :]
    if not key:
        raise DataError(
            f"the tag column {tag_column} of {path} is MISC of CoNLL-U, which holds many things: "
            "name the column of the tags, as in --data.tag_column upos, or an entry of MISC, as "
            f"in --data.tag_column {ENTRY}NER (its MISC has {keys})"
        )
    if not any(key in each for each in entries):
        _log.warning(
            "Note: no MISC of %s has %s=, so every tag is O; it has %s.",
            *(visible(str(path)), visible(key), visible(keys)),
        )
    return [
        row._replace(fields=[*row.fields[:_MISC], each.get(key, "O")])
        if len(row.fields) == len(NAMES)
        else row
        for row, each in zip(rows, entries, strict=True)
    ]
