"""Names of the classes of tasks: in configurations, and in checkpoints of earlier versions."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from rnnkit.screen.terminal import visible

_log = logging.getLogger(__name__)


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
