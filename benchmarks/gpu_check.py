"""One command for a GPU that is there for minutes: what works on it, and what is how fast.

    python -m benchmarks.gpu_check --out FOLDER [--minutes 9] [--again]

Compiles all kernels first, many at once, and without launching one that waits. Then come the empty
exchange, parity of every cell in every mode, and the quick benchmarks. Each check has a process of
its own, which is ended when it takes too long. FOLDER/gpu_check.json is written after each, and the
same command goes on where it stopped. Needs a checkout, torch, triton, numpy and pytest.

Exit status: 0 all ok, 1 something failed or hung, 2 no GPU, 3 out of time, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TO_RUN, TO_COMPILE = 20.0, 150.0  # seconds for one check
TO_STOP = 40.0  # seconds that the benchmarks may go on after their budget, for what they have begun
POLLS = 2**22  # seconds of waiting, not half a minute
DEVICE = "cuda"
PRELOAD = ("torch", "triton", "rnnkit", "tests.kernels.test_gpu", "benchmarks.floor")


@dataclass(frozen=True)
class Check:
    """Something to try in a process of its own.

    Attributes:
        name: what to call it; no other is called so.
        group: what it belongs to.
        function: "module:name"; what it returns goes into the report, as JSON. TimeoutError says
            that another run has to finish it.
        arguments: of the function.
        needs: checks that come before and have to be ok.
        limit: seconds, after which it counts as hung.
        beside: whether it may run beside others of its group.
        unless_hung: groups of which none may have hung.
    """

    name: str
    group: str
    function: str
    arguments: tuple[Any, ...] = ()
    needs: tuple[str, ...] = ()
    limit: float = TO_RUN
    beside: bool = False
    unless_hung: tuple[str, ...] = ()


class Report:
    """What became of each check, in a file that is whole at any time.

    Args:
        path: of the file; what it holds already is kept.
        tell: takes each line for the user.
    """

    def __init__(self, path: Path, tell: Callable[[str], None] = print) -> None:
        self.path, self.tell = path, tell
        path.parent.mkdir(parents=True, exist_ok=True)
        self.found: dict[str, dict[str, Any]] = {}
        if path.exists():
            self.found = json.loads(path.read_text())["checks"]

    def status(self, name: str) -> str:
        """Of a check: ok, failed, hung, cut (by the end of time), skipped or not reached."""
        return str(self.found[name]["status"]) if name in self.found else "not reached"

    def add(
        self, check: Check, status: str, seconds: float, message: str, value: Any = None
    ) -> None:
        """Write one down, and say so in a line."""
        entry = {"group": check.group, "status": status, "seconds": round(seconds, 2)}
        self.found[check.name] = {**entry, "message": message, "value": value}
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(json.dumps({"schema": 1, "checks": self.found}, indent=1) + "\n")
        os.replace(partial, self.path)
        last = (message.strip().splitlines() or [""])[-1]
        self.tell(f"{status:8} {seconds:6.1f} s  {check.name}  {last}".rstrip())


class Running:
    """A check under way."""

    def __init__(self, check: Check, context: Any, deadline: float, log: Path) -> None:
        self.check = check
        self.receiver, sender = context.Pipe(duplex=False)
        given = (check.function, check.arguments, sender, deadline + 5, str(log))
        self.process = context.Process(target=_child, args=given, daemon=True)
        self.process.start()  # the first time this waits for the modules to be loaded
        sender.close()  # leaves the child as the only writer, so that its end is seen
        self.since = time.monotonic()
        self.ends = min(self.since + check.limit, deadline)

    def record(self, report: Report, ended: bool) -> None:
        """Write down how it ended, or that it had to be ended."""
        seconds = time.monotonic() - self.since
        try:
            if ended:
                status, value, message = self.receiver.recv()
            elif self.ends < self.since + self.check.limit:
                status, value, message = "cut", None, "the time is up"
            else:
                status, value, message = "hung", None, f"not done after {self.check.limit:g} s"
        except EOFError:
            self.process.join(5)
            code = self.process.exitcode
            how = f"killed by signal {-code}" if code and code < 0 else f"with status {code}"
            status, value, message = "failed", None, f"the process ended without a word, {how}"
        self.kill()
        report.add(self.check, status, seconds, message, value)

    def stop(self) -> None:
        """Tell the process and what it has started to end."""
        with suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()

    def kill(self) -> None:
        """End the process and what it has started."""
        self.stop()
        self.process.join(2)  # longer only if the driver holds it
        self.receiver.close()


def _child(
    function: str, arguments: tuple[Any, ...], sender: Connection, last: float, log: str
) -> None:
    os.setsid()  # what it starts is ended with it, and Ctrl-C is for the parent alone
    # Should nobody be left to end it.
    signal.setitimer(signal.ITIMER_REAL, max(1.0, last - time.monotonic()))
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(sink, stream)
    try:
        module, name = function.split(":")
        value = getattr(importlib.import_module(module), name)(*arguments)
        json.dumps(value)
        sender.send(("ok", value, ""))
    except TimeoutError as error:
        sender.send(("cut", None, str(error)))
    except Exception:
        sender.send(("failed", None, traceback.format_exc()))
    sys.stdout.flush()
    os._exit(0)  # without waiting for the GPU's context


def done(again: bool) -> tuple[str, ...]:
    """What is not run another time."""
    return ("ok",) if again else ("ok", "failed", "hung")


def run(
    checks: Sequence[Check],
    report: Report,
    deadline: float,
    again: bool = False,
    at_once: int = 1,
    preload: Sequence[str] = (),
) -> None:
    """Run, in their order, the checks that are not done; none goes on beyond the deadline.

    Args:
        checks: what to run; those that are ok already are not run again.
        report: where results go.
        deadline: of `time.monotonic`.
        again: whether what failed or hung is run again.
        at_once: how many may run beside each other.
        preload: modules that every process shall find imported.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    waiting = [check for check in checks if report.status(check.name) not in done(again)]
    running: list[Running] = []

    def may_start(check: Check) -> bool:
        others = [one.check for one in running]
        together = all(o.beside and check.beside and o.group == check.group for o in others)
        return together and len(others) < at_once

    try:
        while running or (waiting and time.monotonic() < deadline):
            while waiting and time.monotonic() < deadline and may_start(waiting[0]):
                check = waiting.pop(0)
                reason = _obstacle(check, report)
                if reason:
                    report.add(check, "skipped", 0.0, reason)
                else:
                    log = report.path.with_suffix(".log")
                    running.append(Running(check, context, deadline, log))
            rest = min((one.ends for one in running), default=0.0) - time.monotonic()
            ended = wait([one.receiver for one in running], max(0.0, rest)) if running else []
            now = time.monotonic()
            over = [one for one in running if one.receiver not in ended and now >= one.ends]
            for one in over:  # all of them before the first is waited for
                one.stop()
            for one in [one for one in running if one in over or one.receiver in ended]:
                running.remove(one)
                one.record(report, one not in over)
    finally:
        for one in running:
            one.stop()
        for one in running:
            one.kill()


