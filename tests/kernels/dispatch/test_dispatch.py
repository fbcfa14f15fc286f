"""Measured tables: what is near, what "auto" makes of it, and what it leaves alone."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rnnkit_kernels.dispatch import choice, tables
from rnnkit_kernels.dispatch.choice import Extras, choose
from rnnkit_kernels.dispatch.tables import Entry, Shape, Table
from rnnkit_kernels.recurrence import plan

AT = Shape("lstm", "bf16", 512, 32)
FAST = {"torch": 1e-3, "data": 5e-4, "counter": 6e-4, "launch": 4e-3}


def table(*entries: Entry) -> Table:
    return Table("a GPU", {"torch": "2"}, entries)


def entry(shape: Shape = AT, **times: float) -> Entry:
    return Entry(shape, 128, dict(times or FAST), dict(times or FAST))


def clear() -> None:
    tables._read.cache_clear()
    tables._lookup.cache_clear()


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Tensors that say they are on an H200, and the folder of its tables."""
    monkeypatch.setenv("RNNKIT_DISPATCH_DIR", str(tmp_path))
    monkeypatch.setattr(choice.Device, "of", lambda device: plan.H200)
    clear()
    with FakeTensorMode():
        yield tmp_path
    clear()


def decide(hidden: int = 512, batch: int = 32, steps: int = 32, **options: Any) -> choice.Decision:
    """What a layer in bfloat16 on the GPU would run."""
    cell = options.pop("cell", "lstm")
    gates = {"lstm": 4, "gru_reset_before": 3}[cell]
    requires_grad = options.pop("requires_grad", True)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="cuda", dtype=torch.bfloat16)

    weights = [tensor(gates * hidden, 8), tensor(gates * hidden, hidden)]
    weights = [weight.requires_grad_(requires_grad) for weight in weights]
    lengths = options.pop("lengths", None)
    wanted = options.pop("backend", "auto")
    return choose(cell, tensor(steps, batch, 8), weights, False, lengths, wanted, **options)


@pytest.mark.parametrize(
    ("other", "doublings"),
    [
        (AT, 0.0),
        (replace(AT, hidden=1024), 1.0),
        (replace(AT, hidden=256, batch=64), 2.0),
        (replace(AT, cell="gru"), float("inf")),
        (replace(AT, dtype="tf32"), float("inf")),
        (replace(AT, directions=2), float("inf")),
        (replace(AT, layers=2), float("inf")),
    ],
    ids=str,
)
def test_distance_is_counted_in_doublings(other: Shape, doublings: float) -> None:
    assert AT.doublings(other) == other.doublings(AT) == doublings


def test_stacks_of_two_speak_for_deeper_ones() -> None:
    assert replace(AT, layers=2).doublings(replace(AT, layers=5)) == 0


def test_the_nearest_entry_counts_if_it_is_near() -> None:
    near, far = entry(replace(AT, hidden=600)), entry(replace(AT, hidden=1024))
    found = table(far, near)
    assert found.nearest(AT) is near
    assert found.nearest(replace(AT, hidden=1100)) is far
    assert found.nearest(replace(AT, batch=4096)) is None
    assert table().nearest(AT) is None


def test_a_table_comes_back_as_it_went(tmp_path: Path) -> None:
    written = table(entry(), entry(replace(AT, directions=2)))
    written.save(tmp_path / "new" / "sm_90.json")
    assert Table.load(tmp_path / "new" / "sm_90.json") == written


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 7}', '{"schema": 1, "entries": [{}]}'])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "sm_90.json").write_text(text)
    with pytest.raises(ValueError, match=r"sm_90\.json is no dispatch table"):
        Table.load(tmp_path / "sm_90.json")


def test_the_schema_is_what_its_version_says() -> None:
    found = json.loads(json.dumps(asdict(table(entry()))))
    assert set(found) == {"gpu", "versions", "entries", "schema"}
    assert set(found["entries"][0]) == {"shape", "steps", "inference", "train"}
    shape = {"cell", "dtype", "hidden", "batch", "layers", "directions"}
    assert set(found["entries"][0]["shape"]) == shape
    assert found["schema"] == 1


