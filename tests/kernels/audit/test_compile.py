"""Ahead-of-time compilation for the GPUs that nobody here has: no spill, everything fits.

`rnnkit_kernels.audit` compiles, in a process of its own, since here Triton interprets.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KERNELS = Path(__file__).parents[3] / "kernels"
SCRIPT = """
import dataclasses, json
from concurrent.futures import ProcessPoolExecutor
from rnnkit_kernels.audit.cases import DTYPES, quick_cases
from rnnkit_kernels.audit.compilation import compile_case
from rnnkit_kernels.audit.sources import source_hash
from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.recurrence import resident, stepping
from rnnkit_kernels.recurrence.plan import Plan, resident_bytes, together_bytes

def estimates(case, found):
    cell, itemsize = CELLS[case.cell], DTYPES[case.dtype][0].itemsize
    if found.mode == "resident":
        return [resident_bytes(cell, found.forward.chunks[0], itemsize, 16)] * 2
    if found.mode == "launch":
        return None
    bytes_of = itemsize * (2 if found.precision == "tf32x3" else 1)
    weights = 1 + case.wavefront
    tiles = [found.forward, found.backward]
    return [together_bytes(cell, t, bytes_of, i == 1, weights) for i, t in enumerate(tiles)]

def row(result):
    case, found, resources = result
    assert isinstance(found, Plan), (case, found)
    return [dataclasses.asdict(case), found.mode, [vars(r) for r in resources],
            estimates(case, found)]

if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool:
        rows = [row(result) for result in pool.map(compile_case, quick_cases())]
    kernels = [stepping.stepping_forward, stepping.stepping_backward,
               resident.resident_forward, resident.resident_backward]
    runtime = ("first_member", "reverse", "begin", "end", "steps", "batch", "budget", "threshold",
               "scale")
    specialised = [f"{kernel.__name__}.{p.name}" for kernel in kernels for p in kernel.params
                   if p.name in runtime and not p.do_not_specialize]
    print(json.dumps({"rows": rows, "specialised": specialised, "hash": source_hash()}))
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
    assert 30 <= len(compiled["rows"]) <= 40
    for case, mode, resources, _ in compiled["rows"]:
        assert len(resources) >= 2
        assert case["mode"] in (None, mode)
        for found in resources:
            assert found["faults"] == [], (case, found)
            assert found["stack"] == 0, (case, found)


def test_every_mode_cell_target_and_precision_is_compiled(compiled: dict[str, Any]) -> None:
    from rnnkit_kernels.cells import CELLS

    rows = compiled["rows"]
    assert {mode for _, mode, _, _ in rows} == {"resident", "data", "counter", "launch"}
    assert {case["cell"] for case, *_ in rows} == set(CELLS)
    assert {case["target"] for case, *_ in rows} == {"sm_80", "sm_90", "sm_100"}
    assert {case["dtype"] for case, *_ in rows} == {"bf16", "fp16", "tf32", "tf32x3", "fp32"}


def test_products_run_on_tensor_cores_where_the_dtype_has_them(compiled: dict[str, Any]) -> None:
    for case, _, resources, _ in compiled["rows"]:
        for found in resources:
            cores = found["tensor_core_instructions"] > 0
            assert cores == (case["dtype"] != "fp32"), (case, found)


def test_plans_never_promise_less_shared_memory_than_a_kernel_takes(
    compiled: dict[str, Any],
) -> None:
    for case, _, resources, estimates in compiled["rows"]:
        if estimates is not None:
            for found, estimate in zip(resources, estimates, strict=True):
                assert found["shared_memory"] <= estimate, (case, found, estimate)


def test_no_step_count_or_batch_size_compiles_anew(compiled: dict[str, Any]) -> None:
    assert compiled["specialised"] == []


def test_the_committed_table_is_of_these_kernels(compiled: dict[str, Any]) -> None:
    text = (KERNELS / "audit.md").read_text()
    found = re.search(r"source `([0-9a-f]+)`", text)
    assert found is not None
    message = "stale: run python -m rnnkit_kernels.audit --out kernels/audit.md"
    assert found[1] == compiled["hash"], message
