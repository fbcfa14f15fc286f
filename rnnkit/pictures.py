"""Pictures of what a model does."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import Tensor

from rnnkit.callbacks.atomic_file import atomic_write


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
    size = (1.6 + 0.42 * len(source), 1.6 + 0.34 * len(target))
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(weights.tolist(), cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(source)), [_plain(token) for token in source], rotation=60,
                    ha="left", rotation_mode="anchor")  # fmt: skip
    axes.set_yticks(range(len(target)), [_plain(token) for token in target])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_xticks([i + 0.5 for i in range(len(source) - 1)], minor=True)
    axes.set_yticks([i + 0.5 for i in range(len(target) - 1)], minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    figure.colorbar(image, ax=axes, label="weight", shrink=0.8)
    with atomic_write(path) as beside:
        figure.savefig(beside)


def _plain(token: str) -> str:
    """A token as matplotlib should draw it.

    The mark that joins it to its neighbour is in few fonts, and what stands between two dollar
    signs would be read as maths.
    """
    return token.replace("\N{HALFWIDTH BLACK SQUARE}", "").replace("$", r"\$")
