"""Tasks that need a count: aⁿbⁿ, brackets, parity. A longer test shows whether it is one."""

from __future__ import annotations

import math

import torch
from torch import Generator
from torch.nn import functional as F

from rnnkit.sequences.memory import one_hot
from rnnkit.sequences.problem import IGNORED, Examples, Problem, entropy


class AnBn(Problem):
    """aⁿbⁿ: whether another b comes or the end, at every b.

    n is drawn from 1 to `length`; what follows an a is left open, for it follows from nothing (Gers
    & Schmidhuber 2001, who ask what may come next). Who knows how often a b at each step is the
    last one, and does not count, has the mean entropy over steps as loss.
    """

    input_size = 2  # a, b
    output_size = 2  # another b, the end
    every_step = True

    def draw(self, count: int, length: int, generator: Generator) -> Examples:
        """Draw examples: one-hot a and b, zeros after them; target int64 (2·length, B).

        Classes are 0, another b, and 1, the end.
        """
        number = torch.randint(1, length + 1, (count,), generator=generator)
        step = torch.arange(2 * length).unsqueeze(1)  # (T, 1)
        a, b = step < number, (step >= number) & (step < 2 * number)  # (T, B)
        target = (step == 2 * number - 1).long().masked_fill(~b, IGNORED)
        return Examples(torch.stack([a, b], -1).float(), target)

    def baseline(self, length: int) -> float:
        """That of knowing how often a b at each step is the last one."""
        total = weighed = 0.0
        for step in range(2 * length):
            numbers = range(step // 2 + 1, min(step, length) + 1)  # n with a b at this step
            if len(numbers):
                last = int(step % 2 == 1) / len(numbers)  # of n = (step + 1) / 2
                total += len(numbers)
                weighed += len(numbers) * entropy([last, 1 - last])
        return weighed / total


class Dyck(Problem):
    """Brackets of one or more kinds: which may be closed next, or none, at every step.

    The sequence is a random walk: a bracket is opened, of any kind, or the last open one closed,
    each with probability 1/2; where none is open one is opened. With one kind depth has to be
    counted, with more the open ones remembered in their order. `length` is T. Who knows how often
    none is open at each step, and does not count, has the mean entropy over steps as loss.

    Args:
        kinds: Of brackets.
    """

    every_step = True

    def __init__(self, kinds: int) -> None:
        self.kinds = kinds
        self.input_size = 2 * kinds  # those that open, those that close
        self.output_size = kinds + 1  # none is open, the last open one is of kind 1, 2, ...

    def draw(self, count: int, length: int, generator: Generator) -> Examples:
        """Draw examples: one-hot brackets, those that open first; target int64 (T, B).

        Classes are 0 where none is open, else the kind of the last open one, counted from 1.
        """
        kinds = torch.randint(self.kinds, (length, count), generator=generator)
        opens = torch.randint(2, (length, count), generator=generator).bool()
        stack = torch.zeros(length + 1, count, dtype=torch.int64)  # classes by depth, 0 below all
        depth, sequence = torch.zeros(count, dtype=torch.int64), torch.arange(count)
        read, target = torch.empty_like(kinds), torch.empty_like(kinds)
        for step in range(length):
            opened, top = opens[step] | (depth == 0), stack[depth, sequence]
            read[step] = torch.where(opened, kinds[step], self.kinds + top - 1)
            depth += torch.where(opened, 1, -1)
            stack[depth, sequence] = torch.where(opened, kinds[step] + 1, stack[depth, sequence])
            target[step] = stack[depth, sequence]
        return Examples(one_hot(read, self.input_size), target)

    def baseline(self, length: int) -> float:
        """That of knowing how often each class is at each step."""
        depths = torch.zeros(length + 2, dtype=torch.float64)  # probability of each depth
        depths[0], total = 1.0, 0.0
        for _ in range(length):
            closed = F.pad(depths[1:] / 2, (0, 1))
            opened = F.pad(depths[:-1] / 2, (1, 0))
            opened[1] += depths[0] / 2
            depths = closed + opened
            none = float(depths[0])
            total += entropy([none, *[(1 - none) / self.kinds] * self.kinds]) / length
        return total


class Parity(Problem):
    """Parity: whether the number of ones so far is odd, after every bit.

    `length` is T. To ask after every bit is to ask at the end of sequences of all lengths up to T;
    guessing has a loss of ln 2.
    """

    input_size = 1
    output_size = 2  # even, odd
    every_step = True

    def draw(self, count: int, length: int, generator: Generator) -> Examples:
        """Draw examples: bits (T, B, 1); target int64 (T, B), 1 where the sum is odd."""
        bits = torch.randint(2, (length, count), generator=generator)
        return Examples(bits.unsqueeze(2).float(), bits.cumsum(0) % 2)

    def baseline(self, length: int) -> float:
        """That of guessing."""
        return math.log(2)
