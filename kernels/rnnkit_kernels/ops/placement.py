"""Where the rows of a call lie among the steps and sequences that the caller has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rnnkit_kernels.recurrence.rows import Rows


@dataclass(frozen=True)
class Placement:
    """Where the rows of a call lie in (T, B).

    Attributes:
        shape: T and B, as the caller has them.
        rows: those of the operator.
        order: int64, the original index of each of its sequences, or None for the identity.
    """

    shape: tuple[int, int]
    rows: Rows
    order: Tensor | None

    def padded(self, value: Tensor) -> Tensor:
        """(N, ...) as (T, B, ...), zero past each length."""
        steps, batch = self.shape
        if self.rows.batch_sizes is None:
            return value.view(steps, batch, *value.shape[1:])
        counts, offsets = self.rows.batch_sizes, self.rows.offsets
        assert offsets is not None
        sequence = torch.arange(self.rows.batch, device=value.device)
        inside = sequence < counts.to(value.device)[:, None]
        at = (offsets.to(value.device)[:, None] + sequence) * inside
        own = value[at].masked_fill(~inside.view(*inside.shape, *[1] * (value.dim() - 1)), 0)
        if self.order is not None:
            sequence = self.order.to(value.device)
        found = value.new_zeros(steps, batch, *value.shape[1:])
        found[: len(own), sequence] = own
        return found

    def sequences(self, value: Tensor) -> Tensor:
        """(M, ·, ...) of the operator's sequences as (M, B, ...), zero for those without a step."""
        found = value.new_zeros(value.shape[0], self.shape[1], *value.shape[2:])
        order = torch.arange(value.shape[1]) if self.order is None else self.order
        found[:, order.to(value.device)] = value
        return found
