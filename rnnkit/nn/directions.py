"""How the two directions of a layer become one vector a step."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

DirectionsName = Literal["concat", "sum", "product", "learned", "learned_matrix"]


class Directions(nn.Module):
    """Combines the outputs f (forward) and b (backward) of a bidirectional layer.

        concat [f; b]     sum f + b     product f ⊙ b
        learned u ⊙ f + v ⊙ b           learned_matrix U f + V b

    Args:
        kind: One of the five. u and v are learned for each unit and begin as ones; U and V mix all
            units, (H, H) each, and begin as identities: both begin as the sum.
        hidden_size: H of one direction.

    Raises:
        ValueError: There is no such kind.
    """

    def __init__(self, kind: DirectionsName, hidden_size: int) -> None:
        super().__init__()
        if kind not in get_args(DirectionsName):
            known = ", ".join(get_args(DirectionsName))
            raise ValueError(f"expected directions {known}, got {kind!r}")
        self.kind = kind
        self.output_size = hidden_size * (1 + (kind == "concat"))
        if kind == "learned":
            self.weight = nn.Parameter(torch.ones(2, hidden_size))
        elif kind == "learned_matrix":
            self.weight = nn.Parameter(torch.eye(hidden_size).repeat(1, 2))  # [U V]

    def forward(self, output: Tensor) -> Tensor:
        """Combine.

        Args:
            output: (T, B, 2H), forward before backward, as torch.nn has it.

        Returns:
            (T, B, 2H) for concat, else (T, B, H).
        """
        if self.kind == "concat":
            return output
        if self.kind == "learned_matrix":
            return linear(output, self.weight)
        forward, backward = output.chunk(2, dim=-1)
        if self.kind == "sum":
            return forward + backward
        if self.kind == "product":
            return forward * backward
        return self.weight[0] * forward + self.weight[1] * backward

    def extra_repr(self) -> str:
        """The kind."""
        return self.kind
