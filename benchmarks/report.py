"""A run as people read it: a table for the terminal, and a page with pictures for GitHub."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .cases import DTYPES, MODES, NAMES, Case
from .results import BASELINE, Record, Results, auto_losses, number

COLUMNS = 100  # of a terminal
LINE = "{:24} {:>10} {:>9} {:>9} {:>7} {:>8} {}"
BY_CASE = (
    "Whiskers are three standard errors. Of the engines or backends of one family only the fastest "
    "on the case is drawn; a bar and the number at the right are those of auto."
)
# Functions of charts.py, each with a heading, what is drawn, and whether to fold all but the first.
CHARTS = {
    "speedup": (
        "Speed beside torch.nn",
        "Median time of torch.nn over median time of the peer, higher is better. " + BY_CASE,
        False,
    ),
    "sweeps": (
        "Cost against one size",
        "Median time over T in µs, lower is better, against H, B or T with the others fixed.",
        True,
    ),
    "over_floor": (
        "Time over the floor",
        "Median time over the least that this machine allows, which is computed from constants "
        "measured in the same run: lower is better, and 1 is the floor. " + BY_CASE,
        True,
    ),
    "memory": (
        "Memory",
        "The most memory in use during a call beyond what was before it, in MiB: lower is better. "
        + BY_CASE,
        True,
    ),
}


def render(results: Results, source: Path, folder: Path) -> list[Path]:
    """Write `README.md`, a page of details for each mode and, with matplotlib, the pictures.

    Args:
        results: A run.
        source: Its JSON, which the page links to.
        folder: Where to write; it is made.

    Returns:
        What was written, the page first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures, charts = _draw(results, source, folder)
    details, tables = _tables(results, folder)
    sections = [
        _head(results, source, folder),
        charts,
        tables,
        _losses(results),
        _without_time(results),
        _floor(results),
    ]
    page = folder / "README.md"
    page.write_text("\n\n".join(section for section in sections if section) + "\n")
    return [page, *details, *pictures]


def table(results: Results) -> str:
    """The figures as plain text, a block per case, cell, dtype and mode, the fastest peer first.

    Args:
        results: A run.

    Returns:
        Lines of at most 100 columns.
    """
    blocks = []
    for group in results.groups():
        first, case = group[0], results.cases[group[0].case]
        lines = [
            f"{case.name}, {NAMES[first.cell]}, {first.dtype}, {first.mode} ({case})",
            LINE.format("peer", "median ms", "µs/step", "speed-up", "noise", "MiB", "engine"),
        ]
        for record in _fastest_first(group):
            line = f"{record.peer:24} {_why(record)}"
            if record.status == "ok":
                step, gain = record.median / case.steps, _speedup(record, group)
                values = (_ms(record.median), number(step * 1e6), gain, f"±{record.noise:.1%}")
                line = LINE.format(record.peer, *values, _mebibytes(record), record.engine)
            lines.append(line.rstrip())
        blocks += [line if len(line) <= COLUMNS else line[: COLUMNS - 1] + "…" for line in lines]
        blocks.append("")
    return "\n".join(blocks[:-1])


def _head(results: Results, source: Path, folder: Path) -> str:
    day, commit = results.started[:10] or "an unknown day", results.commit or "unknown"
    link = quote(Path(os.path.relpath(source.resolve(), folder.resolve())).as_posix())
    parts = [
        f"# Benchmarks on {_escaped(str(results.machine.get('device', 'this machine')))}",
        f"Begun on {day} at commit `{commit}` with",
        "\n".join(f"    {command}" for command in results.commands),
        f"Every sample stands in [{source.name}]({link}).",
        _grid(("machine", ""), _rows("", results.machine, _plain)),
        "Peers take turns: every round calls each of them once. A time is the median of "
        f"{_samples(results.records)}; the pages of details have the 20th and 80th percentiles "
        "and as noise the distance between the medians of the odd and of the even samples. "
        "Results and all gradients were compared with float64 before a time was taken: a peer that "
        "fails has none. On CUDA the L2 cache is flushed before every sample.",
    ]
    return "\n\n".join(part for part in parts if part)


