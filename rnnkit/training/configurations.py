"""What a configuration may do: name classes and give them values, and nothing that runs commands.

A `class_path` imports a module and calls a class with the arguments beside it. Every class has to
be of the kind that is expected there (a callback, an optimizer), so jsonargparse sees to that.
Where a function may stand as well, as what makes an optimizer, it would call any function at all:
`os.system` as an optimizer is a command. Here is what it leaves open, and what makes its work
endless: mappings that hold themselves, or double with every line.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from jsonargparse import get_loader, set_loader, set_parsing_settings
from jsonargparse.typing import register_type

from rnnkit.training.class_names import import_named

# Ours have 6 levels and 100 values.
MOST_LEVELS = 50
MOST_VALUES = 100_000

# Beside what jsonargparse knows for harmful: these load and run what a file or an argument holds.
_DENIED = (
    "cloudpickle",
    "dill",
    "fsspec",
    "joblib",
    "lightning.pytorch.callbacks.LambdaCallback",  # calls functions
    "lightning.pytorch.callbacks.lambda_function",
    "numpy.load",
    "pooch",
    "requests",
    "torch.classes",
    "torch.hub",
    "torch.jit.load",
    "torch.load",
    "torch.ops",
    "torch.package",
    "torch.serialization",
    "torch.utils.cpp_extension",
)


class ConfigurationError(yaml.YAMLError, ValueError):  # type: ignore[misc]
    """A configuration that is refused; jsonargparse tells it as it tells a slip in YAML."""


def restrict() -> None:
    """Let jsonargparse read configurations as this module says, for the rest of the process.

    No modules for commands, files, pickles and networks are imported by name; no configuration is
    read from an address; an argument that may be anything stays the plain data that it is.
    """
    set_parsing_settings(
        import_path_denylist=list(_DENIED),
        config_read_mode_fsspec_enabled=False,  # Lightning has enabled it
        config_read_mode_urls_enabled=False,
        instantiate_subclass_spec_in_any=False,
    )
    # A default of a device (StochasticWeightAveraging's) could not be written into a config.yaml.
    register_type(torch.device, deserializer_exceptions=(RuntimeError, TypeError))
    loader = get_loader("yaml")
    if getattr(loader, "__module__", "") != __name__:
        set_loader("yaml", _checked(loader), exceptions=(yaml.YAMLError,))


def _checked(load: Callable[[str], Any]) -> Callable[[str], Any]:
    def load_checked(text: str) -> Any:
        check_text(text)
        value = load(text)
        check_names(value)
        return value

    return load_checked


@dataclass
class _Level:
    """A list or mapping that is open: its anchor, its values so far, of a mapping its keys."""

    anchor: str | None
    mapping: bool
    size: int = 1
    keys: set[str] = field(default_factory=set)
    at_key: bool = True


def check_text(text: str) -> None:
    r"""Refuse YAML that is no tree of a sensible size, or says something twice.

    Args:
        text: One document.

    Raises:
        ConfigurationError: A value holds itself, there are too many levels or, with every alias
            replaced by what it stands for, too many values, or a mapping has a key twice.
        yaml.YAMLError: It is no YAML.

    Example:
        >>> check_text("a: 1\nb: [*c]")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        ConfigurationError: line 2 has the alias c, which nothing before names
    """
    sizes: dict[str, int] = {}  # values that an anchor stands for
    levels: list[_Level] = []
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        line = event.start_mark.line + 1
        size, anchor = 1, getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            _note_key(levels, None, line)
            levels.append(_Level(anchor, isinstance(event, yaml.MappingStartEvent)))
            if len(levels) > MOST_LEVELS:
                raise ConfigurationError(
                    f"line {line} has {len(levels)} levels, one in the other: expected "
                    f"{MOST_LEVELS} or fewer"
                )
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            closed = levels.pop()
            anchor, size = closed.anchor, closed.size
        elif isinstance(event, yaml.AliasEvent):
            if any(level.anchor == anchor for level in levels):
                raise ConfigurationError(f"line {line}: {anchor} holds itself")
            if anchor not in sizes:
                raise ConfigurationError(
                    f"line {line} has the alias {anchor}, which nothing before names"
                )
            size, anchor = sizes[anchor], None
            _note_key(levels, None, line)
        elif isinstance(event, yaml.ScalarEvent):
            _note_key(levels, event.value, line)
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        if levels:
            levels[-1].size += size
        if size > MOST_VALUES or (levels and levels[-1].size > MOST_VALUES):
            raise ConfigurationError(f"line {line}: there are more than {MOST_VALUES:,} values")


def _note_key(levels: list[_Level], value: str | None, line: int) -> None:
    """Note what stands in a mapping, keys and values in turn, and refuse a key for the second time.

    Args:
        levels: The open lists and mappings.
        value: A plain value; None: a list, a mapping or an alias.
        line: Its line.
    """
    if not levels or not levels[-1].mapping:
        return
    level = levels[-1]
    if level.at_key and value is not None and value != "<<":
        if value in level.keys:
            raise ConfigurationError(
                f"line {line} has {value!r} for the second time: only one counts"
            )
        level.keys.add(value)
    level.at_key = not level.at_key


def check_names(value: Any) -> None:
    """Refuse what names anything but a class.

    Args:
        value: Plain data of a configuration or a part of one.

    Raises:
        ConfigurationError: A `class_path` names a function, something of Python's own library or
            what cannot be imported; or arguments are given to what is named without one, or such
            as the class does not take.
    """
    if isinstance(value, str):
        import_named(value)  # jsonargparse finds it by this name from now on
        if "*" in value and "&" in value:
            _check_quoted(value)
    if isinstance(value, list):
        for item in value:
            check_names(item)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        check_names(item)
        if not isinstance(key, str):
            continue
        before, _, last = key.rpartition(".")
        if before and "." in str(value.get(before)) and isinstance(value[before], str):
            raise ConfigurationError(
                f"{key} gives an argument to {value[before]}: name it as class_path in {before}, "
                "with init_args beside it"
            )
        if last == "class_path" and isinstance(item, str):
            named = _check_class(item)
            if named is not None:
                _check_more_arguments(item, named, value.get("dict_kwargs"))


def _check_quoted(text: str) -> None:
    """Check YAML in quotes: jsonargparse reads it where no string is expected."""
    try:
        check_text(text)
    except ConfigurationError:
        raise
    except yaml.YAMLError:
        return


def _check_class(path: str) -> type | None:
    """The class of a path; None where jsonargparse has to look for it, or to say that it lacks."""
    if (ours := import_named(path)) is not None:
        return ours
    parts = path.split(".")
    if len(parts) == 1 or not all(part.isidentifier() for part in parts):
        return None
    if parts[0] in sys.stdlib_module_names:
        raise ConfigurationError(
            f"{path} is of Python's own library: a configuration names classes of models, data, "
            "callbacks and the like"
        )
    if any(path == denied or path.startswith(f"{denied}.") for denied in _DENIED):
        raise ConfigurationError(f"{path} loads what may run: a configuration cannot name it")
    found = None
    for cut in (-1, -2):  # a class may stand in another one
        try:
            found = import_module(".".join(parts[:cut])) if parts[:cut] else None
            for name in parts[cut:]:
                found = getattr(found, name, None)
            break
        except ImportError:
            continue
        except Exception as error:
            raise ConfigurationError(
                f"{path} cannot be imported ({type(error).__name__}: {error})"
            ) from error
    if isinstance(found, type) and found.__module__.partition(".")[0] in sys.stdlib_module_names:
        raise ConfigurationError(f"{path} is of Python's own library, {found.__module__}")
    if found is not None and not isinstance(found, type):
        raise ConfigurationError(f"{path} is no class: a configuration names classes only")
    return found


def _check_more_arguments(path: str, named: type, arguments: object) -> None:
    """Refuse what `dict_kwargs`, which jsonargparse passes on unseen, has beyond the signature."""
    if not isinstance(arguments, dict):
        return
    parameters = inspect.signature(named).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return
    if unknown := [str(name) for name in arguments if name not in parameters]:
        raise ConfigurationError(f"{path} takes no {', '.join(unknown)}: it stands in dict_kwargs")
