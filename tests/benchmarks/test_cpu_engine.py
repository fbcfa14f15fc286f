"""The native engine beside torch.nn: what is measured, and what is made of it."""

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cpu_engine, cpu_ratios, cpu_records
from benchmarks.cpu_engine import BASELINE, check, in_turn, main, measure, sides
from benchmarks.cpu_ratios import Ratio, geometric_mean, ratios_of, slower
from benchmarks.cpu_records import Case, Record, Run, cases
from rnnkit_kernels.cpu.library import library, missing

needs_engine = pytest.mark.skipif(library() is None, reason=f"no engine: {missing()}")
SMALL = (5, 4, 6, 8)


def record(ours: float, case: Case | None = None, **changes: Any) -> Record:
    """A case in which torch.nn takes 1 ms, with a spread of 1 %, and the sides a share of it."""
    case = Case("lstm", SMALL, "train", False, 1) if case is None else case
    theirs = [1e-3 * (1 + 0.01 * (i % 3 - 1)) for i in range(15)]
    names = cpu_records.SIDES[case.ragged]
    wall = {BASELINE: theirs, names[0]: [t * ours for t in theirs], names[1]: theirs}
    cpu = {name: [2 * t for t in times] for name, times in wall.items()}
    values = {"engines": dict.fromkeys(wall, "native"), "repeats": dict.fromkeys(wall, 20)}
    return Record(case, **{**values, "wall": wall, "cpu": cpu, "load": 0.5, **changes})


@needs_engine
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("mode", cpu_records.MODES)
@pytest.mark.parametrize("cell", cpu_records.CELLS)
def test_all_sides_compute_the_same(cell: str, mode: str, ragged: bool) -> None:
    calls, engines = sides(Case(cell, SMALL, mode, ragged, 1))
    assert list(calls) == list(engines) == [BASELINE, *cpu_records.SIDES[ragged]]
    assert engines[BASELINE] == "torch"
    with torch.set_grad_enabled(mode == "train"):
        check(calls)
        found = [call() for call in calls.values()]
    # The output; of x, two weights and two biases a gradient.
    assert {len(each) for each in found} == {1 if mode == "inference" else 6}
    assert all(each[0].shape == (5, 4, 8) for each in found)
    assert all(each[0].requires_grad == (mode == "train") for each in found)


def test_what_is_wrong_gets_no_time() -> None:
    right = [torch.ones(3), torch.full((2,), 100.0)]
    calls: dict[str, Callable[[], list[torch.Tensor]]] = {BASELINE: lambda: right}
    for wrong, reason in (
        ([right[0] * 1.01, right[1]], r"native: the output differs from torch\.nn's by 0\.01"),
        ([right[0], right[1] * math.nan], "native: gradient 1 differs"),
        ([right[0], right[1][:1]], "native: gradient 1 differs"),
    ):
        with pytest.raises(ValueError, match=reason):
            check({**calls, "native": lambda wrong=wrong: wrong})  # type: ignore[misc]
    check({**calls, "native": lambda: [right[0], right[1] + 0.05]})


def test_lengths_are_drawn_once_and_for_all() -> None:
    long = Case("gru", (100, 64, 8, 8), "train", True, 1)
    lengths = long.lengths()
    assert torch.equal(lengths, long.lengths())
    assert lengths.min() >= 1
    assert lengths.max() <= 100
    assert len(lengths.unique()) > 30
    assert not torch.equal(lengths, lengths.sort(descending=True).values)


def test_all_cases_are_there_once() -> None:
    found = list(cases(cpu_records.SHAPES, [1, 2]))
    assert len(found) == len(set(found)) == 3 * 7 * 2 * 2 * 2