def _draw(results: Results, source: Path, folder: Path) -> tuple[list[Path], str]:
    """Write the pictures; return them and the part of the page that shows them."""
    try:
        from . import charts  # draws with matplotlib, which a machine that measures may lack
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "matplotlib":
            raise
        return [], (
            "There are no pictures, for matplotlib is not installed here: "
            f"`rnnkit bench --report {source.name}` draws them elsewhere."
        )
    timed = [record for record in results.records if record.status == "ok"]
    if not timed:
        return [], ""
    # Training is what the library is for; the other modes stand in the tables.
    mode = next(m for m in ("train", *MODES) if any(m == record.mode for record in timed))
    written: list[Path] = []
    parts: list[str] = []
    for name, (heading, meaning, folded) in CHARTS.items():
        shown: list[str] = []
        for dtype in DTYPES:
            figure = getattr(charts, name)(results, dtype, mode)
            if figure is None:
                continue
            written.append(folder / f"{name.replace('_', '-')}-{dtype}.png")
            figure.savefig(written[-1])
            used = [record for record in timed if (record.dtype, record.mode) == (dtype, mode)]
            what = f"{dtype}, {mode} ({MODES[mode]}), medians of {_samples(used)}. {meaning}"
            text = f"![{heading}, {dtype}, {mode}]({written[-1].name})\n\n*{what}*"
            shown.append(_folded(dtype, text) if folded and shown else text)
        parts += [f"## {heading}", *shown] if shown else []
    return written, "\n\n".join(parts)


def _tables(results: Results, folder: Path) -> tuple[list[Path], str]:
    """Write a page of details for each mode; return them and the overview that links to them."""
    written: list[Path] = []
    parts = ["## Tables", "Median ms and speed-up over torch.nn; the fastest in bold."]
    for mode in MODES:
        groups = [group for group in results.groups() if group[0].mode == mode]
        if not groups:
            continue
        cases = [group for group in groups if not group[0].case.startswith("sweep-")]
        swept = [group for group in groups if group[0].case.startswith("sweep-")]
        parts.append(f"### {mode.capitalize()}: {MODES[mode]}")
        parts += [_overview(cases)] if cases else []
        # All of it on one page would be more than GitHub shows of a file, which is half a megabyte.
        written.append(folder / f"{mode}.md")
        written[-1].write_text(_details_page(results, mode, cases, swept))
        parts.append(f"Spread, time per step, memory, errors and sweeps: [{mode}.md]({mode}.md).")
    return written, "\n\n".join(parts)


def _details_page(
    results: Results, mode: str, cases: list[list[Record]], swept: list[list[Record]]
) -> str:
    device = _escaped(str(results.machine.get("device", "this machine")))
    parts = [f"# {mode.capitalize()} on {device}: {MODES[mode]}", "[Summary and method](README.md)"]
    for name in dict.fromkeys(group[0].case for group in cases):
        case = results.cases[name]
        parts.append(f"## {name}: {case}, from {case.source}")
        parts.append(_details(case, [group for group in cases if group[0].case == name]))
    if swept:
        parts += ["## Sweeps", "Median ms and speed-up over torch.nn.", _overview(swept)]
    return "\n\n".join(parts) + "\n"


def _overview(groups: list[list[Record]]) -> str:
    peers = list(dict.fromkeys(record.peer for group in groups for record in group))
    rows = []
    for group in groups:
        fastest, cells = _fastest_first(group)[0], dict.fromkeys(peers, "–")
        for record in group:
            if record.status == "ok":
                text = f"{_ms(record.median)} ({_speedup(record, group)})".removesuffix(" ()")
                cells[record.peer] = f"**{text}**" if record is fastest else text
            elif record.status != "absent":
                cells[record.peer] = record.status
        rows.append((group[0].case, group[0].cell, group[0].dtype, *cells.values()))
    return _grid(("case", "cell", "dtype", *peers), rows)


def _details(case: Case, groups: list[list[Record]]) -> str:
    """A row per record with a time; columns that nobody has are left out."""
    columns: dict[str, list[str]] = {}
    for group in groups:
        for r in (record for record in _fastest_first(group) if record.status == "ok"):
            row = {
                "cell": r.cell,
                "dtype": r.dtype,
                "peer": r.peer,
                "median ms": _ms(r.median),
                "p20–p80": f"{_ms(r.quantile(0.2))}–{_ms(r.quantile(0.8))}",
                "noise": f"{r.noise:.1%}",
                "in a CUDA graph, ms": r.graph_seconds and _ms(statistics.median(r.graph_seconds)),
                "speed-up": _speedup(r, group),
                "µs per step": number(r.median / case.steps * 1e6),
                "floor ÷ time": r.floor_seconds and f"{r.floor_seconds / r.median:.0%}",
                "peak MiB": _mebibytes(r),
                "error ÷ allowed": "" if r.error is None else number(r.error),
                "engine": r.engine,
                "first call, s": r.first_call_seconds and number(r.first_call_seconds),
            }
            for name, value in row.items():
                columns.setdefault(name, []).append(str(value or ""))
    if not columns:
        return "Nobody has a time."
    columns = {name: values for name, values in columns.items() if any(values)}
    return _grid(tuple(columns), list(zip(*columns.values(), strict=True)))


