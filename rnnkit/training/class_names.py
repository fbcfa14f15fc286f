"""Names of the classes of tasks: in configurations, and in checkpoints of earlier versions.

A configuration may name a class of rnnkit without its module: `class_path: Tagger`. jsonargparse
finds the class of a name among those that are imported, so the module is imported when it reads
the name. What it saves has the whole name.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from rnnkit.screen.terminal import visible

ROOMS = {
    "LanguageModel": "rnnkit.language_modeling",
    "LanguageModelingData": "rnnkit.language_modeling",
    "Translation": "rnnkit.translation",
    "TranslationData": "rnnkit.translation",
    "SampleTranslations": "rnnkit.translation",
    "GradientFlow": "rnnkit.training.callbacks",
    "PercentileClipping": "rnnkit.training.callbacks",
    "Tagger": "rnnkit.tagging",
    "TaggingData": "rnnkit.tagging",
    "SequenceModel": "rnnkit.sequences",
    "SequenceData": "rnnkit.sequences",
}
"""The module of each class that a configuration names: models, data and callbacks."""

_log = logging.getLogger(__name__)


def import_named(value: str) -> type | None:
    """The class of rnnkit that a word of a configuration or a command line names, imported.

    Args:
        value: Any word. `Tagger` is `rnnkit.tagging.Tagger`.

    Returns:
        None where it is no name of such a class.
    """
    if value not in ROOMS:
        return None
    named: type = getattr(import_module(ROOMS[value]), value)
    return named


def classes_of(kind: type) -> list[str]:
    """The names of rnnkit's classes of a kind, as of LightningModule; they are all imported."""
    classes = {name: import_named(name) for name in ROOMS}
    return [name for name, each in classes.items() if each is not None and issubclass(each, kind)]


def name_of(task: type) -> str:
    """The name of a task's class in a configuration, by module."""
    return f"{task.__module__}.{task.__qualname__}"


def note_other_name(hyper_parameters: Mapping[str, Any], task: type) -> None:
    """Tell where a checkpoint was written by a class of another name than that it is read by.

    Args:
        hyper_parameters: The checkpoint's.
        task: The class that reads it.
    """
    name = str(hyper_parameters.get("_class_path") or name_of(task))
    module, _, last = name.rpartition(".")
    if getattr(sys.modules.get(module), last, None) is not task:
        _log.warning(
            "the checkpoint names the class %s, as an earlier version did: %s reads it",
            visible(name),
            name_of(task),
        )
