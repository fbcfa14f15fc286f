"""One command for a GPU that is there for minutes: what works on it, and what is how fast.

    python -m benchmarks.gpu_check --out FOLDER [--minutes 9] [--again]

Compiles all kernels first, many at once, and without launching one that waits. Then come the empty
exchange, parity of what the quick benchmarks run, these, and parity of every other cell, mode and
precision; then `pytest -m gpu`, and all benchmarks as far as time allows. Each check has a process
of its own, which is ended when it takes too long. FOLDER/gpu_check-HASH.json, named by a hash of
the kernels, is written after each, and the same command goes on where it stopped. Needs a checkout,
torch, triton, numpy and pytest; pytest-xdist, where it is, runs eight tests at a time.

Exit status: 0 all ok, 1 something failed or hung, 2 no GPU, 3 out of time, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from .checks import Check, Report, done, run, summary
from .command import DEVICE_LOST, OUT_OF_TIME

ROOT = Path(__file__).parents[1]
TO_COMPILE = 150.0  # seconds for one check
TO_STOP = 40.0  # seconds that the benchmarks may go on after their budget, for what they have begun
POLLS = 2**22  # seconds of waiting, not half a minute
DEVICE = "cuda"
PRELOAD = ("torch", "triton", "rnnkit", "tests.kernels.test_gpu", "benchmarks.floor_kernels")


def environment() -> dict[str, Any] | None:
    """GPU, driver, versions and clocks; None without a GPU."""
    import torch

    from . import machine

    return machine.describe(torch.device(DEVICE)) if torch.cuda.is_available() else None


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Let programs that meet be compiled and loaded as for a launch, which does not happen."""
    import torch

    from rnnkit_kernels.recurrence import exchange

    def load(kernel: Any, grid: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        made = kernel.warmup(*arguments, grid=grid, **options, launch_cooperative_grid=True)
        assert getattr(made, "run", True)  # loads it; what does not fit is noticed here

    launch, exchange.cooperate = exchange.cooperate, load
    try:
        yield
        torch.cuda.synchronize()
    finally:
        exchange.cooperate = launch


def exchange_step(meeting: str, programs: int, compile_only: bool = False) -> float | str:
    """Seconds of one step of an empty exchange."""
    import torch

    from rnnkit_kernels.recurrence import exchange
    from rnnkit_kernels.recurrence.plan import Device

    from . import floor_kernels

    device = torch.device(DEVICE)
    if programs > Device.of(device).multiprocessors:
        return f"not tried: only {Device.of(device).multiprocessors} multiprocessors"
    exchange.MAX_POLLS = POLLS
    if not compile_only:
        return floor_kernels.step_seconds(meeting, programs, device)
    first = torch.randn(16, 16 * programs, device=device).to(torch.bfloat16)
    with nothing_waits():
        floor_kernels.run_exchange(meeting, first, 2)
    return "compiled"


def parity(cell: str, mode: str, precision: str, hidden: int, compile_only: bool = False) -> None:
    """Results and gradients against float64, lengths equal and not, in both directions."""
    from rnnkit_kernels.recurrence import exchange
    from tests.kernels import layers, test_gpu

    os.environ["RNNKIT_CHECK"] = "1"
    exchange.MAX_POLLS = POLLS
    with test_gpu.computed_in("fp32"), test_gpu.computed_in(precision) as dtype:
        for storage, reverse in (("dense", False), ("packed", True), ("padded", False)):
            layer = layers.random_layer(cell, storage, reverse, hidden, batch=test_gpu.BATCH)
            layer = test_gpu.on_device(layer)
            if compile_only:
                with nothing_waits():
                    layer.to(dtype).run(mode)
            else:
                layers.assert_as_exact_as_a_plain_loop(layer, mode, dtype)


def crf(compile_only: bool = False) -> None:
    """The CRF's results and gradients against float64, and that they repeat bitwise."""
    import torch

    from tests.kernels.crf import test_crf

    for tags, dtype in ((9, torch.float32), (33, torch.bfloat16), (64, torch.float16)):
        problem = test_crf.random_problem(tags, dtype).to(DEVICE)
        first = problem.run("triton")
        if not compile_only:
            test_crf.assert_as_exact_as_a_plain_loop(problem, "triton")
            for a, b in zip(first, problem.run("triton"), strict=True):
                assert torch.equal(a, b), f"{tags} tags: two runs differ"


def linear_cross_entropy(precision: str, compile_only: bool = False) -> None:
    """Losses and gradients of a vocabulary against float64, and that they repeat bitwise."""
    import torch

    from tests.kernels import test_gpu
    from tests.kernels.vocabulary import test_linear_cross_entropy

    with test_gpu.computed_in("fp32"), test_gpu.computed_in(precision) as dtype:
        # More than one band of gradients, and more than one stretch of the vocabulary.
        for shape in ((70, 24, 300), (700, 200, 33278)):
            inputs = test_linear_cross_entropy.random_inputs(*shape, dtype=dtype)
            inputs = [tensor.to(DEVICE) for tensor in inputs]
            first = test_linear_cross_entropy.results(inputs, "none", "triton")
            if not compile_only:
                test_linear_cross_entropy.assert_as_exact_as_plain(inputs, "none", "triton")
                again = test_linear_cross_entropy.results(inputs, "none", "triton")
                for a, b in zip(first, again, strict=True):
                    assert torch.equal(a, b), f"{shape}: two runs differ"


def compile_quick(name: str, cell: str, dtype: str) -> None:
    """Two steps of one of the quick benchmarks, by every peer that is ours."""
    import torch

    from .cases import CASES
    from .peers import select
    from .work import Work, products_in

    work = Work.of(replace(CASES[name], steps=2), cell, dtype, torch.device(DEVICE))
    for peer in select(["rnnkit auto", "rnnkit triton"]):
        if peer.absent(work) is None:
            with products_in(dtype), nothing_waits():
                peer.prepare(work, "train").call("train")


def kernels() -> str:
    """A hash of the kernels' sources."""
    from rnnkit_kernels.audit.sources import source_hash

    return source_hash()


def suite(kind: str, folder: str, deadline: float) -> None:
    """The quick or the full benchmarks, as far as they come."""
    budget = deadline - time.monotonic() - TO_STOP
    if budget < 0:
        raise TimeoutError(f"no time is left for the {kind} benchmarks")
    out = str(Path(folder).resolve() / f"{kind}-{kernels()}.json")
    command = [sys.executable, "-m", "benchmarks", f"--{kind}", "--out", out]
    done = subprocess.run([*command, "--budget", f"{budget:.0f}"], cwd=ROOT)
    while done.returncode == DEVICE_LOST:  # another process gets a new device
        budget = max(0.0, deadline - time.monotonic() - TO_STOP)
        done = subprocess.run([*command, "--budget", f"{budget:.0f}"], cwd=ROOT)
    if done.returncode == OUT_OF_TIME:
        raise TimeoutError(f"{out} goes on with the next run")
    if done.returncode:
        raise RuntimeError(f"python -m benchmarks --{kind} ended with {done.returncode}")


def marked_tests(folder: str, deadline: float) -> str:
    """All tests that are marked gpu; what they print goes to FOLDER/pytest.txt."""
    left = deadline - time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/kernels"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", "8"]
    told = Path(folder) / "pytest.txt"
    with told.open("w") as file:
        try:
            done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, timeout=left)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"pytest -m gpu was not done; {told} holds the beginning") from None
    last = told.read_text().strip().splitlines()[-1:]
    if done.returncode:
        raise RuntimeError(f"see {told}: {' '.join(last)}")
    return " ".join(last)


