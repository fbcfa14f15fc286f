r"""What a model wrote, on a terminal: nothing in it acts, and Persian stands as Persian does.

A model of characters may write any character it has read, and one that it read in a log may be an
escape sequence. Controls are shown as Python writes them, `\x1b`.

Text in right-to-left letters is put between U+2067 RIGHT-TO-LEFT ISOLATE and U+2069 POP
DIRECTIONAL ISOLATE. Terminals that order text by Unicode Annex 9 (those on VTE as GNOME's, Konsole,
mlterm, PuTTY, macOS's) then take the line as one from right to left: its marks and the two halves
of a couplet come to stand on the proper side. Some of them drop the isolates and decide by the
line's first letter, which comes to the same here. Others (xterm, kitty, Alacritty, and tmux in any
terminal) show the letters in the order in which they were written, from left to right, and give
the isolates no column; a filter such as `fribidi` helps there.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

ISOLATE, POP = "\N{RIGHT-TO-LEFT ISOLATE}", "\N{POP DIRECTIONAL ISOLATE}"

MOST_TOLD = 2000
"""Most characters of an error: a screen full."""

GAP = 4
"""Columns between the halves of a couplet."""

UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that act on a terminal: controls, ends of lines and paragraphs, and embeddings,
overrides and isolates, by which what follows them is ordered; and halves of characters, which it
cannot print at all. The marks U+200E and U+200F, and the
joiners that Persian needs, act on their neighbours only."""


def visible(text: str) -> str:
    r"""The text with every control as an escape: `\x1b`, `\u202e`. Line ends and tabs remain."""
    return UNSAFE.sub(
        lambda found: (
            found[0] if found[0] in "\n\t" else found[0].encode("unicode_escape").decode()
        ),
        text,
    )


def sentence(text: str) -> str:
    """What a message of any length tells, safe and short enough for a terminal."""
    text = visible(text)
    if len(text) <= MOST_TOLD:
        return text
    head, tail = MOST_TOLD * 3 // 4, MOST_TOLD // 4
    left_out = f" [... {len(text) - head - tail:,} characters ...] "
    return text[:head] + left_out + text[-tail:]


def json_line(value: Any) -> str:
    """JSON on one line, letters as they are; what would act on a terminal as its escape."""
    text = json.dumps(value, ensure_ascii=False)
    return UNSAFE.sub(lambda found: json.dumps(found[0])[1:-1], text)


class Parser(argparse.ArgumentParser):
    """A parser of a command line whose errors repeat nothing that acts on a terminal.

    A description keeps its lines: an example first, a blank line, and what the command does.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **settings})

    def error(self, message: str) -> NoReturn:
        """Print usage and error, and leave with status 2."""
        super().error(sentence(message))


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Tell what one waits for, on standard error where that is a terminal, and then wipe it out.

    Args:
        text: "loading best.ckpt …".
    """
    shown = visible(text) if sys.stderr.isatty() else ""
    print(shown, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        blank = " " * (len(shown) + len("^C"))
        print(f"\r{blank}\r" if shown else "", end="", file=sys.stderr, flush=True)


def right_to_left(text: str) -> bool:
    """Whether the first letter that has a direction is written from right to left."""
    directions = (unicodedata.bidirectional(char) for char in text)
    return next((each for each in directions if each in ("L", "R", "AL")), "L") != "L"


def for_terminal(text: str) -> str:
    """Lines of text as a terminal should get them."""
    return "\n".join(_isolated(visible(line)) for line in text.split("\n"))


def couplets(text: str, columns: int | None) -> str:
    """Lines in pairs, each pair side by side.

    Args:
        text: Lines; a blank one separates poems, and a line without a second one stays alone.
        columns: Width of the terminal: the halves stand in two columns, or below each other where
            these are too wide. None: no terminal, the halves have a tab between them.
    """
    poems = [poem.split("\n") for poem in text.strip("\n").split("\n\n")]
    pairs = [[poem[i : i + 2] for i in range(0, len(poem), 2)] for poem in poems]
    if columns is None:
        return "\n\n".join("\n".join("\t".join(pair) for pair in poem) for poem in pairs)
    from rich.cells import cell_len  # of the extra `train`

    shown = [[[visible(line) for line in pair] for pair in poem] for poem in pairs]
    widths = [
        max(
            (cell_len(pair[half]) for poem in shown for pair in poem if half < len(pair)), default=0
        )
        for half in (0, 1)
    ]
    if sum(widths) + GAP > columns:
        return for_terminal(text.strip("\n"))
    return "\n\n".join("\n".join(_side_by_side(pair, widths) for pair in poem) for poem in shown)


def _side_by_side(pair: Sequence[str], widths: Sequence[int]) -> str:
    from rich.cells import cell_len

    # Padded at both ends of the second half: from right to left its end is at the left.
    halves = [
        half + " " * (width - cell_len(half)) for half, width in zip(pair, widths, strict=False)
    ]
    line = (" " * GAP).join(halves)
    return _isolated(line) if right_to_left(line) else line.rstrip()


def _isolated(line: str) -> str:
    return f"{ISOLATE}{line}{POP}" if right_to_left(line) else line
