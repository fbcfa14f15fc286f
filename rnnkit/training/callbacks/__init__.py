"""Callbacks: what a run shows, draws and keeps while it trains, and how it clips."""

from rnnkit.training.callbacks.gradient_flow import GradientFlow as GradientFlow
from rnnkit.training.callbacks.percentile_clipping import PercentileClipping as PercentileClipping
