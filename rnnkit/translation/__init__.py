"""Translation: pairs of lines, an encoder and a decoder with attention, `translate`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnnkit.translation.corpora import read_parallel as read_parallel
    from rnnkit.translation.data import TranslationData as TranslationData
    from rnnkit.translation.samples import SampleTranslations as SampleTranslations
    from rnnkit.translation.task import Translation as Translation

# Imported when they are asked for: who reads files need not wait for Lightning.
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


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
