"""What a synthetic task is: examples that are drawn, and the loss of who has learned nothing."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple

from torch import Generator, Tensor

IGNORED = -100
"""In place of a class where no answer is asked for; what torch's losses leave out."""


class Examples(NamedTuple):
    """B sequences of T steps with what is asked about them, time first.

    Attributes:
        input: float32 (T, B, D); zeros after the end of a sequence.
        target: A number for each sequence, float32 (B,); the class of each, int64 (B,); or a class
            at every step, int64 (T, B), IGNORED where none is asked for.
    """

    input: Tensor
    target: Tensor

    def rows(self, rows: list[int]) -> Examples:
        """Some of the sequences, by their indices."""
        return Examples(self.input[:, rows], self.target[..., rows])


class Problem(ABC):
    """A synthetic task.

    Attributes:
        input_size: D, features of a step.
        output_size: Numbers or classes that are answered.
        every_step: Whether an answer is asked at every step, not after the last one alone.
        shortest: The smallest length there is.
    """

    input_size: int
    output_size: int
    every_step = False
    shortest = 1

    @abstractmethod
    def draw(self, count: int, length: int, generator: Generator) -> Examples:
        """Draw examples.

        Args:
            count: B, their number.
            length: Whatever grows with the distance that has to be remembered; each task says.
            generator: On the CPU; the examples follow from its state.
        """

    @abstractmethod
    def baseline(self, length: int) -> float:
        """The expected loss of the best answer that does not look at the sequence.

        Args:
            length: As for `draw`.
        """


def entropy(probabilities: Iterable[float]) -> float:
    """Of a distribution, in nats: the loss of who knows no more than how often each class is."""
    return -sum(p * math.log(p) for p in probabilities if p > 0) + 0.0
