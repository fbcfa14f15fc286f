"""Given paths of tags: the steps they have, whether they may be, and what they score."""

import torch
from torch import Tensor


def may_look(tensor: Tensor) -> bool:
    """Whether values can be read without making the host wait, or breaking a trace."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def real_steps(lengths: Tensor, steps: int) -> Tensor:
    """Which steps are real: bool (T, B)."""
    return torch.arange(steps, device=lengths.device).unsqueeze(1) < lengths


def compact(emissions: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Emissions without the holes of the mask, lengths (B,), and where each step was before.

    The order is int64 (T, B), or None where nothing had to move.
    """
    steps, batch, _ = emissions.shape
    if mask is None:
        return emissions, torch.full((batch,), steps, device=emissions.device), None
    lengths = mask.sum(0)
    if may_look(mask) and torch.equal(mask, real_steps(lengths, steps)):
        return emissions, lengths, None
    order = (~mask).to(torch.uint8).argsort(dim=0, stable=True)  # CUDA sorts no bool
    return emissions.gather(0, order.unsqueeze(2).expand_as(emissions)), lengths, order


def path_scores(
    emissions: Tensor,
    tags: Tensor,
    inside: Tensor,
    lengths: Tensor,
    transitions: Tensor,
    start: Tensor,
    end: Tensor,
) -> Tensor:
    """Scores (B,) of paths (T, B) that lie inside the lengths."""
    chosen = emissions.gather(2, tags.unsqueeze(2)).squeeze(2).masked_fill(~inside, 0.0)
    moves = transitions[tags[:-1], tags[1:]].masked_fill(~inside[1:], 0.0)
    last = tags.gather(0, (lengths - 1).unsqueeze(0)).squeeze(0)
    return chosen.sum(0) + moves.sum(0) + start[tags[0]] + end[last]


def check_tags(
    tags: Tensor,
    inside: Tensor,
    order: Tensor | None,
    num_tags: int,
    allowed: tuple[Tensor, Tensor, Tensor] | None,
) -> None:
    """Refuse tags that are none, and paths that are not allowed.

    Args:
        tags: int64 (T, B), zero where not inside.
        inside: bool (T, B), as `real_steps` gives it.
        order: as `compact` gives it, for the messages.
        num_tags: K.
        allowed: bool, first tags (K,), last tags (K,) and moves [from, to] (K, K); None for all.

    Raises:
        IndexError: a tag outside [0, K).
        ValueError: a path that is not allowed; the message names sentence, step and tags.
    """

    def refuse(wrong: Tensor, error: type[Exception], message: str, before: int = 0) -> None:
        """Raise for the first of `wrong`, bool (T or T − 1, B)."""
        if not wrong.any():
            return
        b, t = wrong.t().nonzero()[0].tolist()
        t += before
        tag, previous = int(tags[t, b]), int(tags[t - before, b])
        step = t if order is None else int(order[t, b])
        where = f"sentence {b}, step {step}: "
        raise error(where + message.format(tag=tag, previous=previous))

    strange = (tags < 0) | (tags >= num_tags)
    refuse(strange, IndexError, f"tag {{tag}} is out of range for {num_tags} tags")
    if allowed is None:
        return
    first, last, moves = allowed
    remedy = "which the constraints forbid: correct the tags, or train without constrain_training"
    ends = inside & ~torch.cat([inside[1:], torch.zeros_like(inside[:1])])
    refuse(~first[tags[:1]], ValueError, f"tag {{tag}} comes first, {remedy}")
    broken = ~moves[tags[:-1], tags[1:]] & inside[1:]
    refuse(broken, ValueError, f"tag {{previous}} goes to tag {{tag}}, {remedy}", before=1)
    refuse(~last[tags] & ends, ValueError, f"tag {{tag}} comes last, {remedy}")
