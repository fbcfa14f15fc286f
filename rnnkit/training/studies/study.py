"""What a study is: runs, what each came to, and the table and pictures of all."""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, NamedTuple, TypeVar

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

from rnnkit.screen.atomic_file import atomic_write
from rnnkit.training.command import TrainingCLI


class Member(NamedTuple):
    """A run of a study.

    Attributes:
        name: Of its folder.
        title: What it is called in a table or picture.
        config: Its configuration.
        options: Of `rnnkit fit`, where it differs from that.
    """

    name: str
    title: str
    config: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run came to; each study adds what it compares.

    Attributes:
        name: Of the member, with its seed.
        title: What was trained, in words.
        epochs: Epochs that were trained.
        max_epochs: Epochs of the configuration.
        minutes: Spent in training and validation.
        options: Of its last `rnnkit fit`, beside those of the study.
    """

    name: str
    title: str
    epochs: int
    max_epochs: int
    minutes: float
    options: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to train."""
        return self.epochs >= self.max_epochs


ResultType = TypeVar("ResultType", bound=Result)


class Study(ABC, Generic[ResultType]):
    """Runs that are trained one after the other and compared.

    Args:
        members: In the order in which they run.
    """

    configurations: ClassVar[str]
    """The folder of the configurations, among those of rnnkit."""

    options: ClassVar[tuple[str, ...]] = ()
    """Of every `rnnkit fit`."""

    result: type[ResultType]
    """What a run comes to."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = {member.name: member for member in members}

    @abstractmethod
    def score(self, done: TrainingCLI, place: Path, member: Member) -> ResultType:
        """What a run came to.

        Args:
            done: Its model, data and trainer after the last step.
            place: Its folder.
            member: Which one it is.
        """

    def diverged(self, place: Path, member: Member) -> ResultType | None:
        """What a run came to whose loss became NaN or infinite; None: it has no result."""
        return None

    @abstractmethod
    def curve(self, place: Path) -> list[dict[str, str]]:
        """The curve of a run, from the metrics of all its parts: rows with the same names."""

    @abstractmethod
    def table(self, results: list[ResultType]) -> list[str]:
        """The results as lines of Markdown."""

    @abstractmethod
    def draw(self, results: list[ResultType], curves: list[list[dict[str, str]]], to: Path) -> None:
        """Draw the results and their curves into a folder."""

    def load(self, place: Path) -> ResultType | None:
        """What a run came to when it last ended; None: it has not."""
        path = place / "result.json"
        return self.result(**json.loads(path.read_text())) if path.is_file() else None

    def report(self, folder: Path, to: Path) -> list[ResultType]:
        """Write the curves of all runs that have a result, and draw them.

        Args:
            folder: Of the runs.
            to: Folder of curves and pictures.

        Returns:
            The results.
        """
        places = sorted(folder.iterdir()) if folder.is_dir() else []
        results = [result for place in places if (result := self.load(place))]
        curves = [self.curve(folder / result.name) for result in results]
        for result, rows in zip(results, curves, strict=True):
            with (
                atomic_write(to / f"{result.name}.csv") as beside,
                beside.open("w", newline="") as file,
            ):
                writer = csv.DictWriter(file, list(rows[0]) if rows else [])
                writer.writeheader()
                writer.writerows(rows)
        self.draw(results, curves, to)
        return results


def logged(place: Path) -> Iterator[dict[str, str]]:
    """The lines of a run's metrics, over all parts in which it was trained.

    What a part did after its last checkpoint, the next one has done again.

    Args:
        place: Folder of the run, with a metrics.csv in each version_<n>.
    """
    parts = sorted(place.glob("version_*/metrics.csv"), key=lambda p: int(p.parent.name[8:]))
    for part in parts:
        with part.open(newline="") as file:
            yield from csv.DictReader(file)


def minutes_of(trainer: Trainer) -> float:
    """Minutes spent in training and validation, by the Timer of every run of a study."""
    timer = next(each for each in trainer.callbacks if isinstance(each, Timer))  # type: ignore[attr-defined]
    return timer.time_elapsed("train") / 60


def newest(place: Path, name: str) -> Path | None:
    """The checkpoint of that name in the newest part of a run that has one."""
    found = place.glob(f"version_*/checkpoints/{name}")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)
