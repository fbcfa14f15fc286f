"""The table that is made of results, and what lies near its grid."""

import math
from pathlib import Path

import pytest

from benchmarks import tune
from benchmarks.cases import CASES
from benchmarks.results import BASELINE, Record, Results
from rnnkit_kernels.dispatch import tables
from rnnkit_kernels.dispatch.tables import Shape, Table
from tests.benchmarks.planted import record, results


def measured(case: str, **milliseconds: float) -> list[Record]:
    """Records of a case in both modes; inference takes half the time."""
    found = []
    for name, value in milliseconds.items():
        peer = BASELINE if name == "torch" else f"rnnkit {name}"
        for mode, share in (("inference", 0.5), ("train", 1.0)):
            found.append(record(peer, value * share, case=case, mode=mode, dtype="bf16"))
    return found


def on_gpu(*records: Record) -> Results:
    found = results(*records, device="cuda")
    found.machine = {"device": "a GPU", "capability": "9.0", "torch": "2", "triton": "3"}
    return found


def test_a_table_holds_the_medians_of_every_engine(tmp_path: Path) -> None:
    path = tune.write(on_gpu(*measured("odd", torch=4.0, data=2.0, launch=9.0)), tmp_path)
    assert path == tmp_path / "sm_90.json"
    found = Table.load(path)
    assert found.gpu == "a GPU"
    assert set(found.versions) == {"torch", "triton", "cudnn", "driver", "kernels"}
    (entry,) = found.entries
    assert entry.shape == Shape("lstm", "bf16", 300, 12)
    assert entry.steps == 200
    assert entry.train == pytest.approx({"torch": 4e-3, "data": 2e-3, "launch": 9e-3})
    assert entry.inference == pytest.approx({"torch": 2e-3, "data": 1e-3, "launch": 4.5e-3})


def test_what_cant_be_decided_is_left_out(tmp_path: Path) -> None:
    alone = measured("ptb-small", torch=1.0)
    without = measured("ptb-medium", data=1.0)
    ragged = measured("tagger", torch=2.0, data=1.0)
    half = measured("awd", torch=2.0, data=1.0)[:-1]  # no kernel's time in training
    wrong = [*measured("long", torch=2.0), record("rnnkit data", case="long", status="wrong")]
    with pytest.raises(ValueError, match="nothing to decide"):
        tune.write(on_gpu(*alone, *without, *ragged, *half, *wrong), tmp_path)
    good = measured("odd", torch=2.0, data=1.0)
    tune.write(on_gpu(*alone, *good, *ragged), tmp_path)
    assert [entry.shape.hidden for entry in Table.load(tmp_path / "sm_90.json").entries] == [300]


def test_the_table_goes_where_auto_looks_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNKIT_DISPATCH_DIR", str(tmp_path))
    shape = Shape("lstm", "bf16", 300, 12)
    assert tables.lookup(90, shape) is None
    assert tune.write(on_gpu(*measured("odd", torch=2.0, data=1.0))).parent == tmp_path
    found = tables.lookup(90, shape)
    assert found is not None
    assert found[0] == "a GPU"
    monkeypatch.delenv("RNNKIT_DISPATCH_DIR")
    assert tables.lookup(90, shape) != found


def test_a_cpu_has_no_table() -> None:
    with pytest.raises(ValueError, match="for a GPU"):
        tune.write(results(*measured("odd", torch=2.0, data=1.0)))


@pytest.mark.parametrize(("layers", "directions"), [(1, 1), (1, 2), (2, 1), (4, 1)])
def test_no_usual_shape_lies_between_the_points_of_the_grid(layers: int, directions: int) -> None:
    points = [Shape("lstm", "bf16", c.hidden, c.batch, c.layers, c.directions) for c in tune.grid()]
    for hidden in (64, 90, 150, 200, 300, 450, 650, 900, 1150, 1300, 1500):
        for batch in (1, 3, 12, 20, 60, 80, 130, 250, 512):
            shape = Shape("lstm", "bf16", hidden, batch, layers, directions)
            distance = min(shape.doublings(point) for point in points)
            assert distance <= tables.FARTHEST, shape
    assert math.isinf(points[0].doublings(Shape("gru", "bf16", 64, 1)))


def test_the_grid_begins_with_the_named_cases_and_repeats_no_name() -> None:
    names = [case.name for case in tune.grid()]
    assert len(set(names)) == len(names)
    assert names[0] == next(iter(CASES))
    assert not any(case.ragged for case in tune.grid())