def _losses(results: Results) -> str:
    rows = [
        (
            *(auto.case, auto.cell, auto.dtype, auto.mode),
            f"{_ms(auto.median)} ({auto.engine or 'unknown'})",
            f"{_ms(best.median)} ({best.peer})",
            f"{auto.median / best.median:.2f}×",
        )
        for auto, best in auto_losses(results)
    ]
    head = ("case", "cell", "dtype", "mode", "auto, ms", "fastest, ms", "slower")
    text = "Nowhere, among rnnkit's engines and torch.nn and beyond noise."
    if rows:
        text = "Among rnnkit's engines and torch.nn, beyond noise.\n\n" + _grid(head, rows)
    return "## Where auto is not the fastest\n\n" + text


def _without_time(results: Results) -> str:
    """A line for each peer and reason, with the cases that it concerns."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in results.records:
        if record.status != "ok":
            found.setdefault((record.peer, _why(record)), []).append(record)
    lines = [
        f"- **{peer}**, {_escaped(why)} ({_where(results, records)})"
        for (peer, why), records in found.items()
    ]
    return "## Without a time\n\n" + "\n".join(lines) if lines else ""


def _where(results: Results, records: list[Record]) -> str:
    """Cases, with those cells, dtypes and modes that are not all of the run."""
    names = ("cell", "dtype", "mode")
    cases: dict[tuple[str, ...], list[str]] = {}
    for record in records:
        cases.setdefault(record.key[1:4], []).append(record.case)
    variants: dict[str, list[tuple[str, ...]]] = {}
    for variant, concerned in cases.items():
        for size in ("sweep-h-", "sweep-b-", "sweep-t-"):
            whole = [name for name in results.cases if name.startswith(size)]
            if whole and {*whole} <= {*concerned}:
                concerned = [size + "*" if name in whole else name for name in concerned]
        every = len(concerned) == len(results.cases)
        text = "every case" if every else ", ".join(dict.fromkeys(concerned))
        variants.setdefault(text, []).append(variant)
    parts = []
    for text, keys in variants.items():
        some = [
            " and ".join(dict.fromkeys(values))
            for name, values in zip(names, zip(*keys, strict=True), strict=True)
            if {getattr(record, name) for record in results.records} != {*values}
        ]
        parts.append(f"{text} in {', '.join(some)}" if some else text)
    return "; ".join(parts)


def _floor(results: Results) -> str:
    text = "## Constants of the floor\n\nIn seconds, bytes and operations per second.\n\n"
    rows = _rows("", results.floor, _si)
    return text + _grid(("constant", ""), rows) if rows else ""


def _rows(name: str, value: Any, show: Callable[[Any], str]) -> list[tuple[str, str]]:
    """Names and values of a nested dictionary, its innermost dictionaries on one line each."""
    name = name.replace("_", " ")
    if not isinstance(value, dict):
        return [(name, ", ".join(map(show, value)) if isinstance(value, list) else show(value))]
    inner = {key: _rows(str(key), each, show) for key, each in value.items()}
    if name and not any(isinstance(each, dict) for each in value.values()):
        return [(name, " · ".join(f"{key}: {text}" for [(key, text)] in inner.values()))]
    return [
        (f"{name}, {key}" if name else key, text) for rows in inner.values() for key, text in rows
    ]


def _plain(value: Any) -> str:
    """Version numbers as they are, sizes in bytes with a prefix."""
    return _si(value) if isinstance(value, int) and value >= 10**6 else str(value)


def _si(value: Any) -> str:
    """A number with the prefix of its thousand."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value:
        return str(value)
    prefixes = {12: "T", 9: "G", 6: "M", 3: "k", 0: "", -3: "m", -6: "µ", -9: "n"}
    power = next((each for each in prefixes if abs(value) >= 10.0**each), -9)
    return f"{number(value / 10.0**power)} {prefixes[power]}".strip()


def _fastest_first(group: list[Record]) -> list[Record]:
    return sorted(group, key=lambda r: r.median if r.status == "ok" else float("inf"))


def _speedup(record: Record, group: list[Record]) -> str:
    baseline = next((r for r in group if r.peer == BASELINE and r.status == "ok"), None)
    if baseline is None or record is baseline:
        return ""
    return f"{baseline.median / record.median:.2f}×"


def _why(record: Record) -> str:
    message = "its process ended in the middle" if record.status == "running" else record.message
    return " ".join(f"{record.status}: {message}".split())


def _ms(seconds: float) -> str:
    return number(seconds * 1e3)


def _mebibytes(record: Record) -> str:
    return "" if record.peak_bytes is None else number(record.peak_bytes / 2**20)


def _samples(records: list[Record]) -> str:
    counts = {len(record.seconds) for record in records if record.status == "ok"} or {0}
    return f"{'–'.join(map(str, sorted({min(counts), max(counts)})))} samples"


def _grid(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(map(_escaped, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _folded(summary: str, text: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
