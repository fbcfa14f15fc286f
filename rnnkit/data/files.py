"""Whole files, plain or compressed, without more memory than a file deserves."""

from __future__ import annotations

import gzip
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rnnkit.data.registry import DataError

# Text is packed 3 to 10 times smaller, and a thousand times only where it says nothing.
MOST_UNPACKED = 100
"""Bytes that one byte of a `.gz` file may become."""

ALWAYS_UNPACKED = 2**26
"""Bytes that any `.gz` file may become: 64 MiB."""


def read_bytes(path: Path) -> bytes:
    """Content of a file; unpacked if its name ends in `.gz`.

    Raises:
        DataError: It cannot be read or unpacked, is a device, or becomes far larger than text does
            when it is unpacked.
    """
    with readable(path):
        mode = path.stat().st_mode
        if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not _is_terminal(path)):
            raise DataError(f"cannot read {path} (it is a device, which may have no end)")
        return _unpack(path) if path.suffix == ".gz" else path.read_bytes()


def read_lines(path: Path) -> list[str]:
    """Lines of a text file without their ends, LF or CRLF; other separators end no line.

    A byte-order mark at the beginning is left out. A file whose name ends in `.gz` is unpacked.

    Raises:
        DataError: The file cannot be read or unpacked, or is no UTF-8.
    """
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is no UTF-8: byte 0x{error.object[error.start]:02x} in line {line}; convert "
            "it, for example with `iconv -f LATIN1 -t UTF-8`"
        ) from error
    lines = text.removeprefix("\ufeff").split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Tell why a file cannot be read or unpacked within, in one sentence.

    Raises:
        DataError: It cannot.
    """
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked ({error}): replace or rename it") from error
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror})") from error
    except ValueError as error:  # a zero character in the name
        raise DataError(f"cannot read {path} ({error})") from error


def _is_terminal(path: Path) -> bool:
    with path.open("rb", buffering=0) as file:
        return file.isatty()


def _unpack(path: Path) -> bytes:
    packed = path.stat().st_size
    limit = max(ALWAYS_UNPACKED, MOST_UNPACKED * packed)
    with gzip.open(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DataError(
            f"{path} has {packed:,} bytes and unpacks to more than {limit:,}, which text does not: "
            "unpack it yourself if you trust it"
        )
    return content
