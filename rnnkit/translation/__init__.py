"""Translation: pairs of lines, an encoder and a decoder with attention, `translate`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnnkit.translation.corpora import read_parallel
    from rnnkit.translation.data import TranslationData
    from rnnkit.translation.samples import SampleTranslations
    from rnnkit.translation.task import Translation

__all__ = [
    "SampleTranslations",
    "Translation",
    "TranslationData",
    "read_parallel",
]

# Imported when they are asked for: a reader of files need not wait for Lightning.
_MODULES = {
    "SampleTranslations": "samples",
    "Translation": "task",
    "TranslationData": "data",
    "read_parallel": "corpora",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
