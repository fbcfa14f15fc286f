"""Metrics: what a score is, computed exactly and summed over batches and processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rnnkit.on_demand import on_demand

if TYPE_CHECKING:
    from rnnkit.metrics.bleu import BLEU as BLEU
    from rnnkit.metrics.bleu import ChrF as ChrF
    from rnnkit.metrics.entities import EntityF1 as EntityF1
    from rnnkit.metrics.exact_match import ExactMatch as ExactMatch
    from rnnkit.metrics.labels import LabelScores as LabelScores
    from rnnkit.metrics.perplexity import Perplexity as Perplexity

# Who reads tags need not wait for torchmetrics.
__getattr__, __dir__ = on_demand(
    __name__,
    {
        "BLEU": "bleu",
        "ChrF": "bleu",
        "EntityF1": "entities",
        "ExactMatch": "exact_match",
        "LabelScores": "labels",
        "Perplexity": "perplexity",
    },
)
