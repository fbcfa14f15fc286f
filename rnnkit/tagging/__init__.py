"""Tagging: sentences with tags, a bidirectional layer under a CRF, `tag`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnnkit.tagging.columns import read_columns as read_columns
    from rnnkit.tagging.corpora import read_tagged as read_tagged
    from rnnkit.tagging.data import TaggingData as TaggingData
    from rnnkit.tagging.task import Tagger as Tagger

# Imported when they are asked for: who reads files need not wait for Lightning.
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


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
