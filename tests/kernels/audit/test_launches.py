"""What a launch has Triton compile: one kernel for all T and B, and the one the audit compiles.

Triton's launcher binds the arguments in a process of its own, since here Triton interprets.
"""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.process, pytest.mark.compiler]

# The launchers' own arguments, as Triton takes them in: what is it that it would compile?
LAUNCHES = """
import json, sys
import torch
from triton._utils import find_paths_if
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import create_function_from_signature
from rnnkit_kernels.audit.cases import Case
from rnnkit_kernels.audit.compilation import kernels_of, source_of
from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.random.philox import STREAMS
from rnnkit_kernels.recurrence import backward, exchange, forward
from rnnkit_kernels.recurrence.rows import Rows

backend = CUDABackend(GPUTarget("cuda", 90, 32))
launched = []

class Recorded:
    def __init__(self, kernel):
        self.kernel = kernel
        self.bind = create_function_from_signature(kernel.signature, kernel.params, backend)

    def __getitem__(self, grid):
        return lambda *given, **constants: launched.append((self, *self.bind(*given, **constants)))

for module, names in ((forward, ("stepping_forward", "resident_forward")),
                      (backward, ("stepping_backward", "resident_backward"))):
    for name in names:
        setattr(module, name, Recorded(getattr(module, name)))
exchange.cooperate = lambda kernel, grid, given, options: kernel[grid](*given, **options)

def run(case, cell, plan, steps, batch):
    dtype, shape = torch.bfloat16, (case.members, batch, case.hidden)
    count, members, hidden = steps * batch, case.members, case.hidden
    rows = Rows(steps, batch)
    if case.ragged:
        sizes = torch.full((steps,), batch)
        rows = Rows(steps, batch, sizes, sizes.cumsum(0) - sizes)
    h, gates = torch.zeros(shape, dtype=dtype), cell.gates_at[-1]
    c = torch.zeros(shape) if cell.has_cell_state else None
    weight = torch.zeros(members, gates * hidden, hidden, dtype=dtype)
    bias = torch.zeros(members, gates * hidden, dtype=dtype)
    inside = torch.zeros(members, cell.weights, hidden, dtype=dtype) if cell.weights else None
    x_gates = torch.zeros(count, 1 if case.wavefront else members, gates, hidden, dtype=dtype)
    zoneout, above = None, None
    if case.zoneout:
        states = 1 + cell.has_cell_state
        zoneout = torch.zeros(count, members, states, hidden, dtype=dtype)
    if case.wavefront:
        order = torch.arange(batch)
        above = forward.Above(weight[1:], bias[1:], 0.5, torch.zeros(1, dtype=torch.int64), order)
    y, _, saved, states, _ = forward.forward(
        cell, plan, x_gates, weight, bias, inside, h, c, zoneout, rows, False, True, False, above
    )
    dy = y[:, -1].clone() if case.wavefront else y
    backward.backward(
        cell, plan, dy, h, c, weight, inside, h, c, zoneout, rows, False, y, saved, states, above
    )

def compiled_for(specialization, bound):
    signature = {name: kind for name, (kind, _) in zip(bound, specialization)}
    kinds, hints = zip(*specialization)
    values = list(bound.values())
    def entry(values, path):
        for i in path:
            values = values[i]
        return values
    constants = {p: entry(values, p) for p in find_paths_if(kinds, lambda _, k: k == "constexpr")}
    pointers = find_paths_if(kinds, lambda _, k: k.startswith("*"))
    assert all(entry(hints, path) == "D" for path in pointers), (kinds, hints)
    return signature, constants, set(pointers)

cases = [
    Case("lstm", 20, mode="data"),
    Case("lstm_peephole", 20, mode="counter", members=2),
    Case("gru", 20, mode="resident", ragged=False),
    Case("lstm_peephole", 20, mode="resident", zoneout=True),
    Case("gru_reset_before", 20, mode="launch", zoneout=True),
    Case("lstm", 20, mode="launch", members=2, ragged=False),
    Case("lstm", 20, mode="data", members=2, wavefront=True),
]
for case in cases:
    cell, plan = CELLS[case.cell], case.plan()
    found = set()
    for steps in (1, 16, 35, 64, 70):
        for batch in (1, 16, 35, 64, 70):
            launched.clear()
            run(case, cell, plan, steps, batch)
            found.add(frozenset((entry.kernel.__name__, tuple(specialization), str(options))
                                for entry, _, specialization, options in launched))
    ahead = []
    for _, function, constants, *_ in kernels_of(
        cell, plan, case.hidden, torch.bfloat16, ragged=case.ragged, members=case.members,
        zoneout=case.zoneout, wavefront=case.wavefront,
    ):
        s = source_of(function, constants, torch.bfloat16)
        ahead.append((function.__name__, s.signature, s.constants, set(s.attrs)))
    real = []
    for entry, bound, specialization, _ in launched:
        kernel = (entry.kernel.__name__, *compiled_for(specialization, bound))
        if kernel not in real:
            real.append(kernel)
    real, ahead = (sorted(k, key=lambda k: (k[0], str(k[2]))) for k in (real, ahead))
    print(json.dumps([str(case), len(found), len(real), real == ahead]))
    if real != ahead:
        print(real, ahead, sep=" is not ", file=sys.stderr)
"""


def test_launches_are_compiled_once_and_as_ahead_of_time() -> None:
    """Whatever T and B are; and the audit compiles what is launched, to the last constant."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHES], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 7
    for case, compilations, kernels, alike in found:
        assert compilations == 1, case
        assert kernels == (4 if "gru_reset_before" in case else 2), case
        assert alike, (case, done.stderr[-3000:])
