"""The pictures of a report; the one module here that needs matplotlib.

A peer has the same colour and marker in every picture. The first colours are those of Okabe and
Ito (2008), which people with impaired colour vision tell apart; markers tell the peers apart too.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import ceil, hypot

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from .cases import MODES, NAMES, SWEEPS, Case
from .cpu_ratios import Measured
from .cpu_records import SIDES
from .results import AUTO, BASELINE, Record, Results, number

# Colour and marker by the longest of these that a peer's name begins with; legends keep the order.
LOOKS = {
    "torch.nn": ("#000000", "o"),
    "torch.nn without cuDNN": ("#7f7f7f", "x"),
    "rnnkit auto": ("#d55e00", "D"),
    "rnnkit native": ("#117733", "H"),
    "rnnkit data": ("#e69f00", "^"),
    "rnnkit counter": ("#cc79a7", "v"),
    "rnnkit resident": ("#882255", "<"),
    "rnnkit launch": ("#8c6d1f", ">"),
    "rnnkit triton": ("#b8a200", "d"),
    "rnnkit eager": ("#661100", "+"),
    "flashrnn cuda_fused": ("#009e73", "P"),
    "flashrnn triton_fused": ("#00604a", "h"),
    "flashrnn": ("#66c2a4", "p"),
    "torchrl": ("#0072b2", "s"),
    "torch.compile": ("#332288", "X"),
    "loop": ("#56b4e9", "*"),
    "": ("#555555", "8"),
}
# Of numbers of threads; Okabe and Ito's.
ENGINE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
RATIO_TICKS = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16)
FONT = 9
WIDTH, DPI = 10, 120  # inches, dots per inch: GitHub shows it a quarter smaller
Points = dict[str, tuple[float, float]]  # by peer: a value, and its uncertainty as a share
Measure = Callable[[Record, Record | None], tuple[float, float] | None]


def speedup(results: Results, dtype: str, mode: str) -> Figure | None:
    """How many times faster than torch.nn each peer is, by case, a panel per cell.

    Args:
        results: A run.
        dtype, mode: Which of its records, as in `cases.DTYPES` and `cases.MODES`.

    Returns:
        The picture, None where no peer and torch.nn have a time of the same case.
    """

    def measure(record: Record, baseline: Record | None) -> tuple[float, float] | None:
        if baseline is None or record is baseline:
            return None
        error = hypot(record.uncertainty, baseline.uncertainty)
        return baseline.median / record.median, error

    label = f"speed-up over {BASELINE} (right is faster)"
    return _by_case(results, dtype, mode, measure, label, ratio=True)


def over_floor(results: Results, dtype: str, mode: str) -> Figure | None:
    """The time of each peer over the floor, by case, a panel per cell.

    Args:
        results: A run.
        dtype, mode: Which of its records, as in `cases.DTYPES` and `cases.MODES`.

    Returns:
        The picture, None where no record has a floor.
    """

    def measure(record: Record, baseline: Record | None) -> tuple[float, float] | None:
        floor = record.floor_seconds
        return (record.median / floor, record.uncertainty) if floor else None

    label = "time ÷ floor (left is better)"
    return _by_case(results, dtype, mode, measure, label, ratio=True)


def memory(results: Results, dtype: str, mode: str) -> Figure | None:
    """The most memory that each peer needs during a call, by case, a panel per cell.

    Args:
        results: A run.
        dtype, mode: Which of its records, as in `cases.DTYPES` and `cases.MODES`.

    Returns:
        The picture, None where memory was not measured.
    """

    def measure(record: Record, baseline: Record | None) -> tuple[float, float] | None:
        return (record.peak_bytes / 2**20, 0.0) if record.peak_bytes else None

    label = "peak memory in MiB (left is better)"
    return _by_case(results, dtype, mode, measure, label, ratio=False)


def sweeps(results: Results, dtype: str, mode: str) -> Figure | None:
    """Time per step against H, B and T, a row of panels per cell.

    Args:
        results: A run.
        dtype, mode: Which of its records, as in `cases.DTYPES` and `cases.MODES`.

    Returns:
        The picture, None where no size was swept.
    """
    panels: dict[tuple[str, str], list[Record]] = {}
    for group in _groups(results, dtype, mode, swept=True):
        for record in group:
            if record.status == "ok":
                panels.setdefault((record.cell, record.case.split("-")[1]), []).append(record)
    if not panels:
        return None
    cells = [cell for cell in NAMES if any(cell == key[0] for key in panels)]
    sizes = [size for size in SWEEPS if any(size == key[1] for key in panels)]
    width = (6, 8, WIDTH)[len(sizes) - 1]
    figure = Figure((width, 3.5 * len(cells) + 1), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(cells), len(sizes), squeeze=False, sharey="row")
    for (row, cell), (column, size) in product(enumerate(cells), enumerate(sizes)):
        axes = grid[row, column]
        axes.set_title(f"{NAMES[cell]}, {dtype}", fontsize=FONT + 1)
        _finish(axes)
        if (cell, size) in panels:
            _sweep(axes, size, results.cases, panels[cell, size])
    for row, cell in enumerate(cells):
        grid[row, 0].set_ylabel(f"µs per step, {_short(mode)}", fontsize=FONT)
        timed = [record for key, panel in panels.items() if key[0] == cell for record in panel]
        _ticks(grid[row, 0], "y", [_microseconds(results.cases, record) for record in timed])
    _legend(figure, {record.peer for panel in panels.values() for record in panel})
    return figure


def engine_ratios(measured: Measured) -> Figure:
    """Ratios of what `cpu_engine.py` measured: a panel for each mode, dense and ragged.

    Args:
        measured: Records with their ratios, at least one.

    Returns:
        The picture: a row for each shape and cell, in it a lane for each number of threads.
    """
    at = [record.case for record, _ in measured]
    panels = sorted({(c.ragged, c.mode) for c in at}, key=lambda p: (p[0], list(MODES).index(p[1])))
    shapes, threads = list(dict.fromkeys(c.shape for c in at)), sorted({c.threads for c in at})
    cells = [cell for cell in NAMES if any(cell == c.cell for c in at)]
    rows = [(shape, cell) for shape in shapes for cell in cells]
    across = 2 if len({mode for _, mode in panels}) > 1 else 1
    down = ceil(len(panels) / across)
    size = (WIDTH, down * (0.27 * len(rows) + 0.9) + 0.5)
    figure = Figure(size, dpi=DPI, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    seen: dict[str, Line2D] = {}
    for (ragged, mode), axes in zip(panels, grid, strict=False):
        kind = "ragged" if ragged else "dense"
        axes.set_title(f"{kind}, {_short(mode)}", fontsize=FONT + 1)
        axes.set_xlabel(f"time of {BASELINE} ÷ time of rnnkit (right is faster)", fontsize=FONT)
        axes.tick_params(axis="x", labelbottom=True)
        for record, ratios in measured:
            case = record.case
            if (case.ragged, case.mode) != (ragged, mode):
                continue
            lane = 0.6 * ((threads.index(case.threads) + 0.5) / len(threads) - 0.5)
            row = rows.index((case.shape, case.cell)) + lane
            color = ENGINE_COLORS[threads.index(case.threads) % len(ENGINE_COLORS)]
            for place, ratio in enumerate(ratios["wall"].values()):
                first = place == 0
                axes.plot([ratio.low, ratio.high], [row, row], color=color, linewidth=1)
                (mark,) = axes.plot(ratio.value, row, "D" if first else "o", color=color)
                mark.set(markersize=4.5 if first else 5, zorder=2 + first)
                mark.set_markerfacecolor(color if first else "white")
                both = " / ".join(names[place] for names in SIDES.values())
                plural = "s" * (case.threads > 1)
                seen.setdefault(f"{both}, {case.threads} thread{plural}", mark)
        axes.axvline(1, color="black", linewidth=1, zorder=1)
        labels = [
            " ".join(f"{n}{size}" for n, size in zip("TBDH", shape, strict=True))
            * (cell == cells[0])
            + f"   {NAMES[cell].split()[0]}"
            for shape, cell in rows
        ]
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        _finish(axes)
        axes.grid(axis="y", visible=False)
        for i in range(0, len(shapes), 2):
            axes.axhspan(
                i * len(cells) - 0.5, (i + 1) * len(cells) - 0.5, color="#f2f2f2", zorder=-2
            )
    for unused in grid[len(panels) :]:
        unused.remove()
    grid[0].set_xscale("log")  # half and double as far from 1
    grid[0].xaxis.set_major_locator(FixedLocator(RATIO_TICKS))
    grid[0].xaxis.set_minor_locator(NullLocator())
    grid[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    names = sorted(seen)
    figure.legend(
        handles=[seen[name] for name in names], labels=names, loc="outside upper center",
        ncols=len(names), fontsize=FONT, frameon=False,
    )  # fmt: skip
    return figure


def _sweep(axes: Axes, name: str, cases: dict[str, Case], records: list[Record]) -> None:
    def size(record: Record) -> int:
        return int(getattr(cases[record.case], SWEEPS[name]))

    for peer in _in_order({record.peer for record in records}):
        line = sorted((record for record in records if record.peer == peer), key=size)
        color, marker = _look(peer)
        times = [_microseconds(cases, record) for record in line]
        (drawn,) = axes.plot([size(record) for record in line], times, color=color, linewidth=1)
        drawn.set(marker=marker, markersize=4)
        # Where auto chose well it lies on an engine's line.
        drawn.set_zorder(3 if peer == AUTO else 2)
    case = cases[records[0].case]
    rest = [f"{each.upper()} {getattr(case, SWEEPS[each])}" for each in SWEEPS if each != name]
    axes.set_xlabel(f"{name.upper()}, at {' and '.join(rest)}", fontsize=FONT)
    axes.set_xscale("log")
    # Sizes double: at most seven of their numbers have room beside each other.
    measured = sorted({size(record) for record in records})
    axes.xaxis.set_major_locator(FixedLocator(measured[:: ceil(len(measured) / 7)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _by_case(
    results: Results, dtype: str, mode: str, measure: Measure, label: str, ratio: bool
) -> Figure | None:
    """A row per case, a lane in it per family of peers; of a ratio, auto's is a bar from 1 too."""
    points: dict[tuple[str, str], Points] = {}  # by cell and case
    numbers: dict[tuple[str, str], str] = {}  # auto's, or why it has none
    for group in _groups(results, dtype, mode, swept=False):
        key = group[0].cell, group[0].case
        found = _points(group, measure)
        if found:
            points[key] = found
        for auto in (record for record in group if record.peer == AUTO):
            numbers[key] = "" if auto.status == "ok" else auto.status
            if AUTO in found:
                numbers[key] = f"{found[AUTO][0]:.2f}×" if ratio else number(found[AUTO][0])
    if not points:
        return None
    cells = [cell for cell in NAMES if any(cell == key[0] for key in points)]
    cases = [case for name, case in results.cases.items() if any(name == key[1] for key in points)]
    peers = _in_order({peer for each in points.values() for peer in each})
    across, down = min(2, len(cells)), ceil(len(cells) / 2)
    height = down * (0.42 * len(cases) + 0.7) + 0.3 * ceil(len(peers) / 4)
    figure = Figure((WIDTH, height), dpi=DPI, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    for unused in grid[len(cells) :]:
        unused.remove()
    for cell, axes in zip(cells, grid, strict=False):
        axes.set_title(f"{NAMES[cell]}, {dtype}, {_short(mode)}", fontsize=FONT + 1)
        axes.set_xlabel(label, fontsize=FONT)
        axes.tick_params(axis="x", labelbottom=True)  # also above another panel
        _rows(axes, cases, [numbers.get((cell, case.name), "") for case in cases])
        _marks(axes, [points.get((cell, case.name), {}) for case in cases], peers, ratio)
    _ticks(grid[0], "x", [value for each in points.values() for value, _ in each.values()])
    _legend(figure, set(peers))
    return figure


def _rows(axes: Axes, cases: list[Case], numbers: list[str]) -> None:
    """A named row per case, from the top, with a number at its right."""
    names = [f"{case.name}\nT {case.steps}  B {case.batch}  H {case.hidden}" for case in cases]
    axes.set_yticks(range(len(cases)), names)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    _finish(axes)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(cases)), numbers)
    right.tick_params(labelsize=FONT, length=0, labelcolor=_look(AUTO)[0])
    right.spines["right"].set_visible(False)
    for row in range(0, len(cases), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#f2f2f2", zorder=-2)


def _marks(axes: Axes, rows: list[Points], peers: list[str], ratio: bool) -> None:
    families = list(dict.fromkeys(map(_family, peers)))
    axes.use_sticky_edges = False  # or a bar that ends at 1 would end the axis there
    for peer in peers:
        lane = 0.7 * ((families.index(_family(peer)) + 0.5) / len(families) - 0.5)
        lanes = [row + lane for row, points in enumerate(rows) if peer in points]
        values = [points[peer][0] for points in rows if peer in points]
        whiskers = [3 * error * value for value, error in (p[peer] for p in rows if peer in p)]
        color, marker = _look(peer)
        axes.errorbar(values, lanes, xerr=whiskers, fmt=marker, color=color, markersize=5)
        if ratio and peer == AUTO:
            bars = [value - 1 for value in values]
            axes.barh(lanes, bars, 0.16, left=1, color=color, alpha=0.5)
    if ratio:
        axes.axvline(1, color="black", linewidth=1, zorder=1)


def _groups(results: Results, dtype: str, mode: str, swept: bool) -> list[list[Record]]:
    return [
        group
        for group in results.groups()
        if (group[0].dtype, group[0].mode) == (dtype, mode)
        and group[0].case.startswith("sweep-") == swept
    ]


def _points(group: list[Record], measure: Measure) -> Points:
    """What to draw of a group: of engines or backends of one family only the fastest."""
    fastest: dict[str, Record] = {}
    for record in sorted((r for r in group if r.status == "ok"), key=lambda r: r.median):
        fastest.setdefault(_family(record.peer), record)
    found = {r.peer: measure(r, fastest.get(BASELINE)) for r in fastest.values()}
    return {peer: point for peer, point in found.items() if point}


def _family(peer: str) -> str:
    return peer if peer == AUTO or peer.startswith(BASELINE) else peer.split()[0]


def _look(peer: str) -> tuple[str, str]:
    return LOOKS[max((name for name in LOOKS if peer.startswith(name)), key=len)]


def _in_order(peers: set[str]) -> list[str]:
    looks = list(LOOKS.values())
    return sorted(peers, key=lambda peer: (looks.index(_look(peer)), peer))


def _short(mode: str) -> str:
    return MODES[mode].split(",")[0]


def _microseconds(cases: dict[str, Case], record: Record) -> float:
    return record.median / cases[record.case].steps * 1e6


def _ticks(axes: Axes, name: str, values: list[float]) -> None:
    """Ticks with room for their numbers: linear, or logarithmic from a factor of 4 on."""
    axis: Axis = {"x": axes.xaxis, "y": axes.yaxis}[name]
    wide = max(values) / min(values)
    if wide > 4:
        axes.set(**{f"{name}scale": "log"})
        axis.set_major_locator(LogLocator(2 if wide < 200 else 10))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _finish(axes: Axes) -> None:
    axes.tick_params(labelsize=FONT)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, peers: set[str]) -> None:
    handles = []
    for peer in _in_order(peers):
        color, marker = _look(peer)
        handles.append(Line2D([], [], color=color, marker=marker, linewidth=1, label=peer))
    columns = min(len(handles), int(figure.get_figwidth() // 2.2))
    figure.legend(
        handles=handles, loc="outside upper center", ncols=columns, fontsize=FONT, frameon=False
    )
