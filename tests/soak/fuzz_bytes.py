"""The process that atheris fuzzes one target in; `tests.soak.fuzz` starts it."""

import json
import logging
import signal
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=[
        *("rnnkit.data", "rnnkit.language_modeling", "rnnkit.tagging", "rnnkit.translation"),
        "rnnkit.training.callbacks.checkpoint_io",
    ]
):
    pass

from tests.soak.fuzz import Findings
from tests.soak.fuzz_targets import TARGETS


def main() -> None:
    """Fuzz the target that is named first; findings go to the file that is named second."""
    name, found, *options = sys.argv[1:]
    findings = Findings(next(target for target in TARGETS if target.name == name).check)
    known = 0

    def try_input(content: bytes) -> None:
        nonlocal known
        findings.try_input(content)
        if len(findings.found) > known:
            known = len(findings.found)
            Path(found).write_text(json.dumps(findings.found))

    atheris.Setup([sys.argv[0], *options], try_input)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)  # libFuzzer has its own limit for one input
    atheris.Fuzz()


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # notes about thousands of inputs
    main()
