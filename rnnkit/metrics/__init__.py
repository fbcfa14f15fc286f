"""Metrics: what a score is, computed exactly and summed over batches and processes."""

from rnnkit.metrics.perplexity import Perplexity

__all__ = ["Perplexity"]
