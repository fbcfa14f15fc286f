"""How much faster than torch.nn rnnkit's layers are on this CPU, with the native engine.

LSTM, GRU and RNN, seven shapes, inference and training, dense and ragged. FOLDER gets results.json
after every case, and at the end README.md with tables, summary.json with all ratios and ratios.png.
The same command goes on where it stopped.

The sides of a case take turns in one process, in a new order every time; a turn repeats its call
until it takes 20 ms. Dense sides are torch.nn, rnnkit as "auto" chooses, and the engine; ragged
ones torch.nn on a packed sequence, which is packed and unpacked in the clock, rnnkit with
`lengths=`, and rnnkit in the place of torch.nn. Before a side is timed, its results and gradients
have to be torch.nn's.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnkit
from rnnkit.screen.terminal import Parser

from . import cpu_ratios
from .cpu_records import LEAST, MOST, QUICK, SEED, SHAPES, SIDES, TURN, Case, Record, Run, cases
from .peers.rnnkit_layers import LAYERS as OURS
from .peers.torch_layers import LAYERS as THEIRS
from .progress import Progress
from .results import BASELINE

EXAMPLE = "python -m benchmarks.cpu_engine --out FOLDER --threads 1 2"
TOLERANCE = 1e-3  # of the largest value: a wrong result, not another order of sums
INTERRUPTED = 128 + 2  # the shell's status of a command that SIGINT has ended

Call = Callable[[], list[Tensor]]


def sides(case: Case) -> tuple[dict[str, Call], dict[str, str]]:
    """The calls of a case, torch.nn's first, all with the same numbers; and what runs underneath.

    A call returns what it computed: the output, and in mode "train" the gradients of x and of all
    parameters.
    """
    steps, batch, features, hidden = case.shape
    generator = torch.Generator().manual_seed(SEED)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    trains = case.mode == "train"
    x, dy = draw(steps, batch, features).requires_grad_(trains), draw(steps, batch, hidden)
    lengths = case.lengths() if case.ragged else None
    kind, options = THEIRS[case.cell]
    torch.manual_seed(SEED)
    baseline = kind(features, hidden, **options).train(trains)
    layers = {BASELINE: baseline}
    for name in SIDES[case.ragged]:
        kind, options = OURS[case.cell]
        backend = "native" if name == "native" else "auto"
        layers[name] = kind(features, hidden, backend=backend, **options).train(trains)
        layers[name].load_state_dict(baseline.state_dict())

    def call(name: str) -> Call:
        layer = layers[name]
        parameters = list(layer.parameters())

        def forward() -> Tensor:
            output: Tensor
            if lengths is None:
                output = layer(x)[0]
            elif name == "lengths":
                output = layer(x, lengths=lengths)[0]
            else:
                packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
                output = pad_packed_sequence(layer(packed)[0], total_length=steps)[0]
            return output

        def run() -> list[Tensor]:
            output = forward()
            if not trains:
                return [output]
            return [output, *torch.autograd.grad(output, [x, *parameters], dy)]

        return run

    with torch.set_grad_enabled(trains):
        engines = {BASELINE: "torch"}
        for name in SIDES[case.ragged]:
            given = {"lengths": lengths} if case.ragged else {}
            engines[name] = rnnkit.explain(layers[name], x, **given).decision.engine
    return {name: call(name) for name in layers}, engines


def check(calls: Mapping[str, Call]) -> None:
    """Refuse a time to what is wrong.

    Raises:
        ValueError: a side's results or gradients differ from torch.nn's.
    """
    expected = [tensor.detach() for tensor in calls[BASELINE]()]
    for name, call in calls.items():
        for i, (found, b) in enumerate(zip(call(), expected, strict=True)):
            a = found.detach()
            error = float((a - b).abs().max()) if a.shape == b.shape else float("inf")
            if not error <= TOLERANCE * float(b.abs().max()):
                what = "the output" if i == 0 else f"gradient {i}"
                raise ValueError(f"{name}: {what} differs from {BASELINE}'s by {error:.3g}")


def in_turn(
    calls: Mapping[str, Callable[[], object]], seconds: float
) -> tuple[dict[str, int], dict[str, list[float]], dict[str, list[float]]]:
    """Let the calls take turns.

    Args:
        calls: by side, each called before.
        seconds: for the turns of one side, beyond the least number of them.

    Returns:
        By side: calls of a turn, and seconds of a call by the clock and of all processors.
    """

    def turn(call: Callable[[], object], repeats: int) -> tuple[float, float]:
        used, begin = time.process_time(), time.perf_counter()
        for _ in range(repeats):
            call()
        wall = time.perf_counter() - begin
        return wall, time.process_time() - used

    repeats = dict.fromkeys(calls, 1)
    for name, call in calls.items():
        # Doubled first, for the first calls are slow; twice, for the machine may have been busy.
        while (taken := min(turn(call, repeats[name])[0] for _ in range(2))) < TURN / 2:
            repeats[name] *= 2
        repeats[name] = max(1, round(repeats[name] * TURN / taken + 0.5))
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds * len(calls)
    draw, names = random.Random(SEED), list(calls)
    for number in range(MOST):
        if number >= LEAST and time.perf_counter() > end:
            break
        draw.shuffle(names)
        for name in names:
            taken, used = turn(calls[name], repeats[name])
            wall[name].append(float(f"{taken / repeats[name]:.6g}"))
            cpu[name].append(float(f"{used / repeats[name]:.6g}"))
    return repeats, wall, cpu


def measure(case: Case, seconds: float) -> Record:
    """One case, right before fast.

    Raises:
        ValueError: a side is wrong.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        with torch.set_grad_enabled(case.mode == "train"):
            calls, engines = sides(case)
            check(calls)
            gc.collect()
            repeats, wall, cpu = in_turn(calls, seconds)
    except ValueError as error:
        raise ValueError(f"{case}: {error}") from error
    finally:
        torch.set_num_threads(before)
    return Record(case, engines, repeats, wall, cpu, round(os.getloadavg()[0], 2))


