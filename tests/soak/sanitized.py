"""The native engine under sanitizers: `python -m tests.soak.sanitized --cases 500`.

Builds it with `-fsanitize=address,undefined` and then with `-fsanitize=thread`, and runs random
layers forward and backward in a process each. Threads are the engine's own there, not OpenMP's,
whose meetings the sanitizer of threads can't see; torch itself keeps to one.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.cpu import library, native, printing
from rnnkit_kernels.cpu.build import build, compiler
from rnnkit_kernels.cpu.sources import INSTRUCTION_SETS, source_hash
from tests.kernels.cpu.cases import check, random_case

# What is asked for, the runtimes that have to be there before any other library, and options.
SANITIZERS = {
    "address,undefined": (("libasan.so", "libubsan.so"), "detect_leaks=0"),
    "thread": (("libtsan.so",), "exitcode=66"),
}
# A cell of one stage and one of two: what else differs between cells is arithmetic.
FEWEST_CELLS = ("lstm", "gru_reset_before")
FOUND = ("ERROR: AddressSanitizer", "WARNING: ThreadSanitizer", "runtime error:")


def sanitized_compiler(folder: Path, sanitizer: str) -> str:
    """The compiler at hand, which adds the checks, and keeps the names of functions."""
    file = folder / "c++"
    file.write_text(
        "#!/bin/bash\n"
        'for a; do shift; [ "$a" = -s ] || set -- "$@" "$a"; done\n'
        f'exec {" ".join(compiler())} "$@" -O0 -g1 -fno-omit-frame-pointer '
        f"-fsanitize={sanitizer} -fno-sanitize-recover=undefined\n"
    )
    file.chmod(0o755)
    return str(file)


def sanitized(folder: Path, sanitizer: str, cells: tuple[str, ...]) -> Path:
    """A library of these cells with the checks in it."""
    before = os.environ.get("CXX")
    command, target = sanitized_compiler(folder, sanitizer), folder / "engine.so"
    os.environ["CXX"] = command
    try:
        build(target, printing.header([CELLS[name] for name in cells]))
    finally:
        del os.environ["CXX"]
        if before is not None:
            os.environ["CXX"] = before
    return target


def environment(sanitizer: str, isa: str) -> dict[str, str]:
    """What a process needs in which the library is to run."""
    names, options = SANITIZERS[sanitizer]
    paths = [
        subprocess.run(
            [*compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in names
    ]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(paths),
        "ASAN_OPTIONS": options,
        "TSAN_OPTIONS": options,
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "RNNKIT_ISA": isa,
    }


def run_cases(path: Path, cells: tuple[str, ...], count: int, seed: int) -> None:
    """In a process with the library's sanitizer: run so many layers."""
    torch.set_num_threads(1)
    library._share_threads = lambda found: None
    header = printing.header([CELLS[name] for name in cells])
    found = library.load(path, source_hash(header))
    native.library = lambda cell=None: found
    done = 0
    while done < count:
        case = random_case(random.Random(seed))
        seed += 1
        if case.cell in cells:
            check(case)
            done += 1
    print(f"{done} cases on {found.isa}")


def child(path: Path, sanitizer: str, isa: str, cells: tuple[str, ...], count: int) -> str:
    """What the sanitizer, or the rule for errors, has found; empty if nothing."""
    code = (
        "import sys, pathlib; from tests.soak.sanitized import run_cases; "
        f"run_cases(pathlib.Path({str(path)!r}), {cells!r}, {count}, 0)"
    )
    # The sanitizer of threads needs addresses where it expects them.
    fixed = ["setarch", "-R"] if sanitizer == "thread" and shutil.which("setarch") else []
    done = subprocess.run(
        [*fixed, sys.executable, "-c", code],
        env=environment(sanitizer, isa),
        capture_output=True,
        text=True,
        errors="replace",
    )
    clean = done.returncode == 0 and not any(word in done.stderr for word in FOUND)
    if clean and f"{count} cases on {isa}" in done.stdout:
        return ""
    return f"exit status {done.returncode}\n{done.stdout[-500:]}{done.stderr[:20_000]}"


def main(argv: list[str] | None = None) -> int:
    """Run the program; its exit status, 1 where something is found."""
    parser = argparse.ArgumentParser(prog="tests.soak.sanitized", description=__doc__)
    parser.add_argument("--cases", type=int, default=300, help="of each instruction set")
    parser.add_argument("--out", type=Path, help="JSON file for what was found")
    options = parser.parse_args(argv)
    figures: dict[str, dict[str, str]] = {}
    for sanitizer in SANITIZERS:
        cells = FEWEST_CELLS if sanitizer == "thread" else tuple(CELLS)
        figures[sanitizer] = {}
        with tempfile.TemporaryDirectory() as folder:
            path = sanitized(Path(folder), sanitizer, cells)
            for isa in INSTRUCTION_SETS:
                found = child(path, sanitizer, isa, cells, options.cases)
                figures[sanitizer][isa] = found
                said = found or f"nothing found in {options.cases} cases"
                print(f"{sanitizer}, {isa}: {said}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")
    return int(any(found for each in figures.values() for found in each.values()))


if __name__ == "__main__":
    sys.exit(main())
