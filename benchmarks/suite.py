"""Runs peers on cases: parity first, then the clock, a record after each."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rnnkit_kernels.ops.planned import LaunchRefusedWarning

from . import floor
from .cases import Case
from .clock import Clock, captured, peak_bytes
from .parity import Expected
from .peers import Peer
from .results import Record, Results
from .work import Prepared, Work, products_in

DIED = "the process died while this was measured"


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        cases, cells, dtypes, modes, peers: every combination of these.
        device: where.
        seconds: for the samples of one peer in one mode.
        floors: whether to measure the floor too.
        graphs: whether to time replays of CUDA graphs too.
    """

    cases: Sequence[Case]
    cells: Sequence[str]
    dtypes: Sequence[str]
    modes: Sequence[str]
    peers: Sequence[Peer]
    device: torch.device
    seconds: float = 0.5
    floors: bool = True
    graphs: bool = True

    def groups(self) -> list[tuple[Case, str, str]]:
        """What shares its work and its parity check, in order of importance."""
        return [
            (case, cell, dtype)
            for case in self.cases
            for dtype in self.dtypes
            for cell in self.cells
        ]


def cost(case: Case, cell: str) -> int:
    """What a case takes beside the others: a step costs as much as 10⁸ operations by itself."""
    return case.operations(cell, "train") + 10**8 * case.steps * case.layers


class DeviceLostError(RuntimeError):
    """The device refuses all work after an error; a new process can go on."""


