"""What a layer may be called with: dtype, device and shape of its input and initial states."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import TypeIs  # torch brings it; typing has it from Python 3.13

from rnnkit_kernels.functional import autocasts

States = tuple[Tensor, ...]


def is_tensor(value: Any) -> TypeIs[Tensor]:
    """Whether it is a tensor or has `__torch_function__`, by which torch.nn takes it for one."""
    return isinstance(value, Tensor) or hasattr(type(value), "__torch_function__")


def check_pair(name: str, hx: Any, which: str = "hx") -> None:
    """Refuse what is no pair of tensors, with torch's exception types.

    Args:
        name: of the layer or cell, for the message.
        hx: what the caller gave for (h, c).
        which: the argument, for the message.

    Raises:
        TypeError: something in it is no tensor.
        RuntimeError: it is one tensor, or not two.
    """
    several = isinstance(hx, tuple | list)
    kinds = [type(h).__name__ for h in hx] if several else [type(hx).__name__]
    got = f"{', '.join(kinds)} ({len(kinds)} of 2)" if several else kinds[0]
    message = f"{name}: expected {which} to be a pair (h, c) of tensors, got {got}"
    if not is_tensor(hx) and not (several and all(is_tensor(h) for h in hx)):
        raise TypeError(message)
    if not several or len(hx) != 2:
        raise RuntimeError(message)


def check_dtype(data: Tensor, weight: Tensor) -> None:
    """Refuse an input of another dtype than the weights', unless autocast casts it, or device."""
    if data.dtype != weight.dtype and not autocasts(data.device):
        raise ValueError(
            f"RNN input dtype ({data.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({data.dtype})"
        )
    if data.device != weight.device:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, found input tensor at "
            f"{data.device} and parameter tensor at {weight.device}"
        )


def checked_state(
    data: Tensor,
    hx: States,
    shapes: Sequence[tuple[int, ...]],
    batched: bool,
    order: Tensor | None,
) -> States:
    """The initial states that the caller gave, batched and in the order of the input.

    Args:
        data: the input.
        hx: h0, and c0 where there is one.
        shapes: (L·directions, B, ·) of each, with B = 1 for an unbatched input.
        batched: whether the input has a batch dimension; the states must have what it has.
        order: the original index of each sorted sequence of a PackedSequence, or None.

    Raises:
        RuntimeError: another number of dimensions, shape, dtype or device.
    """
    dimensions = 3 if batched else 2
    found = [value.dim() for value in hx]
    if found != [dimensions] * len(found):
        kind = "batched 3-D" if batched else "unbatched 2-D"
        names = "hx and cx" if len(hx) > 1 else "hx"
        got = " and ".join(f"{number}-D" for number in found)
        raise RuntimeError(
            f"For {kind} input, {names} should also be {dimensions}-D but got {got} tensors"
        )
    if not batched:
        hx = tuple(value.unsqueeze(1) for value in hx)
    for i, (value, expected) in enumerate(zip(hx, shapes, strict=True)):
        if tuple(value.shape) != expected:
            which = f"hidden[{i}] size" if len(hx) > 1 else "hidden size"
            raise RuntimeError(
                f"Expected {which} {expected}, got {list(value.shape)}: initial states are "
                "(num_layers·directions, batch, hidden), also with batch_first=True"
            )
        if value.device != data.device or value.dtype != data.dtype:
            if autocasts(data.device) and value.device == data.device:
                continue
            raise RuntimeError(
                f"input is {data.dtype} on {data.device}, the initial state {value.dtype} on "
                f"{value.device}: they must agree"
            )
    return hx if order is None else tuple(value.index_select(1, order) for value in hx)


def checked_resets(
    name: str, resets: Any, has_state: bool, kind: str, data: Tensor
) -> Tensor | None:
    """Refuse `resets` that do not fit the input; what they are, on the device of the input.

    Args:
        name: of the layer, for the message.
        resets: what the caller gave.
        has_state: whether the caller gave `hx_reset`, which means nothing without resets.
        kind: "packed", "padded" or "unbatched".
        data: the input as the caller gave it.

    Raises:
        TypeError: `resets` is no tensor.
        ValueError: a packed or unbatched input, another dtype than bool, another shape, or a state
            after resets where there are none.
    """
    if resets is None:
        raise ValueError(f"{name}: hx_reset is the state after a reset, and there are no resets")
    if not isinstance(resets, Tensor):
        raise TypeError(
            f"{name}: expected resets to be a tensor of booleans, got {type(resets).__name__}"
        )
    if kind == "packed":
        raise ValueError(
            "resets go with a padded input, not with a PackedSequence: pad it and give lengths"
        )
    if kind == "unbatched":
        raise ValueError("resets need a batched 3-D input, got 2-D: unsqueeze the batch dimension")
    if resets.dtype != torch.bool:
        raise ValueError(f"resets must be booleans, got {resets.dtype}: resets.bool()")
    if resets.shape != data.shape[:2]:
        raise ValueError(
            f"expected resets of the input's first two dimensions, {tuple(data.shape[:2])}, got "
            f"{tuple(resets.shape)}"
        )
    return resets.to(data.device)


def check_reset_state(data: Tensor, hx_reset: States, shapes: Sequence[tuple[int, int]]) -> None:
    """Refuse a state after resets of another shape or device.

    Args:
        data: the input.
        hx_reset: of h, and c where there is one.
        shapes: (L·directions, ·) of each: as hx, without the batch.

    Raises:
        RuntimeError: another shape, dtype or device.
    """
    for i, (value, expected) in enumerate(zip(hx_reset, shapes, strict=True)):
        if tuple(value.shape) != expected:
            which = f"hx_reset[{i}] size" if len(hx_reset) > 1 else "hx_reset size"
            raise RuntimeError(
                f"Expected {which} {expected}, got {list(value.shape)}: one state for all "
                "sequences, (num_layers·directions, hidden)"
            )
        same = value.dtype == data.dtype or autocasts(data.device)
        if value.device != data.device or not same:
            raise RuntimeError(
                f"input is {data.dtype} on {data.device}, hx_reset {value.dtype} on "
                f"{value.device}: they must agree"
            )
