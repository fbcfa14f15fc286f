"""Sampling: draw each next token from the model's distribution, sharpened or cut.

    q(w) ∝ p(w)^(1 / temperature)  on the tokens kept by top-k and by top-p

Top-p keeps the smallest set of most probable tokens whose probability reaches p, after the
temperature (Holtzman et al. 2020, arXiv 1904.09751).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rnnkit.decoding.greedy import walk
from rnnkit.decoding.steps import Hypothesis, StepModel, check_at_least_one, length_limits


@dataclass(frozen=True)
class Sampler:
    """Draws tokens from a model, the same ones for the same seed.

    Args:
        temperature: Below 1 sharpens the distribution, above 1 flattens it; 0 takes the most
            probable token every time.
        top_k: Draw from the k most probable tokens only. None: from all.
        top_p: Draw from the most probable tokens that together reach this probability. None: all.
        seed: Of the draws. None: another one every time.
        max_length: Most tokens for a sentence, the end token included. `generate` is given its
            length.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> sampler = Sampler(top_k=2, seed=0)
        >>> generator = torch.Generator().manual_seed(0)
        >>> sampler.choose(torch.log(torch.tensor([[0.1, 0.5, 0.4]])), generator).shape
        torch.Size([1])
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    max_length: int = 100

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"expected a temperature of 0 or more, got {self.temperature}")
        if self.top_k is not None:
            check_at_least_one("top_k", self.top_k)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"expected top_p above 0 and up to 1, got {self.top_p}")
        check_at_least_one("max_length", self.max_length)

    def __call__(
        self,
        model: StepModel,
        source: Any,
        begin: Tensor,
        end: int | None,
        limits: Tensor | None = None,
    ) -> list[list[Hypothesis]]:
        """Draw B sentences.

        What a seed draws for a sentence depends on the other sentences of the batch.

        Args:
            model: Gives the distributions; in evaluation mode, or its dropout acts.
            source: What `model.start` reads.
            begin: Tokens that the first step reads, int64 (B,).
            end: Token that ends a sentence. None: each one goes on to its maximum length.
            limits: Most tokens for each sentence, integers (B,); `max_length` holds as well.

        Returns:
            For each sentence one hypothesis, with its log-probability under the model itself, or
            none where no token could follow any more.

        Raises:
            ValueError: A shape or a limit is wrong.
            FloatingPointError: The model gave NaN for a log-probability.
        """
        limits = length_limits(begin, self.max_length, limits)
        generator = self._generator(begin.device)

        def choose(log_probabilities: Tensor) -> Tensor:
            # What is drawn where nothing can be does not matter: the sum shows what it is.
            return self._draw(log_probabilities, generator)[0]

        return walk(model, source, begin, end, limits, choose)

    def generate(self, model: StepModel, source: Tensor, tokens: Tensor, length: int) -> Tensor:
        """Continue B texts.

        Args:
            model: Gives the distributions; in evaluation mode, or its dropout acts.
            source: What `model.start` reads, int64 (T, B): for a language model the prompt
                without its last token.
            tokens: Tokens that the first step reads, int64 (B,): the last ones of the prompts.
            length: Number of tokens to draw for each text.

        Returns:
            int64 (length, B).

        Raises:
            FloatingPointError: The model gave NaN for a log-probability, or no token could follow.
        """
        generator = self._generator(tokens.device)
        drawn = tokens.new_empty(length, len(tokens))
        broken = torch.zeros_like(tokens, dtype=torch.bool)
        with torch.inference_mode():
            state = model.start(source)
            for step in range(length):
                log_probabilities, state = model.step(tokens, state)
                tokens, usable = self._draw(log_probabilities, generator)
                drawn[step], broken = tokens, broken | ~usable
        if bool(broken.any()):  # once, for the host waits here
            raise FloatingPointError(
                "the model gave NaN log-probabilities, or none above -inf, for sentence "
                f"{int(broken.int().argmax())} of the batch: look for NaN in its parameters or its "
                "source"
            )
        return drawn

    def _draw(self, log_probabilities: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens, and where they mean something, bool (B,).

        Rows without any possible token, or with NaN, can't be drawn from and get any token.
        """
        usable = log_probabilities.amax(dim=-1, keepdim=True) > -torch.inf
        return self.choose(log_probabilities.where(usable, 0.0), generator), usable.squeeze(-1)

    def _generator(self, device: torch.device) -> torch.Generator:
        generator = torch.Generator(device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator

    def choose(self, log_probabilities: Tensor, generator: torch.Generator) -> Tensor:
        """One token for each distribution.

        Args:
            log_probabilities: Floating point (B, V); need not be normalised.
            generator: Source of the draws, on the same device.

        Returns:
            int64 (B,).
        """
        if self.temperature == 0:
            return log_probabilities.argmax(dim=-1)
        scores = log_probabilities.float()
        # The best one's is 0, which no temperature divides into infinity.
        scores = (scores - scores.amax(dim=-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            kept = scores.topk(self.top_k, dim=-1)
            scores = torch.full_like(scores, -torch.inf).scatter(-1, kept.indices, kept.values)
        probabilities = scores.softmax(dim=-1)
        if self.top_p is not None:
            ordered, indices = probabilities.sort(dim=-1, descending=True, stable=True)
            # Kept while what stands before is short of p: the first token always is.
            beyond = ordered.cumsum(dim=-1) - ordered >= self.top_p
            ordered = ordered.masked_fill(beyond, 0.0)
            probabilities = torch.zeros_like(probabilities).scatter(-1, indices, ordered)
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
