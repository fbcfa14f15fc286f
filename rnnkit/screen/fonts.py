"""Fonts for what is drawn: those of the machine that have its characters."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache


def fonts_for(texts: Iterable[str]) -> tuple[list[str], frozenset[str]]:
    """Names of fonts for some texts, matplotlib's own first.

    Args:
        texts: What is to be drawn.

    Returns:
        The names, of which matplotlib takes the first that has a character, and the characters
        that no font of this machine has.
    """
    names, missing = _fonts_for(frozenset("".join(texts)))
    return list(names), missing


@lru_cache(maxsize=16)
def _fonts_for(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    from matplotlib.font_manager import FontProperties, fontManager, get_font

    def lacking(path: str, characters: frozenset[str]) -> frozenset[str]:
        known = get_font(path).get_charmap()
        return frozenset(each for each in characters if ord(each) not in known)

    usual = FontProperties()
    names = usual.get_family()
    missing = lacking(fontManager.findfont(usual), characters)
    for font in sorted(fontManager.ttflist, key=lambda font: (font.weight != 400, font.name)):
        if not missing:
            break
        if font.name.startswith("Last Resort"):  # which has a box for every character
            continue
        try:
            left = lacking(font.fname, missing)
        except (OSError, RuntimeError):  # a font that was removed, or is none
            continue
        if len(left) < len(missing):
            names, missing = [*names, font.name], left
    return tuple(names), missing
