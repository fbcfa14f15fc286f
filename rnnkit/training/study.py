"""`rnnkit study`: several configurations trained one after the other, with one table and pictures.

A study can be stopped at any time: the same command goes on with the run that was stopped. Table
and pictures fill as runs end.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.callbacks import Timer

from rnnkit.screen.atomic_file import atomic_write
from rnnkit.screen.terminal import Parser, visible
from rnnkit.training.callbacks.checkpoint_io import read_checkpoint
from rnnkit.training.command import TrainingCLI, run
from rnnkit.training.runs import root_of
from rnnkit.training.shipped import FOLDER

_DESCRIPTION = """\
rnnkit study ptb-small --runs lstm gru
rnnkit study ptb-small -- --float32_matmul_precision medium

Train the configurations of a study one after the other, with a table and pictures. Stopped, it goes
on where it was with the same command. Options after -- go to every `rnnkit fit`.
"""


class Member(NamedTuple):
    """A run of a study: its name, what it is called in a picture, and its configuration."""

    name: str
    title: str
    config: str


STUDIES = {
    "ptb-small": (
        Member("lstm", "LSTM", "ptb_zaremba_small"),
        Member("gru", "GRU", "ptb_zaremba_small_gru"),
        Member("lstm_dropout", "LSTM", "ptb_small_lstm_dropout"),
        Member("gru_dropout", "GRU", "ptb_small_gru_dropout"),
        Member("lstm_tied", "LSTM, tied", "ptb_small_lstm_tied"),
    )
}
"""The members of each study, in the order in which they run."""

CURVES = {
    "train/ppl": "training, mean over the epoch",
    "train_eval/ppl": "training, 80,000 tokens after it",
    "val/ppl": "validation",
    "test/ppl": "test",
}
"""The columns of a run's curve, and what they are called in its picture."""


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        name: Of the member, with its seed.
        title: Cell, dropout and learning rate in words.
        dropout: Probability.
        parameters: Their number.
        epochs: Epochs that were trained.
        max_epochs: Epochs of the configuration.
        best_epoch: The one with the lowest validation perplexity, counted from 1.
        train: Perplexity of the whole training text with the weights of the best epoch.
        valid: Of the validation text.
        test: Of the test text.
        minutes: Spent in training and validation.
        checkpoint: Where those weights are.
        options: Of its last `rnnkit fit`, beside those of the study.
    """

    name: str
    title: str
    dropout: float
    parameters: int
    epochs: int
    max_epochs: int
    best_epoch: int
    train: float
    valid: float
    test: float
    minutes: float
    checkpoint: str
    options: list[str] = field(default_factory=list)


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
    members = {member.name: member for member in STUDIES[arguments.study]}
    chosen = arguments.runs or list(members)
    if unknown := [name for name in chosen if name not in members]:
        raise ValueError(
            f"there is no run {', '.join(unknown)} in {arguments.study}: choose from "
            f"{', '.join(members)}"
        )
    configurations = Path(arguments.configs) if arguments.configs else FOLDER / "lm"
    configs = {name: configurations / f"{members[name].config}.yaml" for name in chosen}
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
            if not _finished(place, extra):
                print(visible(f"== {place.name}: {configs[name]}"), flush=True)
                try:
                    _train(place, configs[name], members[name], seed, arguments.minutes, extra)
                except FloatingPointError as error:
                    print(f"rnnkit study: {place.name} diverged: {error}", file=sys.stderr)
                    diverged.append(place.name)
            _report(folder, report)
    print(visible(f"table and pictures: {report}"))
    if diverged:
        print(f"rnnkit study: without a result: {', '.join(diverged)}", file=sys.stderr)
    return int(bool(diverged))


def _root(options: list[str]) -> str:
    """The folder of all runs, which an option of `rnnkit fit` may name."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--trainer.default_root_dir", dest="root")
    return root_of(parser.parse_known_args(options)[0].root)


