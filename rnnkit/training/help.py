"""The help of `rnnkit fit`, `validate` and `test`: options as one types them, with their values."""

from __future__ import annotations

import argparse
import inspect
import re
import shlex
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pkgutil import resolve_name
from typing import Any, NamedTuple, TypeAlias

import docstring_parser
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from rnnkit.training.class_names import ROOMS, classes_of, import_named
from rnnkit.training.help_texts import ABOUT, COPY, EXAMPLE, GENERAL, TRAINER, USED, WITHIN

KINDS: Mapping[str, type] = {"model": LightningModule, "data": LightningDataModule}
"""What a configuration names a class for."""

Part: TypeAlias = tuple[str, str, list[argparse.Action]]
"""A part of the options: its heading, what is said of it, the options."""

POSITION = 40
"""The column at which explanations begin."""


class Question(NamedTuple):
    """What a command line wants to know.

    Attributes:
        part: all, or one part of the options: model, data or trainer.
        arguments: The command line without the question. The class that `--model.help Tagger`
            names stands there as `--model Tagger`.
    """

    part: str
    arguments: list[str]


def question(arguments: Sequence[str]) -> Question | None:
    """The question for help in a command line.

    Args:
        arguments: Such as `["fit", "-c", "lm/hafez", "--help"]`.

    Returns:
        None where there is none, or one that jsonargparse answers: what a class of the user takes,
        or one within another, as in `--model.help Tagger --model.optimizer.help AdamW`.
    """
    for at, argument in enumerate(arguments):
        before, after = arguments[:at], list(arguments[at + 1 :])
        option, _, name = argument.partition("=")
        if option in ("-h", "--help"):
            return Question("all", [*before, *after])
        part = option[2:].removesuffix(".help")
        if option == "--trainer.help":
            return Question(part, [*before, *after])
        if part in KINDS and option.endswith(".help"):
            if not name and after and not after[0].startswith("-"):
                name = after.pop(0)
            within = any(each.partition("=")[0].endswith(".help") for each in after)
            if within or (name and name.rpartition(".")[2] not in ROOMS):
                return None
            return Question(part, [*before, *after, *([f"--{part}", name] if name else [])])
    return None


def answer(asked: Question, given: Namespace, from_data: Sequence[str]) -> str:
    """The help that a command line asks for.

    Args:
        asked: The question.
        given: What configuration and command line give: `model`, `data` and `trainer`, without
            defaults.
        from_data: Arguments that the model gets from the data.

    Returns:
        Lines for a terminal, an example first.
    """
    command = asked.arguments[0]
    named = {part: given[part] for part in KINDS if given.get(part)}
    formatter = Values("rnnkit")
    formatter.add_lines(_examples(asked, named))
    if asked.part == "all":
        where = "value in this configuration" if named else "default"
        formatter.add_text(f"{ABOUT[command]} Each option stands with its {where}.")
        general = [
            _option(name, given.get(name.lstrip("-"), value), text) for name, value, text in GENERAL
        ]
        formatter.add_options("all runs", "", general)
    parts = [*KINDS, "trainer"] if asked.part == "all" else [asked.part]
    if asked.part == "all" and not named:  # together, for a screen holds no more
        listed = [option for part in KINDS for option in _classes(part)[2]]
        what = "model and data, `--model.help NAME` explains one; yours go by their paths"
        formatter.add_options(what, "", listed)
        parts = ["trainer"]
    for part in parts:
        if part in named:
            formatter.add_options(*_of_class(part, named[part], from_data))
        elif part in KINDS:
            formatter.add_options(*_classes(part))
        else:
            values = _values(given.get(part))
            used = USED[command] if named else USED[command][:4]
            formatter.add_options(*_trainer(values, used if asked.part == "all" else None))
    if asked.part == "all":
        formatter.add_text(WITHIN if named else COPY)
    return formatter.format_help()


def _examples(asked: Question, named: Mapping[str, Namespace]) -> list[str]:
    """Command lines like the one that asks, which do something."""
    command, *options = asked.arguments
    checkpoint = "" if command == "fit" else " --ckpt_path runs/…/best.ckpt"
    if asked.part in KINDS and asked.part not in named:
        return [f"rnnkit {command} --{asked.part}.help {classes_of(KINDS[asked.part])[-1]}"]
    if not options:
        example = f"rnnkit {command} -c {EXAMPLE}"
        if asked.part == "trainer":
            return [f"{example}{checkpoint} --trainer.accelerator cpu"]
        about = f"{example} --help    # the options of this configuration"
        return [f"{example}{checkpoint}", about]
    configured = any(each in ("-c", "--config") or each[:9] == "--config=" for each in options)
    typed = (
        shlex.join(["rnnkit", *asked.arguments]) if configured else f"rnnkit {command} -c CONFIG"
    )
    changed = asked.part if asked.part in KINDS else "model"
    sizes = (
        f"{typed}{checkpoint} {option.option_strings[0]} {2 * option.default}"
        for option in (_actions(changed, named[changed], ()) if changed in named else ())
        if type(option.default) is int and option.default > 1
    )
    plain = [f"{typed}{checkpoint}"] if configured and asked.part == "all" else []
    return [*plain, next(sizes, f"{typed}{checkpoint} --trainer.accelerator cpu")]


