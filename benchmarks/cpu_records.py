"""Cases and results of `cpu_engine.py`, as JSON that it can add to."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnnkit_kernels.cpu.library import library, missing

from . import machine

SCHEMA = 1
CELLS = ("lstm", "gru", "rnn_tanh")
# T, B, D, H.
Shape = tuple[int, int, int, int]
SHAPES: tuple[Shape, ...] = (
    (35, 20, 200, 200),
    (35, 20, 650, 650),
    (100, 64, 256, 256),
    (50, 1, 256, 256),
    (1, 1, 256, 256),
    (20, 128, 512, 512),
    (35, 64, 1024, 1024),
)
QUICK: tuple[Shape, ...] = (SHAPES[0], SHAPES[4])
# Sides beside torch.nn, the one that is chosen by itself first.
SIDES = {False: ("auto", "native"), True: ("lengths", "packed")}
MODES = ("inference", "train")
SEED = 0
LEAST, MOST = 15, 200  # turns of each side
TURN = 0.02  # seconds, at least


@dataclass(frozen=True)
class Case:
    """What the sides do.

    Attributes:
        cell: one of `CELLS`.
        shape: T, B, D, H.
        mode: a key of `MODES`.
        ragged: whether lengths differ: uniform in 1 ... T, not sorted.
        threads: of torch and of the engine.
    """

    cell: str
    shape: Shape
    mode: str
    ragged: bool
    threads: int

    def lengths(self) -> Tensor:
        """(B,) int64, the same on every call."""
        steps, batch = self.shape[:2]
        return torch.randint(1, steps + 1, (batch,), generator=torch.Generator().manual_seed(SEED))

    def cost(self) -> float:
        """About the seconds that all of its sides take, up to a factor."""
        steps, batch, features, hidden = self.shape
        gates = {"lstm": 4, "gru": 3}.get(self.cell, 1)
        operations = 2 * steps * batch * gates * hidden * (features + hidden)
        call = operations * (3 if self.mode == "train" else 1) / (1e11 * self.threads)
        return 3 * LEAST * max(TURN, call)

    def __str__(self) -> str:
        steps, batch, features, hidden = self.shape
        return (
            f"{self.cell} T {steps}, B {batch}, D {features}, H {hidden}, {self.mode}, "
            f"{'ragged' if self.ragged else 'dense'}, threads: {self.threads}"
        )


@dataclass
class Record:
    """What was measured of a case, by side.

    Attributes:
        case: the case.
        engines: what ran underneath.
        repeats: calls of a turn.
        wall, cpu: seconds of a call, one value a turn; cpu: of all threads of the process.
        load: the machine's load average afterwards.
    """

    case: Case
    engines: dict[str, str]
    repeats: dict[str, int]
    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]
    load: float


@dataclass
class Run:
    """All that was measured on a machine, ready for JSON.

    Attributes:
        machine: device and versions, see `machine.py`.
        isa: the instruction set that the engine chose.
        commit: of the repository, "" outside one.
        started: ISO 8601, of the first command.
        commands: the command lines, in the order run.
        seed: of the random numbers and lengths.
        records: in the order measured.
        schema: version of this layout.
    """

    machine: dict[str, Any]
    isa: str
    commit: str
    started: str
    commands: list[str] = field(default_factory=list)
    seed: int = SEED
    records: list[Record] = field(default_factory=list)
    schema: int = SCHEMA

    @classmethod
    def here(cls) -> Run:
        """An empty one.

        Raises:
            ValueError: there is no engine.
        """
        found = library()
        if found is None:
            raise ValueError(missing())
        described = machine.describe(torch.device("cpu"))
        del described["threads"]  # each case has its own
        described["cores"] = os.cpu_count()
        described["torch_instructions"] = torch.backends.cpu.get_cpu_capability()
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        return cls(described, found.isa, machine.commit(), now)

    def save(self, path: Path) -> None:
        """Write the file at once, so that a reader never sees half of it; a record is a line."""
        values = asdict(self)
        records = ",\n".join(json.dumps(record) for record in values.pop("records"))
        head = json.dumps(values, indent=1).removesuffix("\n}")
        partial = path.with_name(path.name + ".partial")
        partial.write_text(f'{head},\n "records": [\n{records}\n]\n}}\n')
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read a file.

        Raises:
            ValueError: it holds something else.
        """
        try:
            values = json.loads(path.read_text())
            if values["schema"] != SCHEMA:
                raise ValueError(f"{path} has schema {values['schema']}, this reads {SCHEMA}")
            for record in values["records"]:
                case = record["case"]
                record["case"] = Case(**{**case, "shape": tuple(case["shape"])})
            values["records"] = [Record(**record) for record in values["records"]]
            return cls(**values)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no figures of the native engine: {error}") from error


def cases(shapes: Sequence[Shape], threads: Iterable[int]) -> Iterator[Case]:
    """All of them, dense ones first."""
    for ragged in (False, True):
        for count in threads:
            for shape in shapes:
                for cell in CELLS:
                    for mode in MODES:
                        yield Case(cell, shape, mode, ragged, count)