def all_checks(folder: Path, deadline: float) -> list[Check]:
    """Everything, in the order of running."""
    from rnnkit_kernels.cells import CELLS

    from .cases import QUICK
    from .floor import MEETINGS, PROGRAMS

    here, compiles = "benchmarks.gpu_check:", []

    def after_compiling(check: Check) -> Check:
        name = f"compile {check.name}"
        first = replace(check, name=name, group="compile", needs=(), limit=TO_COMPILE, beside=True)
        compiles.append(replace(first, arguments=(*check.arguments, True)))
        return replace(check, needs=(name, *check.needs))

    exchanges = [
        Check(f"exchange {meeting} {count}", "exchange", f"{here}exchange_step", (meeting, count))
        for meeting in MEETINGS
        for count in PROGRAMS
    ]
    ways = {way: tuple(c.name for c in exchanges if way in c.arguments) for way in MEETINGS}
    exchanges = [after_compiling(check) for check in exchanges]
    layers = [("lstm", meeting, "bf16", hidden) for meeting in MEETINGS for hidden in (650, 1024)]
    for cell in CELLS:
        for mode in (*MEETINGS, "resident", "launch"):
            # IEEE products have no tensor cores: nothing is held on chip for others to meet.
            for precision in ("bf16", "tf32", "fp16", "fp32")[: 3 + (mode not in MEETINGS)]:
                hidden = 24 if (mode, precision) == ("resident", "fp32") else 40
                layers.append((cell, mode, precision, hidden))
    parities = []
    for cell, mode, precision, hidden in layers:
        name, given = f"{cell} {mode} {precision} H={hidden}", (cell, mode, precision, hidden)
        check = Check(f"parity {name}", "parity", f"{here}parity", given, ways.get(mode, ()))
        if mode not in MEETINGS:
            check = replace(check, group="parity alone", limit=TO_COMPILE, beside=True)
        parities.append(after_compiling(check))
    # First what the benchmarks run, then these, then the rest.
    parities.sort(key=lambda check: check.beside)
    first = [check for check in parities if _measured(check.arguments)]
    for case in QUICK["cuda"]:
        for dtype in ("bf16", "tf32"):
            for cell in ("lstm", "gru"):
                name, function = f"compile quick {case} {cell} {dtype}", f"{here}compile_quick"
                compiles.append(
                    Check(name, "compile", function, (case, cell, dtype), (), TO_COMPILE, True)
                )
    needs = tuple(check.name for check in exchanges)
    quick, full, marked = (
        Check(
            name, group, f"{here}{function}", (*given, str(folder), deadline), needs, math.inf,
            unless_hung=("exchange", "parity"),
        )
        for name, group, function, given in (
            ("quick benchmarks", "quick", "suite", ("quick",)),
            ("all benchmarks", "full", "suite", ("full",)),
            ("pytest -m gpu", "tests", "marked_tests", ()),
        )
    )  # fmt: skip
    rest = [check for check in parities if check not in first]
    chain = after_compiling(Check("crf", "crf", f"{here}crf", limit=TO_COMPILE))
    losses = [
        after_compiling(
            Check(f"{name} {precision}", name, f"{here}{name}", (precision,), (), TO_COMPILE)
        )
        for name in ("linear_cross_entropy",)
        for precision in ("bf16", "tf32", "fp16", "fp32")
    ]
    return [*compiles, *exchanges, *first, quick, *rest, chain, *losses, marked, full]


