"""What was measured, as JSON that later versions can read; the schema is that of these classes.

A file holds one object: the fields of `Results`, `records` as a list of objects with the fields of
`Record`, `cases` with those of `cases.Case`. Times are in seconds, sizes in bytes.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from rnnkit_kernels.dispatch.tables import MARGIN

from .cases import Case

SCHEMA = 1
Key = tuple[str, str, str, str, str]
Status = Literal["running", "ok", "absent", "wrong", "failed"]


@dataclass
class Record:
    """One peer on one case.

    Attributes:
        case: a name in `Results.cases`.
        cell: "lstm", "gru", "rnn_tanh" or "rnn_relu".
        dtype: "fp32", "tf32", "bf16" or "fp16".
        mode: "inference", "forward" or "train".
        peer: who ran it, such as "torch.nn" or "rnnkit auto".
        status: "ok"; "absent" where the peer can't run the case; "wrong" where its results failed
            the parity check, so that it has no time; "failed" where it raised; "running" while it
            is measured, which stays in the file if the process dies.
        message: why it is absent, wrong or failed.
        engine: what ran underneath: cuDNN's algorithm as PyTorch's rule predicts it, or rnnkit's
            engine.
        seconds: samples of one call, in the order taken, the peers of a case taking turns.
        graph_seconds: samples of one replay of a CUDA graph of the call; empty without.
        graph_message: why there is no graph.
        error: the largest error of results and gradients over what is allowed; right up to 1.
        peak_bytes: the most memory in use during a call beyond what was before it.
        first_call_seconds: the first call, compilation and tuning included.
        floor_seconds: what the call can't be faster than on this machine, see `floor.py`.
    """

    case: str
    cell: str
    dtype: str
    mode: str
    peer: str
    status: Status
    message: str = ""
    engine: str = ""
    seconds: list[float] = field(default_factory=list)
    graph_seconds: list[float] = field(default_factory=list)
    graph_message: str = ""
    error: float | None = None
    peak_bytes: int | None = None
    first_call_seconds: float | None = None
    floor_seconds: float | None = None

    @property
    def key(self) -> Key:
        """What tells a record from every other of a run."""
        return self.case, self.cell, self.dtype, self.mode, self.peer

    @property
    def median(self) -> float:
        """Of the samples, in seconds."""
        return statistics.median(self.seconds)

    def quantile(self, share: float) -> float:
        """The sample below which `share` of the samples lie."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def noise(self) -> float:
        """How far the medians of the odd and the even samples lie apart, as a share."""
        halves = self.seconds[::2], self.seconds[1::2]
        if not halves[1]:
            return 0.0
        first, second = (statistics.median(half) for half in halves)
        return abs(first - second) / self.median

    @property
    def uncertainty(self) -> float:
        """Standard error of the median as a share, from the middle 60 % of the samples.

        They span 1.683 standard deviations of a normal distribution, and the standard error of its
        median is 1.2533 σ/√n. Never below the `noise`, which sees what comes and goes.
        """
        spread = (self.quantile(0.8) - self.quantile(0.2)) / 1.683
        error = 1.2533 * spread / math.sqrt(len(self.seconds)) / self.median
        return max(error, self.noise / 2)


