"""Metrics: what a score is, computed exactly and summed over batches and processes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnnkit.metrics.bleu import BLEU as BLEU
    from rnnkit.metrics.bleu import ChrF as ChrF
    from rnnkit.metrics.entities import EntityF1 as EntityF1
    from rnnkit.metrics.perplexity import Perplexity as Perplexity

# Imported when they are asked for: torchmetrics takes seconds, and who reads tags needs none of it.
_MODULES = {
    "BLEU": "bleu",
    "ChrF": "bleu",
    "EntityF1": "entities",
    "Perplexity": "perplexity",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
