"""How the programs of one step meet, when they run at once and each holds a slice of the weights.

* counter: each announces on a counter what it has written (`arrive`), and waits until all of its
  group have (`wait`).
* data as flag: the exchange is filled with a pattern that is never published, all ones, and readers
  poll the data itself until nothing of that is left (`fetch`, `publish`).

The argument why this is right, rule by rule, stands in kernels/README.md.
"""

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rnnkit_kernels.recurrence.arguments import Meeting
from rnnkit_kernels.recurrence.plan import Plan
from rnnkit_kernels.recurrence.rows import Rows

# Counters lie apart, so that two groups never poll the same cache line.
COUNTER_STRIDE = tl.constexpr(32)
# Polls that one program may spend in a launch before it gives up waiting: half a minute or so.
MAX_POLLS = 2**26


@triton.jit
def as_words(pointer):
    """The same memory as unsigned integers of the same size, in which no value is a NaN."""
    if pointer.dtype.element_ty.primitive_bitwidth == 16:
        words = pointer.to(tl.pointer_type(tl.uint16), bitcast=True)
    else:
        words = pointer.to(tl.pointer_type(tl.uint32), bitcast=True)
    return words


@triton.jit
def words_of(pointers, masks):
    """The tiles behind `pointers` as words; volatile, so that every call looks again."""
    bits = ()
    for i in tl.static_range(len(pointers)):
        words = as_words(pointers[i])
        bits = bits + (tl.load(words, mask=masks[i], other=0, volatile=True),)
    return bits


@triton.jit
def largest_word(bits, exempt):
    """The largest word that is not exempt."""
    largest = bits[0]
    for i in tl.static_range(1, len(bits)):
        largest = tl.maximum(largest, bits[i])
    return tl.max(tl.where(exempt, 0, largest))


@triton.jit
def fetch(pointers, masks, exempt, budget, MEETING: tl.constexpr):
    """Load tiles of the exchange that programs of this launch may still be writing.

    With data as flag it polls until no element is all ones, the one pattern that `publish` never
    writes. Each element is the flag of itself only. All tiles are polled at once, for one look at
    memory takes as long as the whole product.

    Args:
        pointers, masks: a tuple of tiles of one shape.
        exempt: (1, sequences) or False: what is never waited for.
        budget: polls that are left.

    Returns:
        The tiles, and the polls that are left.
    """
    if MEETING == "data":
        # No word is larger than all ones: a maximum takes a third of the instructions that
        # comparing every word and counting takes, and a step is short of instructions.
        bits = words_of(pointers, masks)
        blank: tl.constexpr = (1 << bits[0].dtype.primitive_bitwidth) - 1
        while (largest_word(bits, exempt) == blank) & (budget > 0):
            bits = words_of(pointers, masks)
            budget -= 1
        tiles = ()
        for i in tl.static_range(len(pointers)):
            tiles = tiles + (bits[i].to(pointers[i].dtype.element_ty, bitcast=True),)
        return tiles, budget
    else:
        tiles = ()
        for i in tl.static_range(len(pointers)):
            if MEETING == "counter":
                # Written by other multiprocessors: there is nothing in this one's first level.
                tile = tl.load(pointers[i], mask=masks[i], other=0.0, cache_modifier=".cg")
            else:
                tile = tl.load(pointers[i], mask=masks[i], other=0.0)
            tiles = tiles + (tile,)
        return tiles, budget


@triton.jit
def publish(pointer, value, mask, MEETING: tl.constexpr):
    """Store a tile of the exchange; with data as flag all ones become another NaN."""
    value = value.to(pointer.dtype.element_ty)
    if MEETING == "data":
        words = as_words(pointer)
        blank: tl.constexpr = (1 << words.dtype.element_ty.primitive_bitwidth) - 1
        bits = value.to(words.dtype.element_ty, bitcast=True)
        tl.store(words, tl.where(bits == blank, blank >> 1, bits), mask=mask)
    else:
        tl.store(pointer, value, mask=mask)