@dataclass
class Results:
    """One run, or several of one machine that added to one file.

    Attributes:
        machine: the device, its driver, versions, threads, clocks seen; see `machine.py`.
        commands: the command lines, in the order run.
        commit: of the repository, "" outside one.
        started: ISO 8601, of the first run.
        cases: the shapes, by name.
        floor: the constants of the floor, see `floor.py`; empty where it was not measured.
        records: in the order measured.
        schema: version of this layout.
    """

    machine: dict[str, Any]
    commands: list[str] = field(default_factory=list)
    commit: str = ""
    started: str = ""
    cases: dict[str, Case] = field(default_factory=dict)
    floor: dict[str, Any] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    schema: int = SCHEMA

    def add(self, record: Record) -> None:
        """Add a record, in the place of an earlier one of the same key."""
        self.records = [old for old in self.records if old.key != record.key]
        self.records.append(record)

    def get(self, key: Key) -> Record | None:
        """The record of this key."""
        return next((record for record in self.records if record.key == key), None)

    def of(self, case: str, cell: str, dtype: str) -> list[Record]:
        """The records of one case in one cell and dtype."""
        return [record for record in self.records if record.key[:3] == (case, cell, dtype)]

    def groups(self) -> Iterator[list[Record]]:
        """The records of each case, cell, dtype and mode: the peers that compete."""
        found: dict[tuple[str, ...], list[Record]] = {}
        for record in self.records:
            found.setdefault(record.key[:4], []).append(record)
        yield from found.values()

    def save(self, path: Path) -> None:
        """Write the file at once, so that a reader never sees half of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        # One record a line: small, quick to write, and a difference shows which changed.
        values = asdict(self)
        records = ",\n".join(json.dumps(record) for record in values.pop("records"))
        head = json.dumps(values, indent=1).removesuffix("\n}")
        partial.write_text(f'{head},\n "records": [\n{records}\n]\n}}\n')
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file.

        Raises:
            ValueError: it is no such file, or of another schema.
        """
        try:
            values = json.loads(path.read_text())
            schema = values["schema"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no benchmark results: {error}") from error
        if schema != SCHEMA:
            raise ValueError(f"{path} has schema {schema}, this version reads {SCHEMA}")
        try:
            values["cases"] = {name: Case(**case) for name, case in values["cases"].items()}
            values["records"] = [Record(**record) for record in values["records"]]
            return cls(**values)
        except (KeyError, TypeError) as error:
            names = ", ".join(each.name for each in fields(cls))
            raise ValueError(
                f"{path} does not hold the fields of schema {SCHEMA} ({names}): {error}"
            ) from error


BASELINE = "torch.nn"
AUTO = "rnnkit auto"
# Differences below this are never called one: clocks and caches drift by as much.
LEAST = 0.02


@dataclass(frozen=True)
class Change:
    """How one record differs between two runs.

    Attributes:
        key: of the record.
        before, after: median seconds.
        ratio: after over before; of the times over the baseline's of the same run, where both runs
            have it and the record is not the baseline itself.
        threshold: how far from 1 chance may take the ratio.
        paired: whether the ratio is over the baseline's.
    """

    key: Key
    before: float
    after: float
    ratio: float
    threshold: float
    paired: bool

    @property
    def real(self) -> bool:
        """Whether the change is beyond noise."""
        return abs(self.ratio - 1) > self.threshold


def compare(old: Results, new: Results) -> list[Change]:
    """What changed between two runs, for every record that both measured, in `new`'s order."""
    changes = []
    for after in new.records:
        before = old.get(after.key)
        if before is None or before.status != "ok" or after.status != "ok":
            continue
        parts = [before, after]
        ratio = after.median / before.median
        controls = [run.get((*after.key[:4], BASELINE)) for run in (old, new)]
        paired = after.peer != BASELINE and all(
            c is not None and c.status == "ok" for c in controls
        )
        if paired:
            # A machine that is slower today is so for the baseline as well.
            first, second = (control for control in controls if control is not None)
            ratio *= first.median / second.median
            parts += [first, second]
        threshold = max(LEAST, 3 * math.hypot(*(part.uncertainty for part in parts)))
        changes.append(Change(after.key, before.median, after.median, ratio, threshold, paired))
    return changes


def auto_losses(results: Results) -> list[tuple[Record, Record]]:
    """Where "auto" was slower than the best of rnnkit's engines and the baseline, beyond noise."""
    losses = []
    for group in results.groups():
        ours = [r for r in group if r.status == "ok" and r.peer.startswith(("rnnkit", BASELINE))]
        # The baseline without cuDNN is a peer of its own, which nobody would choose.
        ours = [r for r in ours if r.peer == BASELINE or r.peer.startswith("rnnkit")]
        auto = next((r for r in ours if r.peer == AUTO), None)
        if auto is None:
            continue
        best = min(ours, key=lambda record: record.median)
        # By as much a kernel has to win before "auto" takes it.
        chance = max(MARGIN - 1, 3 * math.hypot(auto.uncertainty, best.uncertainty))
        if auto.median > best.median * (1 + chance):
            losses.append((auto, best))
    return losses


def number(value: float) -> str:
    """Three significant digits, more only before the decimal point."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"
