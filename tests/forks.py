"""Commands of rnnkit in processes forked from this one, where Lightning is imported already.

A process of its own takes five seconds to import it, of each core. What a fork has that a process
which was just started has not is put back: streams, signals, warnings, the log, what runs at exit.
"""

import atexit
import gc
import io
import logging
import os
import signal
import subprocess
import sys
import traceback
import warnings
from importlib.util import find_spec
from typing import Any

import torch

import rnnkit.training.command  # noqa: F401  # what a child need not import again
from rnnkit.cli import main

COMMAND = [sys.executable, "-m", "rnnkit.cli"]


class Process(subprocess.Popen):
    """What `subprocess.Popen` is; where it is to run `python -m rnnkit.cli`, forked.

    In the child this stands in the place of `Popen`, for Lightning starts further processes of the
    same command.
    """

    def _execute_child(self, args: Any, *others: Any) -> None:
        if not isinstance(args, list) or args[:3] != COMMAND:
            super()._execute_child(args, *others)
            return
        cwd, env = others[4:6]
        pipes = others[9:15]  # both ends of three of them, -1 where there is none
        in_, _, _, out, _, err = pipes
        self.pid = os.fork()
        if self.pid:
            self._child_created = True
            self._close_pipe_fds(*pipes)
            return
        status = 70
        try:
            for number, descriptor in enumerate((in_, out, err)):
                if descriptor != -1:
                    os.dup2(descriptor, number)
            for descriptor in {*pipes} - {-1, 0, 1, 2}:
                os.close(descriptor)
            subprocess.Popen = Process
            status = run(args[3:], cwd, env)
        finally:
            os._exit(status)


def run(arguments: list[str], cwd: Any, env: Any) -> int:
    """Exit status of the command in this process, which shall know nothing of the tests."""
    gc.freeze()  # what is there already is not looked at again
    atexit._clear()
    if cwd is not None:
        os.chdir(cwd)
    if env is not None:
        os.environ.clear()
        os.environ.update(env)
    encoding = os.environ.get("PYTHONIOENCODING")
    sys.stdin = open(0, encoding=encoding, closefd=False)  # noqa: SIM115
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    output = open(1, "wb", 0 if unbuffered else -1, closefd=False)  # noqa: SIM115
    sys.stdout = io.TextIOWrapper(output, encoding, write_through=unbuffered)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)
    warnings.showwarning = show
    for name in (None, *logging.root.manager.loggerDict):
        for handler in logging.getLogger(name).handlers[:]:
            if name is None:
                logging.root.removeHandler(handler)
            elif type(handler) is logging.StreamHandler:
                handler.setStream(sys.stderr)
    sys.modules["__main__"].__spec__ = find_spec("rnnkit.cli")
    sys.argv = [str(find_spec("rnnkit.cli").origin), *arguments]
    torch.set_num_threads(1)  # sums of other shares are rounded otherwise
    try:
        status = main()
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = 120  # as Python does
    return status


def show(message: Any, category: Any, file: str, line: int, *_: Any) -> None:
    """A warning as Python shows it; pytest collects them."""
    sys.stderr.write(warnings.formatwarning(message, category, file, line))
