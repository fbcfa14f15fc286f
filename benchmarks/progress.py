"""A progress line that needs no package."""

from __future__ import annotations

import sys
import time
from typing import TextIO

WIDTH = 24


class Progress:
    """Shows how far a run is and how long the rest will take: one line, drawn again and again.

    Where the stream is no terminal every message is a line of its own.

    Args:
        stream: where to write.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.begin = time.monotonic()
        self.drawn = False

    def __call__(self, done: float, what: str) -> None:
        """Draw: `done` from 0 to 1, and what comes next."""
        elapsed = time.monotonic() - self.begin
        # The first hundredth says little of the rest.
        left = f"{_clock(elapsed / done * (1 - done))} left" if done > 0.01 else "time left: ?"
        if not self.stream.isatty():
            print(f"{100 * done:3.0f} %  {_clock(elapsed)}, {left}  {what}", file=self.stream)
            return
        filled = round(done * WIDTH)
        bar = "█" * filled + "░" * (WIDTH - filled)
        line = f"{bar} {100 * done:3.0f} %  {_clock(elapsed)}, {left}  {what}"
        self.stream.write(f"\r\x1b[K{line}")
        self.stream.flush()
        self.drawn = True

    def close(self) -> None:
        """Leave the line behind."""
        if self.drawn:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
