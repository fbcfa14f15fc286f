"""A picture of chosen words: where their vectors lie in the plane of their largest variance."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from rnnkit.screen.atomic_file import atomic_write
from rnnkit.screen.fonts import fonts_for
from rnnkit.screen.terminal import visible
from rnnkit.word_vectors.vectors import WordVectors


def draw_words(
    vectors: WordVectors, words: Sequence[str], path: str | os.PathLike[str], arrows: bool = False
) -> float:
    """Draw words by the two principal components of their unit vectors.

    Args:
        vectors: Of the words.
        words: At least three, each once.
        path: The picture; it is replaced when the new one is complete.
        arrows: From each odd word to the one after it.

    Returns:
        The share of the variance that the picture shows.

    Raises:
        DataError: A word has no vector.
        ValueError: There are fewer than three words, or one is there twice.
    """
    from matplotlib.figure import Figure  # slow to import

    if len({*words}) < 3 or len({*words}) < len(words):
        raise ValueError(
            f"expected three different words or more, got {len({*words})} among {len(words)}"
        )
    rows = vectors.unit[[vectors.find(word) for word in words]].double()
    centred = rows - rows.mean(0)
    _, values, axes_of = torch.linalg.svd(centred, full_matrices=False)
    places = (centred @ axes_of[:2].T).tolist()
    share = float(values[:2].square().sum() / values.square().sum())
    fonts, _ = fonts_for(words)
    figure = Figure(figsize=(7, 6), dpi=130, layout="constrained")
    axes = figure.subplots()
    across, up = zip(*places, strict=True)
    axes.scatter(across, up, s=14, color="tab:blue", zorder=3)
    for word, place in zip(words, places, strict=True):
        axes.annotate(visible(word), place, (4, 4), textcoords="offset points", fontfamily=fonts)
    if arrows:
        for begin, end in zip(places[::2], places[1::2], strict=True):
            style = {"arrowstyle": "->", "color": "0.6", "shrinkA": 4, "shrinkB": 4}
            axes.annotate("", end, begin, arrowprops=style, zorder=2)
    axes.set_aspect("equal", "datalim")
    axes.margins(0.12)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(
        f"principal components of the unit vectors: {share:.0%} of the variance", fontsize=10
    )
    with atomic_write(path) as beside:
        figure.savefig(beside)
    return share
