"""The plan that an operator's mode means, and what runs where the driver refuses it."""

import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import Tensor

from rnnkit_kernels.cells import Cell
from rnnkit_kernels.ops.context import recurrent_precision
from rnnkit_kernels.recurrence.plan import Device, Fallback, Mode, Plan, plan
from rnnkit_kernels.recurrence.wavefront import wavefront_plan

Result = TypeVar("Result")


def planned(cell: Cell, weight_hh: Tensor, h0: Tensor, mode: str) -> Plan:
    """The plan of a mode, or an error that says why there is none.

    "rule" leaves the mode to the plan's rule, "alone" to the rule without programs that wait for
    each other: in a traced graph B and torch's flags are known only now.
    """
    members, batch, hidden = h0.shape
    by_rule = mode in ("rule", "alone")
    found = plan(
        cell,
        hidden,
        weight_hh.dtype,
        Device.of(weight_hh.device),
        recurrent_precision(),
        None if by_rule else cast(Mode, mode),
        batch,
        members,
        mode != "alone",
    )
    if isinstance(found, Fallback):
        raise RuntimeError(found.reason)
    return found


class LaunchRefusedWarning(RuntimeWarning):
    """A kernel did not fit the GPU as it is, and a slower one ran."""


def run_planned(
    run: Callable[[Plan], Result],
    cell: Cell,
    weight_hh: Tensor,
    h0: Tensor,
    mode: str,
    backward: bool,
) -> Result:
    """Run the plan of a mode, or one launch a step where the driver refuses it."""
    try:
        chosen = planned(cell, weight_hh, h0, mode)
    except RuntimeError:
        if not backward:
            raise
        # Since the forward pass torch's flag for float32 products has changed.
        chosen = planned(cell, weight_hh, h0, "launch")
    try:
        return run(chosen)
    except Exception as error:
        # CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE: fewer multiprocessors are visible than the
        # device has (MPS). OutOfResources: the plan's estimate of shared memory was too low.
        refused = "too many blocks in cooperative launch" in str(error)
        if not refused and type(error).__name__ != "OutOfResources":
            raise
        warnings.warn(
            f"one launch a step runs in the place of mode {chosen.mode}, which the driver refused: "
            f"{error}",
            LaunchRefusedWarning,
            stacklevel=2,
        )
        return run(planned(cell, weight_hh, h0, "launch"))


def planned_stack(cell: Cell, weight_hh: Tensor, mode: Any) -> Plan:
    """The plan of layers that run as one wavefront, or an error that says why there is none."""
    layers, _, hidden = weight_hh.shape
    device = Device.of(weight_hh.device)
    precision = recurrent_precision()
    found = wavefront_plan(cell, hidden, layers, weight_hh.dtype, device, precision, mode)
    if isinstance(found, Fallback):
        raise RuntimeError(f"{layers} layers can't run as a wavefront: {found.reason}")
    return found
