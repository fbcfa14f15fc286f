"""Commands that answer lines of standard input: their options, the lines, what is said of them."""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice

import torch
from torch import nn

from rnnkit.data.encodings import decoded
from rnnkit.screen.terminal import sentence

MOST_NOTES = 5
PROMPT = "> "

AT_ONCE = 64

# Batches that are read, sorted by length and written together.
AHEAD = 16


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every such command: --ckpt, --batch-size and --device."""
    add = parser.add_argument
    add("--ckpt", required=True, metavar="PATH", help="checkpoint of `rnnkit fit`")
    add(
        "--batch-size",
        type=int,
        metavar="N",
        help=f"lines at once, of {AHEAD} times as many that are read ahead (default: {AT_ONCE}); 1 "
        "answers every line before it reads the next, as where lines are typed",
    )
    add("--device", help="cuda or cpu (default: a GPU if there is one)")


def lines_at_once(arguments: argparse.Namespace) -> int:
    """What `--batch-size` says; by default every line is answered at once where they are typed.

    Raises:
        ValueError: It is below 1.
    """
    if arguments.batch_size is None:
        return 1 if _typed() else AT_ONCE
    if arguments.batch_size < 1:
        raise ValueError(f"expected batch_size of 1 or more, got {arguments.batch_size}")
    return int(arguments.batch_size)


def prepare(model: nn.Module, device: str | None) -> None:
    """Bring the model to its device, and let standard output be UTF-8, as what is read.

    Args:
        model: On the CPU.
        device: What `--device` says.

    Raises:
        ValueError: There is no such device.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from None
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")


def read_ahead(lines: Iterable[str], batch_size: int) -> Iterator[list[str]]:
    """Lines in chunks of some batches; with batches of 1, a line before the next is asked for."""
    source = iter(lines)
    while chunk := list(islice(source, 1 if batch_size == 1 else AHEAD * batch_size)):
        yield chunk


def batches(lengths: dict[int, int], batch_size: int) -> Iterator[list[int]]:
    """Batches of similar length, the longest first: too little memory shows at once.

    Args:
        lengths: Of each line, by its index.
        batch_size: Most lines of a batch.
    """
    order = sorted(lengths, key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


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
            print(f"{self.command}: {sentence(text)}", file=sys.stderr)

    def close(self) -> None:
        """Tell how many were not shown."""
        if self.count > MOST_NOTES:
            print(f"{self.command}: {self.count - MOST_NOTES} more notes", file=sys.stderr)


def input_lines(note: Callable[[str], None]) -> Iterator[str]:
    """Lines of standard input; where somebody types them, each is asked for with a prompt.

    Args:
        note: Told of every line that is no UTF-8.
    """
    if not _typed():
        yield from decoded_lines(sys.stdin.buffer, note)
        return
    # What input() prompts with goes to standard output, which may be a file.
    through_file = not sys.stdout.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    with suppress(ImportError):  # not on Windows, where input() has keys and a history by itself
        importlib.import_module("readline")
    print("type a line, Enter answers it; Ctrl-D ends", file=sys.stderr)
    while True:
        if through_file:
            print(PROMPT, end="", file=sys.stderr, flush=True)
        try:
            yield input("" if through_file else PROMPT)
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print(file=sys.stderr)  # the shell's prompt comes to stand on a line of its own
            raise


def _typed() -> bool:
    return sys.stdin.buffer.isatty()


def decoded_lines(stream: Iterable[bytes], note: Callable[[str], None]) -> Iterator[str]:
    """Lines of a byte stream, whatever they hold: what cannot be decoded becomes U+FFFD, noted."""
    for number, (line, fault) in enumerate(decoded(stream), 1):
        if fault is not None:
            note(f"line {number} {fault}")
        yield line
