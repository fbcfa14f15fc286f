"""What is wrong with the command line of `rnnkit fit`, `validate` or `test`, in one sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rnnkit.training.class_names import classes_of
from rnnkit.training.help import KINDS
from rnnkit.training.help_texts import EXAMPLE
from rnnkit.training.shipped import path_of

# Lines of jsonargparse that tell what else it tried.
_NOISE = (
    "Does not validate",
    "Subtypes:",
    "Errors:",
    "Given value",
    "- Expected a <class 'None",
    "- Expected a path but",
    "- Does not validate",
    "- Not a valid subclass",
    "- Subclass types expect",
    "- a class path",
    "- a dict with",
    "- a dict without",
)

_TRUTH = re.compile(r"Given value type: <class 'bool'>\s+Given value: (True|False)")


def told(message: str, arguments: Sequence[str]) -> str:
    """A message of jsonargparse without the list of all that it tried, and with what to do.

    Args:
        message: Of several lines.
        arguments: The command line, `["fit", "-c", ...]`.
    """
    if (unknown := re.search(r"Expected a dot import path string: (\S+)", message)) is not None:
        *_, option = re.findall(r'(?:Parser key "|--)([\w.]+)', message) or [""]
        return _no_class(unknown[1], option.removesuffix(".help"))
    lines = [line.strip() for line in message.splitlines()]
    short = " ".join(line.removeprefix("- ") for line in lines if not line.startswith(_NOISE))
    short = short.partition(" Got value: Namespace")[0].rstrip(".")
    command = f"rnnkit {arguments[0]}"
    if short.startswith('Parser key "config": File does not exist'):
        return f"{short}; `rnnkit configs` lists the names of those that come with rnnkit"
    if short.startswith("unrecognized arguments: "):
        first = short.split()[2]
        if path_of(first) != first or Path(first).is_file():
            return f"{short}: a configuration follows -c, as in {command} -c {first}"
    if "<class 'str'>" in short and (given := _TRUTH.search(message)) is not None:
        words = "no, off or false" if given[1] == "False" else "yes, on or true"
        return f"{short}: YAML reads {words} as a truth value; write the word in quotes"
    if short.endswith("is not accepted"):
        return f"{short}; `{command} -c CONFIG --help` shows the options that are"
    return short


def lacking(arguments: Sequence[str], part: str) -> str:
    """What to type where there is no model or no data.

    Args:
        arguments: The command line.
        part: model or data.
    """
    command = f"rnnkit {arguments[0]}"
    if len(arguments) == 1:
        checkpoint = "" if arguments[0] == "fit" else " --ckpt_path runs/…/best.ckpt"
        return (
            f"a configuration is missing, as in `{command} -c {EXAMPLE}{checkpoint}`: `rnnkit "
            f"configs` lists those that come with rnnkit, `{command} --help` tells more"
        )
    return (
        f"neither a configuration nor --{part} names a class for {part}: take one of "
        f"{', '.join(classes_of(KINDS[part]))}"
    )


def _no_class(name: str, option: str) -> str:
    if option in KINDS:
        known = ", ".join(classes_of(KINDS[option]))
        return (
            f"there is no class {name} for {option}: rnnkit's are {known}, and one of yours is "
            "named by its path, as package.module.Class"
        )
    place = f" for {option}" if option else ""
    return f"there is no class {name}{place}; one of yours is named by its path"
