"""The runner on planted checks, and the list of real ones; no GPU runs here."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import command, floor_kernels, gpu_check
from benchmarks.checks import TO_RUN
from benchmarks.gpu_check import Check, Report, run, summary
from rnnkit_kernels.recurrence import exchange, plan
from tests.conftest import HAS_GPU
from tests.kernels.concurrent import run_programs_concurrently
from tests.kernels.layers import Layer

SOON = 0.7  # seconds that a planted check may take, where it is to hang


def shell(name: str, script: str, **options: Any) -> Check:
    return Check(name, "planted", "subprocess:check_call", (["sh", "-ec", script],), **options)


WORKS = Check("works", "planted", "math:sqrt", (4.0,))
RAISES = Check("raises", "planted", "math:sqrt", (-1.0,))
HANGS = Check("hangs", "planted", "time:sleep", (60,), limit=SOON)
DIES = Check("dies", "planted", "signal:raise_signal", (signal.SIGKILL,))
LATER = Check("later", "planted", "builtins:exec", ("raise TimeoutError('goes on')",))


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def report(tmp_path: Path, said: list[str]) -> Callable[[], Report]:
    """The report, as another run of the command finds it."""
    return lambda: Report(tmp_path / "out" / "check.json", said.append)


def soon(seconds: float = 60.0) -> float:
    return time.monotonic() + seconds


def statuses(found: Report) -> dict[str, str]:
    return {name: entry["status"] for name, entry in found.found.items()}


@pytest.mark.process
def test_every_end_is_told_and_written_and_the_rest_goes_on(
    report: Callable[[], Report], said: list[str], tmp_path: Path
) -> None:
    found, checks = report(), [RAISES, HANGS, DIES, LATER, WORKS]
    run(checks, found, soon())
    written = json.loads((tmp_path / "out" / "check.json").read_text())["checks"]
    assert written == found.found == report().found
    assert list(statuses(found).items()) == [
        ("raises", "failed"),
        ("hangs", "hung"),
        ("dies", "failed"),
        ("later", "cut"),
        ("works", "ok"),
    ]
    assert written["works"] | {"seconds": 0} == {
        "group": "planted", "status": "ok", "seconds": 0, "message": "", "value": 2.0,
    }  # fmt: skip
    assert "math domain error" in written["raises"]["message"]
    assert SOON <= written["hangs"]["seconds"] < 20
    assert [line.split()[0] for line in said] == list(statuses(found).values())
    assert said[1].endswith(f"hangs  not done after {SOON} s")
    assert said[2].endswith("dies  the process ended without a word, killed by signal 9")
    assert said[3].endswith("later  goes on")
    assert summary(checks, found) == 1
    assert said[-1] == "1 ok, 2 failed, 1 hung, 0 skipped, 1 cut, 0 not reached"
    assert f"hung: hangs: not done after {SOON} s" in said


@pytest.mark.process
def test_another_run_repeats_what_was_cut_and_on_demand_what_went_wrong(
    report: Callable[[], Report], said: list[str], tmp_path: Path
) -> None:
    once = Check("once", "planted", "os:mkdir", (str(tmp_path / "made"),))
    found, checks = report(), [once, RAISES, LATER]
    run(checks, found, soon())
    del said[:]
    run(checks, report(), soon())
    assert [line.split()[0] for line in said] == ["cut"]
    del said[:]
    run(checks, report(), soon(), again=True)
    # The folder could not be made twice.
    assert [line.split()[0] for line in said] == ["failed", "cut"]
    assert summary([once], report()) == 0


@pytest.mark.process
def test_what_needs_a_failed_check_is_skipped_until_it_is_ok(
    report: Callable[[], Report], said: list[str], tmp_path: Path
) -> None:
    first = shell("first", f"test -e {tmp_path}/there")
    second = Check("second", "planted", "math:sqrt", (1.0,), needs=("works", "first"))
    run([WORKS, first, second], report(), soon())
    assert said[-1].endswith("second  needs 'first': failed")
    assert summary([WORKS, first, second], report()) == 1
    (tmp_path / "there").touch()
    run([WORKS, first, second], report(), soon(), again=True)
    assert set(statuses(report()).values()) == {"ok"}
    assert summary([WORKS, first, second], report()) == 0


@pytest.mark.process
def test_some_checks_are_left_out_once_anything_hung(
    report: Callable[[], Report], said: list[str]
) -> None:
    careful = Check("careful", "planted", "math:sqrt", (1.0,), unless_hung=("planted",))
    run([RAISES, careful], report(), soon())
    assert statuses(report())["careful"] == "ok"
    again = Check("again", "planted", "math:sqrt", (1.0,), unless_hung=("planted",))
    run([HANGS, again, WORKS], report(), soon())
    assert said[-2].endswith("again  left out since 'hangs' hung")
    assert statuses(report())["works"] == "ok"


@pytest.mark.process
def test_what_hung_elsewhere_leaves_nothing_out(report: Callable[[], Report]) -> None:
    other = Check("other", "planted", "math:sqrt", (1.0,), unless_hung=("another",))
    run([HANGS, other], report(), soon())
    assert statuses(report()) == {"hangs": "hung", "other": "ok"}


@pytest.mark.process
def test_an_interrupted_run_leaves_a_whole_file_and_no_process(
    report: Callable[[], Report], tmp_path: Path
) -> None:
    lines: list[str] = []

    def interrupted(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            raise KeyboardInterrupt

    script = f"echo $$ > {tmp_path}/id; sleep 60"
    quick = shell("quick", f"while ! test -s {tmp_path}/id; do sleep 0.05; done", beside=True)
    slow = shell("slow", script, beside=True)
    broken = Report(tmp_path / "out" / "check.json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run([WORKS, slow, quick, RAISES], broken, soon(), at_once=2)
    assert statuses(report()) == {"works": "ok", "quick": "ok"}
    assert ended(int((tmp_path / "id").read_text()))
    lines.append("third")
    now = shell("slow", "true")
    run([WORKS, now, quick, RAISES], Report(broken.path, interrupted), soon())
    assert len(lines) == 5
    assert set(statuses(report())) == {"works", "quick", "slow", "raises"}


def ended(process: int) -> bool:
    """Whether it is gone, or only waits for its parent to look."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.process