def test_turns_repeat_short_calls_and_change_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that every call moves on: half a millisecond, and 30; half of it is work."""
    now, order = [0.0], []
    monkeypatch.setattr(cpu_engine.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(cpu_engine.time, "process_time", lambda: now[0] / 2)

    def takes(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            now[0] += seconds
            order.append(name)

        return call

    repeats, wall, cpu = in_turn({"short": takes("short", 5e-4), "long": takes("long", 0.03)}, 0.0)
    assert repeats["long"] == 1
    assert 40 <= repeats["short"] <= 41
    assert {len(times) for times in (*wall.values(), *cpu.values())} == {15}
    assert wall["short"] == pytest.approx([5e-4] * 15)
    assert cpu["long"] == pytest.approx([0.015] * 15)
    turns = "".join(name[0] for name in order).replace("s" * repeats["short"], "s")[-30:]
    assert {turns[i : i + 2] for i in range(0, 30, 2)} == {"sl", "ls"}
    _, longer, _ = in_turn({"long": takes("long", 0.03)}, 0.9)
    assert 30 <= len(longer["long"]) <= 32


def test_a_ratio_is_of_medians_and_its_interval_of_pairs() -> None:
    ours = [1.0, 2.0, 3.0, 2.0, 2.0]
    found = Ratio.of([2 * t for t in ours], ours)
    assert (found.value, found.low, found.high) == (2, 2, 2)  # every pair says the same
    draw = torch.Generator().manual_seed(1)
    theirs = (1.5 + 0.1 * torch.randn(100, generator=draw)).tolist()
    found = Ratio.of(theirs, [1.0] * 100)
    assert found.value == pytest.approx(statistics.median(theirs))
    # The standard error of a median: 1.2533 σ/√n.
    assert found.high - found.low == pytest.approx(2 * 1.96 * 1.2533 * 0.01, rel=0.4)
    assert found.low < found.value < found.high
    assert str(Ratio(1.234, 1.2, 1.3)) == "1.23 (1.20–1.30)"


def test_means_slower_cases_and_tables_by_hand() -> None:
    one = Case("lstm", (1, 1, 8, 8), "train", False, 1)
    ragged = Case("gru", SMALL, "inference", True, 2)
    records = [record(0.5), record(1.25, one), record(1.01, ragged)]
    measured = [(each, ratios_of(each)) for each in records]
    assert geometric_mean([2, 8]) == pytest.approx(4)
    assert math.isnan(geometric_mean([]))
    assert [each[0].case for each in slower(measured, "auto", "wall")] == [one]
    assert slower(measured, "native", "cpu") == slower(measured, "lengths", "wall") == []
    lines = cpu_ratios.means(measured).splitlines()
    # √(2 × 0.8), and of what is no single sequence 2.
    assert (
        "| dense, train, 1 thread | LSTM | 1.26 / 1.26 | 1.00 / 1.00 | 2.00 / 2.00 | 1.00 / 1.00 |"
        in lines
    )
    told = cpu_ratios.slower_cases(measured)
    assert "* auto: 1 of 2 by wall time, 1 by CPU time\n    * lstm T 1, B 1, D 8, H 8," in told
    assert "* packed: 0 of 1 by wall time, 0 by CPU time" in told
    assert "| 5, 4, 6, 8 | LSTM | 1 | 2.00 (2.00–2.00) |" in cpu_ratios.tables(measured)
    assert json.loads(json.dumps(cpu_ratios.summary(measured)))[1]["ratios"]["cpu"]["auto"] == {
        "value": pytest.approx(0.8),
        "low": pytest.approx(0.8),
        "high": pytest.approx(0.8),
    }


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """Nothing is measured; the cases that would have been."""
    asked: list[Case] = []

    def instead(case: Case, seconds: float) -> Record:
        assert seconds == 0  # of --quick
        asked.append(case)
        return record(0.5, case)

    monkeypatch.setattr(cpu_engine, "measure", instead)
    monkeypatch.setattr(cpu_engine.Run, "here", lambda: Run(dict(MACHINE), "avx2", "abc", "now"))
    return asked


MACHINE = {"device": "a CPU", "torch": "2", "cores": 2, "torch_instructions": "AVX2"}


def test_ctrl_c_loses_nothing_and_the_same_command_goes_on(
    tmp_path: Path,
    planted: list[Case],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["--out", str(tmp_path), "--quick", "--threads", "1"]
    instead = cpu_engine.measure

    def interrupted(case: Case, seconds: float) -> Record:
        if len(planted) == 5:
            raise KeyboardInterrupt
        return instead(case, seconds)

    monkeypatch.setattr(cpu_engine, "measure", interrupted)
    assert main(arguments) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert [each.case for each in Run.load(tmp_path / "results.json").records] == planted
    monkeypatch.setattr(cpu_engine, "measure", instead)
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "left  gru" in said.err
    assert f"written: {tmp_path / 'README.md'}" in said.out
    assert planted == list(cases(cpu_records.QUICK, [1]))
    found = Run.load(tmp_path / "results.json")
    assert [each.case for each in found.records] == planted
    assert found.commands == 2 * [f"python -m benchmarks.cpu_engine --out {tmp_path} --quick "
                                  "--threads 1"]  # fmt: skip
    page = (tmp_path / "README.md").read_text()
    assert "a CPU, 2 cores; torch 2 (AVX2), the engine avx2; commit abc" in page
    assert page.count("## ") == 4
    assert "![Ratios of all cases](ratios.png)" in page
    assert (tmp_path / "ratios.png").stat().st_size > 10_000
    assert len(json.loads((tmp_path / "summary.json").read_text())) == len(planted)


def test_figures_of_another_machine_or_engine_are_not_mixed(
    tmp_path: Path, planted: list[Case], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--out", str(tmp_path), "--quick"]
    path = tmp_path / "results.json"
    for change, reason in (
        ({"isa": "avx512"}, "with isa avx512, here it is avx2: choose another --out"),
        ({"commit": ""}, "with commit unknown, here it is abc"),
        ({"machine": {**MACHINE, "torch": "1"}}, "with torch 1, here it is 2"),
    ):
        values = {"machine": MACHINE, "isa": "avx2", "commit": "abc", "started": "now", **change}
        Run(**values).save(path)  # type: ignore[arg-type]
        assert main(arguments) == 1
        assert reason in capsys.readouterr().err
    path.write_text('{"schema": 1}')
    assert main(arguments) == 1
    assert "holds no figures of the native engine" in capsys.readouterr().err
    assert not planted


def test_help_begins_with_an_example_and_options_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("python -m benchmarks.cpu_engine --out FOLDER")
    assert main([]) == 2
    assert main(["--out", str(tmp_path), "--threads", "0"]) == 1
    assert "expected --threads of 1 or more, got 0" in capsys.readouterr().err
    monkeypatch.setattr(cpu_records, "library", lambda: None)
    monkeypatch.setattr(cpu_records, "missing", lambda: "it was never built")
    assert main(["--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "benchmarks.cpu_engine: it was never built\n"


@needs_engine
def test_a_measured_case_has_all_sides_and_leaves_the_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu_engine, "TURN", 1e-4)
    torch.set_num_threads(2)
    found = measure(Case("gru", SMALL, "train", True, 1), 0.0)
    assert torch.get_num_threads() == 2
    assert found.engines == {BASELINE: "torch", "lengths": "native", "packed": "native"}
    assert all(len(times) == 15 for times in found.wall.values())
    assert all(time > 0 for times in found.wall.values() for time in times)
    assert Run.here().isa == library().isa  # type: ignore[union-attr]
