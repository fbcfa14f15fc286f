"""`rnnkit data`: list the known datasets, get them, say where they lie."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from rnnkit.data.registry import BUILT_IN, DATASETS, DataError, Dataset
from rnnkit.data.storage import cache_dir, data_dir, fetch, locate
from rnnkit.screen.terminal import Parser, sentence, visible


def main(argv: list[str]) -> int:
    """Run `rnnkit data` with the arguments that follow these two words.

    Args:
        argv: Arguments, for example `["get", "tinyshakespeare"]`.

    Returns:
        Exit status: 0; 1 where something is missing or damaged, with one sentence on stderr for
        each dataset; 2 for arguments that make no sense.
    """
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as end:  # argparse has printed its help (0) or its error (2)
        return int(end.code or 0)
    try:
        if arguments.command == "list":
            return _list()
        if arguments.command == "get":
            return _get(arguments.names, accept_licence=arguments.accept_licence)
        return _where(arguments.name)
    except DataError as error:
        return _fail(error)


_DESCRIPTION = """\
rnnkit data list
rnnkit data get multi30k
rnnkit data where multi30k

Datasets that rnnkit knows by name: list them, get them, say where they lie. Files are looked for as
NAME/FILE in the folder that RNNKIT_DATA_DIR names, then in the cache; `get` downloads what is
missing into the cache. Every file is verified by its checksum.
"""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="rnnkit data", description=_DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "list",
        help="show every dataset: size, licence, and whether it is here",
        description="rnnkit data list\n\n"
        "Show every dataset: what it holds, size, licence, and whether it is here.",
    )
    get = commands.add_parser(
        "get",
        help="verify datasets and download what is missing",
        description="rnnkit data get multi30k tinyshakespeare\n\n"
        "Verify datasets and download what is missing into the cache.",
    )
    get.add_argument("names", nargs="+", choices=_known(), metavar="NAME", help=_NAMES)
    get.add_argument(
        "--accept-licence",
        action="store_true",
        help="I have read the licence note of a restricted dataset (ptb) and hold its licence",
    )
    where = commands.add_parser(
        "where",
        help="print the path of a dataset's files, or where to put them",
        description="rnnkit data where multi30k\n\n"
        "Print the path of each file of a dataset, or where to put those that are missing (exit\n"
        "status 1); without NAME, the folders that are searched.",
    )
    where.add_argument("name", nargs="?", choices=_known(), metavar="NAME", help=_NAMES)
    return parser


# Corpora that are made and have no file: what each holds, and its licence.
_BUILT_IN = {
    BUILT_IN: ("language modelling: Python's reference", "PSF"),
    "dates": ("translation: English and ISO 8601", "Apache-2.0"),
    "numbers": ("translation: words and digits", "Apache-2.0"),
    "announcements": ("tagging: people, organisations, places, dates", "Apache-2.0"),
}

_NAMES = f"one of {', '.join(DATASETS)}"


def _known() -> list[str]:
    return [*_BUILT_IN, *DATASETS]


def _built_in(name: str) -> str:
    return f"{name} is built in: it has no file, `--data.corpus {name}` reads it"


def _list() -> int:
    # Without vertical lines it fits into 80 columns.
    table = Table(
        box=SIMPLE_HEAD, pad_edge=False, caption=Text(visible(_searched())), caption_justify="left"
    )
    table.add_column("name", no_wrap=True)
    table.add_column("holds")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("licence")
    table.add_column("here", no_wrap=True)
    for name, (holds, licence) in _BUILT_IN.items():
        table.add_row(name, holds, "", licence, "built in")
    for dataset in DATASETS.values():
        holds = f"{dataset.task}: {dataset.facts}"
        size = decimal(dataset.size)
        table.add_row(dataset.name, holds, size, dataset.licence, _presence(dataset))
    Console().print(table)
    return 0


def _searched() -> str:
    folder = data_dir()
    return f"data dir (RNNKIT_DATA_DIR): {folder or 'not set'}\ncache: {cache_dir()}"


def _presence(dataset: Dataset) -> str:
    paths = [path for file in dataset.files if (path := locate(dataset, file)) is not None]
    if not paths:
        return "no"
    if len(paths) < len(dataset.files):
        return f"{len(paths)} of {len(dataset.files)} files"
    return "cache" if all(path.is_relative_to(cache_dir()) for path in paths) else "data dir"


def _get(names: list[str], *, accept_licence: bool) -> int:
    status = 0
    for name in names:
        if name in _BUILT_IN:
            print(f"rnnkit data: {_built_in(name)}", file=sys.stderr)
            continue
        note = DATASETS[name].licence_note
        if note is not None and accept_licence:
            print(f"{note}.", file=sys.stderr)
        try:
            paths = fetch(name, accept_licence=accept_licence)
        except DataError as error:
            status = _fail(error)
            continue
        for path in paths.values():
            _print_path(path)
    return status


def _where(name: str | None) -> int:
    if name is None:
        print(visible(_searched()))
        return 0
    if name in _BUILT_IN:
        return _fail(_built_in(name))
    dataset = DATASETS[name]
    missing = []
    for file in dataset.files:
        path = locate(dataset, file)
        if path is None:
            missing.append(cache_dir() / name / file.name)
        else:
            _print_path(path)
    if not missing:
        return 0
    return _fail(
        f"missing, type `rnnkit data get {name}` or put here: {', '.join(map(str, missing))}"
    )


def _print_path(path: Path) -> None:
    """A pipe gets the path as it is, a terminal without what would act on it."""
    print(visible(str(path)) if sys.stdout.isatty() else path)


def _fail(reason: DataError | str) -> int:
    print(f"rnnkit data: {sentence(str(reason))}", file=sys.stderr)
    return 1
