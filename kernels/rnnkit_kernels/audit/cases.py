"""Which plans are compiled: six by the test suite, for the table all that the benchmarks reach."""

import itertools
from dataclasses import dataclass

import torch

from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.recurrence.plan import A100, B200, H200, Fallback, Mode, Plan, plan
from rnnkit_kernels.recurrence.wavefront import wavefront_plan

DEVICES = {"sm_80": A100, "sm_90": H200, "sm_100": B200}
# torch's dtype and the precision of its products.
DTYPES = {
    "bf16": (torch.bfloat16, "ieee"),
    "fp16": (torch.float16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "tf32x3": (torch.float32, "tf32x3"),
    "fp32": (torch.float32, "ieee"),
}
CRF_TAGS = (9, 32, 50, 64)  # every tile, filled and not


@dataclass(frozen=True)
class Case:
    """One plan to compile.

    Attributes:
        cell: a key of `CELLS`.
        hidden: H.
        dtype: a key of `DTYPES`.
        target: a key of `DEVICES`.
        mode: of `Plan`, or None for what the rule chooses.
        batch: B.
        members: directions, or with `wavefront` layers.
        ragged: whether sequences differ in length.
        zoneout: whether states are kept in part.
        wavefront: whether the members are layers, with dropout between them.
    """

    cell: str
    hidden: int
    dtype: str = "bf16"
    target: str = "sm_90"
    mode: Mode | None = None
    batch: int = 1
    members: int = 1
    ragged: bool = True
    zoneout: bool = False
    wavefront: bool = False

    def plan(self) -> Plan | Fallback:
        """The rule's answer."""
        dtype, precision = DTYPES[self.dtype]
        if self.wavefront:
            return wavefront_plan(
                CELLS[self.cell],
                self.hidden,
                self.members,
                dtype,
                DEVICES[self.target],
                precision,  # type: ignore[arg-type]
                self.mode or "data",
            )
        return plan(
            CELLS[self.cell],
            self.hidden,
            dtype,
            DEVICES[self.target],
            precision,  # type: ignore[arg-type]
            self.mode,
            self.batch,
            self.members,
        )


def sample_cases() -> list[Case]:
    """Six of the quick cases that between them reach every rule of `assembly.py`."""
    return [
        Case("lstm", 200, mode="data"),  # polls, held weights
        Case("lstm", 256, "tf32x3", mode="data"),
        Case("gru", 512, members=2, mode="counter", wavefront=True),  # meetings, a layer above
        Case("lstm_peephole", 128, target="sm_100", mode="resident"),
        Case("gru_reset_before", 650, "tf32", mode="launch", zoneout=True),  # two stages
        Case("gru", 1150, "fp32", target="sm_80", mode="launch"),  # no tensor cores
    ]


def quick_cases() -> list[Case]:
    """At most 40 plans: every mode and cell, the limits, every precision."""
    # An Elman network's residual step differs from its plain one by an addition.
    cells = [
        cell for cell in CELLS if cell not in ("lstm", "rnn_tanh_residual", "rnn_relu_residual")
    ]
    return [
        *(Case("lstm", hidden, mode="data") for hidden in (200, 300, 650, 1024, 1150, 1500, 1728)),
        *(Case("lstm", hidden, mode="counter", members=2) for hidden in (200, 1024)),
        *(Case(cell, 512, mode="data") for cell in cells),
        *(Case(cell, 512, mode="counter") for cell in ("gru_reset_before", "lstm_peephole")),
        *(Case("lstm", hidden, "tf32", mode="data") for hidden in (300, 650, 1024)),
        Case("lstm", 256, "tf32x3", mode="data"),
        Case("gru", 1024, "fp16", mode="data", batch=256, members=2),
        Case("lstm", 650, mode="data", zoneout=True, ragged=False),
        Case("lstm", 650, members=2, mode="data", wavefront=True),
        Case("gru", 512, members=2, mode="counter", wavefront=True),
        *(Case("lstm", 650, target=target, mode="data") for target in ("sm_80", "sm_100")),
        Case("gru", 1024, target="sm_80", mode="counter"),
        Case("lstm", 144, mode="resident"),
        Case("lstm", 128, "fp16", mode="resident", members=2, ragged=False),
        Case("gru_reset_before", 128, target="sm_80", mode="resident"),
        Case("lstm_peephole", 128, target="sm_100", mode="resident"),
        Case("gru", 64, "tf32", mode="resident"),
        Case("lstm", 32, "fp32", mode="resident"),
        Case("lstm", 1500, mode="launch", members=2),
        Case("gru_reset_before", 650, "tf32", mode="launch", zoneout=True),
        Case("gru", 1150, "fp32", target="sm_80", mode="launch"),
        Case("lstm_peephole", 1150, "tf32", mode="launch", members=2, zoneout=True),
    ]


def all_cases() -> list[Case]:
    """What the benchmark cases reach: their sizes, and one of each other cell."""
    sizes = (50, 64, 168, 200, 256, 300, 500, 512, 650, 768, 1024, 1150, 1500)
    found = list(quick_cases())
    for target, dtype, cell, hidden in itertools.product(
        DEVICES, ("bf16", "tf32"), ("lstm", "gru"), sizes
    ):
        # Hopper is what the plans are made for; of the others a sample.
        if target == "sm_90" or hidden in (200, 650, 1024):
            found.append(Case(cell, hidden, dtype, target))
            counter = Case(cell, hidden, dtype, target, "counter")
            chosen = found[-1].plan()
            if isinstance(chosen, Plan) and chosen.mode == "data":
                found += [counter] if isinstance(counter.plan(), Plan) else []
    # One launch a step is nearly one kernel for every H; rows of 1,150 units are the worst aligned.
    found += [
        Case(cell, 1150, dtype, target, "launch")
        for target, dtype, cell in itertools.product(DEVICES, ("bf16", "tf32", "fp32"), CELLS)
    ]
    # float16 compiles to the code of bfloat16 but for the conversions.
    found += [Case(cell, hidden, "fp16") for cell in ("lstm", "gru") for hidden in (200, 768, 1024)]
    found += [Case(cell, 512, members=2) for cell in CELLS]
    return list(dict.fromkeys(found))


def crf_cases() -> list[tuple[str, int, str]]:
    """(target, K, dtype) of the CRF's kernels: every tile everywhere."""
    dtypes = ("bf16", "fp16", "fp32")
    return [
        (target, tags, dtypes[(i + j) % 3])
        for i, target in enumerate(DEVICES)
        for j, tags in enumerate(CRF_TAGS)
    ]