def _finished(place: Path, options: list[str]) -> bool:
    """Whether there is nothing left to train; other options may mean more epochs."""
    result = _result(place)
    return result is not None and result.epochs >= result.max_epochs and result.options == options


def _result(place: Path) -> Result | None:
    path = place / "result.json"
    return Result(**json.loads(path.read_text())) if path.is_file() else None


def _train(
    place: Path,
    config: Path,
    member: Member,
    seed: int,
    minutes: float | None,
    extra: list[str],
) -> None:
    """Train a member, or go on with it, and score its best epoch."""
    limit: list[str] = []
    if minutes is not None:
        # At 0 the Timer would end a run before its first epoch.
        duration = json.dumps({"seconds": max(1, round(60 * minutes))})
        limit = ["--trainer.callbacks.duration", duration]
    arguments = [
        *("fit", "-c", str(config), "--seed_everything", str(seed)),
        *("--data.init_args.also_validate_on", "[train, test]"),
        *("--trainer.logger", "lightning.pytorch.loggers.CSVLogger"),
        *("--trainer.logger.save_dir", str(place.parent), "--trainer.logger.name", place.name),
        *("--trainer.callbacks+", "lightning.pytorch.callbacks.LearningRateMonitor"),
        *("--trainer.callbacks+", "lightning.pytorch.callbacks.Timer"),
        *("--trainer.callbacks.interval", "epoch"),
        *limit,
        *extra,
    ]
    if (last := _newest(place, "last.ckpt")) is not None:
        print(f"going on from {last}", flush=True)
        arguments += ["--ckpt_path", str(last)]
    done = run(arguments)
    best = _newest(place, "best.ckpt")
    if best is None:
        raise ValueError(f"{place} holds no best.ckpt: no epoch of {member.name} was finished")
    result = replace(_score(done, best, place, member), options=extra)
    with atomic_write(place / "result.json") as beside:
        beside.write_text(json.dumps(asdict(result), indent=1) + "\n")


def _newest(place: Path, name: str) -> Path | None:
    """The checkpoint of that name in the newest part of a run that has one."""
    found = place.glob(f"version_*/checkpoints/{name}")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _score(done: TrainingCLI, best: Path, place: Path, member: Member) -> Result:
    """Perplexities of all three texts, whole, with the weights of the best epoch."""
    model, data, trainer = done.model, done.datamodule, done.trainer
    epochs = trainer.current_epoch
    checkpoint = read_checkpoint(best)
    model.load_state_dict(checkpoint["state_dict"])
    texts = {"train": data.train_tokens, "valid": data.valid_tokens, "test": data.test_tokens}
    scores = {name: model.perplexity(data.evaluation_loader(text)) for name, text in texts.items()}
    timer = next(each for each in trainer.callbacks if isinstance(each, Timer))  # type: ignore[attr-defined]
    rates = [float(row["lr"]) for row in curve(place) if row["lr"]]
    dropout = float(model.hparams["dropout"])
    words = f"dropout {dropout:g}" if dropout else "no dropout"
    rate = f"learning rate {rates[0]:g}" if rates else "learning rate unknown"
    if rates and rates[-1] < rates[0]:
        rate += f", cut to {rates[-1]:.2g}"
    return Result(
        name=place.name,
        title=f"{member.title}, {words}, {rate}",
        dropout=dropout,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        epochs=epochs,
        max_epochs=trainer.max_epochs or 0,
        best_epoch=checkpoint["epoch"] + 1,
        **scores,
        minutes=timer.time_elapsed("train") / 60,
        checkpoint=str(best),
    )


