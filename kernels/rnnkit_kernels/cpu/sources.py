"""The engine's sources, and what its library is called; needs the standard library alone."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

ENGINE = Path(__file__).parent / "engine"
FILE_NAME = "rnnkit_engine.so"


@functools.cache
def source_hash() -> str:
    """A hash of all sources, which a library carries: one of other sources is not used."""
    digest = hashlib.sha256()
    for file in sorted(ENGINE.glob("*")):
        if file.suffix in (".h", ".cpp"):
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
