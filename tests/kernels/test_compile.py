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

SHARED = %s
SIZES = {"resident": {80: 128, 90: 128, 100: 48}, "launch": {80: 650, 90: 1024, 100: 200}}
CASES = [
    (cell, mode, capability, SIZES[mode][capability], "bfloat16", "ieee", True)
    for cell, mode, capability in itertools.product(CELLS, SIZES, SHARED)
] + [  # the limits of the rule, the other dtypes and precisions, dense rows
    ("lstm", "resident", 90, 144, "bfloat16", "ieee", False),
    ("lstm", "resident", 90, 128, "float16", "ieee", False),
    ("gru", "resident", 80, 64, "float32", "tf32", False),
    ("lstm", "resident", 90, 64, "float32", "tf32", True),
    ("gru_reset_before", "resident", 100, 32, "float32", "ieee", True),
    ("lstm", "resident", 90, 32, "float32", "ieee", False),
    ("gru", "launch", 90, 650, "float32", "tf32", False),
    ("lstm", "launch", 80, 1500, "float16", "ieee", False),
    ("lstm", "launch", 90, 200, "float32", "ieee", True),
]

def compiled(case):
    cell, mode, capability, hidden, dtype, precision, ragged = case
    dtype = getattr(torch, dtype)
    device = Device("", capability, SHARED[capability])
    found = plan(CELLS[cell], hidden, dtype, device, precision, mode)
    resources = compile_plan(CELLS[cell], found, hidden, dtype, capability, ragged)
    cores = precision == "tf32" or dtype != torch.float32
    return [[*case, cores, vars(r)] for r in resources]

if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool:
        rows = [row for rows in pool.map(compiled, CASES) for row in rows]
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


def test_no_kernel_spills(compiled: dict[str, Any]) -> None:
    # 5 cells; two modes, a stage a launch (reset before has two); two directions; three GPUs;
    # then nine plans of two kernels.
    assert len(compiled["rows"]) == (5 * 2 + (4 + 2) * 2) * 3 + 9 * 2
    assert [row for row in compiled["rows"] if row[-1]["stack"] != 0] == []


def test_every_kernel_fits_its_gpu(compiled: dict[str, Any]) -> None:
    for row in compiled["rows"]:
        assert row[-1]["shared_memory"] <= SHARED_MEMORY[row[2]], row
        assert row[-1]["registers"] <= 255, row


def test_products_run_on_tensor_cores_where_the_dtype_has_them(compiled: dict[str, Any]) -> None:
    for *case, cores, resources in compiled["rows"]:
        assert (resources["tensor_core_instructions"] > 0) == cores, case


def test_no_step_count_or_batch_size_compiles_anew(compiled: dict[str, Any]) -> None:
    assert compiled["integers"] == 2 * (3 + 2)
    assert compiled["specialised"] == []
