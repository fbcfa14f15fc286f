"""Language modelling: a text in windows, a model that carries its state, `generate` and `score`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rnnkit.on_demand import on_demand

if TYPE_CHECKING:
    from rnnkit.language_modeling.corpora import read_corpus as read_corpus
    from rnnkit.language_modeling.data import LanguageModelingData as LanguageModelingData
    from rnnkit.language_modeling.ngram import InterpolatedKneserNey as InterpolatedKneserNey
    from rnnkit.language_modeling.ngram import UnigramModel as UnigramModel
    from rnnkit.language_modeling.task import LanguageModel as LanguageModel

# Who reads files need not wait for Lightning.
__getattr__, __dir__ = on_demand(
    __name__,
    {
        "InterpolatedKneserNey": "ngram",
        "LanguageModel": "task",
        "LanguageModelingData": "data",
        "UnigramModel": "ngram",
        "read_corpus": "corpora",
    },
)