def _classes(part: str) -> Part:
    """The classes of rnnkit that may stand for a part, each with its summary on a line."""
    width = shutil.get_terminal_size().columns - 2 - POSITION
    listed = [
        _option(f"--{part}", name, textwrap.shorten(summary, max(width, 20), placeholder=" …"))
        for name in classes_of(KINDS[part])
        for summary in [_summary(import_named(name))]
    ]
    return f"{part}, `--{part}.help NAME` explains one; yours go by their paths", "", listed


def _of_class(part: str, value: Namespace, from_data: Sequence[str]) -> Part:
    """The options of the class that a configuration names."""
    found = resolve_name(value["class_path"])
    taken = [name for name in from_data if name in inspect.signature(found).parameters]
    told = _summary(found)
    if part == "model" and taken:
        told += f" The data tell it {', '.join(taken)}."
    actions = _actions(part, value, taken if part == "model" else ())
    return f"{part} {found.__name__}", told, actions


def _actions(part: str, value: Namespace, skip: Sequence[str]) -> list[argparse.Action]:
    parser, found = ArgumentParser(), resolve_name(value["class_path"])
    parser.add_class_arguments(found, part, skip={*skip}, fail_untyped=False)
    known = {action.dest for action in parser._actions}
    given = {f"{part}.{name}": each for name, each in _values(value.get("init_args")).items()}
    parser.set_defaults({name: each for name, each in given.items() if name in known})
    actions = [each for each in parser._actions if "." in each.dest and _is_plain(each)]
    # An attribute of the same name has a text too, and of the two jsonargparse takes the last.
    parameters = docstring_parser.parse(inspect.getdoc(found) or "").params
    texts = {each.arg_name: each.description for each in reversed(parameters)}
    for action in actions:
        action.help = texts.get(action.dest.partition(".")[2]) or action.help
    return actions


def _trainer(values: Mapping[str, Any], some: Sequence[str] | None) -> Part:
    """Options of Lightning's Trainer: some, with texts of ours, or all with Lightning's."""
    if some is None:
        parser = ArgumentParser()
        parser.add_class_arguments(Trainer, "trainer", fail_untyped=False)
        found = [each for each in parser._actions if "." in each.dest and _is_plain(each)]
        for action in found:
            action.default = values.get(action.dest.partition(".")[2], action.default)
        return "trainer, all options of Lightning's", "", found
    parameters = inspect.signature(Trainer).parameters
    used = [
        _option(f"--trainer.{name}", values.get(name, parameters[name].default), TRAINER[name])
        for name in some
    ]
    return "trainer, the most used options; `--trainer.help` shows all", "", used


def _option(name: str, value: Any, told: str) -> argparse.Action:
    return argparse.Action([name], name.lstrip("-"), default=value, help=told)


def _is_plain(action: argparse.Action) -> bool:
    return not action.option_strings[0].endswith(".help")


def _values(given: Any) -> dict[str, Any]:
    """The arguments that a part of a configuration gives, not those of classes within it."""
    return dict(vars(given)) if isinstance(given, Namespace) else dict(given or {})


def _summary(documented: type | None) -> str:
    """The first sentence of a docstring."""
    return (inspect.getdoc(documented) or "").partition("\n\n")[0].replace("\n", " ")


class Values(argparse.HelpFormatter):
    """Prints options as one types them, with their values: `--model.hidden_size 100`."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=POSITION)

    def add_lines(self, lines: Sequence[str]) -> None:
        """Add lines as they are, with a blank one after them."""
        self._add_item(str, ["\n".join([*lines, "\n"])])

    def add_options(self, heading: str, text: str, actions: list[argparse.Action]) -> None:
        """Add a part of the options."""
        self.start_section(heading)
        self.add_text(text or None)
        self.add_arguments(actions)
        self.end_section()

    def _format_action_invocation(self, action: argparse.Action) -> str:
        value = shown(action.default)
        if action.required:
            value = str(action.metavar or action.dest.rpartition(".")[2].upper())
        return f"{action.option_strings[0]} {value}".rstrip()

    def _expand_help(self, action: argparse.Action) -> str:
        # Docstrings of Lightning and torch are in reStructuredText.
        told = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", action.help or "").replace("``", "")
        choices = str(action.metavar or "").strip("{}").split(",")
        if len(choices) > 1 and "true" not in choices and any(each not in told for each in choices):
            told += f" One of {', '.join(choices)}."
        return told + (" It has to be given." if action.required else "")

    def _format_action(self, action: argparse.Action) -> str:
        lines = super()._format_action(action)
        value = _values(action.default) if _names_class(action.default) else {}
        nested = _values(value.get("init_args"))
        within = [  # torch's signatures have None where it can't be typed
            _option(f"--{action.dest}.{name}", each, "")
            for name, each in nested.items()
            if each is not None
        ]
        return lines + "".join(super(Values, self)._format_action(each) for each in within)


def shown(value: Any) -> str:
    """A value as it may stand on a command line; a class by its name, without its arguments."""
    if _names_class(value):
        path = str(value["class_path"])
        name = path.rpartition(".")[2]
        return name if name in ROOMS and path.startswith("rnnkit.") else path
    if isinstance(value, (list, tuple)):
        if any(map(_names_class, value)):  # a list of callbacks, too long to be typed
            return f"[{', '.join(shown(each).rpartition('.')[2] for each in value)}]"
        return shlex.quote(f"[{', '.join(map(shown, value))}]")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return shlex.quote(str(value)) if value != "" else ""


def _names_class(value: Any) -> bool:
    return isinstance(value, (Namespace, dict)) and "class_path" in value
