"""Decoding: how tokens are chosen from a model's distributions, apart from the model."""

from rnnkit.decoding.beam import BeamSearch
from rnnkit.decoding.greedy import GreedySearch
from rnnkit.decoding.sampling import Sampler
from rnnkit.decoding.steps import Hypothesis, StepModel, select_rows
from rnnkit.decoding.without import Without

__all__ = [
    "BeamSearch",
    "GreedySearch",
    "Hypothesis",
    "Sampler",
    "StepModel",
    "Without",
    "select_rows",
]
