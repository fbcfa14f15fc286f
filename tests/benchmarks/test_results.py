"""JSON that comes back as it went, and comparisons that see changes but not noise."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.results import BASELINE, Record, Results, auto_losses, compare
from tests.benchmarks.planted import gpu_full, record, results


def drawn(peer: str, milliseconds: float, seed: int, spread: float = 0.05) -> Record:
    """A record whose samples scatter as those of a busy machine do: mostly upwards."""
    draw = random.Random(f"{peer} {seed}")
    made = record(peer, 1.0)
    made.seconds = [milliseconds / 1e3 * (1 + abs(draw.gauss(0, spread))) for _ in range(40)]
    return made


def test_json_comes_back_as_it_went(tmp_path: Path) -> None:
    written = gpu_full()
    written.save(tmp_path / "r.json")
    assert Results.load(tmp_path / "r.json") == written
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "holds no benchmark results"),
        ("[1]", "holds no benchmark results"),
        ("{}", "holds no benchmark results"),
        ('{"schema": 99}', "has schema 99, this version reads 1"),
        ('{"schema": 1, "records": []}', "does not hold the fields of schema 1"),
        ('{"schema": 1, "cases": {}, "records": [{"case": 1}]}', "does not hold the fields"),
    ],
)
def test_other_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Results.load(path)


def test_the_schema_is_what_its_version_says(tmp_path: Path) -> None:
    """A field that comes or goes needs a new version, or older files can't be read."""
    results(record(BASELINE, 1.0)).save(tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    names = {"machine", "commands", "commit", "started", "cases", "floor", "records", "schema"}
    assert set(found) == names
    assert set(found["records"][0]) == {
        "case", "cell", "dtype", "mode", "peer", "status", "message", "engine", "seconds",
        "graph_seconds", "graph_message", "error", "peak_bytes", "first_call_seconds",
        "floor_seconds",
    }  # fmt: skip
    assert set(found["cases"]["ptb-small"]) == {
        "name", "source", "steps", "batch", "features", "hidden", "layers", "directions", "ragged",
        "reset_every",
    }  # fmt: skip
    assert found["schema"] == 1


def test_statistics_of_known_samples() -> None:
    known = replace(record("a", 1.0), seconds=[1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 9.0])
    assert known.median == 1.5
    assert (known.quantile(0.2), known.quantile(0.8)) == (1.0, 2.0)
    assert known.noise == pytest.approx((2 - 1) / 1.5)
    steady = replace(known, seconds=[1.0] * 10)
    assert steady.noise == steady.uncertainty == 0


@pytest.mark.parametrize("factor", [1.1, 1 / 1.1])
def test_a_change_of_ten_percent_is_found(factor: float) -> None:
    old = results(drawn(BASELINE, 10, 0), drawn("rnnkit data", 5, 0), drawn("torchrl", 7, 0))
    new = results(
        drawn(BASELINE, 10, 1), drawn("rnnkit data", 5 * factor, 1), drawn("torchrl", 7, 1)
    )
    changes = {change.key[4]: change for change in compare(old, new)}
    assert [peer for peer, change in changes.items() if change.real] == ["rnnkit data"]
    assert changes["rnnkit data"].ratio == pytest.approx(factor, rel=0.03)


def test_noise_is_ignored() -> None:
    for seed in range(50):
        old = results(drawn(BASELINE, 10, 2 * seed), drawn("rnnkit data", 5, 2 * seed))
        new = results(drawn(BASELINE, 10, 2 * seed + 1), drawn("rnnkit data", 5, 2 * seed + 1))
        assert not any(change.real for change in compare(old, new))


def test_a_machine_that_is_slower_today_changes_the_baseline_alone() -> None:
    old = results(drawn(BASELINE, 10, 0), drawn("rnnkit data", 5, 0))
    new = results(drawn(BASELINE, 15, 1), drawn("rnnkit data", 7.5, 1))
    by_peer = {change.key[4]: change for change in compare(old, new)}
    assert by_peer[BASELINE].real
    assert not by_peer["rnnkit data"].real
    assert by_peer["rnnkit data"].paired
    alone = compare(results(drawn("rnnkit data", 5, 0)), results(drawn("rnnkit data", 7.5, 1)))
    assert [change.real for change in alone] == [True]
    assert not alone[0].paired


def test_what_has_no_time_is_not_compared() -> None:
    failed = record("rnnkit data", status="failed", message="out of luck")
    assert compare(results(failed), results(drawn("rnnkit data", 5, 0))) == []
    assert compare(results(drawn("rnnkit data", 5, 0)), results(failed)) == []


def test_auto_loses_to_its_engines_and_the_baseline_alone() -> None:
    auto, fast = record("rnnkit auto", 5.0), record("rnnkit data", 4.0)
    others = [
        record(BASELINE, 5.0),
        record("torchrl", 1.0),
        record(f"{BASELINE} without cuDNN", 1.0),
    ]
    ((loser, best),) = auto_losses(results(auto, fast, *others))
    assert (loser.peer, best.peer) == ("rnnkit auto", "rnnkit data")
    assert auto_losses(results(auto, *others)) == []
    wrong = replace(fast, status="wrong", seconds=[])
    assert auto_losses(results(auto, wrong, *others)) == []