def test_shipped_tables_can_be_read() -> None:
    for path in tables.SHIPPED.glob("*.json"):
        assert Table.load(path).entries


def test_without_a_table_torchs_own_runs(gpu: Path) -> None:
    found = decide()
    assert found.engine == "torch"
    assert "no kernel was measured to be faster" in found.reason


def test_the_fastest_engine_runs_with_its_plan(gpu: Path) -> None:
    table(entry()).save(gpu / "sm_90.json")
    found = decide()
    assert found.engine == "data"
    assert found.plan is not None
    assert found.plan.mode == "data"
    assert found.reason == (
        "measured on a GPU at H 512, B 32: 3.91 µs a step, torch's own took 7.81"
    )
    assert decide(hidden=700, batch=20).engine == "data"
    assert decide(batch=1024).engine == "torch"


def test_a_kernel_that_is_hardly_faster_is_left_alone(gpu: Path) -> None:
    table(entry(torch=1e-3, data=0.98e-3)).save(gpu / "sm_90.json")
    assert decide().engine == "torch"


def test_an_engine_without_a_plan_here_makes_room_for_the_next(gpu: Path) -> None:
    """Of 1,800 units none stay on chip."""
    shape = replace(AT, hidden=1600)
    table(entry(shape, torch=1e-3, data=5e-4, launch=8e-4)).save(gpu / "sm_90.json")
    assert decide(hidden=1600).engine == "data"
    assert decide(hidden=1800).engine == "launch"
    table(entry(shape, torch=1e-3, data=5e-4, launch=2e-3)).save(gpu / "sm_90.json")
    assert decide(hidden=1800).engine == "torch"


def test_training_and_inference_are_told_apart(gpu: Path) -> None:
    both = replace(entry(), inference={"torch": 1e-4, "data": 5e-4})
    table(both).save(gpu / "sm_90.json")
    assert decide().engine == "data"
    assert decide(requires_grad=False).engine == "torch"
    with torch.no_grad():
        assert decide().engine == "torch"


def test_what_torch_cant_do_takes_the_fastest_kernel(gpu: Path) -> None:
    table(entry(torch=1e-6, data=5e-4, counter=6e-4)).save(gpu / "sm_90.json")
    assert decide().engine == "torch"
    lengths = torch.empty(32, device="cuda", dtype=torch.int64)
    assert decide(lengths=lengths).engine == "data"
    assert decide(extras=Extras(zoneout=(0.1, 0.0))).engine == "data"
    # Cells that were not measured keep to the rule without programs that wait for each other.
    assert decide(cell="gru_reset_before").engine == "launch"


def test_whom_the_user_names_runs_whatever_was_measured(gpu: Path) -> None:
    table(entry()).save(gpu / "sm_90.json")
    assert decide(backend="torch").engine == "torch"
    assert decide(backend="eager").engine == "eager"
    for mode in ("counter", "launch"):
        found = decide(backend=mode)
        assert found.engine == mode
        assert found.plan is not None
        assert found.plan.mode == mode
    with pytest.raises(RuntimeError, match='backend="resident" can\'t run this layer: hidden size'):
        decide(backend="resident")
    with pytest.raises(
        ValueError, match="backend must be one of auto, triton, native, torch, resident"
    ):
        decide(backend="cudnn")


def test_the_users_folder_comes_before_the_shipped_tables(
    gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = gpu / "shipped"
    monkeypatch.setattr(tables, "SHIPPED", shipped)
    table(entry(torch=1e-3, counter=1e-4)).save(shipped / "sm_90.json")
    assert decide().engine == "counter"
    table(entry()).save(gpu / "sm_90.json")
    assert decide().engine == "data"


def test_short_calls_are_left_to_torch(gpu: Path) -> None:
    """The entry has 128 steps."""
    table(entry()).save(gpu / "sm_90.json")
    assert decide(steps=16).engine == "data"
    assert decide(steps=15).engine == "torch"
    lengths = torch.empty(32, device="cuda", dtype=torch.int64)
    assert decide(steps=15, lengths=lengths).engine == "data"
