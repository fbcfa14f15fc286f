"""Which rows of the storage belong to a step: dense, packed, or padded with lengths on the device.

Storage is a matrix of N rows. Row b of step t is `offsets[t] + b`, for b < `batch_sizes[t]`:

* dense: `batch_sizes[t]` = B and `offsets[t]` = t·B; neither is stored;
* packed (lengths on the host): N = Σ lengths, `offsets` is the running sum of `batch_sizes`;
* padded (lengths on the device, unknown to the host): N = T·B, `offsets[t]` = t·B.

Sequences are sorted by falling length, so `batch_sizes` falls with t. In the forward direction rows
leave as t rises; in the reverse direction they join as t falls, each starting at its own last step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The rows of each step.

    Attributes:
        steps: T.
        batch: B, the number of sequences.
        batch_sizes: int64 (T,), or None when dense.
        offsets: int64 (T,), or None when dense.
    """

    steps: int
    batch: int
    batch_sizes: Tensor | None = None
    offsets: Tensor | None = None

    def to(self, device: torch.device) -> "Rows":
        """The same rows, their tensors on `device`."""
        if self.batch_sizes is None or self.offsets is None:
            return self
        return Rows(
            self.steps,
            self.batch,
            self.batch_sizes.to(device, non_blocking=True),
            self.offsets.to(device, non_blocking=True),
        )

    def to_host(self) -> list[tuple[int, int]]:
        """(first row, number of rows) of each step; waits for the device if that holds them."""
        if self.batch_sizes is None or self.offsets is None:
            return [(t * self.batch, self.batch) for t in range(self.steps)]
        return list(zip(self.offsets.tolist(), self.batch_sizes.tolist(), strict=True))

    def lengths(self) -> Tensor | None:
        """int64 (B,): the number of steps of each sequence, or None when dense."""
        if self.batch_sizes is None:
            return None
        sequence = torch.arange(self.batch, device=self.batch_sizes.device)
        return (self.batch_sizes[:, None] > sequence).sum(0)

    def before(self, values: Tensor, start: Tensor, reverse: bool) -> Tensor:
        """For each row, `values` at the step processed before it, or its row of `start`.

        Args:
            values: (N, ...), what each step left behind.
            start: (B, ...), what there was before the first step.
            reverse: whether t falls.

        Returns:
            (N, ...).
        """
        if self.batch_sizes is None or self.offsets is None:
            values = values[self.batch :] if reverse else values[: -self.batch]
            return torch.cat([values, start] if reverse else [start, values])
        row = torch.arange(values.shape[0], device=values.device)
        step = torch.searchsorted(self.offsets, row, right=True) - 1
        sequence = row - self.offsets[step]
        earlier = step + 1 if reverse else step - 1
        inside = (earlier >= 0) & (earlier < self.steps)
        earlier = earlier.clamp(0, self.steps - 1)
        started = inside & (sequence < self.batch_sizes[earlier])
        source = torch.where(started, self.offsets[earlier] + sequence, values.shape[0] + sequence)
        return torch.cat([values, start]).index_select(0, source)

    def last(self, values: Tensor, start: Tensor, reverse: bool) -> Tensor:
        """For each sequence, `values` at the step processed last, or its row of `start` if none.

        Args:
            values: (N, ...).
            start: (B, ...).
            reverse: whether t falls.

        Returns:
            (B, ...).
        """
        return self._pick(values, start, at_end=not reverse)

    def first(self, values: Tensor, start: Tensor, reverse: bool) -> Tensor:
        """As `last`, at the step processed first."""
        return self._pick(values, start, at_end=reverse)

    def _pick(self, values: Tensor, start: Tensor, at_end: bool) -> Tensor:
        lengths = self.lengths()
        if lengths is None or self.offsets is None:
            return (values[-self.batch :] if at_end else values[: self.batch]).clone()
        step = (lengths - 1).clamp(min=0) if at_end else torch.zeros_like(lengths)
        sequence = torch.arange(self.batch, device=values.device)
        present = (lengths > 0).view(-1, *[1] * (values.dim() - 1))
        # An empty sequence has no row: clamp its index into the storage, then take `start`.
        row = (self.offsets[step] + sequence).clamp(max=values.shape[0] - 1)
        return torch.where(present, values.index_select(0, row), start)
