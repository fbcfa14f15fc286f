r"""How probable stretches of a path are in a linear-chain CRF, all of them from two passes.

    before_1[j] = start[j]
    before_t[j] = log Σ_i exp(before_t−1[i] + emissions[t−1, i] + A[i, j])
    after_n[i]  = end[i]
    after_t[i]  = log Σ_j exp(A[i, j] + emissions[t+1, j] + after_t+1[j])

    log p(y_s..y_e | x) = before_s[y_s] + Σ_t emissions[t, y_t] + Σ_t A[y_t, y_t+1] + after_e[y_e]
                          − log Z

The forward–backward algorithm (Rabiner 1989, section III-A); the confidence of a stretch is Culotta
and McCallum's (2004). Both passes cost O(T K²), whatever the number of stretches.
"""

from __future__ import annotations

import torch
from torch import Tensor


def stretch_probabilities(
    emissions: Tensor,
    transitions: Tensor,
    start: Tensor,
    end: Tensor,
    lengths: Tensor,
    paths: Tensor,
    stretches: Tensor,
) -> Tensor:
    """Probabilities of stretches of paths, whatever the tags before and after.

    Args:
        emissions: Floating point (T, B, K); what lies past a length is never used.
        transitions: (K, K), [from, to], −∞ for a move that is forbidden.
        start, end: (K,).
        lengths: int64 (B,), between 1 and T.
        paths: int64 (T, B), an allowed path for each sentence; any tags past its length.
        stretches: int64 (N, 3): sentence, first step, and the step behind the last one.

    Returns:
        float64 (N,), in [0, 1]. Sums over a book's worth of steps leave float32 no decimals.
    """
    emissions, transitions, start, end = (
        each.double() for each in (emissions, transitions, start, end)
    )
    steps = torch.arange(len(emissions), device=emissions.device).unsqueeze(1)
    inside = steps < lengths
    emissions = emissions.masked_fill(~inside.unsqueeze(2), 0.0)
    # Backwards is forwards through the turned sentence, so one loop does both.
    turned = torch.where(inside, lengths - 1 - steps, steps).unsqueeze(2).expand_as(emissions)
    both = torch.stack([emissions, emissions.gather(0, turned)], 1)  # (T, 2, B, K)
    moves = torch.stack([transitions, transitions.t()]).unsqueeze(1)  # (2, 1, K, K)
    arriving = torch.stack([start, end]).unsqueeze(1).expand_as(both[0])
    reached = [arriving]
    for emission in both[:-1].unbind():
        arriving = torch.logsumexp((arriving + emission).unsqueeze(3) + moves, 2)
        reached.append(arriving)
    before, after = torch.stack(reached).unbind(1)  # (T, B, K)
    after = after.gather(0, turned)
    log_z = torch.logsumexp(before[0] + emissions[0] + after[0], 1)

    def chosen(scores: Tensor) -> Tensor:
        return scores.gather(2, paths.unsqueeze(2)).squeeze(2)  # (T, B)

    arrival = transitions[paths[:-1], paths[1:]].masked_fill(~inside[1:], 0.0)
    steps_of_path = chosen(emissions)
    along = steps_of_path.clone()
    along[1:] += arrival
    so_far = along.cumsum(0)
    sentence, first, behind = stretches.unbind(1)
    last = behind - 1
    found = chosen(before)[first, sentence] + chosen(after)[last, sentence] - log_z[sentence]
    found += so_far[last, sentence] - so_far[first, sentence] + steps_of_path[first, sentence]
    return found.exp().clamp(max=1)
