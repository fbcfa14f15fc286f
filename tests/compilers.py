"""C++ compilers for tests of how the native engine is built."""

from pathlib import Path

import pytest

from rnnkit_kernels.cpu.build import BuildError, compiler

NONE = "/nonexistent/c++"  # for $CXX: there is no compiler


def script(folder: Path, text: str) -> str:
    """A program for $CXX."""
    file = folder / "c++"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


def quick_compiler(folder: Path) -> str:
    """The compiler at hand, which optimizes nothing: it is done in an eighth of the time."""
    try:
        return script(folder, f'exec {" ".join(compiler())} "$@" -O0')
    except BuildError as error:
        pytest.skip(str(error))
