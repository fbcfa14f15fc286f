"""Language modelling: windows of a text, a model that carries its state, `generate` and `score`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnnkit.language_modeling.corpora import read_corpus
    from rnnkit.language_modeling.data import LanguageModelingData
    from rnnkit.language_modeling.ngram import InterpolatedKneserNey, UnigramModel
    from rnnkit.language_modeling.task import LanguageModel

__all__ = [
    "InterpolatedKneserNey",
    "LanguageModel",
    "LanguageModelingData",
    "UnigramModel",
    "read_corpus",
]

# Imported when they are asked for: a reader of files need not wait for Lightning.
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
