"""Look for inputs that break something, for a while: `python -m tests.soak.fuzz --minutes 10`.

Every target gets an equal share of the time. Readers of bytes are fuzzed with atheris, which is
guided by coverage, where it is installed (`pip install atheris`), each in a process of its own;
else, as all others, with hypothesis. Exit status 1: something was found; the inputs stand in the
JSON file.
"""

import argparse
import importlib.util
import json
import logging
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.soak.fuzz_targets import TARGETS, Target

ROOT = Path(__file__).parents[2]
LONGEST = 30.0  # seconds for one input: more is a finding, for no input here is large
MOST_SHOWN = 2000  # characters of an input
BATCH = 100  # inputs of one run of hypothesis
FEWEST = 20  # inputs that are tried, however short the time


class Findings:
    """What went wrong: of each kind of error at each place one input.

    Args:
        check: Raises what is a finding.
    """

    def __init__(self, check: Callable[[Any], None]) -> None:
        self.check = check
        self.inputs = 0
        self.found: dict[str, dict[str, str]] = {}

    def try_input(self, value: Any) -> None:
        """Try one input; nothing is raised."""
        self.inputs += 1
        signal.setitimer(signal.ITIMER_REAL, LONGEST)
        try:
            self.check(value)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
            shown = repr(value)[:MOST_SHOWN]
            known = self.found.get(place)
            if known is None or len(shown) < len(known["input"]):
                self.found[place] = {"error": str(error)[:MOST_SHOWN], "input": shown}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"one input takes longer than {LONGEST:.0f} s")


def first_inputs(target: Target) -> list[bytes]:
    """The inputs that a fuzzer of bytes begins with."""
    return [each() if callable(each) else each for each in target.inputs]


def changed(first: list[bytes]) -> Any:
    """Strategy of bytes: any, or the first ones with some pieces cut out, doubled or replaced."""

    def change(whole: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
        for where, size, new in edits:
            start = int(where * len(whole))
            whole = whole[:start] + new + whole[start + size :]
        return whole

    edit = st.tuples(st.floats(0, 1), st.integers(0, 20), st.binary(max_size=8))
    edits = st.lists(edit, max_size=6)
    return st.one_of(st.builds(change, st.sampled_from(first), edits), st.binary(max_size=300))


def with_hypothesis(target: Target, seconds: float, first_seed: int) -> Findings:
    """Fuzz one target in this process."""
    findings = Findings(target.check)
    inputs = changed(first_inputs(target)) if target.reads_bytes else target.inputs
    deadline = time.monotonic() + seconds
    number = first_seed
    while time.monotonic() < deadline or findings.inputs < FEWEST:

        @seed(number)
        @settings(
            max_examples=BATCH,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(inputs)
        def batch(value: Any) -> None:
            if time.monotonic() < deadline or findings.inputs < FEWEST:
                findings.try_input(value)

        batch()
        number += 1
    return findings


def with_atheris(target: Target, seconds: float, first_seed: int) -> Findings:
    """Fuzz one target in a process of its own: atheris does not come back."""
    findings = Findings(target.check)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "first").mkdir()
        for number, content in enumerate(first_inputs(target)):
            (place / "first" / str(number)).write_bytes(content)
        command = [
            *(sys.executable, "-m", "tests.soak.fuzz_bytes", target.name, str(place / "found")),
            *(f"-max_total_time={max(1, round(seconds))}", f"-seed={first_seed + 1}"),
            *(f"-artifact_prefix={name}/", "-print_final_stats=1", "-max_len=4096"),
            *(f"-timeout={LONGEST:.0f}", "-rss_limit_mb=8192", str(place / "first")),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
        if match := re.search(r"number_of_executed_units:\s*(\d+)", done.stderr):
            findings.inputs = int(match[1])
        if (place / "found").is_file():
            findings.found = json.loads((place / "found").read_text())
        if done.returncode:
            ends = sorted(each for each in place.iterdir() if each.name not in ("first", "found"))
            shown = repr(ends[0].read_bytes())[:MOST_SHOWN] if ends else ""
            findings.found["the process ended"] = {"error": done.stderr[-500:], "input": shown}
    return findings


def main(argv: list[str] | None = None) -> int:
    """Fuzz what the command line says; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.fuzz", description=__doc__)
    names = [target.name for target in TARGETS]
    parser.add_argument("--minutes", type=float, required=True, help="in all")
    parser.add_argument("--targets", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--seed", type=int, default=random.randrange(2**20))
    parser.add_argument("--out", type=Path, default=Path("fuzz.json"))
    parser.add_argument("--engine", choices=("atheris", "hypothesis"), help="of bytes")
    arguments = parser.parse_args(argv)
    out = arguments.out.absolute()  # fuzzing commands changes the folder
    engine = arguments.engine or "atheris"
    if engine == "atheris" and importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: bytes are fuzzed with hypothesis", flush=True)
        engine = "hypothesis"
    signal.signal(signal.SIGALRM, _too_long)
    chosen = [target for target in TARGETS if target.name in arguments.targets]
    results: dict[str, Any] = {}
    for target in chosen:
        used = engine if target.reads_bytes else "hypothesis"
        fuzz = with_atheris if used == "atheris" else with_hypothesis
        started = time.monotonic()
        findings = fuzz(target, 60 * arguments.minutes / len(chosen), arguments.seed)
        seconds = time.monotonic() - started
        results[target.name] = {
            "engine": used,
            "inputs": findings.inputs,
            "seconds": round(seconds, 1),
            "findings": findings.found,
        }
        print(
            f"{target.name:14} {used:10} {findings.inputs:>9,} inputs, "
            f"{findings.inputs / seconds:>8,.0f} a second, {len(findings.found)} findings",
            flush=True,
        )
        report = {"seed": arguments.seed, "minutes": arguments.minutes, "targets": results}
        out.write_text(json.dumps(report, indent=1) + "\n")
    return int(any(each["findings"] for each in results.values()))


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # notes about thousands of inputs
    sys.exit(main())
