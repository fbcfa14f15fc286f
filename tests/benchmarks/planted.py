"""Results that nobody measured: made from given medians, the same on every call."""

from __future__ import annotations

import random
from typing import Any

from benchmarks.cases import CASES, QUICK, Case
from benchmarks.results import Record, Results

MACHINES: dict[str, dict[str, Any]] = {
    "cpu": {"device": "Planted CPU, 2 cores", "torch": "2.9.1", "threads": 2},
    "cuda": {
        "device": "Planted GPU",
        "driver": "570.1",
        "torch": "2.9.1",
        "cudnn": 91002,
        "clocks": {"sm_mhz": [1755, 1980], "memory_mhz": [3201]},
    },
}


def record(peer: str, milliseconds: float | None = None, **values: Any) -> Record:
    """A record of the case ptb-small with samples around a median, or of a peer without a time.

    Args:
        peer: Who ran it.
        milliseconds: The median; None for a peer that has no time.
        values: Other fields of `Record`; `samples` is how many (20), `spread` their standard
            deviation as a share (0.01).
    """
    samples, spread = values.pop("samples", 20), values.pop("spread", 0.01)
    base = {"case": "ptb-small", "cell": "lstm", "dtype": "fp32", "mode": "train", "status": "ok"}
    made = Record(**{**base, "peer": peer, **values})
    if milliseconds is not None:
        # Pairs of the same distance above and below: the median of the samples is the one given.
        draw = random.Random(repr(made.key))
        away = [abs(draw.gauss(0, spread)) for _ in range(samples // 2)]
        shares = [1 + sign * each for each in away for sign in (1, -1)] + [1.0] * (samples % 2)
        draw.shuffle(shares)
        made.seconds = [milliseconds / 1e3 * share for share in shares]
    return made


def results(*records: Record, device: str = "cpu", **values: Any) -> Results:
    """A run with these records and the shapes that they name."""
    return Results(
        machine=MACHINES[device],
        commands=["python -m benchmarks --quick"],
        commit="0123abc",
        started="2026-01-02T03:04:05+00:00",
        cases={each.case: CASES[each.case] for each in records},
        records=list(records),
        **values,
    )


def cpu_quick() -> Results:
    """Six cases on a CPU, where auto is torch.nn but for one it loses and one it fails."""
    made = []
    for case in QUICK["cpu"]:
        for cell in ("lstm", "gru"):
            where = {"case": case, "cell": cell, "error": 0.2, "first_call_seconds": 0.03}
            time = CASES[case].operations(cell, "train") / 5e7 + 0.02 * CASES[case].steps
            auto = time * (1.3 if (case, cell) == ("odd", "gru") else 1.004)
            made += [
                record("torch.nn", time, engine="oneDNN", **where),
                record("rnnkit auto", auto, engine="torch", **where),
                record(
                    "loop in PyTorch", time * (1.9 if cell == "lstm" else 2.4), spread=0.05, **where
                ),
            ]
    made[-2] = record("rnnkit auto", case="odd", cell="gru", status="failed", message="no memory")
    return results(*made)


def gpu_full() -> Results:
    """Every case, LSTM and GRU, four dtypes and thirteen peers on a GPU, all with a floor."""
    floor = {
        "gemm": {"tf32": 4.1e14, "fp32": 5.2e13, "bf16": 7.9e14, "fp16": 7.8e14},
        "copy": 3.9e12,
        "reread": 2.1e13,
        "exchange": {
            name: {str(count): count**0.5 * each for count in (1, 8, 16, 32, 64, 128)}
            for name, each in {"counter": 2.9e-7, "data": 2.1e-7}.items()
        },
    }
    made = []
    for case in CASES.values():
        for cell in ("lstm", "gru"):
            for dtype in ("tf32", "fp32", "bf16", "fp16"):
                made += _gpu_group(case, cell, dtype)
    return results(*made, device="cuda", floor=floor)


def _gpu_group(case: Case, cell: str, dtype: str) -> list[Record]:
    draw = random.Random(f"{case.name} {cell} {dtype}")
    serial = case.steps * case.layers * case.directions
    speed = {"tf32": 2e11, "fp32": 4e10, "bf16": 4e11, "fp16": 4e11}[dtype]  # operations per ms
    work = case.operations(cell, "train") / speed
    floor = work + serial * 0.002
    bound = 0.2 + case.hidden / 1500  # wider layers gain less from staying on the chip
    times = {
        "torch.nn": work * 1.6 + serial * 0.009 + 0.04,
        "torch.nn without cuDNN": work * 2.5 + serial * 0.05 + 0.1,
        "rnnkit data": work * 1.8 + serial * 0.004 * (1 + bound) + 0.03,
        "rnnkit counter": work * 1.8 + serial * 0.0055 * (1 + bound) + 0.03,
        "rnnkit resident": work * 1.5 * (1 + bound) + serial * 0.003 + 0.03,
        "rnnkit launch": work * 1.7 + serial * 0.016 + 0.05,
        "rnnkit eager": work * 2.2 + serial * 0.07 + 0.05,
        "flashrnn cuda_fused": work * 2 + serial * 0.007 + 0.06,
        "flashrnn cuda": work * 1.8 + serial * 0.018 + 0.06,
        "flashrnn triton_fused": work * 2.2 + serial * 0.01 + 0.07,
        "torchrl": work * 2 * (1 + 3 * bound) + serial * 0.004 + 0.05,
        "loop in PyTorch": work * 3 + serial * 0.11 + 0.05,
        "torch.compile of a loop": work * 2.4 + serial * 0.03 + 0.05,
    }
    times = {peer: time * draw.uniform(0.9, 1.1) for peer, time in times.items()}
    engines = {peer: time for peer, time in times.items() if peer.startswith("rnnkit")}
    # Every tenth choice or so is the second best engine.
    best = sorted(engines, key=engines.__getitem__)[draw.random() < 0.1]
    times["rnnkit triton"] = times[best]
    times["rnnkit auto"] = min(times[best], times["torch.nn"]) * 1.002
    where: dict[str, Any] = {"case": case.name, "cell": cell, "dtype": dtype}
    made = []
    for index, (peer, time) in enumerate(times.items()):
        if peer == "rnnkit resident" and case.hidden > 768:
            why = "absent", "the weights don't fit into the chip's shared memory"
        elif peer.startswith("flashrnn") and (dtype in ("tf32", "fp32") or case.hidden % 16):
            why = "absent", "flashrnn takes bf16 and fp16 with H a multiple of 16"
        elif peer == "torchrl" and cell == "gru" and dtype == "fp16":
            why = "wrong", "error 3.1 times what is allowed, in the gradient of weight_hh_l0"
        elif peer == "torchrl" and case.hidden > 1024:
            why = "failed", "OutOfResources: shared memory\nRequired: 294912 | limit: 232448"
        elif peer == "torch.compile of a loop" and case.steps > 128:
            why = "absent", "more than 128 steps take too long to compile"
        else:
            made.append(
                record(
                    peer,
                    time,
                    engine={"torch.nn": "PERSIST_STATIC", "rnnkit auto": best}.get(peer, ""),
                    error=draw.uniform(0.1, 0.6),
                    peak_bytes=int(16 * sum(case.lengths()) * case.hidden * (1 + index / 12)),
                    first_call_seconds=draw.uniform(0.1, 9),
                    floor_seconds=floor / 1e3,
                    graph_seconds=[time / 1e3 * 0.97] * 3,
                    samples=draw.choice((20, 30)),
                    **where,
                )
            )
            continue
        made.append(record(peer, status=why[0], message=why[1], **where))
    return made
