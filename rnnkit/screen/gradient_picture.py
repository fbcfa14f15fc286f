"""Pictures of gradients on their way back through time."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from rnnkit.screen.atomic_file import atomic_write
from rnnkit.screen.terminal import visible

LOWEST, HIGHEST = 1e-20, 1e6
"""Norms are drawn between these; what is beyond leaves the picture."""


class Line(NamedTuple):
    """One curve.

    Attributes:
        label: In the legend, which has each label once; empty: none.
        values: A norm for each step, the last step's last; NaN where there is none.
        colour: Number of the colour; lines of one number belong together.
        style: Of Matplotlib: "-", "--" or ":".
    """

    label: str
    values: Sequence[float]
    colour: int
    style: str = "-"


class Panel(NamedTuple):
    """Curves over the same steps.

    Attributes:
        title: Above them.
        axis: What the norms are, in words or in Matplotlib's maths.
        lines: The curves.
    """

    title: str
    axis: str
    lines: Sequence[Line]


def draw_gradients(
    panels: Sequence[Panel], path: str | os.PathLike[str], steps: str, note: str = ""
) -> None:
    """Draw norms against steps, on a logarithmic axis, one panel beside the other.

    Args:
        panels: What to draw.
        path: The picture, as its ending says: .png, .svg, .pdf; it is replaced when the new one is
            complete.
        steps: What runs along the bottom.
        note: A line below, on how it was made.
    """
    from matplotlib.figure import Figure  # slow to import, and not needed by every run
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(2.6 + 4.8 * len(panels), 4.7), dpi=150, layout="constrained")
    found = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(found, panels, strict=True):
        everything: list[float] = []
        for line in panel.lines:
            places = range(1 - len(line.values), 1)
            shown = [value if value >= LOWEST else math.nan for value in line.values]
            everything += [value for value in shown if math.isfinite(value)]
            width = 1.8 if line.style == "-" else 1.3
            axes.plot(places, shown, line.style, color=f"C{line.colour % 10}", linewidth=width,
                      label=visible(line.label).replace("$", r"\$") or None)  # fmt: skip
        axes.set_yscale("log")
        middle = math.exp(statistics.fmean(map(math.log, everything or [1.0])))
        # A decade at least, or small differences would look large.
        lowest = min([middle / 3, *everything]) / 2
        axes.set_ylim(max(LOWEST, lowest), min(max([middle * 3, *everything]) * 2, HIGHEST))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(panel.title, fontsize=11)
        axes.set_ylabel(panel.axis)
        axes.set_xlabel(steps)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    named: dict[str, Any] = {}
    for axes in found:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    if named:
        # What dots and dashes are comes after what the colours are.
        labels = sorted(named, key=lambda label: named[label].get_linestyle() != "-")
        handles = [named[label] for label in labels]
        figure.legend(handles, labels, frameon=False, loc="outside right center")
    if note:
        figure.supxlabel(visible(note), fontsize=8.5, color="0.35")
    with atomic_write(path) as beside:
        figure.savefig(beside)
