"""The configurations that come with rnnkit, by their names: `lm/python_docs`; `rnnkit configs`."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from rnnkit.screen.terminal import Parser

_PACKAGE = Path(__file__).parents[1]
FOLDER = _PACKAGE / "configs"
if not FOLDER.is_dir():  # in a checkout, which an editable installation uses as it stands
    FOLDER = _PACKAGE.parent / "configs"
"""Where they lie, a folder for each task."""

_DESCRIPTION = """\
rnnkit configs
rnnkit configs lm/python_docs > mine.yaml

List the configurations that come with rnnkit, or print one. `rnnkit fit -c` takes their names, and
paths of your own: a configuration explains every option, and is there to be copied and changed.
"""


def shipped() -> dict[str, Path]:
    """The path of each configuration, by its name."""
    paths = sorted(FOLDER.glob("*/*.yaml"))
    return {f"{path.parent.name}/{path.stem}": path for path in paths}


def path_of(name: str) -> str:
    """The path of a configuration.

    Args:
        name: A path, or the name of one that comes with rnnkit: `lm/python_docs`, also with
            `configs/` before and `.yaml` behind. A file of that path comes first.

    Returns:
        The path; `name` itself where it is a file, or nothing known.
    """
    if Path(name).is_file():
        return name
    found = shipped().get(name.removeprefix("configs/").removesuffix(".yaml"))
    return name if found is None else str(found)


def with_paths(arguments: Sequence[str]) -> list[str]:
    """A command line with the paths of its configurations for their names.

    Args:
        arguments: Such as `["fit", "-c", "lm/python_docs"]`.
    """
    found: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, equals, value = argument.partition("=")
        if before in ("-c", "--config"):
            argument = path_of(argument)
        elif option == "--config" and equals:
            argument = f"{option}={path_of(value)}"
        found.append(argument)
    return found


def main(argv: list[str]) -> int:
    """Run `rnnkit configs` with the arguments that follow these two words.

    Args:
        argv: Nothing, or a name.

    Returns:
        Exit status: 0.

    Raises:
        ValueError: There is no configuration of the name.
    """
    parser = Parser(prog="rnnkit configs", description=_DESCRIPTION)
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="print this one (default: list all)"
    )
    name = parser.parse_args(argv).name
    if name is not None:
        path = Path(path_of(name))
        if path not in shipped().values():
            raise ValueError(f"there is no configuration {name}: `rnnkit configs` lists them")
        print(path.read_text(encoding="utf-8"), end="")
        return 0
    names = shipped()
    width = max(map(len, names), default=0) + 2
    columns = shutil.get_terminal_size((100, 24)).columns
    for each, path in names.items():
        about = textwrap.shorten(description(path), max(columns - width, 20), placeholder=" …")
        print(f"{each:{width}}{about}")
    print("\nrnnkit fit -c NAME trains one, rnnkit configs NAME prints it with all its options")
    return 0


def description(path: Path) -> str:
    """What a configuration says of itself in its head, below the command that runs it."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    comment = takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.removeprefix("#").strip() for line in comment).strip()
