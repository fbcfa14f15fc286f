"""Runs checks, each in a process of its own that is ended when it takes too long.

Knows nothing of GPUs: `gpu_check.py` says what there is to check.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

TO_RUN = 60.0  # seconds for one check; the first of a process loads CUDA's libraries in it


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