class Suite:
    """One run.

    Args:
        request: what to measure.
        results: what is there already; records are added to it.
        path: of the results' file, written after each step.
        report: called with (share done, what is next) as the run goes on.
    """

    def __init__(
        self,
        request: Request,
        results: Results,
        path: Path,
        report: Callable[[float, str], None],
    ) -> None:
        self.request = request
        self.results = results
        self.path = path
        self.report = report
        self.clock = Clock(request.device)
        self.graphs = request.graphs and request.device.type == "cuda"

    def run(self, budget: float = float("inf")) -> bool:
        """Measure what is not there yet.

        Args:
            budget: seconds after which nothing more is begun.

        Returns:
            Whether all was measured.

        Raises:
            DeviceLostError: after an error the device refused all work.
        """
        deadline = time.monotonic() + budget
        for record in self.results.records:
            if record.status == "running" and record.error is None:
                record.status, record.message = "failed", DIED
        self.forget_running()  # those were right, and the process was ended while all took turns
        groups = self.missing()
        costs = [cost(case, cell) for case, cell, _ in groups]
        if self.request.floors and groups and not self.results.floor:
            self._measure_floor()
        for i, (case, cell, dtype) in enumerate(groups):
            if time.monotonic() > deadline:
                return False
            self.report(sum(costs[:i]) / sum(costs), f"{case.name} {cell} {dtype}")
            self.results.cases[case.name] = case
            try:
                with products_in(dtype), warnings.catch_warnings():
                    # Another kernel's time must not stand under a mode's name.
                    warnings.simplefilter("error", LaunchRefusedWarning)
                    self._group(case, cell, dtype)
            except DeviceLostError:
                self.forget_running()
                raise
            finally:
                self.results.save(self.path)
                gc.collect()
        self.report(1.0, "done")
        return True

    def _measure_floor(self) -> None:
        """Without it all the rest can still be measured."""
        self.report(0.0, "the machine's floor")
        device = self.request.device
        self.results.floor = {"failed": "the process died while it was measured"}
        self.results.save(self.path)
        try:
            self.results.floor = floor.measure(device, lambda what: self.report(0.0, what))
        except Exception as error:
            self.results.floor = {"failed": _sentence(error)}
            self.results.save(self.path)
            self._still_there()

    def forget_running(self) -> None:
        """Drop what was under way: it will be measured anew."""
        kept = [record for record in self.results.records if record.status != "running"]
        self.results.records = kept

    def missing(self) -> list[tuple[Case, str, str]]:
        """What is not measured yet."""
        return [group for group in self.request.groups() if self._missing(*group)]

    def _missing(self, case: Case, cell: str, dtype: str) -> list[tuple[str, Peer]]:
        """Modes and peers without a record; who was absent may have been installed since."""
        found = {(r.mode, r.peer): r.status for r in self.results.of(case.name, cell, dtype)}
        return [
            (mode, peer)
            for mode in self.request.modes
            for peer in self.request.peers
            if found.get((mode, peer.name), "absent") == "absent"
        ]

    def _group(self, case: Case, cell: str, dtype: str) -> None:
        missing = self._missing(case, cell, dtype)
        names = (case.name, cell, dtype)
        records = {
            (mode, peer.name): Record(*names, mode, peer.name, "running") for mode, peer in missing
        }
        able: dict[str, Peer] = {}
        try:
            work = Work.of(case, cell, dtype, self.request.device)
            for peer in {peer.name: peer for _, peer in missing}.values():
                reason = peer.absent(work)
                if reason is None:
                    able[peer.name] = peer
                    continue
                for (_, name), record in records.items():
                    if name == peer.name:
                        record.status, record.message = "absent", reason
                        self.results.add(record)
            if not able:
                return
            expected = Expected.of(work)
        except Exception as error:
            for record in records.values():
                self.results.add(record)
                self._failed(record, error, "the reference failed: ")
            return
        for peer in able.values():
            own = [record for (_, name), record in records.items() if name == peer.name]
            for record in own:
                self.results.add(record)
            self.results.save(self.path)  # should it end the process, the file says who it was
            self._check(peer, work, expected, own)
        for mode in self.request.modes:
            running = {
                name: record
                for (of_mode, name), record in records.items()
                if of_mode == mode and record.status == "running"
            }
            if running:
                peers = {name: able[name] for name in running}
                self._time(mode, work, expected, peers, running)

    def _check(self, peer: Peer, work: Work, expected: Expected, records: list[Record]) -> None:
        """Refuse a time to what is wrong; note what the first call of all took."""
        found: list[list[Tensor]] = []
        try:
            prepared = peer.prepare(work, "train")
            first = self.clock.first(lambda: found.append(prepared.everything("train")))
            error = expected.error(found[0])
        except Exception as raised:
            for record in records:
                self._failed(record, raised)
            return
        for record in records:
            record.engine, record.error = prepared.engine, error
            if record.mode == "train":
                record.first_call_seconds = first
            self._refuse_wrong(record)

    def _time(
        self,
        mode: str,
        work: Work,
        expected: Expected,
        peers: dict[str, Peer],
        records: dict[str, Record],
    ) -> None:
        """Samples of all peers in turn, then memory, then graphs."""
        least = self._floor(work, mode)
        prepared: dict[str, Prepared] = {}
        for name, peer in peers.items():
            record = records[name]
            try:
                prepared[name] = peer.prepare(work, mode)
                record.engine = prepared[name].engine
                first = self.clock.first(_call(prepared[name], mode))
                if mode != "train":  # the parity check has seen training alone
                    record.error = expected.error(prepared[name].everything(mode))
                    self._refuse_wrong(record)
            except Exception as error:
                self._failed(record, error)
            else:
                if record.first_call_seconds is None:
                    record.first_call_seconds = first
            if record.status != "running":
                prepared.pop(name, None)
        calls = {name: _call(each, mode) for name, each in prepared.items()}
        if not calls:
            return
        try:
            samples = self.clock.in_turn(calls, self.request.seconds)
        except Exception as error:
            for name in calls:
                self._failed(records[name], error)
            return
        for name, call in calls.items():
            record = records[name]
            record.seconds = [_rounded(value) for value in samples[name]]
            record.status, record.floor_seconds = "ok", least
            try:
                record.peak_bytes = peak_bytes(call, work.device)
            except Exception:
                self._still_there()
        if self.graphs:
            self._time_graphs(calls, records, work)

    def _time_graphs(
        self, calls: dict[str, Callable[[], None]], records: dict[str, Record], work: Work
    ) -> None:
        if work.lengths is not None:
            for name in calls:
                records[name].graph_message = "lengths are read on the host"
            return
        replays: dict[str, Callable[[], None]] = {}
        for name, call in calls.items():
            try:
                if not self.graphs:
                    raise RuntimeError("an earlier capture failed in this process")
                replays[name] = captured(call, work.device)
            except Exception as error:
                # What a failed capture leaves behind can make later ones fail, and draws too.
                self.graphs = False
                torch.cuda.set_stream(torch.cuda.default_stream(work.device))
                records[name].graph_message = _sentence(error)
                self._still_there()
        try:
            found = self.clock.in_turn(replays, self.request.seconds / 2)
        except Exception as error:
            for name in replays:
                records[name].graph_message = _sentence(error)
            self._still_there()
            return
        for name, values in found.items():
            records[name].graph_seconds = [_rounded(value) for value in values]

    def _floor(self, work: Work, mode: str) -> float | None:
        """Of the group and mode, measured once; None where the floor can't be measured."""
        if not self.request.floors or "failed" in self.results.floor:
            return None
        if work.resets is not None:
            return None  # how many steps wait for each other depends on where the resets are
        for record in self.results.of(work.case.name, work.cell, work.dtype):
            if record.mode == mode and record.floor_seconds is not None:
                return record.floor_seconds
        constants, device = self.results.floor, self.request.device
        try:
            found = floor.seconds(work.case, work.cell, work.dtype, mode, constants, device)
        except Exception:
            self._still_there()
            return None
        return _rounded(found)

    def _refuse_wrong(self, record: Record) -> None:
        if record.error is not None and not record.error <= 1:
            record.status, record.seconds = "wrong", []
            record.message = f"its error is {record.error:.3g} times what is allowed"

    def _failed(self, record: Record, error: Exception, prefix: str = "") -> None:
        if record.status == "running":
            record.status, record.message = "failed", prefix + _sentence(error)
        self._still_there()

    def _still_there(self) -> None:
        """Some errors leave a GPU that refuses all further work of this process."""
        try:
            self.clock.wait()
        except RuntimeError as error:
            raise DeviceLostError(_sentence(error)) from error


def _call(prepared: Prepared, mode: str) -> Callable[[], None]:
    return lambda: prepared.call(mode)


def _rounded(seconds: float) -> float:
    """Five digits: the file is half as long, and no clock is better."""
    return float(f"{seconds:.5g}")


def _sentence(error: BaseException) -> str:
    """The type and the first line of the message, of bearable length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]
