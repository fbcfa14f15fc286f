"""From sequences of several lengths to rows: packed where the host may read them, else padded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rnnkit_kernels.dispatch.choice import Decision
from rnnkit_kernels.ops.context import traces
from rnnkit_kernels.recurrence.rows import Rows

States = tuple[Tensor, ...]
Run = Callable[[Tensor, States, Rows, Tensor | None], tuple[Tensor, States]]


def packed_rows(batch_sizes: Tensor, batch: int) -> Rows:
    """The rows of packed sequences, `batch` of them."""
    offsets = batch_sizes.cumsum(0) - batch_sizes
    return Rows(batch_sizes.shape[0], batch, batch_sizes, offsets)


def sequences(batch_sizes: Tensor) -> int:
    """B of a PackedSequence; of torch.jit's tracer a tensor, as sizes are there, no constant."""
    batch: Any = batch_sizes[0]
    return batch if traces() else int(batch)


def on_host(lengths: Tensor, decision: Decision) -> bool:
    """Whether lengths may be read: not on a device, in a trace or under a transform."""
    traced = torch.compiler.is_compiling() or traces()
    traced = traced or decision.engine == "reference"
    return lengths.device.type == "cpu" and not traced


def checked_lengths(lengths: Tensor, input: Tensor, least: int = 0) -> Tensor:
    """The lengths as int64, found to be one a sequence, and between `least` and T.

    Raises:
        ValueError: they are not; on a device, or while it is traced, an assertion there fails. In
            what torch.jit has traced it is a RuntimeError, "index out of range".
    """
    steps, batch = input.shape[:2]
    if lengths.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise ValueError(f"lengths must be integers, got {lengths.dtype}")
    if lengths.shape != (batch,):
        raise ValueError(
            f"expected one length a sequence, shape ({batch},), got {tuple(lengths.shape)}"
        )
    lengths = lengths.to(torch.int64)  # int8 could not be compared with 200 steps
    outside = (lengths < least) | (lengths > steps)
    if traces():  # an assertion has no result, so it would drop out of the trace
        allowed = torch.arange(least, steps + 1, device=lengths.device)
        return allowed.index_select(0, lengths - least)
    if lengths.device.type != "cpu" or torch.compiler.is_compiling():
        # Never read on the host: a failed assertion stops the device.
        torch._assert_async(
            ~outside.any(), f"lengths must lie between {least} and the number of steps"
        )
    elif outside.any():
        where = int(outside.nonzero()[0])
        raise ValueError(
            f"lengths must lie between {least} and the input's {steps} steps, "
            f"got {int(lengths[where])} for sequence {where}"
        )
    return lengths


def only_real_rows(run: Run, input: Tensor, hx: States, lengths: Tensor) -> tuple[Tensor, States]:
    """Lengths on the host: pack, run Σ lengths rows, unpack; empty sequences keep their state."""
    steps, batch = input.shape[:2]
    ordered, order = lengths.sort(descending=True, stable=True)
    running = int((ordered > 0).sum())
    if batch == 0:
        return run(input, hx, Rows(steps, 0), None)
    if running == 0:
        # One step over zeros sets dtype and width; sums over no element keep all on the graph.
        one = tuple(value[:, :1].contiguous() for value in hx)
        output, _ = run(torch.zeros_like(input[:1, :1]), one, Rows(1, 1), None)
        nothing = output[..., :0].sum() + input[:0].sum().to(output.dtype)
        zeros = output.new_zeros(steps, batch, output.shape[-1])
        return zeros + nothing, tuple(value.to(output.dtype) + nothing for value in hx)
    inverse = order.argsort().to(input.device)
    order = order.to(input.device)
    start = tuple(value.index_select(1, order) for value in hx)
    packed = pack_padded_sequence(input.index_select(1, order[:running]), ordered[:running])
    data, last = run(
        packed.data,
        tuple(value[:, :running].contiguous() for value in start),
        packed_rows(packed.batch_sizes, running),
        order[:running],
    )
    output, _ = pad_packed_sequence(PackedSequence(data, packed.batch_sizes), total_length=steps)
    if running < batch:
        output = pad(output, (0, 0, 0, batch - running))
        last = tuple(
            torch.cat([ran, kept[:, running:].to(ran.dtype)], 1)
            for ran, kept in zip(last, start, strict=True)
        )
    return output.index_select(1, inverse), tuple(value.index_select(1, inverse) for value in last)


def all_rows(run: Run, input: Tensor, hx: States, lengths: Tensor) -> tuple[Tensor, States]:
    """Lengths on the device, or traced: T·B rows, order and counts never read by the host."""
    steps, batch = input.shape[:2]
    lengths = lengths.to(input.device)
    ordered, order = lengths.sort(descending=True, stable=True)
    inverse = order.argsort()
    step = torch.arange(steps, device=input.device)
    inside = step[:, None] < ordered
    # What lies past a length may be anything, also NaN; it must not reach a weight's gradient.
    data = input.index_select(1, order).masked_fill(~inside.unsqueeze(-1), 0)
    output, last = run(
        data.flatten(0, 1),
        tuple(value.index_select(1, order) for value in hx),
        Rows(steps, batch, inside.sum(1), step * batch),
        order,
    )
    output = output.view(steps, batch, -1)
    return output.index_select(1, inverse), tuple(value.index_select(1, inverse) for value in last)
