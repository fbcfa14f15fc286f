"""Ahead-of-time compilation for the GPUs that nobody here has: six plans that reach every rule.

All plans of the benchmarks are compiled by `python -m rnnkit_kernels.audit`, whose table
test_table.py holds against the kernels. It compiles in a process of its own, since here Triton
interprets.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.process, pytest.mark.compiler]

TABLE = Path(__file__).parents[3] / "kernels" / "audit.md"
SCRIPT = """
import dataclasses, json
from concurrent.futures import ProcessPoolExecutor
import triton
from rnnkit_kernels.audit.cases import quick_cases, sample_cases
from rnnkit_kernels.audit.compilation import compile_case
from rnnkit_kernels.audit.table import row
from rnnkit_kernels.recurrence.plan import Plan

if __name__ == "__main__":
    assert set(sample_cases()) <= set(quick_cases())
    rows = []
    with ProcessPoolExecutor(2) as pool:
        for case, found, resources in pool.map(compile_case, sample_cases()):
            assert isinstance(found, Plan), (case, found)
            rows += [[dataclasses.asdict(case), found.mode, vars(r), row(case, r)]
                     for r in resources]
    print(json.dumps({"rows": rows, "triton": triton.__version__}))
"""


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_no_kernel_spills_overflows_or_breaks_a_rule(compiled: dict[str, Any]) -> None:
    """The rules of assembly.py: polls, meetings, weights on chip, tensor cores, 64-bit rows."""
    assert len(compiled["rows"]) >= 12
    assert {mode for _, mode, _, _ in compiled["rows"]} == {
        *("resident", "data", "counter", "launch")
    }
    for case, mode, found, _ in compiled["rows"]:
        assert case["mode"] == mode
        assert found["faults"] == [], (case, found)
        assert found["stack"] == 0, (case, found)


def test_the_committed_table_says_of_them_what_was_compiled(compiled: dict[str, Any]) -> None:
    table = TABLE.read_text()
    if f"triton {compiled['triton']}," not in table:
        pytest.skip("the committed table is of another triton")
    for _, _, _, row in compiled["rows"]:
        assert f"\n{row}" in table
