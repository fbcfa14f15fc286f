"""Word vectors from files, as GloVe and word2vec write them.

A line holds a word and its D numbers. Word2vec's files begin with a line `N D`, GloVe's do not:

    2 3
    the 0.418 0.2497 -0.4124
    of 0.7085 0.5709 -0.4716

Word2vec's binary files are recognised by what follows such a line, see `word2vec_format`.
"""

from __future__ import annotations

import itertools
import re
from array import array
from collections.abc import Container, Iterator
from io import BufferedReader
from math import isfinite
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from rnnkit.data.encodings import reason, wide_encoding
from rnnkit.data.files import readable
from rnnkit.data.packing import refuse_packed, unpacked
from rnnkit.data.registry import DataError
from rnnkit.data.word2vec_format import read_binary
from rnnkit.screen.terminal import visible

# Smaller files are read in a second or two.
_BAR_BYTES = 32 * 2**20
_LINES_A_TICK = 1000

# Of a million numbers. What is packed may become a line that fills the memory.
_LONGEST_LINE = 2**24

# Bytes that stand in no text; among a thousand bytes of anything else there are some.
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_SAMPLE_BYTES = 1024

_HEADER = re.compile(rb"\s*(\d+)\s+(\d+)\s*")
_MOST_DIGITS = 15  # a petabyte
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class _Width(NamedTuple):
    """How many numbers a line must have, and why."""

    size: int
    reason: str


def read_vectors(
    path: str | Path, keep: Container[str] | None = None, limit: int | None = None
) -> tuple[list[str], Tensor]:
    r"""Read word vectors from a file of GloVe's or word2vec's, in text or binary.

    Only the vectors that are kept take memory, and only their numbers are looked at. Of several
    vectors of one word the first is kept. GloVe's largest file has words that hold blanks
    (`. . .`): the last D columns of a line are its numbers. For a large file a progress bar is
    drawn on stderr, if that is a terminal and the file is text.

    Args:
        path: The file, in UTF-8; plain or packed by gzip, bzip2 or xz.
        keep: Words to keep, best a set; words that it lacks are passed over. None: all.
        limit: Read no more than the first `limit` vectors, in most files those of the most
            frequent words.

    Returns:
        The words that were found, in the file's order, and their vectors, (N, D), float32.

    Raises:
        DataError: The file cannot be read, has neither format or holds no vector; or a line has
            another number of columns than the first, or something else than a finite number; or
            there are not as many vectors as the first line says.
        ValueError: `limit` is below 1.

    Example:
        >>> path = getfixture("tmp_path") / "vectors.txt"
        >>> _ = path.write_text("the 0.5 1.5\nof 2.0 -1.0\n")
        >>> read_vectors(path, keep={"of"})
        (['of'], tensor([[ 2., -1.]]))
    """
    if limit is not None and limit < 1:
        raise ValueError(f"expected a limit of 1 or more, got {limit}")
    path = Path(path).expanduser()
    with readable(path), path.open("rb") as raw:
        return _read(path, unpacked(raw, path), raw, keep, limit)


