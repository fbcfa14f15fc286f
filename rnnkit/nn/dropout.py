"""Dropout for sequences, whose masks are shared over time or by all places of a word."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from rnnkit.nn.options import check_dropout


class LockedDropout(nn.Module):
    """Drops the same elements of a sequence at every step, scaling the others by 1 / (1 - p).

    Gal and Ghahramani 2016 (arXiv 1512.05287), there called variational; Merity et al. 2018 (arXiv
    1708.02182), locked.

    Args:
        p: Probability of an element to be dropped.

    Raises:
        TypeError, ValueError: `p` is no number from 0 to 1.

    Example:
        >>> dropped = LockedDropout(0.5)(torch.ones(7, 2, 3))
        >>> bool((dropped == dropped[0]).all())
        True
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = check_dropout(p)

    def forward(self, input: Tensor) -> Tensor:
        """Drop while training.

        Args:
            input: (T, B, D).

        Returns:
            (T, B, D), dropped alike at all T steps.
        """
        if not self.training or self.p == 0:
            return input
        return input * F.dropout(input.new_ones(1, *input.shape[1:]), self.p)

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"


class DroppedEmbedding(nn.Embedding):
    """An embedding that forgets whole words while training: rows of the table are zero for a call.

    Gal and Ghahramani 2016 (arXiv 1512.05287), Merity et al. 2018 (arXiv 1708.02182). Every row is
    drawn once a call, so a word is gone wherever it stands in the batch, and the others are scaled
    by 1 / (1 - p). Its parameter is `nn.Embedding`'s own.

    Args:
        num_embeddings: V, number of rows.
        embedding_dim: D, their width.
        dropout: Probability p of a row to be zero.

    Raises:
        TypeError, ValueError: `dropout` is no number from 0 to 1.

    Example:
        >>> DroppedEmbedding(10, 3, dropout=0.1)(torch.tensor([[1, 2], [3, 1]])).shape
        torch.Size([2, 2, 3])
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, dropout: float = 0.0) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.dropout = check_dropout(dropout)

    def forward(self, input: Tensor) -> Tensor:
        """Look the vectors up.

        Args:
            input: Ids, int64 of any shape.

        Returns:
            (*input.shape, D).
        """
        embedded = super().forward(input)
        if not self.training or self.dropout == 0:
            return embedded
        # Scaling the vectors instead of the table spares a copy of all V rows.
        kept = F.dropout(self.weight.new_ones(self.num_embeddings, 1), self.dropout)
        return embedded * F.embedding(input, kept)

    def extra_repr(self) -> str:
        """nn.Embedding's, plus the probability."""
        return f"{super().extra_repr()}, dropout={self.dropout}"
