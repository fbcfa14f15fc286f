"""What `cpu_engine.py` measured, as ratios of times: tables and means.

A ratio is torch.nn's median time over the side's: above 1 the side is faster. Turns come in pairs,
torch.nn's and the side's of the same round; the interval is that of the median of their ratios, by
the bootstrap (Efron 1979), 95 %.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from .cases import NAMES
from .cpu_records import CELLS, MODES, SEED, SIDES, Record, Run
from .results import BASELINE

RESAMPLES = 2000
SHARE = 0.95
# A side whose interval lies below this is called slower.
SLOWER = 0.98
CLOCKS = ("wall", "cpu")


@dataclass(frozen=True)
class Ratio:
    """How many times faster than torch.nn: from the medians, and the interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, theirs: Sequence[float], ours: Sequence[float]) -> Ratio:
        """Of times that were taken in turns."""
        pairs = torch.tensor(theirs, dtype=torch.float64) / torch.tensor(ours, dtype=torch.float64)
        generator = torch.Generator().manual_seed(SEED)
        drawn = torch.randint(len(pairs), (RESAMPLES, len(pairs)), generator=generator)
        medians = pairs[drawn].quantile(0.5, dim=1)
        ends = torch.tensor([(1 - SHARE) / 2, (1 + SHARE) / 2], dtype=torch.float64)
        low, high = medians.quantile(ends).tolist()
        return cls(statistics.median(theirs) / statistics.median(ours), low, high)

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}–{self.high:.2f})"


# By clock, then by side.
Ratios = dict[str, dict[str, Ratio]]


def ratios_of(record: Record) -> Ratios:
    """Those of every side beside torch.nn."""
    return {
        clock: {side: Ratio.of(times[BASELINE], times[side]) for side in times if side != BASELINE}
        for clock, times in (("wall", record.wall), ("cpu", record.cpu))
    }


Measured = list[tuple[Record, Ratios]]


def geometric_mean(values: Iterable[float]) -> float:
    """NaN of none."""
    logs = [math.log(value) for value in values]
    return math.exp(statistics.fmean(logs)) if logs else math.nan


def slower(measured: Measured, side: str, clock: str) -> Measured:
    """The cases in which a side's interval lies below `SLOWER`."""
    return [
        each for each in measured if side in each[1][clock] and each[1][clock][side].high < SLOWER
    ]


def short(measured: Measured) -> str:
    """What a reader wants first."""
    return f"{means(measured)}\n\n{slower_cases(measured)}\n"


def page(run: Run, measured: Measured, picture: str) -> str:
    """README.md, with a picture unless its name is empty."""
    drawn = f"![Ratios of all cases]({picture})\n\n" if picture else ""
    return f"{_head(run)}\n\n{drawn}{short(measured)}\n{tables(measured)}\n"


def _head(run: Run) -> str:
    about = run.machine
    lines = [
        "# The native CPU engine beside torch.nn",
        "",
        f"{about['device']}, {about['cores']} cores; torch {about['torch']} "
        f"({about['torch_instructions']}), the engine {run.isa}; commit {run.commit or 'unknown'}, "
        f"{run.started}, seed {run.seed}, float32. Load averages "
        f"{min(r.load for r in run.records)} to {max(r.load for r in run.records)}.",
        "",
        *(f"    {command}" for command in run.commands),
        "",
        f"Ratios are {BASELINE}'s median time over rnnkit's: above 1 rnnkit is faster. In brackets "
        "the 95 % bootstrap interval of the median of the paired ratios. CPU: time of all threads. "
        "Times are in [results.json](results.json), all ratios in [summary.json](summary.json).",
    ]
    return "\n".join(lines)


def _groups(measured: Measured) -> list[tuple[tuple[bool, str, int], Measured]]:
    """Those of the same raggedness, mode and threads, in a fixed order."""
    found: dict[tuple[bool, str, int], Measured] = {}
    for record, ratios in measured:
        case = record.case
        found.setdefault((case.ragged, case.mode, case.threads), []).append((record, ratios))
    return sorted(found.items(), key=lambda item: (item[0][0], list(MODES).index(item[0][1])))


def _named(ragged: bool, mode: str, threads: int) -> str:
    plural = "s" * (threads > 1)
    return f"{'ragged' if ragged else 'dense'}, {mode}, {threads} thread{plural}"


def means(measured: Measured) -> str:
    """Geometric means over the shapes, for each cell, with and without batches of one."""
    lines = [
        "Geometric means over the shapes, wall / CPU; the first side is what rnnkit does by itself "
        "(dense: `auto`, ragged: `lengths=`), the second the engine or a packed sequence:",
        "",
        "| | cell | first side | second side | first, B > 1 | second, B > 1 |",
        "|---|---|---|---|---|---|",
    ]
    for key, group in _groups(measured):
        for cell in CELLS:
            own = [each for each in group if each[0].case.cell == cell]
            if not own:
                continue
            fields = [
                " / ".join(
                    f"{geometric_mean(ratios[clock][side].value for _, ratios in part):.2f}"
                    for clock in CLOCKS
                )
                for part in (own, [each for each in own if each[0].case.shape[1] > 1])
                for side in SIDES[key[0]]
            ]
            lines.append(f"| {_named(*key)} | {NAMES[cell]} | {' | '.join(fields)} |")
    return "\n".join(lines)


def slower_cases(measured: Measured) -> str:
    """How many cases of each side are slower than torch.nn, and which."""
    lines = [f"Cases whose interval lies below {SLOWER}:", ""]
    for ragged, names in SIDES.items():
        count = sum(record.case.ragged == ragged for record, _ in measured)
        for side in names if count else ():
            by_clock = [slower(measured, side, clock) for clock in CLOCKS]
            wall, cpu = map(len, by_clock)
            lines.append(f"* {side}: {wall} of {count} by wall time, {cpu} by CPU time")
            for record, ratios in measured:
                if any(record is each for found in by_clock for each, _ in found):
                    both = ", ".join(f"{name(c)} {ratios[c][side]}" for c in CLOCKS)
                    lines.append(f"    * {record.case}: {both}")
    return "\n".join(lines)


def name(clock: str) -> str:
    """As it stands in text."""
    return "CPU" if clock == "cpu" else clock


def tables(measured: Measured) -> str:
    """A row for each shape and cell."""
    parts = []
    for key, group in _groups(measured):
        names = SIDES[key[0]]
        columns = [f"{side}{' CPU' * (clock == 'cpu')}" for side in names for clock in CLOCKS]
        lines = [
            f"## {_named(*key).capitalize()}",
            "",
            f"| T, B, D, H | cell | {BASELINE}, ms | {' | '.join(columns)} | {names[0]} runs |",
            "|---" * (4 + len(columns)) + "|",
        ]
        for record, ratios in group:
            fields = [
                ", ".join(map(str, record.case.shape)),
                NAMES[record.case.cell],
                f"{statistics.median(record.wall[BASELINE]) * 1e3:.3g}",
                *(str(ratios[clock][side]) for side in names for clock in CLOCKS),
                record.engines[names[0]],
            ]
            lines.append(f"| {' | '.join(fields)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def summary(measured: Measured) -> list[dict[str, object]]:
    """All ratios, ready for JSON."""
    return [
        {
            **vars(record.case),
            "ratios": {
                clock: {side: vars(ratio) for side, ratio in of_clock.items()}
                for clock, of_clock in ratios.items()
            },
        }
        for record, ratios in measured
    ]
