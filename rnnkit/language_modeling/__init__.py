"""Language modelling: a text in windows, a model that carries its state, `generate` and `score`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnnkit.language_modeling.corpora import read_corpus as read_corpus
    from rnnkit.language_modeling.data import LanguageModelingData as LanguageModelingData
    from rnnkit.language_modeling.ngram import InterpolatedKneserNey as InterpolatedKneserNey
    from rnnkit.language_modeling.ngram import UnigramModel as UnigramModel
    from rnnkit.language_modeling.task import LanguageModel as LanguageModel

# Imported when they are asked for: who reads files need not wait for Lightning.
_MODULES = {
    "InterpolatedKneserNey": "ngram",
    "LanguageModel": "task",
    "LanguageModelingData": "data",
    "UnigramModel": "ngram",
    "read_corpus": "corpora",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