def _run_in(path: Path) -> Run:
    """What is in the file already, if it is of this machine and commit; or an empty run."""
    here = Run.here()
    if not path.exists():
        return here
    found = Run.load(path)
    for name in ("device", "torch", "cores"):
        if found.machine.get(name) != here.machine[name]:
            raise ValueError(
                f"{path} was measured with {name} {found.machine.get(name)}, here it is "
                f"{here.machine[name]}: choose another --out"
            )
    for name in ("isa", "commit"):
        before, now = getattr(found, name), getattr(here, name)
        if before != now:
            raise ValueError(
                f"{path} was measured with {name} {before or 'unknown'}, here it is "
                f"{now or 'unknown'}: choose another --out"
            )
    return found


def render(run: Run, folder: Path) -> str:
    """Write README.md, summary.json and, with matplotlib, ratios.png.

    Returns:
        The means and the slower cases, with what was written.
    """
    measured = [(record, cpu_ratios.ratios_of(record)) for record in run.records]
    files = [folder / "README.md", folder / "summary.json"]
    picture = ""
    try:
        from . import charts
    except ImportError:
        pass
    else:
        charts.engine_ratios(measured).savefig(folder / "ratios.png")
        picture = "ratios.png"
        files.append(folder / picture)
    files[0].write_text(cpu_ratios.page(run, measured, picture))
    files[1].write_text(json.dumps(cpu_ratios.summary(measured), indent=1) + "\n")
    return "\n".join([cpu_ratios.short(measured), *(f"written: {file}" for file in files)])


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.cpu_engine",
        usage=argparse.SUPPRESS,  # the example stands first
        description=f"{EXAMPLE}\n\n{__doc__}",
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="where the figures go")
    add(
        "--threads", type=int, nargs="+", default=[1, 2], metavar="N",
        help="numbers of threads, one after another (default: 1 2)",
    )  # fmt: skip
    add(
        "--seconds", type=float, default=1.0, metavar="S",
        help=f"for the turns of one side of a case (default: 1; at least {LEAST} turns)",
    )  # fmt: skip
    add("--quick", action="store_true", help="two small shapes and no more turns than needed")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; None: those of the process.

    Returns:
        Exit status: 0; 1 for an error, told in one sentence; 2 for options that make no sense; 130
        after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as end:  # argparse has printed its help (0) or its error (2)
        return int(end.code or 0)
    path = options.out / "results.json"
    shapes, seconds = (QUICK, 0.0) if options.quick else (SHAPES, options.seconds)
    try:
        if min(options.threads) < 1:
            raise ValueError(f"expected --threads of 1 or more, got {min(options.threads)}")
        options.out.mkdir(parents=True, exist_ok=True)
        run = _run_in(path)
        run.commands.append(shlex.join(["python", "-m", "benchmarks.cpu_engine", *arguments]))
        wanted = list(cases(shapes, dict.fromkeys(options.threads)))
        status = _measure_all(run, wanted, seconds, path)
        if run.records:
            print(render(run, options.out))
    except (ValueError, OSError) as error:
        print(f"benchmarks.cpu_engine: {error}", file=sys.stderr)
        return 1
    return status


def _measure_all(run: Run, wanted: Sequence[Case], seconds: float, path: Path) -> int:
    """What is not there yet, the file written after each; 0, or 130 after Ctrl-C."""
    there = {record.case for record in run.records}
    missing_yet = [case for case in wanted if case not in there]
    progress, done = Progress(), 0.0
    costs = [max(case.cost(), 3 * seconds) for case in missing_yet]
    try:
        for case, cost in zip(missing_yet, costs, strict=True):
            progress(done / sum(costs), str(case))
            run.records.append(measure(case, seconds))
            run.save(path)
            done += cost
    except KeyboardInterrupt:
        progress.close()
        print("\nstopped; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    finally:
        progress.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
