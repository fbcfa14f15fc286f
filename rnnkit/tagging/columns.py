"""Sentences with tags from files of columns, the format of CoNLL's shared tasks.

A line holds one token, and in further columns what is known about it; a blank line ends the
sentence:

    U.N.      NNP  I-NP  I-ORG
    official  NN   I-NP  O

Tags are read as they are written, whatever their scheme.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from rnnkit.data.files import read_lines
from rnnkit.data.registry import DataError
from rnnkit.data.schemes import split_tag
from rnnkit.screen.terminal import visible
from rnnkit.tagging import conllu
from rnnkit.tagging.layout import Column, Layout, find_layout
from rnnkit.tagging.rows import DOCUMENT_START, Row, first_of, split_rows
from rnnkit.tagging.words import is_unseen

_log = logging.getLogger(__name__)

# Longer sentences are rarely meant: legal texts have some of 500 tokens.
_LONG = 1000
# A file of one sentence is meant where a person may have written it for a trial.
_LONG_ALONE = 100
# So many sentences, each of one token, nobody writes.
_MANY_OF_ONE = 100


class Sentence(NamedTuple):
    """One sentence of a tagged corpus.

    Attributes:
        words: Its tokens.
        tags: A tag for each token; empty where the corpus has no tags.
        line: Line of the file that holds the first token, counted from 1.
        document: Document that the sentence belongs to, counted from 0.
        left_out: Lines between its first and last token that hold no token of it, ascending.
    """

    words: list[str]
    tags: list[str]
    line: int
    document: int
    left_out: tuple[int, ...] = ()

    def line_of(self, position: int) -> int:
        """Line of the file that holds a token, which is counted from 0."""
        line = self.line + position
        for left_out in self.left_out:
            line += left_out <= line
        return line


def read_columns(
    path: str | Path,
    word_column: Column | None = None,
    tag_column: Column | None = -1,
    separator: str | None = None,
    sentence_column: Column | None = None,
) -> list[Sentence]:
    r"""Read the sentences of a file of columns, of a table with a header or of CoNLL-U.

    A blank line ends a sentence. A line whose first column is `-DOCSTART-` ends sentence and
    document, whatever else it holds. The first document needs no such line, and one without a
    sentence is not counted.

    A line that begins with `#` is a comment where it stands before the first token of a sentence
    and is no token's: it has another number of columns than the tokens, or what stands in its tag
    column is no tag, neither O, nor a letter, a hyphen and a type, nor a tag of any other token.
    The number of such lines is told. Everywhere else it is a token, as hashtags are.

    A header is left out, and told, where a column is named by it, or where it calls one `word`,
    `token` or `form`, or that of the tags `tag`, `label`, `ner` or `pos`, and no token has its tag.
    It may tell by `sentence`, `sentence_id` or `Sentence #` which column tells sentences apart.

    CoNLL-U is what a name in `.conllu` or `.conll-u` says, or the ten columns of the first token.
    Only words are read: ranges (`3-4`) and empty nodes (`8.1`) are left out, and told; `# newdoc`
    begins a document. Its columns have the names `id`, `form`, `lemma`, `upos`, `xpos`, `feats`,
    `head`, `deprel`, `deps` and `misc`.

    Args:
        path: The file, in UTF-8; plain or packed by gzip, bzip2 or xz.
        word_column: Column of the tokens, counted from 0, or from the end if negative; or its name
            in a header or in CoNLL-U. None: the one that a header tells, in CoNLL-U `form`, else
            the first.
        tag_column: Column of the tags, counted or named likewise; `misc.NER` is the entry `NER=`
            of CoNLL-U's last column, and O where it lacks one. None: leave the tags out, as for a
            file that has none.
        separator: What stands between two columns, for example `"\t"`, also written as a backslash
            and a t. None: any number of blanks and tabs; tabs alone where they give each line
            one number of columns and blanks would cut a token, which is told; in a `.csv` file
            commas, semicolons or tabs.
        sentence_column: Column that tells sentences apart, as well as blank lines do: a sentence
            begins where it holds something, and other than before. None: the one that a header
            tells, else none.

    Raises:
        DataError: The file cannot be read, holds no sentence or lacks a column; or its lines
            differ in their numbers of columns; or a token or tag is empty.
        ValueError: `separator` is empty.

    Example:
        >>> path = getfixture("tmp_path") / "train.txt"
        >>> _ = path.write_text("Ada B-PER\nwrites O\n\nParis B-LOC\n")
        >>> read_columns(path)[1]
        Sentence(words=['Paris'], tags=['B-LOC'], line=4, document=0, left_out=())
    """
    if separator == "":
        raise ValueError("expected a separator of one character or more, got ''")
    if separator is not None:
        separator = separator.replace(r"\t", "\t")  # as a shell hands it on
    path = Path(path).expanduser()
    lines = read_lines(path)
    if not lines:
        raise DataError(f"{path} is empty: expected one token a line and a blank line between")
    of_conllu = conllu.is_conllu(path, lines)
    if of_conllu and separator is None:
        separator = "\t"
    rows, separator = split_rows(path, lines, separator)
    if of_conllu:
        rows = conllu.words_of(path, rows, tag_column)
    sentences: list[Sentence] = []
    first = first_of(rows)
    if first is not None:
        columns = (word_column, tag_column, sentence_column)
        rows, layout = find_layout(path, rows, first, *columns, of_conllu)
        sentences = _sentences(path, rows, layout, separator)
        _tell_numbers(path, sentences, "form" if of_conllu else layout.word + 1)
    if not sentences:
        raise DataError(f"{path} has {len(lines)} lines and no sentence: expected one token a line")
    _tell_unusual(path, sentences)
    return sentences


def _sentences(
    path: Path, rows: list[Row], layout: Layout, separator: str | None
) -> list[Sentence]:
    width = len(layout.first.fields)
    is_token = _token_test(rows, layout)
    comments: list[int] = []
    sentences: list[Sentence] = []
    block: list[Row] = []
    document = 0
    name = ""

    def end() -> None:
        if block:
            sentences.append(_sentence(path, block, layout, document))
            block.clear()

    for row in rows:
        if not row.fields:
            end()
        elif row.fields[0] == DOCUMENT_START:
            end()
            document = sentences[-1].document + 1 if sentences else 0
        elif not block and row.fields[0].startswith("#") and not is_token(row):
            comments.append(row.line)
        elif len(row.fields) != width:
            raise _ragged(path, row, layout.first, separator)
        else:
            if layout.sentence is not None and row.fields[layout.sentence] not in ("", name):
                end()
                name = row.fields[layout.sentence]
            block.append(row)
    end()
    if comments:
        _log.warning(
            "Note: lines of %s that begin with # are read as comments, %d in all; the first is "
            "line %d.",
            *(visible(str(path)), len(comments), comments[0]),
        )
    return sentences


def _token_test(rows: list[Row], layout: Layout) -> Callable[[Row], bool]:
    """What tells a token from a comment among the lines that begin with #."""
    width, tag = len(layout.first.fields), layout.tag

    @cache  # for the first such line; most files have none
    def known() -> set[str]:
        found: set[str] = set()
        within = False  # a sentence, where a line that begins with # is a token too
        for row in rows:
            if not row.fields or row.fields[0] == DOCUMENT_START:
                within = False
            elif not row.fields[0].startswith("#"):
                within = True
            if within and len(row.fields) == width:
                found.add(row.fields[tag or 0])
        return found

    def is_token(row: Row) -> bool:
        if len(row.fields) != width or tag is None:
            return len(row.fields) == width
        return split_tag(row.fields[tag], None) is not None or row.fields[tag] in known()

    return is_token


