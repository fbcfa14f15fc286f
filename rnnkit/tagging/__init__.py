"""Tagging: sentences with tags, a bidirectional layer under a CRF, `tag`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnnkit.tagging.columns import read_columns
    from rnnkit.tagging.corpora import read_tagged
    from rnnkit.tagging.data import TaggingData
    from rnnkit.tagging.task import Tagger

__all__ = [
    "Tagger",
    "TaggingData",
    "read_columns",
    "read_tagged",
]

# Imported when they are asked for: a reader of files need not wait for Lightning.
_MODULES = {
    "Tagger": "task",
    "TaggingData": "data",
    "read_columns": "columns",
    "read_tagged": "corpora",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
