"""Pictures of what a model does."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Sequence

from torch import Tensor

from rnnkit.screen.atomic_file import atomic_write
from rnnkit.screen.fonts import fonts_for
from rnnkit.screen.terminal import visible


def draw_attention(
    source: Sequence[str], target: Sequence[str], weights: Tensor, path: str | os.PathLike[str]
) -> None:
    """Draw where a decoder looked, one row a token that it wrote.

    Args:
        source: S tokens.
        target: T tokens.
        weights: (T, S), each row's sum one.
        path: The picture; it is replaced when the new one is complete.

    Raises:
        ValueError: The shapes do not belong together.
    """
    from matplotlib.figure import Figure  # slow to import, and not needed by every run

    if weights.shape != (len(target), len(source)):
        raise ValueError(
            f"expected weights of shape {(len(target), len(source))} for {len(target)} tokens "
            f"written and {len(source)} read, got {tuple(weights.shape)}"
        )
    fonts, missing = fonts_for([*source, *target])
    source, target = ([_plain(token, missing) for token in side] for side in (source, target))
    size = (1.6 + 0.42 * len(source), 1.6 + 0.34 * len(target))
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(weights.tolist(), cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(source)), source, rotation=60, ha="left",
                    rotation_mode="anchor", fontfamily=fonts)  # fmt: skip
    axes.set_yticks(range(len(target)), target, fontfamily=fonts)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_xticks([i + 0.5 for i in range(len(source) - 1)], minor=True)
    axes.set_yticks([i + 0.5 for i in range(len(target) - 1)], minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    figure.colorbar(image, ax=axes, label="weight", shrink=0.8)
    with atomic_write(path) as beside:
        figure.savefig(beside)


def draw_confusion(
    classes: Sequence[str],
    counts: Tensor,
    path: str | os.PathLike[str],
    none_last: bool = True,
) -> None:
    """Draw which classes the text has, by row, and which the prediction, by column.

    A cell's colour is its share of its row, so a rare class is as easy to judge as a frequent one;
    its number is the count. What `EntityF1.confusion` returns is drawn as it is; of
    `LabelScores.confusion` with `none_last` off.

    Args:
        classes: Types or labels.
        counts: int64 (K, K).
        path: The picture; it is replaced when the new one is complete.
        none_last: Whether the last class is O for no entity, which a line sets apart.

    Raises:
        ValueError: The shape does not belong to the classes.
    """
    from matplotlib.figure import Figure  # slow to import, and not needed by every run

    size = len(classes)
    if counts.shape != (size, size):
        among = ", O among them" if none_last else ""
        raise ValueError(
            f"expected counts of shape {(size, size)} for {size} classes{among}, got "
            f"{tuple(counts.shape)}"
        )
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1)).tolist()
    texts = [[f"{count:,}" if count else "" for count in row] for row in counts.tolist()]
    longest = max(len(text) for row in texts for text in row)
    fonts, missing = fonts_for(classes)
    names = [_plain(class_, missing) for class_ in classes]
    margin = 0.09 * max(map(len, names))  # inches, at the size of the tick labels
    cell = max(0.5, 0.1 + 0.09 * longest)
    figure = Figure(
        figsize=(2.4 + margin + cell * size, 1.4 + margin + cell * size),
        dpi=130,
        layout="constrained",
    )
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for row, column in itertools.product(range(size), repeat=2):
        colour = "white" if shares[row][column] > 0.55 else "0.15"  # where Blues turns dark
        axes.text(column, row, texts[row][column], ha="center", va="center", color=colour,
                  fontsize=10)  # fmt: skip
    axes.set_xticks(range(size), names, fontfamily=fonts)
    if margin > cell:
        axes.tick_params("x", labelrotation=60)
        for label in axes.get_xticklabels():
            label.set(ha="left", rotation_mode="anchor")
    axes.set_yticks(range(size), names, fontfamily=fonts)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("predicted", fontsize=11, labelpad=8)
    axes.set_ylabel("in the text", fontsize=11, labelpad=8)
    axes.set_xticks([i + 0.5 for i in range(size - 1)], minor=True)
    axes.set_yticks([i + 0.5 for i in range(size - 1)], minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.6)
    if none_last:
        axes.axhline(size - 1.5, color="0.4", linewidth=1.2)
        axes.axvline(size - 1.5, color="0.4", linewidth=1.2)
    axes.tick_params(which="both", length=0)
    figure.colorbar(image, ax=axes, label="share of the row", shrink=0.8, aspect=30)
    with atomic_write(path) as beside:
        figure.savefig(beside, bbox_inches="tight", pad_inches=0.15)


def _plain(token: str, missing: Collection[str]) -> str:
    """A token as matplotlib should draw it.

    The mark that joins it to its neighbour says nothing here, and what stands between two dollar
    signs would be read as maths. A character that no font has, or that is none to see, is named.
    """
    token = token.replace("\N{HALFWIDTH BLACK SQUARE}", "").replace("\t", r"\t")
    named = (f"U+{ord(each):04X}" if each in missing else each for each in visible(token))
    return "".join(named).replace("$", r"\$")
