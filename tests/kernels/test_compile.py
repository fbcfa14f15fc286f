"""Ahead-of-time compilation for the GPUs that nobody here has: no spill, everything fits."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

SHARED_MEMORY = {80: 166_912, 90: 232_448, 100: 232_448}
SCRIPT = """
import itertools, json
from concurrent.futures import ProcessPoolExecutor
import torch
from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.recurrence import backward, forward
from rnnkit_kernels.recurrence.audit import compile_plan
from rnnkit_kernels.recurrence.plan import Device, plan

SIZES = {"resident": {80: 128, 90: 128, 100: 48}, "launch": {80: 650, 90: 1024, 100: 200}}
SHARED = %s

def compiled(case):
    cell, mode, capability = case
    hidden = SIZES[mode][capability]
    found = plan(CELLS[cell], hidden, torch.bfloat16, Device("", capability, SHARED[capability]),
                 mode=mode)
    resources = compile_plan(CELLS[cell], found, hidden, torch.bfloat16, capability)
    return [[cell, hidden, capability, *vars(r).values()] for r in resources]

if __name__ == "__main__":
    cases = list(itertools.product(CELLS, SIZES, SHARED))
    with ProcessPoolExecutor(2) as pool:
        rows = [row for rows in pool.map(compiled, cases) for row in rows]
    kernels = [getattr(module, f"{mode}_{name}") for name, module in
               (("forward", forward), ("backward", backward)) for mode in SIZES]
    integers = {"t", "steps", "batch"}
    specialised = [f"{kernel.__name__}.{p.name}" for kernel in kernels for p in kernel.params
                   if p.name in integers and not p.do_not_specialize]
    found = sum(p.name in integers for kernel in kernels for p in kernel.params)
    print(json.dumps({"rows": rows, "specialised": specialised, "integers": found}))
"""


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT % SHARED_MEMORY],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_no_bfloat16_kernel_spills(compiled: dict[str, Any]) -> None:
    # 5 cells; two modes, a stage a launch (reset before has two); two directions; three GPUs.
    assert len(compiled["rows"]) == (5 * 2 + (4 + 2) * 2) * 3
    spilled = [row for row in compiled["rows"] if row[5] != 0]
    assert not spilled


def test_every_kernel_fits_its_gpu(compiled: dict[str, Any]) -> None:
    for _, _, capability, name, registers, _, shared, _ in compiled["rows"]:
        assert shared <= SHARED_MEMORY[capability], name
        assert registers <= 255


def test_every_product_runs_on_tensor_cores(compiled: dict[str, Any]) -> None:
    assert all(row[7] > 0 for row in compiled["rows"])


def test_no_step_count_or_batch_size_compiles_anew(compiled: dict[str, Any]) -> None:
    assert compiled["integers"] == 2 * (3 + 2)
    assert compiled["specialised"] == []
