"""Words read by their characters: one vector for each word.

LSTM    last states of both directions (Lample et al. 2016, arXiv 1603.01360)
CNN     maximum over positions of a convolution (Ma and Hovy 2016, arXiv 1603.01354)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from rnnkit.nn.recurrent import LSTM

CharacterName = Literal["lstm", "cnn", "none"]


class CharacterLSTM(nn.Module):
    """Last states of a bidirectional LSTM over a word's characters.

    Args:
        vocabulary_size: Number of characters, with padding as 0.
        embedding_size: Width of a character's vector.
        hidden_size: H of one direction.
        dropout: On the characters' vectors.
    """

    def __init__(
        self, vocabulary_size: int, embedding_size: int, hidden_size: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding_size, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        self.rnn = LSTM(embedding_size, hidden_size, bidirectional=True)
        self.output_size = 2 * hidden_size

    def forward(self, characters: Tensor, lengths: Tensor) -> Tensor:
        """One vector a word.

        Args:
            characters: Ids, int64 (C, U), padded.
            lengths: int64 (U,), at least 1 each.

        Returns:
            (U, 2H).
        """
        embedded = self.dropout(self.embedding(characters))
        last: Tensor = self.rnn(embedded, lengths=lengths)[1][0]  # (2, U, H)
        return last.transpose(0, 1).flatten(1)


class CharacterCNN(nn.Module):
    """Maximum over a word's positions of a convolution over its characters.

    Args:
        vocabulary_size: Number of characters, with padding as 0.
        embedding_size: Width of a character's vector.
        filters: Number of features.
        dropout: On the characters' vectors.
        width: Characters that a filter sees, an odd number.

    Raises:
        ValueError: `width` is even.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_size: int,
        filters: int,
        dropout: float = 0.0,
        width: int = 3,
    ) -> None:
        super().__init__()
        if width % 2 == 0:
            raise ValueError(f"expected an odd width, the same before and after, got {width}")
        self.embedding = nn.Embedding(vocabulary_size, embedding_size, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        self.convolution = nn.Conv1d(embedding_size, filters, width, padding=width // 2)
        self.output_size = filters

    def forward(self, characters: Tensor, lengths: Tensor) -> Tensor:
        """One vector a word.

        Args:
            characters: Ids, int64 (C, U), padded: padding is zeros for the filters and never the
                maximum.
            lengths: int64 (U,), at least 1 each.

        Returns:
            (U, filters).
        """
        embedded = self.dropout(self.embedding(characters))  # (C, U, E)
        features: Tensor = self.convolution(embedded.permute(1, 2, 0))  # (U, filters, C)
        steps = torch.arange(len(characters), device=characters.device)
        outside = steps >= lengths.to(characters.device, non_blocking=True).unsqueeze(1)
        return features.masked_fill(outside.unsqueeze(1), -torch.inf).amax(2)