def curve(place: Path) -> list[dict[str, str]]:
    """A row an epoch of a run, over all parts in which it was trained.

    Args:
        place: Folder of the run, with a metrics.csv in each version_<n>.

    Returns:
        Columns epoch, lr and those of `CURVES`, as text; empty where there is no value.
    """
    rows: dict[int, dict[str, str]] = {}
    rates: dict[int, str] = {}
    # By epoch and step: what a part did after its last checkpoint, the next one does again.
    running: dict[int, dict[int, float]] = {}
    parts = sorted(place.glob("version_*/metrics.csv"), key=lambda p: int(p.parent.name[8:]))
    for part in parts:
        with part.open(newline="") as file:
            for line in csv.DictReader(file):
                step = int(line["step"])
                for name, value in line.items():
                    if value and name.startswith("lr-"):
                        rates[step] = value
                if line.get("train/ppl"):
                    of_epoch = running.setdefault(int(line["epoch"]), {})
                    of_epoch[step] = math.log(float(line["train/ppl"]))
                if line.get("val/ppl"):
                    rows[int(line["epoch"])] = {"step": line["step"]} | {
                        name: line[name] for name in CURVES if line.get(name)
                    }
    for epoch, row in rows.items():
        before = [step for step in rates if step <= int(row["step"])]
        if before:
            row["lr"] = rates[max(before)]
        if logs := running.get(epoch):
            row["train/ppl"] = f"{math.exp(sum(logs.values()) / len(logs)):.4f}"
    names = ("lr", *CURVES)
    return [
        {"epoch": str(epoch + 1), **{name: rows[epoch].get(name, "") for name in names}}
        for epoch in sorted(rows)
    ]


def _report(folder: Path, report: Path) -> None:
    """Write table, curves and pictures of all runs that have a result."""
    results = [result for place in sorted(folder.iterdir()) if (result := _result(place))]
    for result in results:
        rows = curve(folder / result.name)
        with (
            atomic_write(report / f"{result.name}.csv") as beside,
            beside.open("w", newline="") as file,
        ):
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        draw(result, rows, report / f"{result.name}.png")
    with atomic_write(report / "results.json") as beside:
        machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        everything = {"machine": machine, "runs": [asdict(result) for result in results]}
        beside.write_text(json.dumps(everything, indent=1) + "\n")
    lines = table(results)
    with atomic_write(report / "table.md") as beside:
        beside.write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)


def table(results: list[Result]) -> list[str]:
    """The results as lines of Markdown."""
    lines = [
        "| run | parameters | best epoch | epochs | train | valid | test | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        lines.append(
            f"| {result.name}: {result.title} | {result.parameters:,} | {result.best_epoch} | "
            f"{result.epochs} of {result.max_epochs} | {result.train:.1f} | {result.valid:.1f} | "
            f"{result.test:.1f} | {result.minutes:.0f} |"
        )
    return lines


def draw(result: Result, rows: list[dict[str, str]], path: Path) -> None:
    """Draw the convergence of a run.

    Args:
        result: For the heading and the best epoch.
        rows: What `curve` gave.
        path: The picture; it is replaced when the new one is complete.
    """
    from matplotlib.figure import Figure  # slow to import
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

    figure = Figure(figsize=(7, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    styles: dict[str, dict[str, Any]] = {
        "train/ppl": {"color": "tab:blue", "linewidth": 0.8, "alpha": 0.6},
        "train_eval/ppl": {"color": "tab:blue", "linewidth": 1.8},
        "val/ppl": {"color": "tab:green", "linewidth": 1.2, "linestyle": "--"},
        "test/ppl": {"color": "tab:orange", "linewidth": 1.8},
    }
    for name, label in CURVES.items():
        points = [(int(row["epoch"]), float(row[name])) for row in rows if row[name]]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **styles[name])
    axes.axvline(result.best_epoch, color="0.7", linewidth=0.8, zorder=0)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("perplexity")
    axes.set_title(
        f"{result.title}\nbest epoch {result.best_epoch}: validation {result.valid:.1f}, test "
        f"{result.test:.1f}",
        fontsize=10,
    )
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    with atomic_write(path) as beside:
        figure.savefig(beside)
