"""Which layers run as one wavefront: layer l at step t while the layer above is at t − 1."""

from dataclasses import replace

import torch

from rnnkit_kernels.cells import Cell
from rnnkit_kernels.recurrence.plan import (
    Device,
    Fallback,
    Mode,
    Plan,
    Precision,
    plan,
    together_tiles,
)


def wavefront_plan(
    cell: Cell,
    hidden: int,
    layers: int,
    dtype: torch.dtype,
    device: Device,
    precision: Precision,
    mode: Mode,
) -> Plan | Fallback:
    """The plan of `layers` layers that run at once, or the reason why there is none."""
    if len(cell.gates) > 1:
        return Fallback(f"{cell.name} takes two products a step")
    if mode not in ("data", "counter"):
        return Fallback(f"a wavefront needs programs that meet, and the plan is {mode}")
    found = plan(cell, hidden, dtype, device, precision, mode)
    if isinstance(found, Fallback):
        return found
    # Above the first layer W_ih lies beside W_hh, in a tile of the same size.
    sizes = (cell, hidden, dtype, precision, device, False)
    ahead, back = (together_tiles(*sizes, backward, weights=2) for backward in (False, True))
    if isinstance(ahead, str) or isinstance(back, str):
        return Fallback(f"with both weights {ahead if isinstance(ahead, str) else back}")
    found = replace(found, forward=ahead, backward=back)
    programs = layers * -(-hidden // min(found.forward.block_h, found.backward.block_h))
    if programs > found.multiprocessors:
        return Fallback(f"{programs} programs exceed {found.multiprocessors} multiprocessors")
    return found
