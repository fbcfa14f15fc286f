"""Runs peers on cases: parity first, then the clock, a record after each."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import floor
from .cases import Case
from .clock import Clock, captured, peak_bytes
from .parity import Expected, check
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
    """

    cases: Sequence[Case]
    cells: Sequence[str]
    dtypes: Sequence[str]
    modes: Sequence[str]
    peers: Sequence[Peer]
    device: torch.device
    seconds: float = 0.5
    floors: bool = True

    def groups(self) -> list[tuple[Case, str, str]]:
        """What shares its work and its parity check, in order of importance."""
        return [
            (case, cell, dtype)
            for case in self.cases
            for dtype in self.dtypes
            for cell in self.cells
        ]


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
            if record.status == "running":
                record.status, record.message = "failed", DIED
        groups = [group for group in self.request.groups() if self._missing(*group)]
        # A step costs something whatever its size, here as much as 10⁸ operations.
        costs = [
            case.operations(cell, "train") + 10**8 * case.steps * case.layers
            for case, cell, _ in groups
        ]
        if self.request.floors and groups and not self.results.floor:
            self._measure_floor()
        for i, (case, cell, dtype) in enumerate(groups):
            if time.monotonic() > deadline:
                return False
            self.report(sum(costs[:i]) / sum(costs), f"{case.name} {cell} {dtype}")
            self.results.cases[case.name] = case
            try:
                with products_in(dtype):
                    self._group(case, cell, dtype)
            finally:
                self.results.save(self.path)
                gc.collect()
        self.report(1.0, "done")
        return True

    def _measure_floor(self) -> None:
        """Without it all the rest can still be measured."""
        self.report(0.0, "the machine's floor")
        device = self.request.device
        try:
            self.results.floor = floor.measure(device, lambda what: self.report(0.0, what))
        except Exception as error:
            self.results.floor = {"failed": _sentence(error)}
            self._still_there()

    def _missing(self, case: Case, cell: str, dtype: str) -> list[tuple[str, Peer]]:
        """Modes and peers without a record."""
        return [
            (mode, peer)
            for mode in self.request.modes
            for peer in self.request.peers
            if self.results.get((case.name, cell, dtype, mode, peer.name)) is None
        ]

    def _group(self, case: Case, cell: str, dtype: str) -> None:
        missing = self._missing(case, cell, dtype)
        names = (case.name, cell, dtype)
        records = {
            (mode, peer.name): Record(*names, mode, peer.name, "running") for mode, peer in missing
        }
        work = Work.of(case, cell, dtype, self.request.device)
        able: dict[str, Peer] = {}
        for peer in {peer.name: peer for _, peer in missing}.values():
            reason = peer.absent(work)
            if reason is None:
                able[peer.name] = peer
                continue
            for (_, name), record in records.items():
                if name == peer.name:
                    record.status, record.message = "absent", reason
        for record in records.values():
            self.results.add(record)
        self.results.save(self.path)
        if not able:
            return
        try:
            expected = Expected.of(work)
        except Exception as error:
            for record in records.values():
                self._failed(record, error, "the reference failed: ")
            return
        for peer in able.values():
            own = [record for (_, name), record in records.items() if name == peer.name]
            self._check(peer, work, expected, own)
        del expected
        for mode in self.request.modes:
            running = {
                name: record
                for (of_mode, name), record in records.items()
                if of_mode == mode and record.status == "running"
            }
            self._time(mode, work, {name: able[name] for name in running}, running)

    def _check(self, peer: Peer, work: Work, expected: Expected, records: list[Record]) -> None:
        """Refuse a time to what is wrong; note what the first call of all took."""
        found: list[float] = []
        try:
            prepared = peer.prepare(work, "train")
            first = self.clock.first(lambda: found.append(check(prepared, expected)))
        except Exception as error:
            for record in records:
                self._failed(record, error)
            return
        for record in records:
            record.engine, record.error = prepared.engine, found[0]
            if record.mode == "train":
                record.first_call_seconds = first
            if found[0] > 1:
                record.status = "wrong"
                record.message = f"its error is {found[0]:.3g} times what is allowed"

    def _time(
        self, mode: str, work: Work, peers: dict[str, Peer], records: dict[str, Record]
    ) -> None:
        """Samples of all peers in turn, then graphs, then memory."""
        prepared: dict[str, Prepared] = {}
        for name, peer in peers.items():
            try:
                prepared[name] = peer.prepare(work, mode)
                first = self.clock.first(_call(prepared[name], mode))
            except Exception as error:
                prepared.pop(name, None)
                self._failed(records[name], error)
                continue
            if records[name].first_call_seconds is None:
                records[name].first_call_seconds = first
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
            try:
                record.peak_bytes = peak_bytes(call, work.device)
                if self.request.floors and "failed" not in self.results.floor:
                    record.floor_seconds = self._floor(work, mode)
            except Exception as error:
                self._failed(record, error)
                continue
            record.status = "ok"
        if work.device.type == "cuda":
            self._time_graphs(calls, records)

    def _time_graphs(
        self, calls: dict[str, Callable[[], None]], records: dict[str, Record]
    ) -> None:
        replays: dict[str, Callable[[], None]] = {}
        for name, call in calls.items():
            try:
                replays[name] = captured(call, self.request.device)
            except Exception as error:
                records[name].graph_message = _sentence(error)
                self._still_there()
        for name, values in self.clock.in_turn(replays, self.request.seconds / 2).items():
            records[name].graph_seconds = [_rounded(value) for value in values]

    def _floor(self, work: Work, mode: str) -> float:
        """Of the group and mode, measured once."""
        same = (
            record.floor_seconds
            for record in self.results.records
            if record.key[:4] == (work.case.name, work.cell, work.dtype, mode)
        )
        known = next((value for value in same if value is not None), None)
        if known is not None:
            return known
        constants, device = self.results.floor, self.request.device
        return _rounded(floor.seconds(work.case, work.cell, work.dtype, mode, constants, device))

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
