"""Metrics: what a score is, computed exactly and summed over batches and processes."""

from rnnkit.metrics.entities import EntityF1
from rnnkit.metrics.perplexity import Perplexity

__all__ = ["EntityF1", "Perplexity"]
