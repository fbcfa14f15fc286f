"""C++ compilers for tests of how the native engine is built.

`python -m tests.compilers` builds it anew for one instruction set, and optimizes nothing.
"""

import os
import tempfile
from pathlib import Path

import pytest

from rnnkit_kernels.cpu import build
from rnnkit_kernels.cpu.build import BuildError, compiler
from rnnkit_kernels.cpu.library import PACKAGE

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


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        os.environ["CXX"] = quick_compiler(Path(made))
        build.INSTRUCTION_SETS = {"portable": ()}
        build.build(PACKAGE)
