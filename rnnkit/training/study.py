"""`rnnkit study`: several configurations trained one after the other, with one table and pictures.

A study can be stopped at any time: the same command goes on with the run that was stopped. Table
and pictures fill as runs end.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from rnnkit.screen.atomic_file import atomic_write
from rnnkit.screen.terminal import Parser, visible
from rnnkit.training.command import run
from rnnkit.training.runs import root_of
from rnnkit.training.shipped import FOLDER
from rnnkit.training.studies.gradients import GradientStudy
from rnnkit.training.studies.perplexity import PerplexityStudy
from rnnkit.training.studies.study import Member, Result, Study, newest

_DESCRIPTION = """\
rnnkit study gradients
rnnkit study ptb-small --runs lstm gru
rnnkit study ptb-small -- --float32_matmul_precision medium

Train the configurations of a study one after the other, with a table and pictures. Stopped, it goes
on where it was with the same command. Options after -- go to every `rnnkit fit`.
"""

STUDIES: dict[str, Study[Any]] = {
    "gradients": GradientStudy(),
    "ptb-small": PerplexityStudy(
        [
            Member("lstm", "LSTM", "ptb_zaremba_small"),
            Member("gru", "GRU", "ptb_zaremba_small_gru"),
            Member("lstm_dropout", "LSTM", "ptb_small_lstm_dropout"),
            Member("gru_dropout", "GRU", "ptb_small_gru_dropout"),
            Member("lstm_tied", "LSTM, tied", "ptb_small_lstm_tied"),
        ]
    ),
}


def main(argv: list[str]) -> int:
    """Run `rnnkit study` with the arguments that follow these two words.

    Args:
        argv: For example `["ptb-small", "--runs", "lstm", "gru"]`; what follows `--` goes to every
            `rnnkit fit`.

    Returns:
        Exit status: 0; 1 where a run diverged, and the others went on.

    Raises:
        ValueError: There is no such study or run, or a configuration cannot be read.
    """
    own, extra = argv, []
    if "--" in argv:
        cut = argv.index("--")
        own, extra = argv[:cut], argv[cut + 1 :]
    parser = Parser(prog="rnnkit study", description=_DESCRIPTION)
    add = parser.add_argument
    add("study", choices=list(STUDIES), help="which study")
    add("--runs", nargs="+", metavar="NAME", help="only these members (default: all)")
    add("--seeds", nargs="+", type=int, default=[0], metavar="N", help="default: 0")
    add("--minutes", type=float, metavar="N", help="end each run after the epoch it is in by then")
    add("--configs", metavar="FOLDER", help="of the configurations (default: those of rnnkit)")
    add("--report", metavar="FOLDER", help="of table and pictures (default: that of the runs)")
    arguments = parser.parse_args(own)
    study = STUDIES[arguments.study]
    chosen = arguments.runs or list(study.members)
    if unknown := [name for name in chosen if name not in study.members]:
        raise ValueError(
            f"there is no run {', '.join(unknown)} in {arguments.study}: choose from "
            f"{', '.join(study.members)}"
        )
    configurations = Path(arguments.configs or FOLDER / study.configurations)
    configs = {name: configurations / f"{study.members[name].config}.yaml" for name in chosen}
    if missing := [str(path) for path in configs.values() if not path.is_file()]:
        raise ValueError(
            f"there is no {missing[0]}: leave --configs out to run the configurations of rnnkit"
        )
    folder = Path(_root(extra)) / arguments.study.replace("-", "_")
    report = Path(arguments.report) if arguments.report else folder
    diverged: list[str] = []
    for seed in arguments.seeds:
        for name in chosen:
            place = folder / f"{name}_seed{seed}"
            if not _finished(study, place, extra):
                print(visible(f"== {place.name}: {configs[name]}"), flush=True)
                try:
                    _train(study, place, configs[name], name, seed, arguments.minutes, extra)
                except FloatingPointError as error:
                    print(f"rnnkit study: {place.name} diverged: {error}", file=sys.stderr)
                    if (result := study.diverged(place, study.members[name])) is None:
                        diverged.append(place.name)
                    else:
                        _keep(place, replace(result, options=extra))
            _report(study, folder, report)
    print(visible(f"table and pictures: {report}"))
    if diverged:
        print(f"rnnkit study: without a result: {', '.join(diverged)}", file=sys.stderr)
    return int(bool(diverged))


def _root(options: list[str]) -> str:
    """The folder of all runs, which an option of `rnnkit fit` may name."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--trainer.default_root_dir", dest="root")
    return root_of(parser.parse_known_args(options)[0].root)


def _finished(study: Study[Any], place: Path, options: list[str]) -> bool:
    """Whether there is nothing left to train; other options may mean more epochs."""
    result = study.load(place)
    return result is not None and result.complete and result.options == options


def _train(
    study: Study[Any],
    place: Path,
    config: Path,
    name: str,
    seed: int,
    minutes: float | None,
    extra: list[str],
) -> None:
    """Train a member, or go on with it, and score it."""
    member = study.members[name]
    limit: list[str] = []
    if minutes is not None:
        # At 0 the Timer would end a run before its first epoch.
        duration = json.dumps({"seconds": max(1, round(60 * minutes))})
        limit = ["--trainer.callbacks.duration", duration]
    arguments = [
        *("fit", "-c", str(config), "--seed_everything", str(seed)),
        *study.options,
        *member.options,
        *("--trainer.logger", "lightning.pytorch.loggers.CSVLogger"),
        *("--trainer.logger.save_dir", str(place.parent), "--trainer.logger.name", place.name),
        *("--trainer.callbacks+", "lightning.pytorch.callbacks.Timer"),
        *("--trainer.callbacks.interval", "epoch"),
        *limit,
        *extra,
    ]
    if (last := newest(place, "last.ckpt")) is not None:
        print(f"going on from {last}", flush=True)
        arguments += ["--ckpt_path", str(last)]
    _keep(place, replace(study.score(run(arguments), place, member), options=extra))


def _keep(place: Path, result: Result) -> None:
    with atomic_write(place / "result.json") as beside:
        beside.write_text(json.dumps(asdict(result), indent=1) + "\n")


def _report(study: Study[Any], folder: Path, report: Path) -> None:
    """Write table, curves and pictures of all runs that have a result."""
    results = study.report(folder, report)
    with atomic_write(report / "results.json") as beside:
        machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        everything = {"machine": machine, "runs": [asdict(result) for result in results]}
        beside.write_text(json.dumps(everything, indent=1) + "\n")
    lines = study.table(results)
    with atomic_write(report / "table.md") as beside:
        beside.write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)
