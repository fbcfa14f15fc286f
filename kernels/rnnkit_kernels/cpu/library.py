"""The engine's shared library: found, loaded once, and asked what it is.

Nothing here can fail an import: where the library is missing, of another version, damaged, or for
another processor, `library()` is None and `missing()` says why in one sentence.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnnkit_kernels.cpu.sources import FILE_NAME, source_hash

HERE = Path(__file__).parent
# Bytes of the structures in engine/interface.h, each field of 8.
HEADER, LAYER = 6, 42
CALL_BYTES = 8 * (HEADER + 2 * LAYER)


@dataclass(frozen=True)
class Library:
    """A loaded library.

    Attributes:
        path: of its file.
        isa: the instruction set that was chosen: "avx512", "avx2" or "portable".
        cells: index of each cell's name.
        forward, backward: take a call as bytes; 0 is success, 1 that memory ran out.
        activation: `(which, size, x, y, n)`, for tests.
    """

    path: Path
    isa: str
    cells: dict[str, int]
    forward: Any
    backward: Any
    activation: Any


class Unusable(RuntimeError):
    """Why a file can't serve as the engine."""


def load(path: Path) -> Library:
    """Load the library at `path`.

    Raises:
        Unusable: with one sentence.
    """
    if not path.exists():
        raise Unusable(
            "the native engine is not built: install rnnkit where there is a C++ compiler, or run "
            "python -m rnnkit_kernels.cpu.build"
        )
    try:
        found: Any = ctypes.CDLL(str(path))
        found.rnnkit_sources.restype = ctypes.c_char_p
        sources = found.rnnkit_sources().decode()
    except (OSError, AttributeError) as error:
        raise Unusable(f"the native engine {path.name} can't be loaded: {error}") from error
    if sources != source_hash():
        raise Unusable(
            f"the native engine {path.name} was built from other sources ({sources[:8]}, these are "
            f"{source_hash()[:8]}): build it anew with python -m rnnkit_kernels.cpu.build"
        )
    found.rnnkit_cells.restype = found.rnnkit_isa.restype = ctypes.c_char_p
    isa = found.rnnkit_isa().decode()
    if not isa:
        raise Unusable(f"the native engine has no code for this processor, RNNKIT_ISA={_wanted()}")
    if found.rnnkit_call_size() != CALL_BYTES:
        raise Unusable(
            f"the native engine takes calls of {found.rnnkit_call_size()} bytes, expected "
            f"{CALL_BYTES}: build it anew with python -m rnnkit_kernels.cpu.build"
        )
    for run in (found.rnnkit_forward, found.rnnkit_backward):
        run.argtypes, run.restype = [ctypes.c_char_p], ctypes.c_int
    found.rnnkit_activation.argtypes = [
        ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64,
    ]  # fmt: skip
    _share_threads(found)
    names = found.rnnkit_cells().decode().split()
    return Library(
        path,
        isa,
        {name: i for i, name in enumerate(names)},
        found.rnnkit_forward,
        found.rnnkit_backward,
        found.rnnkit_activation,
    )


def _wanted() -> str:
    return os.environ.get("RNNKIT_ISA", "")


def _share_threads(found: Any) -> None:
    """Hand over torch's own OpenMP, so that its pool of threads serves both.

    Without it the engine starts threads of its own for every call.
    """
    runtime = _openmp()
    if runtime is None:
        return
    found.rnnkit_use_openmp.argtypes = [ctypes.c_void_p] * 3
    found.rnnkit_use_openmp(
        *(
            ctypes.cast(getattr(runtime, name), ctypes.c_void_p)
            for name in ("GOMP_parallel", "omp_get_num_threads", "omp_get_thread_num")
        )
    )


def _openmp() -> Any | None:
    """The OpenMP runtime that is already loaded, torch's, or None."""
    candidates: list[str | None] = [None]
    try:
        mapped = Path("/proc/self/maps").read_text()
        candidates = [
            *dict.fromkeys(re.findall(r"/\S*lib(?:gomp|iomp5|omp)\b\S*", mapped)), None,
        ]  # fmt: skip
    except OSError:
        pass
    for name in candidates:
        try:
            runtime = ctypes.CDLL(name)
            if hasattr(runtime, "GOMP_parallel") and hasattr(runtime, "omp_get_thread_num"):
                return runtime
        except OSError:
            continue
    return None


@functools.cache
def _default() -> Library | Unusable:
    import torch  # noqa: F401  its OpenMP has to be loaded first

    if os.environ.get("RNNKIT_NATIVE") == "0":
        return Unusable("RNNKIT_NATIVE=0 turned the native engine off")
    try:
        return load(HERE / FILE_NAME)
    except Unusable as error:
        return error


def library() -> Library | None:
    """The library of the package, or None where there is none to use."""
    found = _default()
    return found if isinstance(found, Library) else None


def missing() -> str:
    """Why there is none, in one sentence; empty where there is one."""
    found = _default()
    return str(found) if isinstance(found, Unusable) else ""
