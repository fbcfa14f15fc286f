"""Which threads the native engine works with: torch's OpenMP, or threads that it starts itself.

    python -m benchmarks.thread_pools > threads.json

Forward and backward of the engine's layers with two threads. The two kinds take turns in one
process, as in `cpu_engine.py`: torch's own operators, which take OpenMP in either case, stand
between the calls as in a model. A ratio above 1 is for OpenMP. The table goes to standard error,
the figures to standard output.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor

import rnnkit
from rnnkit_kernels.cpu import library

from . import machine
from .cpu_engine import in_turn
from .cpu_ratios import Ratio, geometric_mean
from .cpu_records import SEED, SHAPES

THREADS, SECONDS = 2, 1.0
CELLS: tuple[type[rnnkit.LSTM | rnnkit.GRU | rnnkit.RNN], ...] = (
    rnnkit.LSTM, rnnkit.GRU, rnnkit.RNN,
)  # fmt: skip


def main() -> int:
    """Measure every layer and shape; exit status 0, or 1 where there is no engine."""
    torch.set_num_threads(THREADS)
    loaded = library.library()
    if loaded is None:
        print(f"benchmarks.thread_pools: {library.missing()}", file=sys.stderr)
        return 1
    engine = ctypes.CDLL(str(loaded.path))  # the same, for a process loads it once
    engine.rnnkit_use_openmp.argtypes = [ctypes.c_void_p] * 3
    openmp: Callable[[], object] = partial(engine.rnnkit_use_openmp, *library.openmp_functions())
    own: Callable[[], object] = partial(engine.rnnkit_use_openmp, None, None, None)
    found, ratios = [], []
    for cell in CELLS:
        for steps, batch, features, hidden in SHAPES:
            torch.manual_seed(SEED)
            layer = cell(features, hidden, backend="native")
            x = torch.randn(steps, batch, features, requires_grad=True)
            calls = {
                "openmp": partial(_call, openmp, layer, x),
                "own": partial(_call, own, layer, x),
            }
            for call in calls.values():
                call()
            _, wall, cpu = in_turn(calls, SECONDS)
            ratio, cpu_ratio = (Ratio.of(times["own"], times["openmp"]) for times in (wall, cpu))
            shape = f"{cell.__name__} T {steps}, B {batch}, D {features}, H {hidden}"
            print(f"{shape:38} wall {ratio}, CPU {cpu_ratio}", file=sys.stderr)
            found.append({"case": shape, "wall": asdict(ratio), "cpu": asdict(cpu_ratio)})
            ratios.append(ratio.value)
    openmp()
    print(f"geometric mean {geometric_mean(ratios):.2f}", file=sys.stderr)
    described = machine.describe(torch.device("cpu")) | {"commit": machine.commit()}
    print(json.dumps({"machine": described, "own / openmp": found}, indent=1))
    return 0


def _call(
    use: Callable[[], object], layer: rnnkit.LSTM | rnnkit.GRU | rnnkit.RNN, x: Tensor
) -> None:
    use()
    layer(x)[0].sum().backward()


if __name__ == "__main__":
    sys.exit(main())
