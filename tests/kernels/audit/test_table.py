"""The committed table is of these kernels, and no kernel in it spills, overflows or is left out."""

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from rnnkit_kernels.audit.sources import source_hash
from rnnkit_kernels.cells import CELLS

ROOT = Path(__file__).parents[3]
TABLE = (ROOT / "kernels" / "audit.md").read_text()
MAKE = "run python -m rnnkit_kernels.audit --out kernels/audit.md"


class Row(NamedTuple):
    target: str
    cell: str
    hidden: int
    dtype: str
    batch: int
    members: str
    kernel: str
    registers: int
    stack: int
    shared_memory: int
    tensor_cores: int


@cache
def rows() -> list[Row]:
    found = []
    for line in TABLE.split("The CRF's kernels")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].startswith("sm_"):
            kinds = Row.__annotations__.values()
            found.append(Row(*(kind(cell) for kind, cell in zip(kinds, cells[:11], strict=True))))
    return found


def test_the_table_is_of_these_kernels() -> None:
    found = re.search(r"source `([0-9a-f]+)`", TABLE)
    assert found is not None
    assert found[1] == source_hash(), f"kernels/audit.md is of other kernels: {MAKE}"


def test_the_table_is_of_the_pinned_triton() -> None:
    pin = re.search(r"^triton==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    made = re.search(r"triton (\S+), source", TABLE)
    assert pin is not None
    assert made is not None
    assert made[1] == pin[1], f"kernels/audit.md is of another triton than the pinned one: {MAKE}"


def test_every_mode_cell_target_and_precision_is_in_the_table() -> None:
    modes = {row.kernel.partition("_")[0] for row in rows()}
    assert modes == {"resident", "data", "counter", "launch"}
    assert {row.cell for row in rows()} == set(CELLS)
    assert {row.target for row in rows()} == {"sm_80", "sm_90", "sm_100"}
    assert {row.dtype for row in rows()} == {"bf16", "fp16", "tf32", "tf32x3", "fp32"}
    assert len(rows()) > 500


def test_nothing_spills_and_products_run_on_tensor_cores() -> None:
    for row in rows():
        assert row.stack == 0, row
        assert (row.tensor_cores > 0) == (row.dtype != "fp32"), row


def test_no_kernel_of_the_crf_spills() -> None:
    tables = TABLE.split("The CRF's kernels")[1]
    found = re.findall(r"^\| sm_\w+ \| \d+ \| \w+ \| \w+ \| \d+ \| (\d+) \|", tables, re.MULTILINE)
    assert found == ["0"] * 24


def test_plans_never_promise_less_shared_memory_than_a_kernel_takes() -> None:
    from rnnkit_kernels.audit.cases import DEVICES, DTYPES, Case
    from rnnkit_kernels.recurrence.plan import Plan, resident_bytes, together_bytes

    checked = 0
    for row in rows():
        mode, direction = row.kernel.partition("[")[0].split("_")
        assert row.shared_memory <= DEVICES[row.target].shared_memory
        if mode == "launch":
            continue
        wavefront = "layers" in row.members
        members = int(row.members.split()[0])
        sizes = (row.cell, row.hidden, row.dtype, row.target, mode, row.batch, members)
        plan = Case(*sizes, wavefront=wavefront).plan()  # type: ignore[arg-type]
        assert isinstance(plan, Plan)
        itemsize, cell = DTYPES[row.dtype][0].itemsize, CELLS[row.cell]
        if mode == "resident":
            promised = resident_bytes(cell, plan.forward.chunks[0], itemsize, 16)
        else:
            itemsize *= 2 if plan.precision == "tf32x3" else 1
            back = direction == "backward"
            tiles = plan.backward if back else plan.forward
            promised = together_bytes(cell, tiles, itemsize, back, 1 + wavefront)
        assert row.shared_memory <= promised, row
        checked += 1
    assert checked > 300