def test_what_a_hung_check_has_started_is_ended_too(
    report: Callable[[], Report], tmp_path: Path
) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/id; wait"
    run([shell("starts another", script, limit=2.0)], report(), soon())
    assert statuses(report()) == {"starts another": "hung"}
    assert ended(int((tmp_path / "id").read_text()))


@pytest.mark.process
def test_nothing_outlives_the_deadline(report: Callable[[], Report], said: list[str]) -> None:
    run([WORKS], report(), soon())  # the server of processes is up now
    begin, checks = time.monotonic(), [RAISES, HANGS, WORKS, DIES]
    slow = Check("slow", "planted", "time:sleep", (60,))
    found = report()
    run([slow, *checks], found, begin + 1)
    assert 1 <= time.monotonic() - begin < 6
    assert statuses(found) == {"works": "ok", "slow": "cut"}
    assert summary([slow, *checks], found) == 3
    assert said[-1] == "1 ok, 0 failed, 0 hung, 0 skipped, 1 cut, 3 not reached"
    run([DIES], found, time.monotonic() - 1)
    assert "dies" not in found.found


@pytest.mark.process
def test_only_what_may_runs_beside_others_of_its_group(
    report: Callable[[], Report], tmp_path: Path
) -> None:
    """Two wait for each other; a third, and one that runs alone, find both done."""

    def beside(name: str, other: str) -> Check:
        script = f"touch {name}; while ! test -e {other}; do sleep 0.05; done; touch {name}.done"
        return shell(name, f"cd {tmp_path}; {script}", beside=True)

    both = f"cd {tmp_path}; test -e a.done; test -e b.done; "
    third = Check(
        "third", "another", "subprocess:check_call",
        (["sh", "-ec", f"{both} sleep 0.3; touch third"],), beside=True,
    )  # fmt: skip
    alone = shell("alone", f"{both} test -e third")
    run([beside("a", "b"), beside("b", "a"), third, alone], report(), soon(), at_once=4)
    assert set(statuses(report()).values()) == {"ok"}


