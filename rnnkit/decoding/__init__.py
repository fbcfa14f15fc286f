"""Decoding: how tokens are chosen from a model's distributions, apart from the model."""

from rnnkit.decoding.sampling import Sampler, StepModel

__all__ = ["Sampler", "StepModel"]
