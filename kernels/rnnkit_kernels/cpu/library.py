"""The engine's shared libraries: found, loaded once, and asked what they are.

The package's library has the cells of its header; one that was registered at run time has a library
of its own, where `python -m rnnkit_kernels.cpu.build --module` made it. Nothing here can fail an
import: where a library is missing, of another version, damaged, or for another processor,
`library(cell)` is None and `missing(cell)` says why in one sentence.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnnkit_kernels.cells import Cell
from rnnkit_kernels.cpu import printing
from rnnkit_kernels.cpu.sources import FILE_NAME, cached, source_hash, whole

PACKAGE = Path(__file__).parent / FILE_NAME
REBUILD = "build it anew with python -m rnnkit_kernels.cpu.build"
# Bytes of the structures in engine/interface.h, each field of 8.
HEADER, LAYER = 6, 47
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
        rate: `(what, bytes, threads)`, for benchmarks: of so many threads together, in a second,
            the operations of multiply-adds in float32 (0) or float64 (1), or the bytes (2) that
            they read of a buffer that they share; 0 where it can't be told.
    """

    path: Path
    isa: str
    cells: dict[str, int]
    forward: Any
    backward: Any
    activation: Any
    rate: Any


class Unusable(RuntimeError):
    """Why a file can't serve as the engine."""


def load(path: Path, expected: str) -> Library:
    """Load the library at `path`, which was built from sources of the hash `expected`.

    Raises:
        Unusable: with one sentence.
    """
    try:
        if not whole(path.read_bytes()):
            raise Unusable(f"the native engine {path.name} is damaged: {REBUILD}")
        found: Any = ctypes.CDLL(str(path))
        found.rnnkit_sources.restype = ctypes.c_char_p
        sources = found.rnnkit_sources().decode()
    except FileNotFoundError as error:
        raise Unusable(
            "the native engine is not built: install rnnkit where there is a C++ compiler, or run "
            "python -m rnnkit_kernels.cpu.build"
        ) from error
    except (OSError, AttributeError) as error:
        raise Unusable(f"the native engine {path.name} can't be loaded: {error}") from error
    if sources != expected:
        raise Unusable(
            f"the native engine {path.name} was built from other sources ({sources[:8]}, these are "
            f"{expected[:8]}): {REBUILD}"
        )
    found.rnnkit_cells.restype = found.rnnkit_isa.restype = ctypes.c_char_p
    isa = found.rnnkit_isa().decode()
    if not isa:
        raise Unusable(f"the native engine has no code for this processor, RNNKIT_ISA={_wanted()}")
    if found.rnnkit_call_size() != CALL_BYTES:
        raise Unusable(
            f"the native engine takes calls of {found.rnnkit_call_size()} bytes, expected "
            f"{CALL_BYTES}: {REBUILD}"
        )
    for run in (found.rnnkit_forward, found.rnnkit_backward):
        run.argtypes, run.restype = [ctypes.c_char_p], ctypes.c_int
    found.rnnkit_activation.argtypes = [
        ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64,
    ]  # fmt: skip
    found.rnnkit_rate.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int]
    found.rnnkit_rate.restype = ctypes.c_double
    _share_threads(found)
    names = found.rnnkit_cells().decode().split()
    return Library(
        path,
        isa,
        {name: i for i, name in enumerate(names)},
        found.rnnkit_forward,
        found.rnnkit_backward,
        found.rnnkit_activation,
        found.rnnkit_rate,
    )


def _wanted() -> str:
    return os.environ.get("RNNKIT_ISA", "")


def _share_threads(found: Any) -> None:
    """Hand over torch's own OpenMP, so that its pool of threads serves both.

    Without it the engine starts threads of its own for every call.
    """
    found.rnnkit_use_openmp.argtypes = [ctypes.c_void_p] * 3
    found.rnnkit_use_openmp(*openmp_functions())


def openmp_functions() -> list[ctypes.c_void_p | None]:
    """What the engine takes of torch's OpenMP; three times None where there is none."""
    runtime = _openmp()
    if runtime is None:
        return [None] * 3
    names = ("GOMP_parallel", "omp_get_num_threads", "omp_get_thread_num")
    return [ctypes.cast(getattr(runtime, name), ctypes.c_void_p) for name in names]


def _openmp() -> Any | None:
    """The OpenMP runtime that is already loaded, torch's, or None."""
    try:
        mapped = re.findall(r"/\S*lib(?:gomp|iomp5|omp)\b\S*", Path("/proc/self/maps").read_text())
    except OSError:
        mapped = []
    # Other packages bring theirs too.
    candidates: list[str | None] = [*sorted(set(mapped), key=lambda path: "/torch/" not in path)]
    candidates.append(None)
    for name in candidates:
        try:
            runtime = ctypes.CDLL(name)
            if hasattr(runtime, "GOMP_parallel") and hasattr(runtime, "omp_get_thread_num"):
                return runtime
        except OSError:
            continue
    return None


@functools.cache
def _found(cell: Cell | None) -> Library | Unusable:
    import torch  # noqa: F401  its OpenMP has to be loaded first

    if os.environ.get("RNNKIT_NATIVE") == "0":
        return Unusable("RNNKIT_NATIVE=0 turned the native engine off")
    try:
        if cell is None:
            return load(PACKAGE, source_hash())
        if printing.in_package(cell):
            return _found(None)
        cells = printing.header([cell])
        path = cached(cell.name, cells)
        if not path.exists():
            raise Unusable(
                f"the native engine lacks the cell {cell.name}, which runs in PyTorch unless "
                f"python -m rnnkit_kernels.cpu.build --module FILE has built {path}"
            )
        return load(path, source_hash(cells))
    except (RuntimeError, ValueError, OSError) as error:  # sources that can't be read, too
        return Unusable(str(error))


def library(cell: Cell | None = None) -> Library | None:
    """The library that has this cell, or the package's; None where there is none to use.

    It is looked for once in a process.
    """
    found = _found(cell)
    return found if isinstance(found, Library) else None


def missing(cell: Cell | None = None) -> str:
    """Why there is none, in one sentence; empty where there is one."""
    found = _found(cell)
    return str(found) if isinstance(found, Unusable) else ""
