"""Perplexity of a language model, from exact sums.

    ppl = exp( - Σ_i log p(w_i | w_<i) / N )        bits per token = log2 ppl

The sums over all N scored tokens are float64 and are divided once: the result does not depend on
how a text is cut into batches or shared by processes, beyond the model's own rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric


class Perplexity(Metric):
    """exp of the mean negative log-likelihood per token.

    Args:
        ignore_index: Targets with this value are not scored, `cross_entropy`'s own default.

    Example:
        >>> perplexity = Perplexity()
        >>> perplexity.update(torch.zeros(3, 50), torch.tensor([1, 2, -100]))
        >>> round(float(perplexity.compute()), 6)
        50.0
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    negative_log_likelihood: Tensor
    tokens: Tensor

    def __init__(self, ignore_index: int = -100) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("negative_log_likelihood", zero, dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Score some tokens.

        Args:
            logits: Unnormalised log-probabilities, floating point (..., V).
            target: Token ids, int64 (...).

        Raises:
            ValueError: The shapes do not belong together.
        """
        if logits.shape[:-1] != target.shape:
            raise ValueError(
                f"expected logits of shape (*{tuple(target.shape)}, V) for targets of shape "
                f"{tuple(target.shape)}, got {tuple(logits.shape)}"
            )
        losses = F.cross_entropy(
            logits.flatten(0, -2).float(),
            target.flatten(),
            ignore_index=self.ignore_index,
            reduction="none",
        )
        self.negative_log_likelihood += losses.double().sum()
        self.tokens += (target != self.ignore_index).sum()

    def compute(self) -> Tensor:
        """Perplexity: float64 scalar; NaN where no token was scored."""
        return torch.exp(self.negative_log_likelihood / self.tokens)


def bits_per_token(perplexity: Tensor) -> Tensor:
    """Bits per token, or per character of a character model: log2 of the perplexity, any shape."""
    return torch.log2(perplexity)
