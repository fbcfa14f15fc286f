"""The engine's sources, how they are compiled, and where libraries lie.

Needs the standard library alone.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from pathlib import Path

ENGINE = Path(__file__).parent / "engine"
FILE_NAME = "rnnkit_engine.so"

FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-pthread", "-w")
# The engine is compiled once for each, and a library takes the first that its processor has.
INSTRUCTION_SETS: dict[str, tuple[str, ...]] = {"portable": ()}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS = {
        "avx512": ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx2", "-mfma"),
        "avx2": ("-mavx2", "-mfma"),
        "portable": (),
    }


@functools.cache
def source_hash(cells: str = "") -> str:
    """A hash of all that a library is made of, which it carries: one of other sources is not used.

    Args:
        cells: the header of its cells, where they are not the package's.
    """
    digest = hashlib.sha256(repr((platform.machine(), FLAGS, INSTRUCTION_SETS, cells)).encode())
    for file in sorted(ENGINE.glob("*")):
        if file.suffix in (".h", ".cpp"):
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def cached(name: str, cells: str) -> Path:
    """Where the library of a cell lies that was registered at run time; `cells` is its header."""
    folder = os.environ.get("RNNKIT_CACHE_DIR")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(folder or caches / "rnnkit") / f"{name}-{source_hash(cells)[:16]}.so"


def sealed(content: bytes) -> bytes:
    """A library with its own hash behind it, for loading half of one may kill the process."""
    return content + hashlib.sha256(content).hexdigest().encode()


def whole(content: bytes) -> bool:
    """Whether a library is as it was built."""
    return sealed(content[:-64]) == content


def current(path: Path, cells: str = "") -> bool:
    """Whether there is a whole library of these sources."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return whole(content) and source_hash(cells).encode() in content