def _measured(arguments: tuple[Any, ...]) -> bool:
    """Whether a parity check is of what the quick benchmarks run."""
    cell, _, precision, _ = arguments
    return cell in ("lstm", "gru") and precision in ("bf16", "tf32")


def forget_compiled(checks: Sequence[Check], report: Report, again: bool) -> None:
    """Let what is still to be run be compiled anew: this machine may have no kernels of before."""
    left = [check for check in checks if report.status(check.name) not in done(again)]
    left = [check for check in left if check.group != "compile"]
    of_all, of_left = ({name for c in some for name in c.needs} for some in (checks, left))
    for check in checks:
        wanted = check.name in of_left or (left and check.name not in of_all)
        if check.group == "compile" and report.status(check.name) == "ok" and wanted:
            del report.found[check.name]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is the module's."""
    begin = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description="Check a GPU's recurrent kernels and measure them, inside a few minutes.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for results")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all (default: 9)")
    parser.add_argument("--again", action="store_true", help="repeat also what failed or hung")
    options = parser.parse_args(argv)
    deadline = begin + 60 * options.minutes - 10  # to end what still runs
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.environ.pop("TRITON_INTERPRET", None)
    # Of other kernels nothing stands.
    path = options.out / f"gpu_check-{kernels()}.json"
    report = Report(path, lambda line: print(line, flush=True))
    where = Check("environment", "environment", "benchmarks.gpu_check:environment", limit=60)
    checks = [where]
    given = {"again": options.again, "at_once": os.cpu_count() or 1, "preload": PRELOAD}
    try:
        report.found.pop(where.name, None)
        run(checks, report, deadline, **given)
        if report.status(where.name) == "ok":
            if report.found[where.name]["value"] is None:
                print("torch sees no CUDA GPU, and there is nothing to check without one")
                return 2
            checks += all_checks(options.out, deadline)
            forget_compiled(checks, report, options.again)
            run(checks, report, deadline, **given)
    except KeyboardInterrupt:
        summary(checks, report)
        return 130
    return summary(checks, report)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # a process that the driver holds is not waited for
