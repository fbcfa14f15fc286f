"""Hierarchical softmax over Huffman's tree (Morin and Bengio 2005; Mikolov et al. 2013)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnnkit.nn.huffman import HuffmanTree, huffman_tree
from rnnkit.nn.softmax import CountedOutputLayer, exact


class HierarchicalSoftmax(CountedOutputLayer):
    """Words as leaves of Huffman's tree; a binary decision at every inner node on the way.

    A row of the loss costs as many products as its target's code has bits, not V.

    Args:
        hidden_size: H.
        vocabulary_size: V.
        counts: Of the words, integers (V,); None: as Zipf's law has them.

    Raises:
        ValueError: Counts that do not fit.
    """

    nodes: Tensor
    signs: Tensor
    above: Tensor
    sides: Tensor

    def __init__(
        self, hidden_size: int, vocabulary_size: int, counts: Tensor | None = None
    ) -> None:
        super().__init__(hidden_size, vocabulary_size, counts)
        self.weight = nn.Parameter(torch.empty(vocabulary_size - 1, hidden_size))
        self.bias = nn.Parameter(torch.empty(vocabulary_size - 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw from U(-1/√H, 1/√H)."""
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -(self.hidden_size**-0.5), self.hidden_size**-0.5)

    def _prepare(self) -> None:
        tree = huffman_tree(self.counts.clamp_min(1).cpu())
        for name in HuffmanTree._fields[:4]:
            table = getattr(tree, name).to(self.counts.device)
            self.register_buffer(name, table, persistent=False)
        self.levels = tree.levels

    def negative_log_likelihood(
        self, hidden: Tensor, target: Tensor, ignore_index: int = -100
    ) -> Tensor:
        """By the nodes on the target's path, (N,)."""
        kept, hidden, target = self._counted(hidden, target, ignore_index)
        nodes, signs = self.nodes[target], self.signs[target]  # (N, L)
        scores = (F.embedding(nodes, self.weight) @ hidden.unsqueeze(2)).squeeze(2)
        scores = signs * exact(scores + self.bias[nodes])
        decisions = F.logsigmoid(scores).masked_fill(signs == 0, 0)
        return -decisions.sum(1).masked_fill(~kept, 0)

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """By all nodes, from the root down a level at a time, (..., V)."""
        if not self.levels:  # one word
            return exact(hidden[..., :1]) * 0
        scores = exact(F.linear(hidden, self.weight, self.bias))
        right, left = F.logsigmoid(scores), F.logsigmoid(-scores)

        def turned(above: Tensor, sides: Tensor) -> Tensor:
            return torch.where(sides == 1, right[..., above], left[..., above])

        reached, before, first = [scores[..., :1] * 0], 0, 1
        for size in self.levels[1:]:
            above, sides = self.above[first : first + size], self.sides[first : first + size]
            reached.append(reached[-1][..., above - before] + turned(above, sides))
            before, first = first, first + size
        above = self.nodes[:, 0]
        return torch.cat(reached, -1)[..., above] + turned(above, self.signs[:, 0])