def _obstacle(check: Check, report: Report) -> str:
    """Why a check can't run."""
    for name in check.needs:
        if report.status(name) != "ok":
            return f"needs '{name}': {report.status(name)}"
    for name, entry in report.found.items():
        if entry["status"] == "hung" and entry["group"] in check.unless_hung:
            return f"left out since '{name}' hung"
    return ""


def environment() -> dict[str, Any] | None:
    """GPU, driver, versions and clocks; None without a GPU."""
    import torch

    from . import machine

    return machine.describe(torch.device(DEVICE)) if torch.cuda.is_available() else None


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Let programs that meet be compiled and loaded as for a launch, which does not happen."""
    import torch

    from rnnkit_kernels.recurrence import exchange

    def load(kernel: Any, grid: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        made = kernel.warmup(*arguments, grid=grid, **options, launch_cooperative_grid=True)
        assert getattr(made, "run", True)  # loads it; what does not fit is noticed here

    launch, exchange.cooperate = exchange.cooperate, load
    try:
        yield
        torch.cuda.synchronize()
    finally:
        exchange.cooperate = launch


def exchange_step(meeting: str, programs: int, compile_only: bool = False) -> float | str:
    """Seconds of one step of an empty exchange."""
    import torch

    from rnnkit_kernels.recurrence import exchange
    from rnnkit_kernels.recurrence.plan import Device

    from . import floor

    device = torch.device(DEVICE)
    if programs > Device.of(device).multiprocessors:
        return f"not tried: only {Device.of(device).multiprocessors} multiprocessors"
    exchange.MAX_POLLS = POLLS
    if not compile_only:
        return floor.step_seconds(meeting, programs, device)
    first = torch.randn(16, 16 * programs, device=device).to(torch.bfloat16)
    with nothing_waits():
        floor.run_exchange(meeting, first, 2)
    return "compiled"


def parity(cell: str, mode: str, precision: str, hidden: int, compile_only: bool = False) -> None:
    """Results and gradients against float64, lengths equal and not, in both directions."""
    from rnnkit_kernels.recurrence import exchange
    from tests.kernels import layers, test_gpu

    os.environ["RNNKIT_CHECK"] = "1"
    exchange.MAX_POLLS = POLLS
    with test_gpu.computed_in("fp32"), test_gpu.computed_in(precision) as dtype:
        for storage, reverse in (("dense", False), ("packed", True), ("padded", False)):
            layer = layers.random_layer(cell, storage, reverse, hidden, batch=test_gpu.BATCH)
            layer = test_gpu.on_device(layer)
            if compile_only:
                with nothing_waits():
                    layer.to(dtype).run(mode)
            else:
                layers.assert_as_exact_as_a_plain_loop(layer, mode, dtype)


def compile_quick(name: str, cell: str, dtype: str) -> None:
    """Two steps of one of the quick benchmarks, by every peer that is ours."""
    import torch

    from .cases import CASES
    from .peers import select
    from .work import Work, products_in

    work = Work.of(replace(CASES[name], steps=2), cell, dtype, torch.device(DEVICE))
    for peer in select(["rnnkit auto", "rnnkit triton"]):
        if peer.absent(work) is None:
            with products_in(dtype), nothing_waits():
                peer.prepare(work, "train").call("train")


def quick_suite(folder: str, deadline: float) -> None:
    """The quick benchmarks, as far as they come."""
    budget = deadline - time.monotonic() - TO_STOP
    if budget < 0:
        raise TimeoutError("no time is left for the quick benchmarks")
    out = str(Path(folder).resolve() / "quick.json")
    command = [sys.executable, "-m", "benchmarks", "--quick", "--out", out]
    done = subprocess.run([*command, "--budget", f"{budget:.0f}"], cwd=ROOT)
    if done.returncode == 3:
        raise TimeoutError(f"{out} goes on with the next run")
    if done.returncode:
        raise RuntimeError(f"python -m benchmarks --quick ended with {done.returncode}")


def all_checks(folder: Path, deadline: float) -> list[Check]:
    """Everything, in the order of running."""
    from rnnkit_kernels.cells import CELLS

    from .cases import QUICK
    from .floor import MEETINGS, PROGRAMS

    here, compiles = "benchmarks.gpu_check:", []

    def after_compiling(check: Check) -> Check:
        name = f"compile {check.name}"
        first = replace(check, name=name, group="compile", needs=(), limit=TO_COMPILE, beside=True)
        compiles.append(replace(first, arguments=(*check.arguments, True)))
        return replace(check, needs=(name, *check.needs))

    exchanges = [
        Check(f"exchange {meeting} {count}", "exchange", f"{here}exchange_step", (meeting, count))
        for meeting in MEETINGS
        for count in PROGRAMS
    ]
    ways = {way: tuple(c.name for c in exchanges if way in c.arguments) for way in MEETINGS}
    exchanges = [after_compiling(check) for check in exchanges]
    layers = [("lstm", meeting, "bf16", hidden) for meeting in MEETINGS for hidden in (650, 1024)]
    for cell in CELLS:
        for mode in (*MEETINGS, "resident", "launch"):
            # IEEE products have no tensor cores: nothing is held on chip for others to meet.
            for precision in ("bf16", "tf32", "fp16", "fp32")[: 3 + (mode not in MEETINGS)]:
                hidden = 24 if (mode, precision) == ("resident", "fp32") else 40
                layers.append((cell, mode, precision, hidden))
    parities = []
    for cell, mode, precision, hidden in layers:
        name, given = f"{cell} {mode} {precision} H={hidden}", (cell, mode, precision, hidden)
        check = Check(f"parity {name}", "parity", f"{here}parity", given, ways.get(mode, ()))
        if mode not in MEETINGS:
            check = replace(check, group="parity alone", limit=TO_COMPILE, beside=True)
        parities.append(after_compiling(check))
    parities.sort(key=lambda check: check.beside)
    for case in QUICK["cuda"]:
        for dtype in ("bf16", "tf32"):
            for cell in ("lstm", "gru"):
                name, function = f"compile quick {case} {cell} {dtype}", f"{here}compile_quick"
                compiles.append(
                    Check(name, "compile", function, (case, cell, dtype), (), TO_COMPILE, True)
                )
    quick = Check("quick benchmarks", "quick", f"{here}quick_suite", (str(folder), deadline))
    needs = tuple(check.name for check in exchanges)
    quick = replace(quick, needs=needs, limit=math.inf, unless_hung=("exchange", "parity"))
    return [*compiles, *exchanges, *parities, quick]


def forget_compiled(checks: Sequence[Check], report: Report, again: bool) -> None:
    """Let what is still to be run be compiled anew: this machine may have no kernels of before."""
    left = [check for check in checks if report.status(check.name) not in done(again)]
    left = [check for check in left if check.group != "compile"]
    of_all, of_left = ({name for c in some for name in c.needs} for some in (checks, left))
    for check in checks:
        wanted = check.name in of_left or (left and check.name not in of_all)
        if check.group == "compile" and report.status(check.name) == "ok" and wanted:
            del report.found[check.name]


def summary(checks: Sequence[Check], report: Report) -> int:
    """Say how many are what, and why; returns the exit status."""
    counts = Counter(report.status(check.name) for check in checks)
    for check in checks:
        if report.status(check.name) in ("failed", "hung", "skipped"):
            last = report.found[check.name]["message"].strip().splitlines()[-1:]
            report.tell(f"{report.status(check.name)}: {check.name}: {' '.join(last)}")
    names = ("ok", "failed", "hung", "skipped", "cut", "not reached")
    report.tell(", ".join(f"{counts[name]} {name}" for name in names))
    if counts["failed"] or counts["hung"]:
        return 1
    return 0 if counts["ok"] == len(checks) else 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is the module's."""
    begin = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description="Check a GPU's recurrent kernels and measure them, inside a few minutes.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for results")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all (default: 9)")
    parser.add_argument("--again", action="store_true", help="repeat also what failed or hung")
    options = parser.parse_args(argv)
    deadline = begin + 60 * options.minutes - 10  # to end what still runs
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.environ.pop("TRITON_INTERPRET", None)
    report = Report(options.out / "gpu_check.json", lambda line: print(line, flush=True))
    where = Check("environment", "environment", "benchmarks.gpu_check:environment", limit=60)
    checks = [where]
    given = {"again": options.again, "at_once": os.cpu_count() or 1, "preload": PRELOAD}
    try:
        report.found.pop(where.name, None)
        run(checks, report, deadline, **given)
        if report.status(where.name) == "ok":
            if report.found[where.name]["value"] is None:
                print("torch sees no CUDA GPU, and there is nothing to check without one")
                return 2
            checks += all_checks(options.out, deadline)
            forget_compiled(checks, report, options.again)
            run(checks, report, deadline, **given)
    except KeyboardInterrupt:
        summary(checks, report)
        return 130
    return summary(checks, report)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # a process that the driver holds is not waited for
