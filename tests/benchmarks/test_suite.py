"""The suite on small layers: what is wrong gets no time, what fails says so, nothing is lost."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import suite
from benchmarks.cases import Case
from benchmarks.peers.loops import Loop
from benchmarks.peers.torch_layers import TorchLayers
from benchmarks.report import render, table
from benchmarks.results import Results
from benchmarks.suite import DIED, Request, Suite
from benchmarks.work import Prepared, Work

CPU = torch.device("cpu")
SMALL = Case("small", "a test", 3, 2, 3, 4)


class Planted:
    """The plain loop, spoilt."""

    def __init__(
        self,
        name: str,
        spoil: Callable[[list[Tensor]], Any] | None = None,
        spoil_gradients: Callable[[list[Tensor]], Any] | None = None,
        reason: str | None = None,
    ) -> None:
        self.name, self.reason = name, reason
        self.spoil, self.spoil_gradients = spoil, spoil_gradients
        self.prepared = 0

    def absent(self, work: Work) -> str | None:
        return self.reason

    def prepare(self, work: Work, mode: str) -> Prepared:
        self.prepared += 1
        prepared = Loop(compiled=False).prepare(work, mode)
        honest = prepared.run

        def run() -> Sequence[Tensor]:
            results = list(honest())
            return results if self.spoil is None else (self.spoil(results) or results)

        def gradients(found: Sequence[Tensor]) -> list[Tensor]:
            values = list(found)
            return values if self.spoil_gradients is None else self.spoil_gradients(values)

        return replace(prepared, run=run, gradients_as_torch=gradients)


def crash(results: list[Tensor]) -> None:
    raise RuntimeError("out of luck\nand a second line")


def slow(results: list[Tensor]) -> None:
    time.sleep(0.02)


def run(
    path: Path,
    peers: Sequence[Any],
    cases: Sequence[Case] = (SMALL,),
    modes: Sequence[str] = ("train",),
    results: Results | None = None,
    budget: float = float("inf"),
) -> Results:
    request = Request(cases, ["lstm"], ["fp32"], modes, peers, CPU, seconds=0.0, floors=False)
    found = results or Results({"device": "here"})
    Suite(request, found, path, lambda done, what: None).run(budget)
    return found


def test_a_wrong_result_gets_no_time(tmp_path: Path) -> None:
    spoilt = Planted("wrong", lambda results: [results[0] * 1.001, *results[1:]])
    results = run(tmp_path / "r.json", [spoilt, TorchLayers(cudnn=True)])
    wrong, right = results.records
    assert (wrong.status, wrong.seconds) == ("wrong", [])
    assert wrong.error is not None
    assert wrong.error > 1
    assert "times what is allowed" in wrong.message
    assert right.status == "ok"
    assert right.error is not None
    assert right.error <= 1
    assert len(right.seconds) >= 10


@pytest.mark.parametrize("which", range(7))
def test_a_wrong_gradient_gets_no_time(which: int, tmp_path: Path) -> None:
    """Of x, h0, c0 and the four weights, each."""

    def spoil(gradients: list[Tensor]) -> list[Tensor]:
        gradients[which] = gradients[which] * 1.001
        return gradients

    (record,) = run(tmp_path / "r.json", [Planted("wrong", spoil_gradients=spoil)]).records
    assert record.status == "wrong"


def test_a_nan_is_wrong(tmp_path: Path) -> None:
    def spoil(results: list[Tensor]) -> list[Tensor]:
        return [results[0].masked_fill(results[0] == results[0].max(), float("nan")), *results[1:]]

    (record,) = run(tmp_path / "r.json", [Planted("nan", spoil)]).records
    assert (record.status, record.error) == ("wrong", float("inf"))


def test_a_slow_peer_ranks_last(tmp_path: Path) -> None:
    peers = [Planted("slow", slow), TorchLayers(cudnn=True), Planted("loop")]
    results = run(tmp_path / "r.json", peers)
    lines = [line.split()[0] for line in table(results).splitlines() if line.strip()]
    assert lines.index("slow") > max(lines.index("torch.nn"), lines.index("loop"))
    fast, slower = (results.get(("small", "lstm", "fp32", "train", n)) for n in ("loop", "slow"))
    assert fast is not None
    assert slower is not None
    assert slower.median > fast.median + 0.01


def test_a_crash_becomes_its_message(tmp_path: Path) -> None:
    results = run(tmp_path / "r.json", [Planted("crash", crash), TorchLayers(cudnn=True)])
    crashed, other = results.records
    assert (crashed.status, crashed.message) == ("failed", "RuntimeError: out of luck")
    assert crashed.seconds == []
    assert other.status == "ok"


def test_an_absent_peer_says_why_and_is_not_prepared(tmp_path: Path) -> None:
    absent = Planted("absent", reason="it was never built")
    (record,) = run(tmp_path / "r.json", [absent]).records
    assert (record.status, record.message) == ("absent", "it was never built")
    assert absent.prepared == 0


def test_every_mode_is_measured(tmp_path: Path) -> None:
    modes = ("inference", "forward", "train")
    results = run(tmp_path / "r.json", [TorchLayers(cudnn=True)], modes=modes)
    assert [record.mode for record in results.records] == list(modes)
    for record in results.records:
        assert record.status == "ok"
        assert record.first_call_seconds is not None
        assert record.peak_bytes is not None
    inference, _, train = results.records
    assert train.median > inference.median


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    path, peer = tmp_path / "r.json", Planted("loop")
    run(path, [peer])
    before, results = peer.prepared, Results.load(path)
    other = replace(SMALL, name="other", hidden=5)
    run(path, [peer], cases=(SMALL, other), results=results)
    assert peer.prepared == 2 * before
    found = Results.load(path)
    assert [record.case for record in found.records] == ["small", "other"]
    assert found.cases == {"small": SMALL, "other": other}


def test_a_budget_stops_and_a_later_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    request = Request((SMALL,), ["lstm"], ["fp32"], ["train"], [Planted("loop")], CPU, 0.0, False)
    results = Results({"device": "here"})
    measured = Suite(request, results, path, lambda done, what: None)
    assert not measured.run(budget=-1.0)
    assert results.records == []
    assert measured.run()
    assert [record.status for record in results.records] == ["ok"]


def test_a_peer_that_ended_the_process_is_not_tried_again(tmp_path: Path) -> None:
    path, peer = tmp_path / "r.json", Planted("loop")

    def died(work: Work, mode: str) -> Prepared:
        raise KeyboardInterrupt  # as abrupt as a test can be

    peer.prepare = died  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(path, [peer])
    results = Results.load(path)
    assert [record.status for record in results.records] == ["running"]
    (record,) = run(path, [Planted("loop")], results=results).records
    assert (record.status, record.message) == ("failed", DIED)


def test_the_floor_is_measured_once_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    constants = {"gemm": {"fp32": 1.0}}
    monkeypatch.setattr(suite.floor, "measure", lambda device, progress: constants)

    def seconds(case: Case, cell: str, *rest: Any) -> float:
        calls.append(cell)
        return 1e-4

    monkeypatch.setattr(suite.floor, "seconds", seconds)
    peers = [TorchLayers(cudnn=True), Planted("loop")]
    request = Request((SMALL,), ["lstm", "gru"], ["fp32"], ["train"], peers, CPU, 0.0)
    results = Results({"device": "here"})
    Suite(request, results, tmp_path / "r.json", lambda done, what: None).run()
    assert calls == ["lstm", "gru"]
    assert results.floor == constants
    assert [record.floor_seconds for record in results.records] == [1e-4] * 4


def test_progress_rises_to_the_end_and_names_the_case(tmp_path: Path) -> None:
    seen: list[tuple[float, str]] = []
    cases = [replace(SMALL, name=f"small-{i}") for i in range(3)]
    request = Request(cases, ["lstm"], ["fp32"], ["inference"], [Planted("l")], CPU, 0.0, False)
    Suite(request, Results({}), tmp_path / "r.json", lambda *said: seen.append(said)).run()
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert shares[-1] == 1.0
    assert [what for _, what in seen] == [*(f"small-{i} lstm fp32" for i in range(3)), "done"]


def test_a_floor_that_fails_costs_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("8 programs that meet by data waited in vain")

    monkeypatch.setattr(suite.floor, "measure", fail)
    request = Request((SMALL,), ["lstm"], ["fp32"], ["train"], [Planted("loop")], CPU, 0.0)
    results = Results({"device": "here"})
    assert Suite(request, results, tmp_path / "r.json", lambda done, what: None).run()
    assert "waited in vain" in results.floor["failed"]
    (record,) = results.records
    assert (record.status, record.floor_seconds) == ("ok", None)
    render(results, tmp_path / "r.json", tmp_path)
    assert "waited in vain" in (tmp_path / "README.md").read_text()


def test_every_mode_is_checked_by_itself(tmp_path: Path) -> None:
    def without_gradients(results: list[Tensor]) -> list[Tensor] | None:
        return None if torch.is_grad_enabled() else [results[0] * 0, *results[1:]]

    modes = ("inference", "train")
    results = run(tmp_path / "r.json", [Planted("half", without_gradients)], modes=modes)
    inference, train = results.records
    assert (inference.status, inference.seconds) == ("wrong", [])
    assert train.status == "ok"


def test_who_was_absent_is_asked_again(tmp_path: Path) -> None:
    path, peer = tmp_path / "r.json", Planted("late", reason="it is not installed")
    assert [r.status for r in run(path, [peer]).records] == ["absent"]
    peer.reason = None
    assert [r.status for r in run(path, [peer], results=Results.load(path)).records] == ["ok"]


def test_whoever_was_right_when_the_process_ended_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    results = run(path, [Planted("loop")])
    (record,) = results.records
    record.status, record.seconds = "running", []
    assert record.error is not None
    found = run(path, [Planted("loop")], results=results)
    assert [(r.status, len(r.seconds) >= 10) for r in found.records] == [("ok", True)]


def test_a_lost_device_ends_the_run_and_blames_its_cause_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(self: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(suite.Clock, "wait", lost)
    path = tmp_path / "r.json"
    peers = [Planted("crash", crash), TorchLayers(cudnn=True)]
    with pytest.raises(suite.DeviceLostError, match="illegal memory access"):
        run(path, peers)
    assert [(r.peer, r.status) for r in Results.load(path).records] == [("crash", "failed")]
    monkeypatch.undo()
    found = run(path, peers, results=Results.load(path))
    assert [(r.peer, r.status) for r in found.records] == [("crash", "failed"), ("torch.nn", "ok")]


def test_a_time_stays_where_memory_or_the_floor_cant_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> None:
        raise RuntimeError("no counters here")

    monkeypatch.setattr(suite, "peak_bytes", fail)
    monkeypatch.setattr(suite.floor, "measure", lambda *given: {"gemm": {}})
    monkeypatch.setattr(suite.floor, "seconds", fail)
    request = Request((SMALL,), ["lstm"], ["fp32"], ["train"], [Planted("loop")], CPU, 0.0)
    results = Results({"device": "here"})
    Suite(request, results, tmp_path / "r.json", lambda done, what: None).run()
    (record,) = results.records
    assert (record.status, record.peak_bytes, record.floor_seconds) == ("ok", None, None)
    assert len(record.seconds) >= 10
