"""Sampled softmax: a full one whose training loss looks at few words (Jean et al. 2015)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from rnnkit.nn.softmax import CountedOutputLayer, FullSoftmax, exact


class SampledSoftmax(CountedOutputLayer, FullSoftmax):
    r"""A full softmax that is trained on each target and a few words drawn by chance.

    S words are drawn with replacement from a proposal q, for all rows together. Those that came up
    at least once, with the target t itself, are the classes of a softmax over corrected logits:

        loss = -log( e^{z_t} / Q(t) / Σ_{w ∈ drawn ∪ t} e^{z_w} / Q(w) ),    Q(w) = 1 - (1 - q(w))^S

    Q(w), the chance of w to come up, makes up for words that are drawn more often than others (Jean
    et al. 2015, arXiv 1412.2007; TensorFlow's `sampled_softmax_loss` calls it the expected count).
    A target that was drawn as well counts once. As S grows, Q goes to 1 and the loss to the exact
    one.

    Args:
        hidden_size: H.
        vocabulary_size: V.
        samples: S.
        proposal: unigram: q follows the counts. log_uniform: q(k) = log((k + 2) / (k + 1)) /
            log(V + 1) for word k, which needs words ordered by falling frequency.
        counts: Of the words, integers (V,); None: as Zipf's law has them.

    Raises:
        ValueError: No samples; an unknown proposal; counts that do not fit.
    """

    cumulative: Tensor

    def __init__(
        self,
        hidden_size: int,
        vocabulary_size: int,
        samples: int,
        proposal: Literal["unigram", "log_uniform"] = "unigram",
        counts: Tensor | None = None,
    ) -> None:
        if samples < 1:
            raise ValueError(f"expected 1 or more samples, got {samples}")
        if proposal not in ("unigram", "log_uniform"):
            raise ValueError(f'proposal must be "unigram" or "log_uniform", got {proposal!r}')
        self.samples = samples
        self.proposal = proposal
        super().__init__(hidden_size, vocabulary_size, counts)

    def _prepare(self) -> None:
        if self.proposal == "unigram":
            cumulative = self.counts.clamp_min(1).cumsum(0)
        else:
            rank = torch.arange(2, self.vocabulary_size + 2, dtype=torch.float64)
            share = rank.log() / math.log(self.vocabulary_size + 1)
            cumulative = (share * 2**52).round().long()
        # Integers: exact, and as they are when the module is cast to another dtype.
        self.register_buffer("cumulative", cumulative.to(self.counts.device), persistent=False)

    def proposal_probabilities(self, words: Tensor) -> Tensor:
        """q of words, float64."""
        before = self.cumulative[(words - 1).clamp_min(0)].masked_fill(words == 0, 0)
        return (self.cumulative[words] - before).double() / self.cumulative[-1].double()

    def loss(self, hidden: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
        """An estimate that costs N · S; draws from torch's generator."""
        kept, hidden, target = self._counted(hidden, target, ignore_index)
        uniform = torch.rand(self.samples, dtype=torch.float64, device=hidden.device)
        point = (uniform * self.cumulative[-1]).long()
        drawn = torch.searchsorted(self.cumulative, point, right=True)
        drawn = drawn.unique()  # type: ignore[no-untyped-call]
        words = torch.cat([drawn, target])
        rows, biases = F.embedding(words, self.weight), self.bias[words]
        logits = F.linear(hidden, rows[: len(drawn)], biases[: len(drawn)])  # (N, drawn)
        logits = exact(logits) - self._log_chances(drawn)
        logits = logits.masked_fill(drawn == target.unsqueeze(1), -math.inf)
        own = (hidden * rows[len(drawn) :]).sum(1) + biases[len(drawn) :]
        own = (exact(own) - self._log_chances(target)).unsqueeze(1)
        losses = torch.logsumexp(torch.cat([own, logits], 1), 1) - own.squeeze(1)
        return losses.masked_fill(~kept, 0).sum()

    def _log_chances(self, words: Tensor) -> Tensor:
        """log Q of words, in the dtype of scores."""
        never = self.samples * torch.log1p(-self.proposal_probabilities(words))
        return (-torch.expm1(never)).log().to(exact(self.bias).dtype)

    def extra_repr(self) -> str:
        """Sizes, samples and proposal."""
        return f"{super().extra_repr()}, samples={self.samples}, proposal={self.proposal!r}"
