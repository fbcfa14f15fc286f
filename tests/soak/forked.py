"""Commands of rnnkit in a process forked from this one, where Lightning is imported already."""

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import rnnkit.training.command  # noqa: F401  # what a child need not import again
from rnnkit.cli import main


def fork(folder: Path, run: Callable[[], int]) -> int:
    """Run a function in a child, in `folder`, its output in `folder/log`.

    Args:
        folder: Working folder of the child.
        run: Returns the child's exit status.

    Returns:
        Number of the child's process.
    """
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        gc.freeze()  # what is there already is not looked at again
        os.chdir(folder)
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        torch.set_num_threads(1)  # sums of other shares are rounded otherwise
        status = run()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(child: int) -> int:
    """Exit status of a child, negative the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def command(folder: Path, arguments: list[str]) -> int:
    """Exit status of an `rnnkit` command that runs to its end in a child."""
    return wait(fork(folder, lambda: main(arguments)))
