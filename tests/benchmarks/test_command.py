"""`rnnkit bench` as a user types it."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import command, estimate, suite
from benchmarks.cases import CASES, QUICK
from benchmarks.results import BASELINE, Results
from rnnkit.cli import main as rnnkit
from tests.benchmarks.planted import record, results

QUICKLY = ["--seconds", "0.01", "--device", "cpu", "--cells", "lstm"]


@pytest.fixture(autouse=True)
def small_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured is a hundredth of its size."""
    for name in ("ptb-small", "characters"):
        case = replace(CASES[name], steps=5, batch=4, features=20, hidden=20)
        monkeypatch.setitem(CASES, name, case)


@pytest.fixture(autouse=True)
def no_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite.floor, "measure", lambda device, progress: {"gemm": {"fp32": 1e9}})
    monkeypatch.setattr(suite.floor, "seconds", lambda *arguments: 1e-6)


@pytest.mark.slow
def test_a_run_writes_json_tables_and_charts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "r.json"
    arguments = ["bench", *QUICKLY, "--cases", "ptb-small", "--peers", BASELINE, "rnnkit auto"]
    assert rnnkit([*arguments, "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "ptb-small, LSTM" in said.out
    assert "rnnkit auto" in said.out
    assert f"written: {out.parent / 'README.md'}" in said.out
    assert "100 %" in said.err
    found = Results.load(out)
    assert {record.peer: record.status for record in found.records} == {
        BASELINE: "ok",
        "rnnkit auto": "ok",
    }
    assert found.machine["threads"] >= 1
    assert found.commands[0].startswith("rnnkit bench --seconds 0.01")
    assert "ptb-small" in (out.parent / "README.md").read_text()
    assert list(out.parent.glob("*.png"))


def test_ctrl_c_keeps_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.json"
    prepare = suite.Expected.of

    def interrupted(work: Any) -> Any:
        if work.case.name == "characters":
            raise KeyboardInterrupt
        return prepare(work)

    monkeypatch.setattr(suite.Expected, "of", interrupted)
    monkeypatch.setattr(command.report, "render", lambda *arguments: [])
    arguments = [*QUICKLY, "--cases", "ptb-small", "characters", "--peers", BASELINE]
    assert command.main([*arguments, "--out", str(out)]) == 130
    assert f"the same command with --out {out} goes on" in capsys.readouterr().err
    assert [record.case for record in Results.load(out).records] == ["ptb-small"]
    monkeypatch.setattr(suite.Expected, "of", prepare)
    assert command.main([*arguments, "--out", str(out)]) == 0
    assert [r.case for r in Results.load(out).records] == ["ptb-small", "characters"]


def test_a_budget_that_ran_out_has_its_own_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*QUICKLY, "--budget", "-1", "--out", str(tmp_path / "r.json")]
    assert command.main(arguments) == 3
    assert "the budget ran out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--cases", "ptb-tiny"], "no case is called 'ptb-tiny': choose from ptb-medium"),
        (["--peers", "cudnn"], "no peer is called 'cudnn': choose from torch.nn"),
        (["--cells", "qrnn"], "--cells: no 'qrnn', choose from lstm, gru"),
        (["--dtypes", "fp8"], "--dtypes: no 'fp8', choose from tf32"),
        (["--modes", "backward"], "--modes: no 'backward', choose from inference"),
        (["--tune", "--device", "cpu"], "--tune is for a GPU"),
        (["--tune", "--peers", "torch.nn"], "--tune chooses the modes and the peers itself"),
        (["--dtypes", "tf32", "--device", "cpu"], "tf32 is for GPUs: on a CPU say fp32"),
        (["--device", "mps"], "--device takes cuda, cuda:N or cpu, got 'mps'"),
        (["--device", "nonsense"], "--device takes cuda, cuda:N or cpu, got 'nonsense'"),
        (["--device", "cuda:7"], "--device cuda:7: torch sees"),
        (["--report", "missing.json"], "missing.json"),
        (["--compare", "missing.json", "missing.json"], "missing.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("rnnkit bench: ")
    assert sentence in said
    assert said.count("\n") == 1


def test_results_of_another_machine_are_not_added_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.json"
    results(record(BASELINE, 1.0)).save(out)
    before = out.read_text()
    assert command.main([*QUICKLY, "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert "was measured with device Planted CPU, 2 cores, here it is" in said
    assert out.read_text() == before


def test_help_and_the_list_name_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    text = capsys.readouterr().out
    for option in (
        "--quick", "--full", "--tune", "--cases", "--cells", "--dtypes", "--modes", "--peers",
        "--device", "--out", "--budget", "--compare", "--report", "--list",
    ):  # fmt: skip
        assert option in text
    assert command.main(["--list"]) == 0
    text = capsys.readouterr().out
    for name in (*CASES, BASELINE, "rnnkit data", "flashrnn cuda_fused", "torchrl"):
        assert name in text
    assert command.main(["--nonsense"]) == 2
    assert command.main(["end-to-end", "--help"]) == 0


def test_a_comparison_tells_what_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    results(record(BASELINE, 10.0), record("rnnkit auto", 5.0), record("torchrl", 7.0)).save(old)
    results(record(BASELINE, 10.0), record("rnnkit auto", 5.5), record("torchrl", 7.0)).save(new)
    assert command.main(["--compare", str(old), str(new)]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "ptb-small lstm fp32 train  rnnkit auto: 10.0 % slower (5000.0 → 5500.0"
    )
    assert last == "1 of 3 measurements changed beyond noise"


def test_a_report_is_drawn_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.json"
    results(record(BASELINE, 10.0), record("rnnkit auto", 5.0)).save(path)
    assert command.main(["--report", str(path)]) == 0
    assert "2.00×" in capsys.readouterr().out
    assert (tmp_path / "README.md").is_file()


@pytest.mark.parametrize(
    ("on_gpu", "dtypes", "peers"),
    [
        (False, ["fp32"], [BASELINE, "rnnkit auto", "loop in PyTorch"]),
        (True, ["bf16", "tf32"], [BASELINE, "rnnkit auto", "rnnkit triton"]),
    ],
)
def test_quick_is_a_few_cases_of_two_cells(
    on_gpu: bool, dtypes: list[str], peers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: on_gpu)
    monkeypatch.setattr(command.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(command.torch.cuda, "set_device", lambda index: None)
    request = command._request(command._parser().parse_args([]))
    assert tuple(case.name for case in request.cases) == QUICK["cuda" if on_gpu else "cpu"]
    assert (request.cells, request.dtypes, request.modes) == (["lstm", "gru"], dtypes, ["train"])
    assert [peer.name for peer in request.peers] == peers
    full = command._request(command._parser().parse_args(["--full"]))
    assert len(full.cases) == len(CASES)
    assert len(full.peers) > 10


def test_tuning_writes_the_table_and_checks_auto(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With results planted in the place of a GPU's."""
    monkeypatch.setenv("RNNKIT_DISPATCH_DIR", str(tmp_path))
    times = {BASELINE: 4.0, "rnnkit data": 2.0}
    planted = results(
        *(
            record(peer, time, mode=mode, dtype="bf16")
            for peer, time in times.items()
            for mode in ("inference", "train")
        )
    )
    planted.machine = {"device": "a GPU", "capability": "9.0"}

    def measure_auto(milliseconds: float) -> Callable[..., bool]:
        def run(self: suite.Suite, budget: float = 0.0) -> bool:
            assert [peer.name for peer in self.request.peers] == ["rnnkit auto"]
            assert [case.name for case in self.request.cases] == ["ptb-small"]
            assert 0 < budget <= 60
            made = record("rnnkit auto", milliseconds, dtype="bf16", engine="torch")
            self.results.add(made)
            return True

        return run

    request = command._request(command._parser().parse_args(["--device", "cpu"]))
    for milliseconds, sentence in (
        (2.0, "auto is nowhere slower"),
        (
            4.0,
            "auto is slower: ptb-small lstm bf16 train: 4000 µs by torch, rnnkit data takes 2000",
        ),
    ):
        monkeypatch.setattr(suite.Suite, "run", measure_auto(milliseconds))
        path = tmp_path / "r.json"
        command._tune(request, planted, path, command.Progress(), time.monotonic() + 60)
        said = capsys.readouterr().out
        assert sentence in said
        assert f"written: {tmp_path / 'sm_90.json'}" in said
    assert json.loads((tmp_path / "sm_90.json").read_text())["gpu"] == "a GPU"


def test_results_of_another_commit_are_not_added_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.json"
    arguments = [*QUICKLY, "--cases", "ptb-small", "--peers", BASELINE, "--out", str(out)]
    monkeypatch.setattr(command.report, "render", lambda *given: [])
    monkeypatch.setattr(command.machine, "commit", lambda: "abc1234")
    assert command.main(arguments) == 0
    capsys.readouterr()
    assert command.main(arguments) == 0
    assert f"all of this is in {out} already" in capsys.readouterr().out
    monkeypatch.setattr(command.machine, "commit", lambda: "abc1235")
    assert command.main(arguments) == 1
    assert "was measured at commit abc1234, this is abc1235" in capsys.readouterr().err


def test_a_lost_device_has_its_own_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(self: suite.Suite, budget: float = 0.0) -> bool:
        raise suite.DeviceLostError("an illegal memory access")

    monkeypatch.setattr(suite.Suite, "run", lost)
    assert command.main([*QUICKLY, "--out", str(tmp_path / "r.json")]) == 4
    assert "the GPU refuses further work: an illegal memory access" in capsys.readouterr().err


def test_a_comparison_of_two_machines_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, device in (("old", "cpu"), ("new", "cuda")):
        results(record(BASELINE, 10.0), device=device).save(tmp_path / f"{name}.json")
    assert command.main(["--compare", str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 0
    assert "note: device was Planted CPU, 2 cores, is Planted GPU" in capsys.readouterr().out


def test_it_says_where_it_writes_and_how_long_it_takes_before_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    begun = []

    def run(suite: suite.Suite, budget: float) -> bool:
        begun.append(capsys.readouterr().err)
        return False

    monkeypatch.setattr(suite.Suite, "run", run)
    assert command.main(["--device", "cpu"]) == 3
    assert f"{len(QUICK['cpu'])} cases, 3 peers on " in begun[0]
    assert "minute" in begun[0]
    assert f"written to {tmp_path / 'benchmarks' / 'results'}" in begun[0]
    assert command.main(["--device", "cpu", "--out", "mine.json"]) == 3
    assert f"written to {tmp_path / 'mine.json'}" in begun[1]


def test_a_quick_run_is_estimated_in_minutes_and_a_full_one_in_hours() -> None:
    def about(*options: str) -> float:
        request = command._request(command._parser().parse_args(["--device", "cpu", *options]))
        return estimate.seconds(request, request.groups())

    quick, full = about(), about("--full")
    assert 10 < quick < full / 20
    assert about("--cases", "ptb-small") < quick
    assert estimate.in_words(70) == "a minute or two"
    assert estimate.in_words(600) == "about 10 minutes"
    assert estimate.in_words(9000) == "about 2 hours"
