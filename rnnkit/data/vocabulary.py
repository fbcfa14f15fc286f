"""Vocabulary: the tokens a model knows and their ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

UNKNOWN = "<unk>"
"""Stands for every token that the vocabulary does not hold."""

SENTENCE_END = "<eos>"
"""Ends each line of a word-level text."""


class Vocabulary:
    """Tokens in the order of their ids; ids are 0 to V - 1.

    Args:
        tokens: V distinct tokens.

    Raises:
        ValueError: No token, or the same token twice.

    Example:
        >>> vocabulary = Vocabulary(["the", "<unk>", "<eos>"])
        >>> vocabulary.encode(["the", "cat", "<eos>"]).tolist()
        [0, 1, 2]
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self.tokens = tuple(tokens)
        self._ids = {token: index for index, token in enumerate(self.tokens)}
        if not self.tokens:
            raise ValueError("expected at least 1 token in the vocabulary, got 0")
        if len(self._ids) < len(self.tokens):
            token, second = next(
                (token, i) for i, token in enumerate(self.tokens) if self._ids[token] != i
            )
            raise ValueError(
                f"expected distinct tokens, got {token!r} with ids {second} and {self._ids[token]}"
            )

    @classmethod
    def from_counts(
        cls, counts: Mapping[str, int], *, min_count: int = 1, special: Sequence[str] = ()
    ) -> Vocabulary:
        """Vocabulary of the frequent tokens, most frequent first, ties in string order.

        Args:
            counts: How often each token occurs in the training text.
            min_count: Fewest occurrences for a token to be kept.
            special: Tokens that are kept whatever their count. Where `<unk>` is among them, the
                occurrences of all dropped tokens count as its own.

        Raises:
            ValueError: `min_count` is below 1, or no token is left.
        """
        if min_count < 1:
            raise ValueError(f"expected min_count of 1 or more, got {min_count}")
        kept = {token: count for token, count in counts.items() if count >= min_count}
        for token in special:
            kept[token] = counts.get(token, 0)
        if UNKNOWN in special:
            kept[UNKNOWN] += sum(count for token, count in counts.items() if token not in kept)
        return cls(sorted(kept, key=lambda token: (-kept[token], token)))

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self.tokens == other.tokens

    def __hash__(self) -> int:
        return hash(self.tokens)

    def __repr__(self) -> str:
        shown = ", ".join(repr(token) for token in self.tokens[:3])
        return f"Vocabulary({len(self)} tokens: {shown}{', ...' if len(self) > 3 else ''})"

    def index(self, token: str) -> int:
        """Id of a token, or that of `<unk>` for a token that the vocabulary does not hold.

        Raises:
            ValueError: The vocabulary holds neither the token nor `<unk>`.
        """
        index = self._ids.get(token, self._ids.get(UNKNOWN))
        if index is None:
            raise ValueError(
                f"{token!r} is not among the {len(self)} tokens of the vocabulary, which has no "
                f"{UNKNOWN} to stand for it"
            )
        return index

    def encode(self, tokens: Iterable[str]) -> Tensor:
        """Ids of N tokens: an int64 tensor (N,).

        Raises:
            ValueError: As for `index`.
        """
        get, index = self._ids.get, self.index
        ids = []
        for token in tokens:
            found = get(token)
            ids.append(index(token) if found is None else found)
        return torch.tensor(ids, dtype=torch.int64)

    def decode(self, ids: Tensor | Iterable[int]) -> list[str]:
        """Tokens of N ids.

        Args:
            ids: Integer tensor (N,) or integers, each in [0, V).

        Raises:
            ValueError: An id is outside [0, V).
        """
        indices = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        for index in indices:
            if not 0 <= index < len(self):
                raise ValueError(f"expected ids from 0 to {len(self) - 1}, got {index}")
        return [self.tokens[index] for index in indices]

    def state_dict(self) -> list[str]:
        """The tokens in the order of their ids, as plain data for a checkpoint."""
        return list(self.tokens)

    @classmethod
    def from_state_dict(cls, state: Sequence[str]) -> Vocabulary:
        """The vocabulary that `state_dict` describes.

        Raises:
            ValueError: It is no list of distinct strings.
        """
        if not isinstance(state, list | tuple) or not all(isinstance(each, str) for each in state):
            raise ValueError("expected a list of strings as the tokens of a vocabulary")
        return cls(state)

    def difference(self, other: Vocabulary) -> str | None:
        """First difference from `other` in words, with both sizes; None where they are equal."""
        if self == other:
            return None
        sizes = f"{len(self)} and {len(other)} tokens"
        for index, (mine, theirs) in enumerate(zip(self.tokens, other.tokens, strict=False)):
            if mine != theirs:
                return f"{sizes}, first difference at id {index}: {mine!r} and {theirs!r}"
        longer = max(self.tokens, other.tokens, key=len)
        shared = min(len(self), len(other))
        return f"{sizes}, the same up to id {shared - 1}, then only one goes on: {longer[shared]!r}"
