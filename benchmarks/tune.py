"""The table that `backend="auto"` reads, from what the suite measured on a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from rnnkit_kernels.audit.sources import source_hash
from rnnkit_kernels.dispatch import tables

from .cases import CASES, Case
from .peers.rnnkit_layers import KERNELS
from .results import BASELINE, Record, Results

MODES = ("inference", "train")
PEERS = (BASELINE, *(f"rnnkit {mode}" for mode in KERNELS))
STEPS = 128


def grid() -> list[Case]:
    """The named cases, then shapes so close that `tables.FARTHEST` leaves no gap between them.

    One layer in one direction first: most layers are that. Lengths are those of dense input: a
    layer's speed on ragged input is taken for the same.
    """
    named = [case for name, case in CASES.items() if not name.startswith("sweep-")]
    found = [case for case in named if not case.ragged and not case.reset_every]
    for layers, directions in ((1, 1), (1, 2), (2, 1)):
        for hidden in (256, 512, 1024, 128, 192, 384, 768, 1536, 64):
            for batch in (32, 128, 8, 512, 1, 3):
                suffix = f"-l{layers}" * (layers > 1) + f"-d{directions}" * (directions > 1)
                name = f"tune-h{hidden}-b{batch}{suffix}"
                shape = (STEPS, batch, hidden, hidden, layers, directions)
                found.append(Case(name, "the dispatch table's grid", *shape))
    return found


def entries(results: Results) -> Iterator[tables.Entry]:
    """One entry for each case, cell and dtype that has a time for torch.nn and for a kernel."""
    found: dict[tuple[str, str, str], list[Record]] = {}
    for record in results.records:
        if record.status == "ok" and record.peer in PEERS and record.mode in MODES:
            found.setdefault((record.case, record.cell, record.dtype), []).append(record)
    for (name, cell, dtype), records in found.items():
        case = results.cases[name]
        if case.ragged or case.reset_every:
            continue
        times: dict[str, dict[str, float]] = {mode: {} for mode in MODES}
        for record in records:
            engine = "torch" if record.peer == BASELINE else record.peer.removeprefix("rnnkit ")
            times[record.mode][engine] = record.median
        if all("torch" in of_mode and len(of_mode) > 1 for of_mode in times.values()):
            shape = tables.Shape(cell, dtype, case.hidden, case.batch, case.layers, case.directions)
            yield tables.Entry(shape, case.steps, times["inference"], times["train"])


def write(results: Results, folder: Path | None = None) -> Path:
    """Write the table of the GPU that the results are from.

    Args:
        results: of the suite, with `PEERS` in both `MODES`.
        folder: where to; None: where `backend="auto"` looks first.

    Returns:
        The file.

    Raises:
        ValueError: the results are not from a GPU, or hold no shape that can be decided.
    """
    capability = results.machine.get("capability")
    if capability is None:
        raise ValueError(
            'a dispatch table is for a GPU: on a CPU backend="auto" takes torch\'s own layers'
        )
    found = tuple(entries(results))
    if not found:
        raise ValueError("no shape has a time for torch.nn and for a kernel: nothing to decide")
    machine = results.machine
    versions = {"kernels": source_hash()}
    for name in ("torch", "triton", "cudnn", "driver"):
        versions[name] = str(machine.get(name, "unknown"))
    table = tables.Table(machine["device"], versions, found)
    chosen = os.environ.get("RNNKIT_DISPATCH_DIR")
    folder = folder or (Path(chosen) if chosen else tables.SHIPPED)
    path = folder / f"sm_{capability.replace('.', '')}.json"
    table.save(path)
    return path
