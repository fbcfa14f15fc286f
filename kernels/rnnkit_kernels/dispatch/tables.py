"""Which engine was fastest: tables that `rnnkit bench --tune` measures and `backend="auto"` reads.

One file a GPU architecture, such as `sm_90.json`, here or in the folder that RNNKIT_DISPATCH_DIR
names, which comes first. A file holds the fields of `Table`. A GPU without one is left to the rule
of `choice.py`.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch

SCHEMA = 1
SHIPPED = Path(__file__).parent
# Shapes that differ by more than so many doublings of H and B together say nothing of each other.
FARTHEST = 1.5
# A kernel has to be this much faster than torch's own, or what is known to work stays.
MARGIN = 1.03
# What a kernel spends once a call weighs more in a call of fewer steps than an eighth of those
# that were measured: torch's own runs.
FEWEST_STEPS = 1 / 8


@dataclass(frozen=True)
class Shape:
    """What the speed of a layer depends on.

    Attributes:
        cell: a key of `CELLS`.
        dtype: as `dtype_name` says it.
        hidden: H.
        batch: B.
        layers: L.
        directions: 1 or 2.
    """

    cell: str
    dtype: str
    hidden: int
    batch: int
    layers: int = 1
    directions: int = 1

    def doublings(self, other: Shape) -> float:
        """How far another shape is, in doublings of H and of B; infinite for another kind."""
        kinds = [(s.cell, s.dtype, min(s.layers, 2), s.directions) for s in (self, other)]
        if kinds[0] != kinds[1]:
            return math.inf
        pairs = (self.hidden, other.hidden), (self.batch, other.batch)
        return sum(abs(math.log2(a / b)) for a, b in pairs)


@dataclass(frozen=True)
class Entry:
    """What was measured at one shape.

    Attributes:
        shape: where.
        steps: T.
        inference: seconds of a call by engine: "torch", or a kernel's mode.
        train: the same, of a call with its backward pass.
    """

    shape: Shape
    steps: int
    inference: dict[str, float]
    train: dict[str, float]


@dataclass(frozen=True)
class Table:
    """All that was measured on one GPU.

    Attributes:
        gpu: its name.
        versions: of torch, triton and the kernels' sources.
        entries: one a shape.
        schema: version of this layout.
    """

    gpu: str
    versions: dict[str, str]
    entries: tuple[Entry, ...]
    schema: int = SCHEMA

    def nearest(self, shape: Shape) -> Entry | None:
        """The entry whose shape is nearest, if any is near."""
        near = [(entry.shape.doublings(shape), i) for i, entry in enumerate(self.entries)]
        distance, index = min(near, default=(math.inf, -1))
        return self.entries[index] if distance <= FARTHEST else None

    def save(self, path: Path) -> None:
        """Write the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        _read.cache_clear()
        _lookup.cache_clear()

    @classmethod
    def load(cls, path: Path) -> Table:
        """Read a file.

        Raises:
            ValueError: it holds no table, or one of another schema.
        """
        try:
            values = json.loads(path.read_text())
            if values["schema"] != SCHEMA:
                raise ValueError(f"schema {values['schema']}, this version reads {SCHEMA}")
            values["entries"] = tuple(
                Entry(**{**entry, "shape": Shape(**entry["shape"])}) for entry in values["entries"]
            )
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no dispatch table: {error}") from error


def dtype_name(dtype: torch.dtype, precision: str) -> str:
    """A dtype, and for float32 the precision of its products, in one word."""
    if dtype == torch.float32:
        return "fp32" if precision == "ieee" else precision
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, str(dtype))


def lookup(capability: int, shape: Shape) -> tuple[str, Entry] | None:
    """The GPU's name and the nearest entry to a shape; None where nothing near was measured.

    Args:
        capability: compute capability times ten.
        shape: of the call.

    Raises:
        ValueError: the architecture's file is damaged.
    """
    return _lookup(capability, os.environ.get("RNNKIT_DISPATCH_DIR"), shape)


@lru_cache(4096)
def _lookup(capability: int, folder: str | None, shape: Shape) -> tuple[str, Entry] | None:
    # A table has a thousand entries, and a layer asks at every call.
    table = _read(capability, folder)
    entry = None if table is None else table.nearest(shape)
    return None if table is None or entry is None else (table.gpu, entry)


@lru_cache
def _read(capability: int, folder: str | None) -> Table | None:
    for place in ([Path(folder)] if folder else []) + [SHIPPED]:
        path = place / f"sm_{capability}.json"
        if path.is_file():
            return Table.load(path)
    return None