def _read(
    path: Path, file: IO[bytes], raw: BufferedReader, keep: Container[str] | None, limit: int | None
) -> tuple[list[str], Tensor]:
    sample = file.read(_SAMPLE_BYTES)
    refuse_packed(sample, str(path))
    if _BINARY.search(sample):
        if _HEADER.fullmatch(sample.split(b"\n")[0]):
            file.seek(0)
            return read_binary(path, file, keep, limit)
        raise _binary(path, sample)
    if b"\r" in sample[:-1] and b"\n" not in sample:
        raise DataError(f"the lines of {path} end in CR alone: convert it with `tr '\\r' '\\n'`")
    file.seek(0)
    words: dict[str, None] = {}  # ordered, unlike a set
    numbers = array("f")
    count = 0
    declared: int | None = None
    width: _Width | None = None
    for line_number, line in _lines(path, file, raw):
        if line_number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
            if header := _HEADER.fullmatch(line):
                if max(map(len, header.groups())) > _MOST_DIGITS:
                    raise DataError(f"line 1 of {path} declares more than any file holds")
                declared = int(header[1])
                width = _Width(int(header[2]), "as line 1 says")
                if width.size == 0:
                    raise DataError(f"line 1 of {path} declares vectors of 0 numbers")
                continue
        if not line.strip():
            continue
        if width is None:
            width = _first_width(path, line_number, line)
        # Of bytes: str.rsplit() splits at no-break spaces too, and these occur within words.
        name, *columns = line.strip().rsplit(None, width.size)
        _, *more_parts = name.split()
        if len(columns) < width.size or (more_parts and all(map(_is_number, more_parts))):
            raise DataError(
                f"expected {width.size} numbers {width.reason}, got "
                f"{len(columns) + len(more_parts)} in line {line_number} of {path}"
            )
        count += 1
        word = _decode(path, line_number, name)
        if word not in words and (keep is None or word in keep):
            words[word] = None
            numbers += _parse(path, line_number, columns)
        if count == limit:
            break
    if width is None or count == 0:
        raise DataError(f"{path} holds no vector: expected a word and its numbers in each line")
    if declared not in (None, count) and count != limit:
        raise DataError(
            f"line 1 of {path} says {declared} vectors of {width.size} numbers, and the file holds "
            f"{count}: it is cut off, or correct its first line"
        )
    if not words:
        return [], torch.empty(0, width.size)
    return [*words], torch.frombuffer(numbers, dtype=torch.float32).view(-1, width.size)


def _lines(path: Path, file: IO[bytes], raw: BufferedReader) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, and for a large file a progress bar of its bytes on the disk."""
    total = path.stat().st_size
    hidden = True if total < _BAR_BYTES else None  # None: only if stderr is no terminal
    with tqdm(
        total=total, desc=visible(path.name), unit="B", unit_scale=True, leave=False, disable=hidden
    ) as bar:
        for line_number in itertools.count(1):
            line = file.readline(_LONGEST_LINE + 1)
            if not line:
                return
            if len(line) > _LONGEST_LINE:
                raise DataError(
                    f"line {line_number} of {path} has more than {_LONGEST_LINE:,} bytes: expected "
                    "a word and its numbers in each line"
                )
            if line_number % _LINES_A_TICK == 0:
                bar.update(raw.tell() - bar.n)
            yield line_number, line


def _first_width(path: Path, line_number: int, line: bytes) -> _Width:
    """Numbers at the end of the first line; what is left of them is its word."""
    columns = line.split()
    size = 0
    while size < len(columns) - 1 and _is_number(columns[-1 - size]):
        size += 1
    # A word may hold blanks, but a number within it stems from a vector.
    between = columns[1 : len(columns) - size]
    if size == 0 or any(map(_is_number, between)):
        raise _no_number(path, line_number, between[-1] if between else b"")
    return _Width(size, f"as in line {line_number}")


def _parse(path: Path, line_number: int, columns: list[bytes]) -> array[float]:
    try:
        numbers = array("f", map(float, columns))
    except ValueError as error:
        wrong = next(column for column in columns if not _is_number(column))
        raise _no_number(path, line_number, wrong) from error
    # A sum of finite float32 is finite in float64, and one with NaN or infinity never is.
    if not isfinite(sum(numbers)):
        wrong = next(c for c, number in zip(columns, numbers, strict=True) if not isfinite(number))
        raise _no_number(path, line_number, wrong)
    return numbers


def _is_number(column: bytes) -> bool:
    try:
        float(column)
    except ValueError:
        return False
    return True


def _decode(path: Path, line_number: int, word: bytes) -> str:
    try:
        return word.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8: {reason(word, error.start, line_number)}") from error


def _no_number(path: Path, line_number: int, column: bytes) -> DataError:
    found = column.decode("utf-8", "replace")
    return DataError(
        f"expected a word and finite float32 numbers in line {line_number} of {path}, got {found!r}"
    )


def _binary(path: Path, sample: bytes) -> DataError:
    if encoding := wide_encoding(sample):
        return DataError(
            f"{path} looks like {encoding}, and UTF-8 is expected: convert it with `iconv -f "
            f"{encoding} -t UTF-8`"
        )
    return DataError(f"{path} is no text: expected a word and its numbers in each line, in UTF-8")
