r"""A linear-chain conditional random field over the tags of a sentence (Lafferty et al. 2001).

    score(x, y) = start[y_1] + Σ_t emissions[t, y_t] + Σ_t transitions[y_t, y_t+1] + end[y_n]
    log p(y | x) = score(x, y) − log Σ_y' exp(score(x, y'))

Constructor, calls, parameters and exceptions are those of pytorch-crf 0.7.2. Beside them: allowed
moves, marginals, probabilities of stretches, the k best paths, and masks with holes, whose steps
are as if they were not there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from rnnkit.nn.forward_backward import stretch_probabilities
from rnnkit.nn.tag_paths import check_tags, compact, may_look, path_scores, real_steps
from rnnkit.nn.viterbi import best_paths
from rnnkit_kernels import functional

REDUCTIONS = ("none", "sum", "mean", "token_mean")


class Constraints(NamedTuple):
    """What a path may do, True for allowed.

    Attributes:
        start: bool (K,), tags that a sentence may begin with.
        end: bool (K,), tags that it may end with.
        transitions: bool (K, K), moves [from, to].
    """

    start: Tensor
    end: Tensor
    transitions: Tensor


class CRF(nn.Module):
    """Scores of neighbouring tags, and what follows for whole paths of them.

    Steps come first, (T, B, K), or with `batch_first` sentences, (B, T, K). A mask is bool or uint8
    (T, B), or (B, T), one where a step is real, and on in the first step of every sentence. Numbers
    of half precision, under autocast too, are computed with in float32.

    Under `torch.compile` log-likelihoods stay in one graph; decoding leaves it, for it ends in
    lists.

    Args:
        num_tags: K.
        batch_first: Whether sentences come before steps.
        constraints: What paths may do in `decode`, `marginals` and `k_best`; None for everything.
        constrain_training: Whether other paths have no probability in `forward` and
            `log_partition` either.
        backend: "auto", "triton" or "torch": what sums over all paths.

    Raises:
        ValueError: Not one tag, constraints of other shapes, `constrain_training` without any, or
            an unknown backend.
        TypeError: Constraints that are not bool.

    Example:
        >>> crf = CRF(5)
        >>> emissions, tags = torch.randn(7, 2, 5), torch.randint(5, (7, 2))
        >>> loss = -crf(emissions, tags, reduction="mean")
        >>> [len(path) for path in crf.decode(emissions)]
        [7, 7]
    """

    def __init__(
        self,
        num_tags: int,
        batch_first: bool = False,
        constraints: Constraints | None = None,
        constrain_training: bool = False,
        backend: Literal["auto", "triton", "torch"] = "auto",
    ) -> None:
        if num_tags <= 0:
            raise ValueError(f"invalid number of tags: {num_tags}")
        if constrain_training and constraints is None:
            raise ValueError("constrain_training needs constraints, got None")
        if backend not in ("auto", "triton", "torch"):
            raise ValueError(f"backend must be one of auto, triton, torch, got {backend!r}")
        super().__init__()
        self.num_tags = num_tags
        self.batch_first = batch_first
        self.constrain_training = constrain_training
        self.backend = backend
        self.start_transitions = nn.Parameter(torch.empty(num_tags))
        self.end_transitions = nn.Parameter(torch.empty(num_tags))
        self.transitions = nn.Parameter(torch.empty(num_tags, num_tags))
        shapes = ((num_tags,), (num_tags,), (num_tags, num_tags))
        for i, (name, shape) in enumerate(zip(Constraints._fields, shapes, strict=True)):
            allowed = None if constraints is None else constraints[i]
            if allowed is not None and allowed.dtype != torch.bool:
                raise TypeError(f"constraints.{name} must be bool, got {allowed.dtype}")
            if allowed is not None and allowed.shape != shape:
                raise ValueError(
                    f"expected constraints.{name} of shape {shape} for {num_tags} tags, "
                    f"got {tuple(allowed.shape)}"
                )
            # Not in the state_dict, which is pytorch-crf's.
            self.register_buffer(f"allowed_{name}", allowed, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all scores from U(−0.1, 0.1)."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)

    @property
    def constraints(self) -> Constraints | None:
        """What paths may do; None for everything."""
        allowed = [getattr(self, f"allowed_{name}") for name in Constraints._fields]
        return None if allowed[0] is None else Constraints(*allowed)

    def extra_repr(self) -> str:
        """The number of tags, and what is not the default."""
        said = [f"num_tags={self.num_tags}"]
        said += ["batch_first=True"] * self.batch_first
        said += ["constrained"] * (self.constraints is not None)
        said += ["constrain_training=True"] * self.constrain_training
        return ", ".join(said)

    def forward(
        self,
        emissions: Tensor,
        tags: Tensor,
        mask: Tensor | None = None,
        reduction: str = "sum",
    ) -> Tensor:
        """The log-likelihood of paths.

        Args:
            emissions: Floating point (T, B, K).
            tags: Integers (T, B), in [0, K) where the mask is on.
            mask: Which steps are real, (T, B); None for all.
            reduction: "none", "sum", "mean" over sentences, or "token_mean" over real steps.

        Returns:
            (B,) for "none", else a scalar.

        Raises:
            ValueError: Shapes that do not fit, a mask that is off in a first step, an unknown
                reduction, or, with `constrain_training`, a path that breaks a constraint. On a GPU,
                where to look would make the host wait, such a path has a log-likelihood of −∞
                instead, and a mask that is off in a first step stops the device.
            IndexError: A tag outside [0, K), on a GPU a device assertion; or no step at all.
        """
        emissions, mask = self._checked(emissions, mask, tags)
        if reduction not in REDUCTIONS:
            raise ValueError(f"invalid reduction: {reduction}, expected {', '.join(REDUCTIONS)}")
        tags = (tags.transpose(0, 1) if self.batch_first else tags).long()
        emissions, lengths, order = compact(emissions, mask)
        if order is not None:
            tags = tags.gather(0, order)
        real = real_steps(lengths, len(emissions))
        tags = tags.masked_fill(~real, 0)  # padding may hold anything
        if may_look(tags):
            allowed = self.constraints if self.constrain_training else None
            check_tags(tags, real, order, self.num_tags, allowed)
        emissions = emissions.to(self._dtype(emissions))  # once: its gradient is rounded once
        weights = self._weights(emissions, self.constrain_training)
        gold = path_scores(emissions, tags, real, lengths, *weights)
        log_z = functional.crf(emissions, *weights, lengths, backend=self.backend)
        likelihood = gold - log_z
        if self.constrain_training:
            # Not NaN where no path at all is allowed.
            likelihood = torch.where(gold == -math.inf, gold, likelihood)
        if reduction == "none":
            return likelihood
        if reduction == "sum":
            return likelihood.sum()
        if reduction == "mean":
            return likelihood.mean()
        return likelihood.sum() / lengths.sum()

    def log_partition(
        self, emissions: Tensor, mask: Tensor | None = None, constrained: bool | None = None
    ) -> Tensor:
        """log Z of each sentence, (B,).

        Args:
            emissions: Floating point (T, B, K).
            mask: (T, B), or None.
            constrained: Whether to sum over the paths that the constraints allow, or over all of
                them; None: as `forward` does.
        """
        emissions, lengths, _ = compact(*self._checked(emissions, mask))
        constrained = self.constrain_training if constrained is None else constrained
        weights = self._weights(emissions, constrained)
        return functional.crf(emissions, *weights, lengths, backend=self.backend)

    def marginals(self, emissions: Tensor, mask: Tensor | None = None) -> Tensor:
        """The probability of every tag at every step, under the constraints.

        Args:
            emissions: Floating point (T, B, K).
            mask: (T, B), or None.

        Returns:
            As emissions, float64 or float32; zero where the mask is off, and where no path is
            allowed.
        """
        again = torch.is_grad_enabled()
        # Inference mode has no gradients, and its tensors none either: copies have.
        with torch.inference_mode(False), torch.enable_grad():
            given = emissions.clone() if emissions.is_inference() else emissions
            given = given.to(self._dtype(emissions))
            given = given if given.requires_grad else given.detach().requires_grad_()
            real, lengths, _ = compact(*self._checked(given, mask))
            weights = self._weights(real, constrained=True)
            moves, start, end = (w.clone() if w.is_inference() else w for w in weights)
            log_z = functional.crf(real, moves, start, end, lengths, backend=self.backend)
            (found,) = torch.autograd.grad(log_z.sum(), given, create_graph=again)
        return found

    def decode(self, emissions: Tensor, mask: Tensor | None = None) -> list[list[int]]:
        """The best path of each sentence, by Viterbi's algorithm.

        Args:
            emissions: Floating point (T, B, K).
            mask: (T, B), or None.

        Returns:
            Of each sentence one tag a real step. Of equal paths the one with the lower last tag,
            then with the lower last but one, and so on.

        Raises:
            ValueError: As in `forward`; no path is allowed.
            FloatingPointError: The best path's score is NaN or infinite.
        """
        return [best[0][0] for best in self._best(emissions, 1, mask)]

    def k_best(
        self, emissions: Tensor, k: int, mask: Tensor | None = None
    ) -> list[list[tuple[list[int], float]]]:
        """The best paths of each sentence, under the constraints.

        Args:
            emissions: Floating point (T, B, K).
            k: How many; fewer where there are fewer.
            mask: (T, B), or None.

        Returns:
            Of each sentence pairs of a path, as `decode` gives it, and its score, falling.

        Raises:
            ValueError: As in `decode`; k below one.
            FloatingPointError: As in `decode`.
        """
        if k < 1:
            raise ValueError(f"expected at least one path, got k={k}")
        return self._best(emissions, k, mask)

    @torch.no_grad()
    def stretch_probabilities(
        self,
        emissions: Tensor,
        paths: Sequence[Sequence[int]],
        stretches: Sequence[Sequence[tuple[int, int]]],
        mask: Tensor | None = None,
    ) -> list[list[float]]:
        """How probable stretches of paths are, under the constraints, whatever stands around them.

        Args:
            emissions: Floating point (T, B, K).
            paths: Of each sentence, as `decode` gives it.
            stretches: Of each sentence, their first steps and the steps behind their last ones.
            mask: (T, B), or None.

        Returns:
            Of each sentence a probability for each stretch.
        """
        emissions, lengths, _ = compact(*self._checked(emissions, mask))
        places = [(b, *each) for b, some in enumerate(stretches) for each in some]
        if not places:
            return [[] for _ in stretches]
        device = emissions.device
        tags = pad_sequence([torch.tensor(path) for path in paths])
        found = stretch_probabilities(
            emissions,
            *self._weights(emissions, constrained=True),
            lengths,
            F.pad(tags, (0, 0, 0, len(emissions) - len(tags))).to(device),
            torch.tensor(places, device=device),
        )
        in_order = iter(found.tolist())
        return [[next(in_order) for _ in some] for some in stretches]

    @torch.no_grad()
    def _best(
        self, emissions: Tensor, k: int, mask: Tensor | None
    ) -> list[list[tuple[list[int], float]]]:
        emissions, lengths, _ = compact(*self._checked(emissions, mask))
        weights = self._weights(emissions, constrained=True)
        scores, paths = best_paths(emissions.to(self._dtype(emissions)), *weights, lengths, k)
        found = []
        of_sentences = zip(scores.tolist(), paths.tolist(), lengths.tolist(), strict=True)
        for b, (values, candidates, length) in enumerate(of_sentences):
            if math.isnan(values[0]) or values[0] == math.inf:
                raise FloatingPointError(not_finite(b))
            # A score of −∞ is no path's, or that of one that is forbidden.
            pairs = zip(candidates, values, strict=True)
            found.append([(path[:length], value) for path, value in pairs if value != -math.inf])
            if not found[-1]:
                raise ValueError(
                    f"no path of {length} steps is allowed for sentence {b}: the constraints "
                    "exclude each other, or all emissions of a step are -inf"
                )
        return found

    def _checked(
        self, emissions: Tensor, mask: Tensor | None, tags: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Emissions (T, B, K) and mask bool (T, B), or pytorch-crf's exceptions."""
        if emissions.dim() != 3:
            raise ValueError(f"emissions must have dimension of 3, got {emissions.dim()}")
        if emissions.shape[2] != self.num_tags:
            raise ValueError(
                f"expected last dimension of emissions is {self.num_tags}, got {emissions.shape[2]}"
            )
        for name, other in (("tags", tags), ("mask", mask)):
            if other is not None and emissions.shape[:2] != other.shape:
                raise ValueError(
                    f"the first two dimensions of emissions and {name} must match, "
                    f"got {tuple(emissions.shape[:2])} and {tuple(other.shape)}"
                )
        if tags is not None and tags.dtype.is_floating_point:
            raise IndexError(f"tags must be integers, got {tags.dtype}")
        if self.batch_first:
            emissions = emissions.transpose(0, 1)
        if emissions.shape[0] == 0:
            raise IndexError(
                f"expected at least one step, got 0 for {emissions.shape[1]} sentences"
            )
        if mask is None:
            return emissions, None
        if mask.dtype not in (torch.bool, torch.uint8):
            raise RuntimeError(f"expected a mask of dtype bool or uint8, got {mask.dtype}")
        mask = (mask.transpose(0, 1) if self.batch_first else mask).bool()
        if not may_look(mask):
            torch._assert_async(mask[0].all(), "mask of the first timestep must all be on")
        elif not mask[0].all():
            where = int((~mask[0]).nonzero()[0])
            raise ValueError(
                f"mask of the first timestep must all be on, but it is off for sentence {where}"
            )
        return emissions, mask

    def _dtype(self, emissions: Tensor) -> torch.dtype:
        wide = torch.float64 in (emissions.dtype, self.transitions.dtype)
        return torch.float64 if wide else torch.float32

    def _weights(self, emissions: Tensor, constrained: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Transitions, start and end as they act: −∞ where forbidden; float32 or float64."""
        weights = (self.transitions, self.start_transitions, self.end_transitions)
        moves, start, end = (weight.to(self._dtype(emissions)) for weight in weights)
        if constrained and self.constraints is not None:
            allowed = self.constraints
            moves = moves.masked_fill(~allowed.transitions, -math.inf)
            start = start.masked_fill(~allowed.start, -math.inf)
            end = end.masked_fill(~allowed.end, -math.inf)
        return moves, start, end


def not_finite(sentence: int) -> str:
    """Why a sentence has no best tags, in words."""
    return (
        f"the scores of the tags of sentence {sentence} of the batch are NaN or infinite: look for "
        "NaN and infinity in the model's parameters or in what it reads"
    )
