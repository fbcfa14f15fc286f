"""Whole files, plain or compressed, without more memory than a file deserves."""

from __future__ import annotations

import gzip
import lzma
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rnnkit.data.encodings import decode
from rnnkit.data.packing import unpacked
from rnnkit.data.registry import DataError

# Text is packed 3 to 10 times smaller, and a thousand times only where it says nothing.
MOST_UNPACKED = 100
"""Bytes that one byte of a packed file may become."""

ALWAYS_UNPACKED = 2**26
"""Bytes that any packed file may become: 64 MiB."""

_CHUNK_BYTES = 2**20


def read_bytes(path: Path) -> bytes:
    """Content of a file, unpacked if it is packed by gzip, bzip2 or xz.

    Raises:
        DataError: It cannot be read or unpacked, is a device, or becomes far larger than text does
            when it is unpacked.
    """
    with readable(path):
        mode = path.stat().st_mode
        if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not _is_terminal(path)):
            raise DataError(f"cannot read {path} (it is a device, which may have no end)")
        with path.open("rb") as raw:
            file = unpacked(raw, path)
            return raw.read() if file is raw else _limited(file, path)


def read_text(path: Path) -> str:
    r"""Text of a file, unpacked if it is packed, without a byte-order mark; lines end in `\n`.

    Raises:
        DataError: The file cannot be read or unpacked, or is in no encoding that is recognised:
            see `rnnkit.data.encodings.decode`.
    """
    return decode(read_bytes(path), str(path))


def read_lines(path: Path) -> list[str]:
    """Lines of a text file without their ends: LF, CRLF or CR alone; other separators end none.

    Raises:
        DataError: As `read_text`.
    """
    lines = read_text(path).split("\n")
    if not lines[-1]:
        lines.pop()
    return lines


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Tell why a file cannot be read or unpacked within, in one sentence.

    Raises:
        DataError: It cannot.
    """
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno is None:  # of bz2, which has no error of its own
            raise _damaged(path, error) from error
        raise DataError(f"cannot read {path} ({error.strerror})") from error
    except ValueError as error:  # a zero character in the name
        raise DataError(f"cannot read {path} ({error})") from error


def _is_terminal(path: Path) -> bool:
    with path.open("rb", buffering=0) as file:
        return file.isatty()


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be unpacked ({error}): replace it")


def _limited(file: IO[bytes], path: Path) -> bytes:
    packed = path.stat().st_size
    limit = max(ALWAYS_UNPACKED, MOST_UNPACKED * packed)
    content = bytearray()  # file.read() would hold all of it three times
    while len(content) <= limit and (chunk := file.read(_CHUNK_BYTES)):
        content += chunk
    if len(content) > limit:
        raise DataError(
            f"{path} has {packed:,} bytes and unpacks to more than {limit:,}, which text does not: "
            "unpack it yourself if you trust it"
        )
    return bytes(content)
