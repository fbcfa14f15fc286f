"""A file that is there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Let the body write another file beside `path`, which then takes its place.

    A crash at any time leaves the old file or the new one, never a part. The folder is made
    where it is missing.

    Args:
        path: The file to replace or make.

    Yields:
        An empty file in the same folder (a rename is atomic only within a file system), with the
        same suffix. Without an exception its content reaches the disk before its new name does.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        beside.chmod(0o666 & ~mask)  # mkstemp's own mode shuts out everybody else
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
