"""kill -9 at random moments, then go on: `python -m tests.soak.kills --seeds 20`.

For each task one run that nobody disturbs, and for each seed one that is killed up to three times,
at any moment between its start and its end, and goes on each time from its newest checkpoint.
Every checkpoint that a kill leaves has to be whole, and the last one of each chain of runs has to
equal that of the undisturbed run bit for bit: parameters, optimizer, schedule, carried state and
generators.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rnnkit.cli import main as rnnkit
from rnnkit.training.callbacks.checkpoint_io import read_checkpoint
from tests.small_tasks import TASKS
from tests.soak.forked import command, fork, wait

MOST_KILLS = 3  # of one chain of runs
STEPS = 90  # an epoch has 11 or 12
COMPARED = ("state_dict", "optimizer_states", "lr_schedulers", "carried_state", "generators")


@dataclass
class Count:
    """What happened to the runs of one task."""

    chains: int = 0
    kills: int = 0
    before_a_checkpoint: int = 0
    within_writing: int = 0
    resumed: int = 0
    checkpoints_read: int = 0
    different: int = 0


def arguments(task: list[str], name: str) -> list[str]:
    """A run with a checkpoint every second step, in `runs/NAME/version_0`."""
    return [
        *("fit", *task, "--trainer.accelerator", "cpu", "--trainer.max_steps", str(STEPS)),
        *("--trainer.max_epochs", "-1", "--trainer.log_every_n_steps", "4"),
        *("--trainer.callbacks+", "lightning.pytorch.callbacks.ModelCheckpoint"),
        *("--trainer.callbacks.every_n_train_steps", "2"),
        *("--trainer.callbacks.filename", "middle"),
        *("--trainer.callbacks.enable_version_counter", "false"),
        *("--trainer.logger", "lightning.pytorch.loggers.CSVLogger"),
        *("--trainer.logger.save_dir", "runs", "--trainer.logger.name", name),
    ]


def kill_and_go_on(
    task: list[str], folder: Path, expected: dict[str, Any], seconds: float, seed: int, count: Count
) -> None:
    """One chain of runs, and what became of it.

    Args:
        task: Arguments of the task.
        folder: Where its runs lie.
        expected: Last checkpoint of the undisturbed run.
        seconds: How long that one took.
        seed: Decides the moments of the kills.
        count: Gets the figures.
    """
    chance, newest = random.Random(seed), ""
    count.chains += 1
    for link in range(MOST_KILLS + 1):
        name = f"seed{seed}_{link}"
        going_on = ["--ckpt_path", newest] if newest else []
        run = [*arguments(task, name), *going_on]
        if link == MOST_KILLS:
            status = command(folder, run)
        else:
            child = fork(folder, lambda run=run: rnnkit(run))
            timer = threading.Timer(chance.uniform(0, seconds), os.kill, (child, signal.SIGKILL))
            timer.start()
            status = wait(child)
            timer.cancel()
        count.resumed += bool(newest)
        checkpoints = folder / "runs" / name / "version_0" / "checkpoints"
        if status == 0:
            break
        if status != -signal.SIGKILL:
            raise RuntimeError(f"{name} ended with {status}: {(folder / 'log').read_text()}")
        count.kills += 1
        count.within_writing += bool(list(checkpoints.glob(".*")))
        whole = checkpoints.glob("[!.]*.ckpt")  # not what a kill has cut off
        steps = {path: read_checkpoint(path)["global_step"] for path in whole}
        count.checkpoints_read += len(steps)
        count.before_a_checkpoint += not steps
        newest = str(max(steps, key=steps.__getitem__)) if steps else newest
    # A run that was killed after its last step has nothing left to do when it goes on.
    end = checkpoints / "middle.ckpt"
    found = read_checkpoint(end if end.is_file() else newest)
    same = all(_equal(found.get(part), expected.get(part)) for part in COMPARED)
    count.different += not same


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def soak(task: Callable[[Path], list[str]], seeds: int, folder: Path) -> Count:
    """All chains of one task."""
    of_task, count = task(folder), Count()
    started = time.monotonic()
    if command(folder, arguments(of_task, "undisturbed")):
        raise RuntimeError((folder / "log").read_text())
    seconds = time.monotonic() - started
    checkpoint = folder / "runs" / "undisturbed" / "version_0" / "checkpoints" / "middle.ckpt"
    expected = read_checkpoint(checkpoint)
    for seed in range(seeds):
        kill_and_go_on(of_task, folder, expected, seconds, seed, count)
    return count


def main(argv: list[str] | None = None) -> int:
    """Run the program; its exit status, 1 where a run did not come out the same."""
    parser = argparse.ArgumentParser(prog="tests.soak.kills", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="chains of each task")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args(argv)
    counts = {}
    for task in TASKS:
        with tempfile.TemporaryDirectory() as folder:
            counts[task.__name__] = asdict(soak(task, options.seeds, Path(folder)))
        print(task.__name__, *(f"{k} {v}" for k, v in counts[task.__name__].items()), flush=True)
    if options.out:
        options.out.write_text(json.dumps(counts, indent=1) + "\n")
    return int(any(count["different"] for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
