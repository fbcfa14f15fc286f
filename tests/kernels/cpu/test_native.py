"""The native engine: any layer is as exact as a plain loop, in any number of threads."""

import os
import random
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rnnkit_kernels.cpu.sources import INSTRUCTION_SETS
from tests.conftest import needs_engine
from tests.kernels.cpu.cases import Case, check, random_case, run

pytestmark = needs_engine

CASE = Case(
    cell="lstm",
    storage="packed",
    reverse=False,
    steps=7,
    batch=5,
    features=5,
    hidden=33,
    projection=0,
    bias=True,
    zoneout=False,
    recompute=False,
    dtype=torch.float32,
    threads=2,
    seed=0,
)
QUICK = settings(
    deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@settings(QUICK, max_examples=60)
@given(st.integers(0, 2**31).map(lambda seed: random_case(random.Random(seed))))
def test_any_layer_is_as_exact_as_a_plain_loop(case: Case) -> None:
    check(case)


@pytest.mark.slow
@settings(QUICK, max_examples=400)
@given(st.integers(0, 2**31).map(lambda seed: random_case(random.Random(seed))))
def test_many_layers_are_as_exact_as_a_plain_loop(case: Case) -> None:
    check(case)


# Sequences below and above the eight from which threads take rows; one row; one number; tails.
EDGES = [
    replace(CASE, batch=3),
    replace(CASE, batch=13, reverse=True),
    replace(CASE, batch=1, steps=23),
    replace(CASE, batch=1, steps=1, hidden=1, features=1, storage="dense"),
    replace(CASE, cell="gru_reset_before", zoneout=True, storage="padded", batch=13),
    replace(CASE, cell="gru_reset_before", zoneout=True, storage="padded", batch=4, reverse=True),
    replace(CASE, cell="gru", storage="padded", reverse=True, hidden=17),
    replace(CASE, projection=7, reverse=True, batch=4),
    replace(CASE, cell="lstm_peephole", projection=7, batch=17),
    replace(CASE, cell="rnn_relu", bias=False, dtype=torch.float64),
    replace(CASE, zoneout=True, dtype=torch.float64, batch=9),
]


@pytest.mark.parametrize("case", EDGES, ids=range(len(EDGES)))
def test_edges(case: Case) -> None:
    for threads in (1, 2, 3):
        check(replace(case, threads=threads))


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [
        {"steps": 300, "batch": 1, "hidden": 65},
        {"steps": 300, "batch": 3, "hidden": 17, "storage": "padded"},
        {"steps": 12, "batch": 20, "hidden": 650, "features": 650},
        {"steps": 6, "batch": 3, "hidden": 650, "features": 33, "dtype": torch.float64},
        {"steps": 30, "batch": 70, "hidden": 33, "features": 600},
        {"steps": 12, "batch": 12, "hidden": 400, "projection": 130},
    ],
    ids=str,
)
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_large_layers(cell: str, sizes: dict[str, Any]) -> None:
    if sizes.get("projection") and cell != "lstm":
        pytest.skip("only an LSTM projects")
    check(replace(CASE, cell=cell, **sizes))


ALL_SETS = """
import random, sys
from rnnkit_kernels.cpu.library import library, missing
from tests.kernels.cpu.cases import check, random_case
from tests.kernels.cpu.test_native import EDGES
if library() is None:
    sys.exit(missing())
for case in [*EDGES, *(random_case(random.Random(seed)) for seed in range({count}))]:
    check(case)
print(library().isa)
"""


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_instruction_set(isa: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALL_SETS.format(count=8)],
        env={**os.environ, "RNNKIT_ISA": isa},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if "no code for this processor" in done.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert done.stdout.split() == [isa], done.stderr


def denormals_are_kept() -> bool:
    return bool(torch.tensor(1e-39) * 0.5 > 0)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_caller_s_mode_for_denormals_stays(threads: int) -> None:
    case = replace(CASE, threads=threads)
    assert denormals_are_kept()
    run(case, case.layer())
    assert denormals_are_kept()
    torch.set_flush_denormal(True)
    try:
        run(case, case.layer())
        assert not denormals_are_kept()
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize(
    "case",
    [CASE, replace(CASE, cell="gru", batch=13), replace(CASE, cell="gru_reset_before", batch=3)],
    ids=["lstm", "gru", "gru_reset_before"],
)
def test_twenty_runs_give_equal_bits(case: Case) -> None:
    layer = case.layer()
    first = run(case, layer)
    for _ in range(19):
        for a, b in zip(first, run(case, layer), strict=True):
            assert torch.equal(a, b)
