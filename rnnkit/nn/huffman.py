"""Huffman's code, and its tree in the tables that a hierarchical softmax computes with.

Words are leaves; the two lightest trees become one until a single tree is left (Huffman 1952). The
mean length of a word's code, weighted by the counts, is the least that any code can have.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class HuffmanTree(NamedTuple):
    """A binary tree with V leaves and V - 1 inner nodes, which are numbered level by level.

    Attributes:
        nodes: Inner nodes from each word's up to the root, int64 (V, L), L the longest code; 0
            beyond the root.
        signs: To which side the path leaves each of them, 1 or -1, int8 (V, L); 0 beyond the root.
        above: The inner node above each, int64 (V - 1,); 0 for the root itself.
        sides: The side on which each lies there, 1 or -1, int8 (V - 1,); 0 for the root.
        levels: How many inner nodes each level has, from the root's on.
    """

    nodes: Tensor
    signs: Tensor
    above: Tensor
    sides: Tensor
    levels: tuple[int, ...]


def huffman_tree(counts: Tensor) -> HuffmanTree:
    """The tree of the best code; of several best ones that with the shortest longest code.

    Args:
        counts: How often each word occurs, integers (V,).

    Raises:
        ValueError: No word, or a negative count; names it.

    Example:
        >>> tree = huffman_tree(torch.tensor([5, 2, 1, 1]))
        >>> (tree.signs != 0).sum(1)
        tensor([1, 2, 3, 3])
    """
    words = len(counts)
    if words == 0:
        raise ValueError("expected at least one word, got counts of shape (0,)")
    if int(counts.min()) < 0:
        raise ValueError(f"expected counts of 0 or more, got {int(counts.min())}")
    parents, sides = _merge(counts.tolist())
    if words == 1:
        none = torch.zeros(1, 0, dtype=torch.int64)
        return HuffmanTree(none, none.to(torch.int8), none[0], none[0].to(torch.int8), ())
    # Inner nodes in the order of their merging: each comes before the one above it.
    depths = [0] * (words - 1)
    for node in range(words - 3, -1, -1):
        depths[node] = depths[parents[words + node] - words] + 1
    order = torch.tensor(depths).argsort(stable=True)
    number = torch.empty_like(order)
    number[order] = torch.arange(words - 1)
    parent, side = torch.tensor(parents), torch.tensor(sides, dtype=torch.int8)
    above = torch.cat([parent[words:] - words, parent.new_tensor([words - 2])])[order]
    above, inner_sides = number[above], torch.cat([side[words:], side.new_zeros(1)])[order]
    paths, turns = [number[parent[:words] - words]], [side[:words]]
    while bool((paths[-1] > 0).any()):
        turns.append(inner_sides[paths[-1]])  # 0 for the root
        paths.append(above[paths[-1]])
    levels = torch.tensor(depths).bincount().tolist()
    return HuffmanTree(
        torch.stack(paths, 1), torch.stack(turns, 1), above, inner_sides, tuple(levels)
    )


def _merge(counts: list[int]) -> tuple[list[int], list[int]]:
    """The node above each node and the side on which it lies there: 2V - 2 numbers each.

    Leaves are 0 to V - 1, inner nodes follow in the order of merging and the root is left out. With
    leaves sorted by weight, merged trees come out sorted too: the lightest tree is the first of one
    of two queues (van Leeuwen 1976).
    """
    words = len(counts)
    leaves = sorted(range(words), key=counts.__getitem__)
    weights = counts + [0] * (words - 1)
    parents, sides = [0] * (2 * words - 2), [0] * (2 * words - 2)
    leaf, inner = 0, words
    for made in range(words, 2 * words - 1):
        for side in (1, -1):
            # Of two of one weight the leaf: it keeps the longest code short.
            if inner == made or (leaf < words and weights[leaves[leaf]] <= weights[inner]):
                node, leaf = leaves[leaf], leaf + 1
            else:
                node, inner = inner, inner + 1
            parents[node], sides[node] = made, side
            weights[made] += weights[node]
    return parents, sides
