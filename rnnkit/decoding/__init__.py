"""Decoding: how tokens are chosen from a model's distributions, apart from the model."""

from rnnkit.decoding.beam import BeamSearch
from rnnkit.decoding.greedy import GreedySearch
from rnnkit.decoding.sampling import Sampler
from rnnkit.decoding.steps import Hypothesis, StepModel, select_rows

__all__ = ["BeamSearch", "GreedySearch", "Hypothesis", "Sampler", "StepModel", "select_rows"]
