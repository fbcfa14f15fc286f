"""A model that never says some tokens, for any search or sampler of this package."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from rnnkit.decoding.steps import StepModel


class Without:
    """A model some of whose tokens are forbidden: their log-probability is -inf.

    The others keep theirs, so a hypothesis has its log-probability under the model itself; samples
    are drawn from what is left.

    Args:
        model: Gives the distributions.
        tokens: Ids that are forbidden.

    Example:
        >>> class Dice:
        ...     def start(self, source):
        ...         return None
        ...     def step(self, tokens, state):
        ...         return torch.tensor([[0.2, 0.5, 0.3]]).log().expand(len(tokens), 3), state
        >>> from rnnkit.decoding import GreedySearch
        >>> search = GreedySearch(max_length=2)
        >>> search(Without(Dice(), [1]), None, torch.tensor([0]), end=None)[0][0].tokens
        [2, 2]
    """

    def __init__(self, model: StepModel, tokens: Iterable[int]) -> None:
        self.model = model
        self.tokens = list(tokens)

    def start(self, source: Any) -> Any:
        """The model's own state."""
        return self.model.start(source)

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Log-probabilities (B, V), not normalised over what is allowed, and the model's state."""
        log_probabilities, state = self.model.step(tokens, state)
        forbidden = torch.tensor(self.tokens, dtype=torch.int64, device=log_probabilities.device)
        return log_probabilities.index_fill(-1, forbidden, -torch.inf), state
