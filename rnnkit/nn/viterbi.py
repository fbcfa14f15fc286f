"""The k best paths of a linear-chain CRF, by Viterbi's algorithm with k survivors a tag.

v_1[j] = start[j] + emissions[1, j]
v_t[j] = the k largest of v_t−1[i] + transitions[i, j], over i and survivors, + emissions[t, j]
"""

import math

import torch
from torch import Tensor


def best_paths(
    emissions: Tensor, transitions: Tensor, start: Tensor, end: Tensor, lengths: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k best paths of each sentence.

    Args:
        emissions: floating point (T, B, K); what lies past a length is never used.
        transitions: (K, K), [from, to], −∞ for a move that is forbidden.
        start, end: (K,).
        lengths: int64 (B,), between 1 and T.
        k: how many.

    Returns:
        Scores (B, k), falling, −∞ where there are fewer paths; tags, int64 (B, k, T), without
        meaning past a length. Of equal paths the one with the lower last tag comes first, then with
        the lower last but one, and so on.
    """
    steps, batch, tags = emissions.shape
    into = transitions.t().unsqueeze(2)  # [to, from, 1]
    survivors = emissions.new_full((batch, tags, k), -math.inf)
    survivors[..., 0] = start + emissions[0]
    scores, origins = [survivors], []
    for emission in emissions[1:].unbind():
        candidates = (survivors.unsqueeze(1) + into).flatten(2)  # (B, to, from · k)
        survivors, origin = _largest(candidates, k)
        survivors = survivors + emission.unsqueeze(2)
        scores.append(survivors)
        origins.append(origin.flatten(1))
    last = torch.stack(scores)[lengths - 1, torch.arange(batch, device=lengths.device)]
    best, state = _largest((last + end.unsqueeze(1)).flatten(1), k)
    states = [state]  # tag · k + rank among its survivors, (B, k)
    for t in range(steps - 1, 0, -1):
        before = origins[t - 1].gather(1, state)
        # Until its last step is reached, a sentence waits there.
        state = torch.where((t < lengths).unsqueeze(1), before, state)
        states.append(state)
    return best, torch.stack(states[::-1], 2) // k


def _largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest along the last dimension, falling, and where; of equal ones the first."""
    if k == 1:
        return values.max(-1, keepdim=True)  # much faster than to sort
    # Not topk, which promises no order of equal ones.
    found, where = values.sort(dim=-1, descending=True, stable=True)
    return found[..., :k], where[..., :k]
