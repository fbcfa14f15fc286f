"""`rnnkit bench`, also `python -m benchmarks`: layers against cuDNN and every other fused RNN."""

from __future__ import annotations

import argparse
import datetime
import importlib
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rnnkit.screen.terminal import Parser

from . import estimate, machine, report, tune
from .cases import CASES, DTYPES, MODES, NAMES, QUICK, select
from .peers import peers
from .peers import select as select_peers
from .progress import Progress
from .results import AUTO, BASELINE, Results, auto_losses, compare
from .suite import DeviceLostError, Request, Suite

INTERRUPTED = 128 + 2  # the shell's status of a command that SIGINT has ended
OUT_OF_TIME, DEVICE_LOST = 3, 4
# Figures of machines that differ in one of these don't belong into one file.
SAME = ("device", "torch", "triton", "cudnn", "driver", "threads")

_DESCRIPTION = """\
rnnkit bench
rnnkit bench --cases ptb-medium 'sweep-h-*' --cells gru --out gru.json

Measure recurrent layers: rnnkit's engines, torch.nn and every other peer.
"""

_EPILOG = """\
Every case is checked before it is timed: results and all gradients against float64. The peers of a
case take turns on the clock. Results are written after each case; the same command with the same
--out goes on where it stopped. `bench end-to-end --help` tells how whole trainings are compared,
`bench output-layers --help` how the kinds of softmax are.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; None: those of the process.

    Returns:
        Exit status: 0; 1 for an error, told in one sentence; 2 for options that make no sense; 3
        where --budget ran out; 4 where the GPU refused further work; 130 after Ctrl-C. After 3, 4
        and 130 the same command goes on.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["end-to-end"], ["output-layers"]):
        name = arguments[0]
        try:
            module = importlib.import_module(f".{name.replace('-', '_')}", __package__)
        except ModuleNotFoundError as error:
            print(
                f"rnnkit bench {name}: needs the package {error.name}, install it with: "
                "pip install 'rnnkit[train]'",
                file=sys.stderr,
            )
            return 1
        return int(module.main(arguments[1:]))
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as end:  # argparse has printed its help (0) or its error (2)
        return int(end.code or 0)
    try:
        if options.list:
            return _list()
        if options.compare:
            return _compare(*options.compare)
        if options.report:
            return _report(options.report)
        return _measure(options, arguments)
    except (ValueError, OSError) as error:
        print(f"rnnkit bench: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="rnnkit bench",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick",
        action="store_true",
        help="a few cases, LSTM and GRU, training: minutes (the default)",
    )
    size.add_argument(
        "--full", action="store_true", help="all cases and sweeps, dtypes, modes and peers"
    )
    size.add_argument(
        "--tune",
        action="store_true",
        help='measure what backend="auto" should choose on this GPU, write the table that it '
        "reads, and check its choices",
    )
    several: dict[str, Any] = {"nargs": "+", "metavar": "NAME"}
    parser.add_argument("--cases", **several, help="names or patterns such as 'sweep-h-*'")
    parser.add_argument("--cells", **several, help=f"some of {', '.join(NAMES)}")
    parser.add_argument("--dtypes", **several, help=f"some of {', '.join(DTYPES)}")
    parser.add_argument("--modes", **several, help=f"some of {', '.join(MODES)}")
    parser.add_argument("--peers", **several, help="names or patterns such as 'rnnkit*'")
    parser.add_argument("--device", help="cuda, cuda:1 or cpu (default: a GPU if there is one)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="JSON; one that exists is added to (default: "
        "benchmarks/results/DEVICE/DATE-COMMIT.json)",
    )
    parser.add_argument(
        "--budget", type=float, default=float("inf"), metavar="SECONDS",
        help="begin nothing after so long (exit status 3 if something is left)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=0.5, metavar="S",
        help="for the samples of one peer on one case (default: 0.5; at least ten samples)",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="show the cases and the peers")
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar=("OLD", "NEW"),
        help="show what changed between two files beyond noise",
    )  # fmt: skip
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="draw a file's tables and charts again"
    )
    return parser


def _request(options: argparse.Namespace) -> Request:
    """What the options ask for, with the defaults of --quick, --full and --tune."""
    device = _device(options.device)
    on_gpu = device.type == "cuda"
    cells, modes = ["lstm", "gru"], ["train"]
    if options.full:
        cases, modes, wanted = list(CASES.values()), list(MODES), ["*"]
        dtypes = list(DTYPES) if on_gpu else ["fp32", "bf16"]
    elif options.tune:
        if options.modes or options.peers:
            raise ValueError("--tune chooses the modes and the peers itself")
        cases, modes, wanted = tune.grid(), list(tune.MODES), [*tune.PEERS]
        dtypes = ["bf16", "tf32", "fp16"]
    else:
        cases = [CASES[name] for name in QUICK[device.type]]
        wanted = [BASELINE, AUTO, "rnnkit triton" if on_gpu else "loop in PyTorch"]
        dtypes = ["bf16", "tf32"] if on_gpu else ["fp32"]
    if not on_gpu and "tf32" in (options.dtypes or []):
        raise ValueError("tf32 is for GPUs: on a CPU say fp32")
    return Request(
        select(options.cases) if options.cases else cases,
        _known("--cells", options.cells or cells, NAMES),
        _known("--dtypes", options.dtypes or dtypes, DTYPES),
        _known("--modes", options.modes or modes, MODES),
        select_peers(options.peers or wanted),
        device,
        options.seconds,
        floors=not options.tune,
        graphs=not options.tune,
    )


def _device(name: str | None) -> torch.device:
    """The device of the option, made the current one."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in QUICK:
        raise ValueError(f"--device takes cuda, cuda:N or cpu, got {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ValueError(f"--device {name}: torch sees {count} GPUs")
        torch.cuda.set_device(device.index or 0)  # events and graphs are the current device's
    return device


def _known(option: str, names: list[str], known: Iterable[str]) -> list[str]:
    for name in names:
        if name not in known:
            raise ValueError(f"{option}: no {name!r}, choose from {', '.join(known)}")
    return names


def _measure(options: argparse.Namespace, arguments: list[str]) -> int:
    request = _request(options)
    if options.tune and request.device.type != "cuda":
        raise ValueError(
            '--tune is for a GPU: on a CPU backend="auto" always takes torch\'s own layers'
        )
    path, results = _results(options, request)
    results.commands.append(shlex.join(["rnnkit", "bench", *arguments]))
    progress = Progress()
    deadline = time.monotonic() + options.budget
    suite = Suite(request, results, path, progress)
    again = f"the same command with --out {path} goes on"
    if groups := suite.missing():
        device = machine.device_name(request.device)
        print(
            f"{len(request.cases)} cases, {len(request.peers)} peers on {device}: "
            f"{estimate.in_words(estimate.seconds(request, groups))}; written to "
            f"{path.absolute()}, and tables and charts beside it (--out says where)",
            file=sys.stderr,
        )
    else:
        print(f"all of this is in {path} already; choose another --out to measure it anew")
    status = 0
    try:
        if not suite.run(options.budget):
            status = OUT_OF_TIME
            print(f"\nthe budget ran out; {again}", file=sys.stderr)
        if options.tune:
            _tune(request, results, path, progress, deadline)
    except KeyboardInterrupt:
        suite.forget_running()
        results.save(path)
        progress.close()
        print(f"\nstopped; {again}", file=sys.stderr)
        return INTERRUPTED
    except DeviceLostError as error:
        progress.close()
        print(f"\nthe GPU refuses further work: {error}; {again}", file=sys.stderr)
        return DEVICE_LOST
    finally:
        progress.close()
    print(report.table(results))
    for file in report.render(results, path, path.parent):
        print(f"written: {file}")
    return status


def _results(options: argparse.Namespace, request: Request) -> tuple[Path, Results]:
    """The file to write, and what is in it already."""
    commit = machine.commit()
    now = datetime.datetime.now().astimezone()
    path = options.out
    if path is None:
        # What is not committed changes between two runs: each has a file of its own.
        name = commit or "unknown"
        name += f"{now:%H%M%S}" * (not commit or commit.endswith("+"))
        folder = Path("benchmarks/results") / machine.folder_name(request.device)
        path = folder / f"{now:%Y-%m-%d}-{name}.json"
    here = machine.describe(request.device)
    if not path.exists():
        return path, Results(here, [], commit, now.isoformat(timespec="seconds"))
    results = Results.load(path)
    for name in SAME:
        if results.machine.get(name) != here.get(name):
            raise ValueError(
                f"{path} was measured with {name} {results.machine.get(name)}, here it is "
                f"{here.get(name)}: choose another --out"
            )
    if results.commit != commit:
        raise ValueError(
            f"{path} was measured at commit {results.commit or 'unknown'}, this is "
            f"{commit or 'unknown'}: choose another --out"
        )
    return path, results


def _tune(
    request: Request, results: Results, path: Path, progress: Progress, deadline: float
) -> None:
    """Write the table of what was measured, then measure what "auto" makes of it."""
    if not any(tune.entries(results)):
        return
    print(f"written: {tune.write(results)}")
    measured = {record.key[:3] for record in results.records}
    cases = [case for case in request.cases if any(key[0] == case.name for key in measured)]
    results.records = [record for record in results.records if record.peer != AUTO]
    check = replace(request, cases=cases, peers=select_peers([AUTO]))
    Suite(check, results, path, progress).run(deadline - time.monotonic())
    progress.close()
    losses = auto_losses(results)
    for auto, best in losses:
        print(
            f"auto is slower: {' '.join(auto.key[:4])}: {auto.median * 1e6:.0f} µs by "
            f"{auto.engine}, {best.peer} takes {best.median * 1e6:.0f} µs"
        )
    if not losses:
        print("auto is nowhere slower than the best of its engines and torch.nn, beyond noise")


def _list() -> int:
    for case in CASES.values():
        print(f"{case.name:22} {case.source}: {case}")
    print(f"\npeers: {', '.join(peers())}")
    return 0


def _report(path: Path) -> int:
    results = Results.load(path)
    print(report.table(results))
    for file in report.render(results, path, path.parent):
        print(f"written: {file}")
    return 0


def _compare(old: Path, new: Path) -> int:
    runs = Results.load(old), Results.load(new)
    for name in SAME:
        before, after = (run.machine.get(name) for run in runs)
        if before != after:
            print(f"note: {name} was {before}, is {after}")
    changes = compare(*runs)
    if not changes:
        raise ValueError(f"{old} and {new} have no measurement in common")
    real = [change for change in changes if change.real]
    for change in sorted(real, key=lambda change: change.ratio):
        word = "slower" if change.ratio > 1 else "faster"
        share = change.ratio if change.ratio > 1 else 1 / change.ratio
        against = f", against {BASELINE}'s time in the same run" if change.paired else ""
        print(
            f"{' '.join(change.key[:4])}  {change.key[4]}: {100 * (share - 1):.1f} % {word} "
            f"({change.before * 1e6:.1f} → {change.after * 1e6:.1f} µs{against}; "
            f"noise up to {100 * change.threshold:.1f} %)"
        )
    print(f"{len(real)} of {len(changes)} measurements changed beyond noise")
    return 0
