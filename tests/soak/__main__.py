"""`make soak`: kills, memory, sanitizers and fuzzing one after the other, for most of an hour."""

import argparse
import sys
import time
from pathlib import Path

from tests.soak import fuzz, kills, memory, sanitized


def main() -> int:
    """Run all; exit status 1 where one of them found something."""
    parser = argparse.ArgumentParser(prog="tests.soak", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/soak"), help="folder for figures")
    parser.add_argument("--minutes", default="20", help="of fuzzing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for program, arguments in (
        (kills.main, ["--seeds", "20"]),
        (memory.main, ["--steps", "10000"]),
        (sanitized.main, ["--cases", "300"]),
        (fuzz.main, ["--minutes", options.minutes]),
    ):
        name = program.__module__.rpartition(".")[2]
        started = time.monotonic()
        status = program([*arguments, "--out", str(options.out / f"{name}.json")])
        minutes = (time.monotonic() - started) / 60
        print(f"{name}: {'nothing' if status == 0 else 'something'} found in {minutes:.0f} minutes")
        failed |= status != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
