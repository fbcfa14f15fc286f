"""Memory of long runs: `python -m tests.soak.memory --steps 10000`.

Trains a language model with windows of random lengths and a tagger with ragged batches, and decodes
with a translation model, each in a process of its own whose resident memory, objects of Python and
open files are noted all the while. What is there in the last quarter is compared with the second
one, when every cache has seen most of the shapes.
"""

import argparse
import gc
import json
import os
import random
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lightning.pytorch import Callback

from rnnkit.cli import main as rnnkit
from rnnkit.translation.task import Translation
from tests.small_tasks import language_model, tagging
from tests.soak.forked import fork, wait

SAMPLES = 80
MOST_BYTES = 4 * 2**20  # from the second quarter to the last
MOST_OBJECTS = 500


@dataclass
class Sample:
    """What a process holds after so many steps."""

    step: int
    resident: int
    objects: int
    files: int


def sample(step: int) -> Sample:
    """What this process holds."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files = len(os.listdir("/proc/self/fd"))
    return Sample(step, pages * resource.getpagesize(), len(gc.get_objects()), files)


def note(samples: list[Sample]) -> None:
    """Leave the samples for the process that waits."""
    Path("samples.json").write_text(json.dumps([asdict(each) for each in samples]))


class Watch(Callback):
    """Takes samples while a model trains."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step % max(trainer.max_steps // SAMPLES, 1) == 0:
            self.samples.append(sample(trainer.global_step))

    def on_train_end(self, *_) -> None:
        note(self.samples)


def train(task: list[str], steps: int, *changes: str) -> int:
    """Train for so many steps; the exit status."""
    return rnnkit(
        [
            *("fit", *task, "--trainer.accelerator", "cpu", "--trainer.max_steps", str(steps)),
            *("--trainer.max_epochs", "-1", "--trainer.log_every_n_steps", "20"),
            *("--trainer.callbacks+", f"{__name__}.Watch", *changes),
        ]
    )


def train_language_model(folder: Path, steps: int) -> int:
    """Windows of random lengths, and a checkpoint and a picture after each epoch."""
    task = language_model(folder)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(12, (20_000,), generator=generator).tolist()
    (folder / "corpus" / "train.txt").write_text(" ".join(f"w{i}" for i in ids))
    windows = ("--data.init_args.random_windows", "true", "--data.init_args.window", "30")
    return train(task, steps, *windows)


def train_tagger(folder: Path, steps: int) -> int:
    """Sentences of 1 to 60 words, from 1 to 20 characters."""
    task, chance = tagging(folder), random.Random(0)
    for name, count in (("train", 4000), ("valid", 20), ("test", 20)):
        sentences = []
        for _ in range(count):
            words = ["".join(chance.choices("abcde", k=chance.randint(1, 20)))] * 2
            words += chance.choices(["a", "bc", "c"], k=chance.randint(0, 58))
            lines = [f"{word} {'B-X' if word == 'c' else 'O'}\n" for word in words]
            sentences.append("".join(lines))
        (folder / "tagged" / f"{name}.txt").write_text("\n".join(sentences))
    return train(task, steps)


def decode(folder: Path, steps: int) -> int:
    """Beam search over batches of 1 to 8 sentences of 1 to 40 tokens and their end."""
    torch.manual_seed(0)
    model = Translation(50, 60, embedding_size=8, encoder_size=8, hidden_size=8, beam_size=4).eval()
    chance, samples, done, noted = random.Random(0), [], 0, 0
    with torch.no_grad():
        while done < steps:
            lengths = sorted(chance.randint(2, 41) for _ in range(chance.randint(1, 8)))[::-1]
            source = torch.randint(4, 50, (lengths[0], len(lengths)))
            found = model.translate((source, torch.tensor(lengths)))
            done += max(len(each[0].tokens) for each in found) + 1
            if done >= noted:
                samples.append(sample(done))
                noted += steps // SAMPLES
    note(samples)
    return 0


RUNS: dict[str, Callable[[Path, int], int]] = {
    "language model": train_language_model,
    "tagger": train_tagger,
    "decoding": decode,
}


def watch(name: str, steps: int, folder: Path) -> list[Sample]:
    """What a run held, from its first step to its last."""
    status = wait(fork(folder, lambda: RUNS[name](folder, steps)))
    if status:
        raise RuntimeError(f"{name} ended with {status}: {(folder / 'log').read_text()}")
    return [Sample(**each) for each in json.loads((folder / "samples.json").read_text())]


def growth(samples: list[Sample]) -> Sample:
    """What the last quarter of a run holds more than the second, by their medians."""
    quarter = len(samples) // 4
    second, last = samples[quarter : 2 * quarter], samples[-quarter:]

    def more(name: str) -> int:
        after, before = (
            statistics.median(getattr(each, name) for each in part) for part in (last, second)
        )
        return int(after - before)

    return Sample(samples[-1].step, more("resident"), more("objects"), more("files"))


def flat(found: Sample) -> bool:
    """Whether nothing grows."""
    return found.resident <= MOST_BYTES and found.objects <= MOST_OBJECTS and found.files <= 0


def main(argv: list[str] | None = None) -> int:
    """Run the program; its exit status, 1 where something grows."""
    parser = argparse.ArgumentParser(prog="tests.soak.memory", description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000, help="of each run")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args(argv)
    figures, failed = {}, False
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            samples = watch(name, options.steps, Path(folder))
        found = growth(samples)
        failed |= not flat(found)
        held = statistics.median(each.resident for each in samples) / 2**20
        print(
            f"{name}: {found.step:,} steps, {held:,.0f} MiB resident; grew by "
            f"{found.resident / 2**20:+.2f} MiB, {found.objects:+,} objects, {found.files:+} files",
            flush=True,
        )
        figures[name] = {"growth": asdict(found), "samples": [asdict(each) for each in samples]}
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