@triton.jit
def arrive(counter, MEETING: tl.constexpr):
    """Announce that all this program published so far can be read."""
    if MEETING == "counter":
        # Every thread's stores come before the one release that a single thread makes.
        tl.debug_barrier()
        tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def wait(counter, target, budget, MEETING: tl.constexpr):
    """Wait for `target` announcements, or until the polls run out; returns those left."""
    if MEETING == "counter":
        while (tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < target) & (budget > 0):
            budget -= 1
        # No thread goes on before the one that saw the counter.
        tl.debug_barrier()
    return budget


@triton.jit
def settle(MEETING: tl.constexpr):
    """Let every thread of this program read what the others of it wrote a turn ago."""
    if MEETING == "data":  # the barrier of `arrive` does it for counters
        tl.debug_barrier()


def blank_exchange(
    shape: tuple[int, ...], padded: Rows | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Memory (N, ...) that no program has written yet, as `fetch` with data as flag sees it.

    Args:
        shape: N rows first.
        padded: the rows, where some belong to no step: those are zero, for nobody writes them.
        dtype: of the elements.
        device: where.
    """
    words = torch.int32 if dtype == torch.float32 else torch.int16
    blank = torch.full(shape, -1, dtype=words, device=device)
    if padded is not None and padded.batch_sizes is not None:
        sequence = torch.arange(padded.batch, device=device)
        inside = (sequence < padded.batch_sizes[:, None]).flatten()
        blank *= inside.view(-1, *[1] * (len(shape) - 1))
    return blank.view(dtype)


def launch_together(
    kernel: Any,
    plan: Plan,
    unit_tiles: int,
    batch_tiles: int,
    members: int,
    device: torch.device,
    tensors: tuple[Any, ...],
    integers: tuple[int, ...],
    options: dict[str, Any],
    wavefront: bool = False,
) -> None:
    """Launch programs that wait for each other: all of them run at once, or none.

    One group of `unit_tiles` programs a member and tile of sequences, or fewer groups that take
    several tiles in turn. Directions run one after another where they don't fit together; the
    layers of a wavefront wait for each other, so they have to.

    Raises:
        RuntimeError: the programs waited in vain, or the grid does not fit the device.
    """
    limit = max(1, plan.multiprocessors // unit_tiles)
    if wavefront and members > limit:
        raise RuntimeError(
            f"a wavefront of {members} layers takes {members * unit_tiles} programs at once, more "
            f"than the {plan.multiprocessors} multiprocessors"
        )
    together = members if members <= limit else 1
    groups = min(batch_tiles, limit // together)
    # Made anew on every call, so that a replayed graph starts from zero again.
    counters = torch.zeros(
        members * batch_tiles * COUNTER_STRIDE.value + 1, dtype=torch.int32, device=device
    )
    error = counters[-1:]
    for first in range(0, members, together):
        cooperate(
            kernel,
            (unit_tiles, groups, together),
            (*tensors, Meeting(counters, error), first, *integers, MAX_POLLS),
            options,
        )
    message = (
        f"the {unit_tiles} programs of a group waited for each other in vain "
        f"({MAX_POLLS:,} polls): the results are not valid"
    )
    if os.environ.get("RNNKIT_CHECK") == "1" and bool(error):
        raise RuntimeError(message)
    # Without waiting for the device; a failed assertion stops it.
    torch._assert_async(error == 0, message)


def cooperate(
    kernel: Any, grid: tuple[int, int, int], arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """One cooperative launch.

    The interpreter runs programs one after another: none may wait for another there.
    """
    if isinstance(kernel, triton.JITFunction):
        kernel[grid](*arguments, **options, launch_cooperative_grid=True)
    elif grid[0] == 1 and not options["WAVEFRONT"]:
        kernel[grid](*arguments, **options)
    else:
        raise RuntimeError(
            f"of {grid} programs some wait for others, and the interpreter runs one after another"
        )