def _sentence(path: Path, rows: list[Row], layout: Layout, document: int) -> Sentence:
    words = _column(path, "token", layout.word, rows)
    tags = [] if layout.tag is None else _column(path, "tag", layout.tag, rows)
    first, last = rows[0].line, rows[-1].line
    left_out: tuple[int, ...] = ()
    if last - first >= len(rows):
        left_out = tuple(sorted({*range(first, last)} - {row.line for row in rows}))
    return Sentence(words, tags, first, document, left_out)


def _column(path: Path, kind: str, index: int, rows: list[Row]) -> list[str]:
    column = [row.fields[index] for row in rows]
    if not all(column):
        line = rows[column.index("")].line
        raise DataError(f"{path} has an empty {kind} in line {line}, column {index}")
    return column


def _ragged(path: Path, row: Row, first: Row, separator: str | None) -> DataError:
    if separator is None:
        advice = r"if columns hold blanks and tabs separate them, give --data.separator '\t'"
    else:
        advice = f"they are separated by {separator!r}"
    return DataError(
        f"expected {len(first.fields)} columns as in line {first.line} of {path}, got "
        f"{len(row.fields)} in line {row.line}: {advice}"
    )


def _tell_numbers(path: Path, sentences: list[Sentence], likely: Column) -> None:
    """Tell where the column of the tokens only counts them, as the first one of CoNLL-U does."""
    if all(len(sentence.words) == 1 for sentence in sentences):
        return
    for words, *_ in sentences:
        if words != [str(number) for number in range(1, len(words) + 1)]:
            return
    _log.warning(
        "Note: the tokens that are read from %s are their own numbers, 1, 2, 3 ...: name the "
        "column of the words, as with --data.word_column %s.",
        *(visible(str(path)), likely),
    )


def _tell_unusual(path: Path, sentences: list[Sentence]) -> None:
    """Tell what files seldom hold by intent: sentences without an end, tokens without ink."""
    place = visible(str(path))
    longest = max(sentences, key=lambda sentence: len(sentence.words))
    advice = (
        "put one after each sentence, or name a column that tells sentences apart with "
        "--data.sentence_column"
    )
    if len(sentences) == 1 and len(longest.words) > _LONG_ALONE:
        _log.warning(
            "Note: no blank line stands between the %s tokens of %s, so they are one sentence: %s.",
            *(f"{len(longest.words):,}", place, advice),
        )
    elif len(longest.words) > _LONG:
        _log.warning(
            "Note: the sentence in line %d of %s has %s tokens; if blank lines are missing, %s.",
            *(longest.line, place, f"{len(longest.words):,}", advice),
        )
    elif len(longest.words) == 1 and len(sentences) >= _MANY_OF_ONE:
        _log.warning(
            "Note: each of the %s sentences of %s is one token, for a blank line follows it.",
            *(f"{len(sentences):,}", place),
        )
    words = {word for sentence in sentences for word in sentence.words}
    unseen = {word for word in words if is_unseen(word)}
    if unseen:
        found = [
            (word, sentence.line_of(position))
            for sentence in sentences
            for position, word in enumerate(sentence.words)
            if word in unseen
        ]
        word, line = found[0]
        _log.warning(
            "Note: tokens of %s are nothing but characters that nobody can see, %s in all; the "
            "first is %s in line %d.",
            *(place, f"{len(found):,}", f"U+{ord(word[0]):04X}", line),
        )