def resolved(function: str) -> Any:
    module, name = function.split(":")
    return getattr(importlib.import_module(module), name)


def test_the_real_checks_come_in_an_order_that_serves_their_needs(tmp_path: Path) -> None:
    checks = gpu_check.all_checks(tmp_path, 0.0)
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    groups = list(dict.fromkeys(check.group for check in checks))
    others = ["crf", "linear_cross_entropy", "tests", "full"]
    assert groups == ["compile", "exchange", "parity", "parity alone", "quick", *others]
    for i, check in enumerate(checks):
        assert set(check.needs) <= set(names[:i])
        assert callable(resolved(check.function))
        # What may hang has a short limit and the GPU for itself.
        waits = check.group in ("exchange", "parity")
        assert waits == (check.limit == TO_RUN)
        assert not (waits and check.beside)
        assert bool(check.needs) == (check.group != "compile")
        assert bool(check.unless_hung) == (check.group in ("quick", "tests", "full"))
    for check in checks:
        if check.group == "parity":
            other = "data" if "counter" in check.name else "counter"
            of_exchange = [name for name in check.needs if name.startswith("exchange")]
            assert len(of_exchange) == 6
            assert not any(other in name for name in of_exchange)


@pytest.mark.process
def test_another_run_compiles_what_is_still_to_be_run(report: Callable[[], Report]) -> None:
    """Kernels are gone with the machine that an earlier run was on."""
    a, b, c, quick = (Check(name, "compile", "math:sqrt", (1.0,)) for name in ("a", "b", "c", "q"))
    of_a = Check("of a", "parity", "math:sqrt", (1.0,), ("a",))
    of_b = Check("of b", "parity", "math:sqrt", (-1.0,), ("b",))
    of_c = Check("of c", "parity", "builtins:exec", ("raise TimeoutError",), ("c",))
    checks, found = [a, b, c, quick, of_a, of_b, of_c], report()
    run(checks, found, soon())
    assert list(statuses(found).values()) == ["ok"] * 5 + ["failed", "cut"]
    gpu_check.forget_compiled(checks, found, again=False)
    assert list(statuses(found)) == ["a", "b", "of a", "of b", "of c"]
    gpu_check.forget_compiled(checks, found, again=True)
    assert list(statuses(found)) == ["a", "of a", "of b", "of c"]
    run(checks, found, soon())
    gpu_check.forget_compiled([a, quick, of_a], found, again=True)
    assert {"a", "q"} <= set(statuses(found))


def test_parity_is_checked_of_every_cell_mode_and_dtype_that_has_a_kernel(tmp_path: Path) -> None:
    from rnnkit_kernels.cells import CELLS
    from rnnkit_kernels.recurrence.plan import H200, Plan, plan
    from tests.kernels.test_gpu import PRECISIONS

    checks = gpu_check.all_checks(tmp_path, 0.0)
    shapes = [check.arguments for check in checks if check.group.startswith("parity")]
    for cell, mode, precision, hidden in shapes:
        found = plan(
            CELLS[cell], hidden, PRECISIONS[precision][0], H200, PRECISIONS[precision][1], mode
        )
        assert isinstance(found, Plan), (cell, mode, precision, found)
        assert found.mode == mode
    small = [shape[:3] for shape in shapes if shape[3] in (24, 40)]
    assert len(set(small)) == len(small) == len(CELLS) * (2 * 3 + 2 * 4)
    large = [shape for shape in shapes if shape[3] not in (24, 40)]
    assert {(mode, hidden) for _, mode, _, hidden in large} == {
        (mode, hidden) for mode in ("data", "counter") for hidden in (650, 1024)
    }
    quick = [check.arguments for check in checks if "compile quick" in check.name]
    assert len(quick) == 6 * 2 * 2


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the checks themselves run on the CPU."""
    if HAS_GPU:
        pytest.skip("interpreted: run with CUDA_VISIBLE_DEVICES= set to nothing")
    from tests.kernels import test_gpu

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(gpu_check, "DEVICE", "cpu")
    monkeypatch.setattr(test_gpu, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(test_gpu, "BATCH", 3)
    # Set by checks, each in a process of its own.
    monkeypatch.setenv("RNNKIT_CHECK", "1")
    monkeypatch.setattr(exchange, "MAX_POLLS", exchange.MAX_POLLS)


class Kernel:
    """Stands for a kernel, and takes down what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def warmup(self, *arguments: Any, **options: Any) -> Any:
        self.asked.append((arguments, options))
        return self


