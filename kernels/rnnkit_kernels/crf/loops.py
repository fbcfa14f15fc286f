"""The recursions of `crf.py` as loops in PyTorch: on logarithms, or on scaled probabilities.

While the scores are so close to each other that no term of a sum can vanish, a step on scaled
probabilities (Rabiner 1989, section V.A) is one small product of matrices; a sum of exponentials
over all pairs of tags costs several times as much.
"""

import math

import torch
from torch import Tensor

# exp(−60) and a sum of many tags stay far above the smallest float32, 1e-38; float64 has 1e-308.
_WIDEST = {torch.float32: 60.0, torch.float64: 600.0}


def close(scores: Tensor, transitions: Tensor, start: Tensor, end: Tensor) -> bool:
    """Whether no term of a sum on scaled probabilities can vanish; on a GPU nobody looks.

    Probabilities of one step differ by no more than a row of emissions and all transitions do, and
    one transition more lies in each product. False also where scores are infinite or NaN.
    """
    if scores.device.type != "cpu" or scores.numel() == 0:
        return False
    row = (scores.amax(2) - scores.amin(2)).amax()
    weights = max(float(weight.amax() - weight.amin()) for weight in (transitions, start, end))
    return float(row) + 2 * weights <= _WIDEST[scores.dtype]


def last(steps: Tensor, lengths: Tensor) -> Tensor:
    """(B, ·): what each sentence's last step has in `steps` (T, B, ·)."""
    return steps[lengths - 1, torch.arange(len(lengths), device=lengths.device)]


def forward(
    scores: Tensor, transitions: Tensor, start: Tensor, end: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The recursion on logarithms."""
    into = transitions.t().contiguous()  # sums run over adjacent numbers
    sums = [start.expand_as(scores[0])]
    for emission in scores[:-1].unbind():
        alpha = sums[-1] + emission
        sums.append(torch.logsumexp(alpha.unsqueeze(1) + into, 2))
    kept = torch.stack(sums)
    final = last(kept, lengths) + last(scores, lengths) + end
    return torch.logsumexp(final, 1), kept, scores.new_zeros(scores.shape[:2])


def backward(
    gradient: Tensor,
    scores: Tensor,
    transitions: Tensor,
    end: Tensor,
    lengths: Tensor,
    log_z: Tensor,
    sums: Tensor,
) -> tuple[Tensor, Tensor]:
    """δ (T, B, K) times the gradient, and the sum of all pairs (K, K)."""

    def total(sums: Tensor) -> Tensor:
        # Where every term is −∞, all shares are zero.
        return sums.masked_fill(sums == -math.inf, math.inf)

    # Rounded as forward, so that the largest term of a sum is exactly what it was.
    alphas, totals = sums + scores, total(sums)
    shares = torch.zeros_like(alphas)
    final = last(alphas, lengths) + end - total(log_z).unsqueeze(1)
    at = (lengths - 1, torch.arange(len(lengths), device=lengths.device))
    shares[at] = final.exp() * gradient.unsqueeze(1)
    d_transitions = torch.zeros_like(transitions)
    for t in range(len(alphas) - 1, 0, -1):
        pair = alphas[t - 1].unsqueeze(2) + transitions
        pair.sub_(totals[t].unsqueeze(1)).exp_().mul_(shares[t].unsqueeze(1))
        shares[t - 1] += pair.sum(2)
        d_transitions += pair.sum(0)
    return shares, d_transitions


def scaled_forward(
    scores: Tensor, transitions: Tensor, start: Tensor, end: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The recursion on probabilities that are scaled to sums of one."""
    (factors, peaks), (moves, highest) = _scaled(scores), _scaled(transitions, (0, 1))
    first, first_peak = _scaled(start, 0)
    ends, end_peak = _scaled(end, 0)
    kept = torch.empty_like(factors)
    sums = factors.new_empty(*factors.shape[:2], 1)
    steps = zip(kept.unbind(), factors.unbind(), sums.unbind(), strict=True)
    probabilities = None
    for alpha, factor, scale in steps:
        if probabilities is None:
            torch.mul(factor, first, out=alpha)
        else:
            torch.mm(probabilities, moves, out=alpha).mul_(factor)
        torch.sum(alpha, 1, keepdim=True, out=scale)
        probabilities = alpha.div_(scale)
    # Many logarithms are added: in float64, for that costs nothing beside the loop.
    logs = (sums.double().log() + peaks).squeeze(2).cumsum(0)
    log_z = last(logs, lengths) + (lengths - 1) * highest.double().squeeze()
    log_z = log_z + first_peak + (last(kept, lengths) @ ends).log() + end_peak
    return log_z.to(scores.dtype), kept, sums.squeeze(2)


def scaled_backward(
    gradient: Tensor,
    scores: Tensor,
    transitions: Tensor,
    end: Tensor,
    lengths: Tensor,
    alphas: Tensor,
    scales: Tensor,
) -> tuple[Tensor, Tensor]:
    """As `backward`: δ_t = α_t β_t, with β_t for all that follows step t."""
    moves, ends = _scaled(transitions, (0, 1))[0], _scaled(end, 0)[0]
    factors = _scaled(scores)[0] / scales.unsqueeze(2)
    final = last(alphas, lengths) @ ends
    betas = torch.zeros_like(alphas)
    betas[lengths - 1, torch.arange(len(lengths))] = torch.outer(gradient / final, ends)
    followed, after = betas.unbind(), factors.unbind()
    for t in range(len(followed) - 1, 0, -1):
        # Before its last step a sentence has a β of zero there, past it everywhere.
        followed[t - 1].addmm_(after[t].mul_(followed[t]), moves.t())
    pairs = alphas[:-1].flatten(0, 1).t() @ factors[1:].flatten(0, 1)
    return alphas * betas, moves * pairs


def _scaled(scores: Tensor, dim: int | tuple[int, ...] = -1) -> tuple[Tensor, Tensor]:
    """Exponentials over the largest along `dim`, and its logarithm."""
    peak = scores.amax(dim, keepdim=True)
    return (scores - peak).exp_(), peak
