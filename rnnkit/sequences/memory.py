"""Tasks that need one thing remembered for many steps: adding, copying, temporal order."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from rnnkit.sequences.problem import Examples, Problem


class Adding(Problem):
    """The adding problem: the sum of the two numbers that are marked, as a number at the end.

    Each step has a number from U(0, 1) and a mark, 1 at one step of the first half and at one of
    the second, else 0 (Hochreiter & Schmidhuber 1997, experiment 4; with a mark in each half as in
    Arjovsky et al. 2016 and Bai et al. 2018). `length` is T. Always answering 1 has a mean squared
    error of 1/6, the variance of the sum of two such numbers.
    """

    input_size = 2
    output_size = 1
    shortest = 2

    def draw(self, count: int, length: int, generator: Generator) -> Examples:
        """Draw examples: numbers in input[..., 0], marks in input[..., 1], sums as target (B,)."""
        half, sequence = length // 2, torch.arange(count)
        values = torch.rand(length, count, generator=generator)
        first = torch.randint(half, (count,), generator=generator)
        second = torch.randint(half, length, (count,), generator=generator)
        marks = torch.zeros(length, count)
        marks[first, sequence] = marks[second, sequence] = 1.0
        sums = values[first, sequence] + values[second, sequence]
        return Examples(torch.stack([values, marks], -1), sums)

    def baseline(self, length: int) -> float:
        """That of always answering 1."""
        return 1 / 6


class CopyMemory(Problem):
    """Copy memory: ten symbols are read, and written again after many blanks.

    Ten of eight symbols, T − 1 blanks, the delimiter, ten blanks; asked for are T + 10 blanks and
    then the symbols (Arjovsky et al. 2016, section 5.1; Hochreiter & Schmidhuber 1997). `length`
    is T, and a sequence has T + 20 steps. Who writes blanks where they belong and guesses the
    symbols has a loss of 10 ln 8 / (T + 20).
    """

    symbols = 8
    copied = 10
    input_size = symbols + 2  # blank, delimiter
    output_size = symbols + 1  # blank
    every_step = True

    def draw(self, count: int, length: int, generator: Generator) -> Examples:
        """Draw examples: symbols, blank, delimiter as one-hot input; target int64 (T + 20, B)."""
        blank, delimiter = self.symbols, self.symbols + 1
        drawn = torch.randint(self.symbols, (self.copied, count), generator=generator)
        read = torch.full((length + 2 * self.copied, count), blank)
        target = read.clone()
        read[: self.copied] = target[-self.copied :] = drawn
        read[self.copied + length - 1] = delimiter
        return Examples(one_hot(read, self.input_size), target)

    def baseline(self, length: int) -> float:
        """That of blanks where they belong, and guessing which symbol."""
        return self.copied * math.log(self.symbols) / (length + 2 * self.copied)


class TemporalOrder(Problem):
    """Temporal order: which of X and Y came first and which second, among other symbols.

    One of the two stands in the second tenth of the sequence and one in the sixth, drawn by
    themselves, between symbols a to d that mean nothing; the four orders are the classes
    (Hochreiter & Schmidhuber 1997, experiment 6a, without its symbols for start and end).
    `length` is T. Guessing has a loss of ln 4.
    """

    input_size = 6  # X, Y, a, b, c, d
    output_size = 4  # XX, XY, YX, YY
    shortest = 10

    def draw(self, count: int, length: int, generator: Generator) -> Examples:
        """Draw examples: one-hot symbols X, Y, a, b, c, d; target int64 (B,), 2·first + second."""
        sequence = torch.arange(count)
        read = torch.randint(2, self.input_size, (length, count), generator=generator)
        order = torch.randint(2, (2, count), generator=generator)
        for symbol, tenth in zip(order, (1, 5), strict=True):
            start, end = length * tenth // 10, length * (tenth + 1) // 10
            read[torch.randint(start, end, (count,), generator=generator), sequence] = symbol
        return Examples(one_hot(read, self.input_size), 2 * order[0] + order[1])

    def baseline(self, length: int) -> float:
        """That of guessing."""
        return math.log(self.output_size)


def one_hot(ids: Tensor, size: int) -> Tensor:
    """Ids int64 (T, B) as float32 (T, B, size)."""
    return F.one_hot(ids, size).float()