def test_what_waits_is_compiled_as_it_would_be_launched_but_not_launched(
    interpreted: None,
) -> None:
    kernel, launch = Kernel(), exchange.cooperate
    with gpu_check.nothing_waits():
        exchange.cooperate(kernel, (3, 1, 1), (1, 2), {"num_warps": 4})
    assert kernel.asked == [
        ((1, 2), {"grid": (3, 1, 1), "num_warps": 4, "launch_cooperative_grid": True})
    ]
    assert exchange.cooperate is launch


@pytest.fixture
def planted(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have been compiled for programs that meet: kernel, grid and options."""
    found: list[Any] = []

    @contextmanager
    def nothing_waits() -> Iterator[None]:
        def load(kernel: Any, grid: Any, arguments: Any, options: dict[str, Any]) -> None:
            found.append((kernel.__name__, grid, options))

        with monkeypatch.context() as patch:
            patch.setattr(exchange, "cooperate", load)
            yield

    monkeypatch.setattr(gpu_check, "nothing_waits", nothing_waits)
    return found


@pytest.mark.process
def test_parity_launches_what_was_compiled_for_it(
    planted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_check.parity("gru", "data", "fp16", 20, compile_only=True)
    launched: list[Any] = []

    def cooperate(kernel: Any, grid: Any, arguments: Any, options: dict[str, Any]) -> None:
        launched.append((kernel.__name__, grid, options))
        run_programs_concurrently(kernel, grid, arguments, options)

    monkeypatch.setattr(exchange, "cooperate", cooperate)
    gpu_check.parity("gru", "data", "fp16", 20)
    assert launched == planted
    # Forward and backward of three storages.
    assert [grid for _, grid, _ in launched] == [(2, 1, 1)] * 6


def test_parity_notices_what_is_wrong(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    run_layer = Layer.run

    def slightly_wrong(layer: Layer, mode: str) -> list[torch.Tensor]:
        return [t * (1.01 if mode == "launch" else 1) for t in run_layer(layer, mode)]

    gpu_check.parity("rnn_tanh", "launch", "fp32", 16)
    monkeypatch.setattr(Layer, "run", slightly_wrong)
    with pytest.raises(AssertionError, match="result 0"):
        gpu_check.parity("rnn_tanh", "launch", "fp32", 16)


def test_the_crf_is_checked(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.kernels.crf.test_crf import Problem

    gpu_check.crf()
    run_problem = Problem.run

    def slightly_wrong(problem: Problem, backend: str) -> list[torch.Tensor]:
        return [t * (1.01 if backend == "triton" else 1) for t in run_problem(problem, backend)]

    monkeypatch.setattr(Problem, "run", slightly_wrong)
    with pytest.raises(AssertionError, match="result 0"):
        gpu_check.crf()


def test_linear_cross_entropy_is_checked(
    interpreted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.kernels.vocabulary import test_linear_cross_entropy as tests

    inputs, results = tests.random_inputs, tests.results
    monkeypatch.setattr(tests, "random_inputs", lambda *_, dtype: inputs(9, 5, 70, dtype))
    gpu_check.linear_cross_entropy("fp32")

    def slightly_wrong(given: Any, reduction: str, backend: str | None) -> list[torch.Tensor]:
        wrong = 1.01 if backend == "triton" else 1
        return [tensor * wrong for tensor in results(given, reduction, backend)]

    monkeypatch.setattr(tests, "results", slightly_wrong)
    with pytest.raises(AssertionError, match="result 0"):
        gpu_check.linear_cross_entropy("fp32")


def test_the_exchange_is_compiled_and_run_by_the_same_name(
    planted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        floor_kernels, "step_seconds", lambda meeting, programs, device: programs * 1e-6
    )
    assert gpu_check.exchange_step("data", 8) == pytest.approx(8e-6)
    assert gpu_check.exchange_step("data", 8, compile_only=True) == "compiled"
    assert planted == [
        ("empty_exchange", (8, 1, 1), floor_kernels.options_of(WIDTH=128, MEETING="data"))
    ]
    monkeypatch.setattr(plan, "H200", replace(plan.H200, multiprocessors=7))
    assert gpu_check.exchange_step("data", 8) == "not tried: only 7 multiprocessors"


def test_the_quick_benchmarks_are_compiled(planted: list[Any]) -> None:
    gpu_check.compile_quick("tagger", "gru", "fp16")  # no interpreter has bfloat16
    ours = [(name, grid, options["LAYER"].hidden) for name, grid, options in planted]
    both = [("stepping_forward", (13, 2, 2), 200), ("stepping_backward", (13, 2, 2), 200)]
    assert ours in (both, both * 2)  # "auto" may choose another engine


def test_the_quick_benchmarks_get_what_time_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    ends = [0, 3, 1]

    def planted_run(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return subprocess.CompletedProcess(command, ends.pop(0))

    monkeypatch.setattr(subprocess, "run", planted_run)
    deadline = time.monotonic() + gpu_check.TO_STOP + 100
    gpu_check.suite("quick", str(tmp_path), deadline)
    with pytest.raises(TimeoutError, match=r"quick-\w+\.json goes on with the next run"):
        gpu_check.suite("quick", str(tmp_path), deadline)
    with pytest.raises(RuntimeError, match="ended with 1"):
        gpu_check.suite("quick", str(tmp_path), deadline)
    with pytest.raises(TimeoutError, match="no time is left"):
        gpu_check.suite("quick", str(tmp_path), time.monotonic() + 1)
    assert len(commands) == 3
    assert commands[0][1:4] == ["-m", "benchmarks", "--quick"]
    options = command._parser().parse_args(commands[0][3:])
    assert options.out == tmp_path / f"quick-{gpu_check.kernels()}.json"
    assert 90 <= options.budget <= 100


@pytest.mark.process
def test_the_tests_for_gpus_are_run_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = "import sys; print('\\n9 passed, 1 failed'); sys.exit(len(sys.argv) - 1)"
    run, given = subprocess.run, []

    def planted_run(command: list[str], **options: Any) -> Any:
        given.append(command)
        ends = ["failed"] if len(given) > 1 else []
        return run([sys.executable, "-c", python, *ends], **options)

    monkeypatch.setattr(subprocess, "run", planted_run)
    assert gpu_check.marked_tests(str(tmp_path), soon()) == "9 passed, 1 failed"
    with pytest.raises(RuntimeError, match=r"see .*pytest.txt: 9 passed, 1 failed"):
        gpu_check.marked_tests(str(tmp_path), soon())
    with pytest.raises(TimeoutError, match="was not done"):
        gpu_check.marked_tests(str(tmp_path), soon(0.001))
    assert given[0][1:6] == ["-m", "pytest", "-q", "-m", "gpu"]


@pytest.mark.process
@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(tmp_path)],
        cwd=gpu_check.ROOT,
        env={**os.environ, "PYTHONPATH": str(gpu_check.ROOT / "kernels")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout.splitlines()[1:] == [
        "torch sees no CUDA GPU, and there is nothing to check without one"
    ]
    assert (
        json.loads(next(tmp_path.glob("gpu_check-*.json")).read_text())["checks"]["environment"][
            "value"
        ]
        is None
    )
