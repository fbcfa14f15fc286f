"""Text that a command reads line by line, and what it has to say about a line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator

MOST_NOTES = 5


class Notes:
    """The first few notes on standard error, and at the end how many more there were.

    Args:
        command: The command that notes, `rnnkit translate`.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self.count = 0

    def __call__(self, text: str) -> None:
        """Note something."""
        self.count += 1
        if self.count <= MOST_NOTES:
            print(f"{self.command}: {text}", file=sys.stderr)

    def close(self) -> None:
        """Tell how many were not shown."""
        if self.count > MOST_NOTES:
            print(f"{self.command}: {self.count - MOST_NOTES} more notes", file=sys.stderr)


def decoded_lines(stream: Iterable[bytes], note: Callable[[str], None]) -> Iterator[str]:
    """Lines of a byte stream, whatever they hold: what is no UTF-8 becomes U+FFFD, with a note."""
    for number, raw in enumerate(stream, 1):
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")  # a byte-order mark
        text = raw.decode("utf-8", errors="replace").rstrip("\r\n")
        if "\ufffd" in text and b"\xef\xbf\xbd" not in raw:
            note(f"line {number} is no UTF-8 (iconv -t utf-8 converts)")
        yield text
