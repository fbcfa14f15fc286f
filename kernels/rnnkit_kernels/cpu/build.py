"""Compile the native engine.

    python -m rnnkit_kernels.cpu.build                    # the package's, with all of its cells
    python -m rnnkit_kernels.cpu.build --module janet.py  # one for each cell that it registers
    python -m rnnkit_kernels.cpu.build --header           # print engine/cells.h anew

A C++ compiler is all that it needs: $CXX, or else c++, g++ or clang++. A library holds code for
each instruction set of its kind of processor, and chooses when it is loaded. What is built already
from the same sources is not built again. Libraries of cells that are registered at run time go to
$RNNKIT_CACHE_DIR, or else to ~/.cache/rnnkit.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.cpu import printing
from rnnkit_kernels.cpu.sources import (
    ENGINE,
    FILE_NAME,
    FLAGS,
    INSTRUCTION_SETS,
    cached,
    current,
    sealed,
    source_hash,
)


class BuildError(RuntimeError):
    """Why there is no library, in one sentence, and then what the compiler said."""


def compiler() -> list[str]:
    """The command of the C++ compiler.

    Raises:
        BuildError: there is none.
    """
    given = shlex.split(os.environ.get("CXX", ""))
    for name in given[:1] or ("c++", "g++", "clang++"):
        if shutil.which(name):
            return given or [name]
    missing = f"CXX={given[0]} is not there" if given else "no c++, g++ or clang++ is there"
    raise BuildError(f"the native engine needs a C++ compiler, and {missing}")


def build(target: Path, cells: str = "") -> None:
    """Write the library to `target`, whole or not at all.

    Args:
        target: its path.
        cells: the header of its cells, where they are not the package's.

    Raises:
        BuildError: there is no compiler, it fails, or `target` can't be written.
    """
    command = compiler()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".rnnkit-", dir=target.parent) as folder:
            library = _compile(command, Path(folder), cells)
            library.write_bytes(sealed(library.read_bytes()))
            library.replace(target)
    except OSError as error:
        raise BuildError(f"the native engine can't be written: {error}") from error


def _compile(command: list[str], folder: Path, cells: str) -> Path:
    header = folder / "registered.h" if cells else ENGINE / "cells.h"
    if cells:
        header.write_text(cells)

    def compiled(name: str, source: str, *options: str) -> Path:
        to = folder / f"{name}.o"
        includes = (f"-I{ENGINE}", f"-I{folder}", f'-DRNNKIT_CELLS="{header.name}"')
        _run([*command, *FLAGS, *includes, *options, "-c", ENGINE / source, "-o", to])
        return to

    each = "".join(f"F({name})" for name in INSTRUCTION_SETS)
    door = (f"-DRNNKIT_ISAS(F)={each}", f'-DRNNKIT_SOURCES="{source_hash(cells)}"')
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            pool.submit(compiled, name, "engine.cpp", f"-DRNNKIT_ISA={name}", *options)
            for name, options in INSTRUCTION_SETS.items()
        ]
        jobs.append(pool.submit(compiled, "library", "library.cpp", *door))
    library = folder / FILE_NAME
    objects = [job.result() for job in jobs]
    _run([*command, "-shared", "-s", "-pthread", *objects, "-o", library])
    return library


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise BuildError(
            "\n".join([f"{command[0]} can't compile the native engine, and says last:", *said])
        )


def register(module: str) -> None:
    """Import a module, by its name or its file, that puts its cells into `CELLS`.

    Raises:
        ImportError: there is none.
    """
    if not module.endswith(".py"):
        importlib.import_module(module)
        return
    spec = importlib.util.spec_from_file_location(Path(module).stem, module)
    if spec is None or spec.loader is None or not Path(module).is_file():
        raise ImportError(f"No file {module}")
    sys.modules[spec.name] = found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)


def build_registered() -> list[Path]:
    """Build a library for each cell of `CELLS` that the package's engine does not have.

    Returns:
        where they lie.

    Raises:
        BuildError, NotPrintable: with one sentence.
    """
    paths = []
    for cell in CELLS.values():
        if not printing.in_package(cell):
            cells = printing.header([cell])
            paths.append(cached(cell.name, cells))
            if not current(paths[-1], cells):
                build(paths[-1], cells)
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, and print where the library lies; 1 where that fails."""
    parser = argparse.ArgumentParser(
        prog="python -m rnnkit_kernels.cpu.build",
        usage=argparse.SUPPRESS,  # the examples say it
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--module",
        metavar="FILE_OR_MODULE",
        help="registers cells, for which libraries of their own are built",
    )
    what.add_argument(
        "--header", action="store_true", help="print engine/cells.h anew, from cells/"
    )
    given = parser.parse_args(arguments)
    try:
        if given.header:
            paths = [ENGINE / "cells.h"]
            paths[0].write_text(printing.header(CELLS.values()))
        elif given.module:
            register(given.module)
            paths = build_registered()
            if not paths:
                raise BuildError(f"{given.module} registers no cell that the package does not have")
        else:
            paths = [ENGINE.parent / FILE_NAME]
            if not current(paths[0]):
                build(paths[0])
    except (BuildError, printing.NotPrintable, ImportError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(*paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
