"""Packed files: recognised by their first bytes, whatever they are called."""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import re
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import IO, NamedTuple, cast

from rnnkit.data.registry import DataError
from rnnkit.screen.terminal import visible

_log = logging.getLogger(__name__)


class _Packing(NamedTuple):
    """How one stream of bytes is packed.

    Attributes:
        name: Of the packing and of the command that packs.
        begins: First bytes of what is packed.
        open: Makes a stream that unpacks from one that does not.
    """

    name: str
    begins: re.Pattern[bytes]
    open: Callable[[IO[bytes]], IO[bytes]]


def _gunzipped(raw: IO[bytes]) -> IO[bytes]:
    return cast(IO[bytes], gzip.GzipFile(fileobj=raw))


_PACKINGS = {
    ".gz": _Packing("gzip", re.compile(rb"\x1f\x8b"), _gunzipped),
    # The digit is the size of a block; what follows it, pi or its root, begins a block or the end.
    ".bz2": _Packing(
        "bzip2",
        re.compile(rb"BZh[1-9](?:\x31\x41\x59\x26\x53\x59|\x17\x72\x45\x38\x50\x90)"),
        bz2.BZ2File,
    ),
    ".xz": _Packing("xz", re.compile(rb"\xfd7zXZ\0"), lzma.LZMAFile),
}

ENDINGS = tuple(_PACKINGS)
"""What the name of a packed file ends in."""

# What they are, how they begin, and what unpacks them.
_ARCHIVES = (
    ("a zip archive", re.compile(rb"PK\x03\x04"), "unzip"),
    ("a tar archive", re.compile(rb".{257}ustar", re.DOTALL), "tar -xf"),
    ("packed by zstd", re.compile(rb"\x28\xb5\x2f\xfd"), "zstd -d"),
)
_LONGEST_BEGINNING = 262  # tar's


def unpacked(raw: BufferedReader, path: Path) -> IO[bytes]:
    """The stream that unpacks a file as its content says, or the same stream if it is not packed.

    A note is logged where the name says otherwise.

    Args:
        raw: The file, at its beginning.
        path: Where it lies.

    Raises:
        DataError: The name says that it is packed, and it is not.
    """
    begin = raw.peek(_LONGEST_BEGINNING)
    for ending, packing in _PACKINGS.items():
        if packing.begins.match(begin):
            if path.suffix not in (ending, f".t{ending[1:]}"):  # .tgz is .tar.gz
                _log.warning(
                    "Note: %s is packed by %s, which its name does not say; it is read unpacked.",
                    *(visible(str(path)), packing.name),
                )
            return packing.open(raw)
    if begin and path.suffix in _PACKINGS:
        name = _PACKINGS[path.suffix].name
        raise DataError(
            f"{path} cannot be unpacked (it is not packed by {name}, as its name says): replace or "
            "rename it"
        )
    return raw


def refuse_packed(content: bytes, name: str) -> None:
    """Refuse an archive, and what is packed where nothing unpacks it.

    Args:
        content: Bytes of a text, or its first ones.
        name: Where they come from, for the error.

    Raises:
        DataError: They are packed; the message has the command that unpacks them.
    """
    for kind, begins, command in _ARCHIVES:
        if begins.match(content):
            raise DataError(
                f"{name} is {kind}: unpack it first, for example with `{command}`, and name the "
                "text that was in it"
            )
    for packing in _PACKINGS.values():
        if packing.begins.match(content):
            raise DataError(
                f"{name} holds what is packed by {packing.name}: unpack it first, for example with "
                f"`{packing.name} -dc`"
            )
