"""Sequences that begin anew in the middle: each stretch between two resets is one of its own.

A reset at step t of sequence b puts a boundary before that step. Forward in time the state there is
the reset state; backward in time the state that comes from t ends there, and t − 1 starts from the
reset state. So both directions see the same segments, in all layers, and segments are what every
engine runs already: packed rows of several lengths, sorted by them.

    t            0  1  2  3  4          segments by length   0–1, 2–3, 4
    resets       ·  ·  R  ·  R          rows of step 0       t = 0, 2, 4
                                        rows of step 1       t = 1, 3

A call over segments has as many rows as the dense one, in fewer steps of more sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from rnnkit_kernels import layers
from rnnkit_kernels.dispatch.autocast import result_dtypes
from rnnkit_kernels.dispatch.choice import PLAIN, Extras, by_definition
from rnnkit_kernels.lengths import States, checked_lengths
from rnnkit_kernels.ops.context import traces
from rnnkit_kernels.reference import chosen


@dataclass(frozen=True)
class Segments:
    """The S segments of a (T, B) batch, the longest first, and where their rows lie.

    Attributes:
        source: int64 (N,), the row t·B + b of each packed row.
        target: int64 (T·B,), the packed row of each row t·B + b; any for rows past a length.
        shape: T and B.
        inside: bool (T, B), the rows within the lengths, or None for all.
        batch_sizes: int64, how many segments have each of their steps; on the CPU if S is known.
        sequence: int64 (S,), b of each segment.
        begins: int64 (S,), t of its first step.
        at_start, at_end: bool (S,), whether it starts from its sequence's hx, forward or backward.
        first, last: int64 (B,), the segments that lie first and last in each sequence.
    """

    source: Tensor
    target: Tensor
    shape: tuple[int, int]
    inside: Tensor | None
    batch_sizes: Tensor
    sequence: Tensor
    begins: Tensor
    at_start: Tensor
    at_end: Tensor
    first: Tensor
    last: Tensor

    def pack(self, input: Tensor) -> Tensor:
        """(T, B, D) as packed rows (N, D)."""
        if self.inside is not None:
            # What lies past a length may be anything, also NaN; it must not reach a weight.
            input = input.masked_fill(~self.inside.unsqueeze(-1), 0)
        return input.flatten(0, 1).index_select(0, self.source)

    def unpack(self, output: Tensor) -> Tensor:
        """Packed rows (N, P) as (T, B, P), zero past each length."""
        found = output.index_select(0, self.target).view(*self.shape, output.shape[-1])
        return found if self.inside is None else found.masked_fill(~self.inside.unsqueeze(-1), 0)

    def start(self, hx: States, hx_reset: States | None, directions: int) -> States:
        """The initial state (L·directions, S, ·) of every segment: the sequence's or the reset's.

        Args:
            hx: (L·directions, B, ·) each.
            hx_reset: (L·directions, ·) each, or None for zeros.
            directions: 1 or 2.
        """
        anew = ~torch.stack((self.at_start, self.at_end)[:directions])
        own = tuple(value.index_select(1, self.sequence) for value in hx)
        return _after(own, anew.repeat(hx[0].shape[0] // directions, 1), hx_reset)

    def end(self, last: States, hx: States, directions: int) -> States:
        """The state (L·directions, B, ·) after each sequence's last step, hx where it has none."""
        ends = torch.stack((self.last, self.first)[:directions])
        ends = ends.repeat(hx[0].shape[0] // directions, 1).unsqueeze(-1)
        found = (value.gather(1, ends.expand(-1, -1, value.shape[-1])) for value in last)
        if self.inside is None:
            return tuple(found)
        return chosen(tuple(found), ~self.inside[0], hx)


def find_segments(resets: Tensor, lengths: Tensor | None, on_host: bool) -> Segments | None:
    """Split each sequence where it begins anew.

    Where the host may not look (in a trace, while a graph is captured) no shape depends on a
    value: each of the T·B places counts as a segment, most of them empty, and what lies past a
    length is one more segment, of which nobody reads the result.

    Args:
        resets: bool (T, B).
        lengths: int64 (B,) on the device of `resets`, or None.
        on_host: whether values may be read.

    Returns:
        The segments, or None if the host sees that no sequence begins anew after its first step.
    """
    steps, batch = resets.shape
    step = torch.arange(steps, device=resets.device)[:, None].expand(steps, batch)
    column = torch.arange(batch, device=resets.device)
    place = torch.arange(steps * batch, device=resets.device)
    inside = None if lengths is None else step < lengths
    starts = resets if inside is None else resets & inside
    if on_host and not bool(starts[1:].any()):
        return None
    starts = starts | (step == 0)
    real = torch.ones_like(place)
    if inside is not None and on_host:
        starts, real = starts & inside, inside.flatten().long()
    elif lengths is not None:
        starts = starts | (step == lengths)
    begin = torch.where(starts, step, 0).cummax(0).values
    own = (step - begin).flatten()  # the step of a row within its segment
    name = (begin * batch + column).flatten()  # the place of its segment's first row
    names = starts.flatten().nonzero().squeeze(1) if on_host else place
    length = torch.zeros_like(place).scatter_add(0, name, real)[names]
    length, order = length.sort(descending=True, stable=True)
    names = names[order]
    rank = torch.zeros_like(place).scatter(0, names, place[: names.shape[0]])
    batch_sizes = place.new_zeros(steps).scatter_add(0, own, real)
    offsets = batch_sizes.cumsum(0) - batch_sizes
    target = offsets[own] + rank[name]
    if on_host:
        longest, rows = torch.stack([length[0], real.sum()]).tolist()
        batch_sizes = batch_sizes[:longest].cpu()  # where a PackedSequence has them
        # One place behind all others takes the rows past a length, and is cut off.
        behind = target * real + (1 - real) * rows
        source = place.new_zeros(rows + 1).scatter(0, behind, place)[:rows]
        target = target * real
    else:
        source = torch.zeros_like(place).scatter(0, target, place)
    final = (steps - 1) * batch if lengths is None else (lengths - 1).clamp(min=0) * batch
    last = rank[name[final + column]]
    sequence = column.expand(steps, batch).flatten()[names]
    begins = step.flatten()[names]
    return Segments(
        source=source,
        target=target,
        shape=(steps, batch),
        inside=inside,
        batch_sizes=batch_sizes,
        sequence=sequence,
        begins=begins,
        at_start=(begins == 0) & ~resets[0][sequence],
        at_end=last[sequence] == place[: names.shape[0]],
        first=rank[:batch],
        last=last,
    )


def recurrent(
    cell: str,
    input: Tensor,
    hx: States,
    weights: Any,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    hx_reset: States | None = None,
    **options: Any,
) -> tuple[Tensor, States]:
    """`layers.recurrent` for sequences that may begin anew.

    On a GPU the host waits for what it has to count, unless a graph is being captured.

    Args:
        cell, input, hx, weights, lengths, options: as for `layers.recurrent`.
        resets: bool (T, B), or None; true past a length changes nothing.
        hx_reset: the state after a reset, (L·directions, ·) each, or None for zeros.

    Raises:
        ValueError: resets that are not bool (T, B), or go with `batch_sizes`.
    """
    if resets is None or input.shape[0] == 0:  # which is an error there
        return layers.recurrent(cell, input, hx, weights, lengths=lengths, **options)
    if options.get("batch_sizes") is not None:
        raise ValueError("resets go with a padded input, not with batch_sizes")
    if resets.dtype != torch.bool or resets.shape != input.shape[:2]:
        raise ValueError(
            f"expected resets to be booleans {tuple(input.shape[:2])}, as the input, got "
            f"{resets.dtype} {tuple(resets.shape)}"
        )
    if lengths is not None:
        lengths = checked_lengths(lengths, input).to(resets.device)
        resets = resets & (torch.arange(resets.shape[0], device=resets.device)[:, None] < lengths)
    given = {"lengths": lengths, **options}
    extras: Extras = options.get("extras", PLAIN)
    directions = 2 if options.get("bidirectional") else 1
    segments = None
    if input.shape[0] > 1 or traces():  # a trace of one step may be called with more
        if by_definition(extras):
            given |= {"resets": resets, "hx_reset": hx_reset}
            return layers.recurrent(cell, input, hx, weights, **given)
        if not _has_values(resets):
            return layers.recurrent(cell, input, hx, weights, **given)
        segments = find_segments(resets, lengths, _may_read(resets))
    if segments is None:
        start = first_states(hx, resets[0], hx_reset, directions)
        return layers.recurrent(cell, input, start, weights, **given)
    given |= {"lengths": None, "batch_sizes": segments.batch_sizes}
    given |= {"order": segments.sequence, "begins": segments.begins}
    start = segments.start(hx, hx_reset, directions)
    output, last = layers.recurrent(cell, segments.pack(input), start, weights, **given)
    output, last = segments.unpack(output), segments.end(last, hx, directions)
    if extras.missing_in_torch(cell) is None:
        # Under autocast dtypes are those of the call without resets, not those of packed rows.
        projected = bool(options.get("has_projections"))
        dtypes = result_dtypes(cell, weights[1], hx, lengths is not None, projected)
        if dtypes:
            output = output.to(dtypes[0])
            last = tuple(value.to(own) for value, own in zip(last, dtypes, strict=True))
    return output, last


def _has_values(resets: Tensor) -> bool:
    """Whether there is anything to look at: shapes are the same with and without resets."""
    return not (resets.is_meta or isinstance(resets, FakeTensor))


def _may_read(resets: Tensor) -> bool:
    """Whether the host may wait for values."""
    if torch.compiler.is_compiling() or traces():
        return False
    return not (resets.is_cuda and torch.cuda.is_current_stream_capturing())


def first_states(
    hx: States, resets: Tensor, hx_reset: States | None, directions: int = 1
) -> States:
    """What sequences start from that begin anew at their first step, or not, and nowhere else.

    Backward in time that step is the last one: nothing starts after it.

    Args:
        hx: (L·directions, B, ·) each.
        resets: bool (B,).
        hx_reset: (L·directions, ·) each, or None for zeros.
        directions: 1 or 2.
    """
    if directions == 2:
        forward = torch.arange(hx[0].shape[0], device=resets.device) % 2 == 0
        resets = forward[:, None] & resets
    return _after(hx, resets, hx_reset)


def _after(state: States, anew: Tensor, hx_reset: States | None) -> States:
    """The state (L·directions, ·) after a reset in the place of `state` (L·directions, S, ·)."""
    other = None if hx_reset is None else tuple(value.unsqueeze(1) for value in hx_reset)
    return chosen(state, anew, other)
