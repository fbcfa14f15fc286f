"""Triton's kernels on CPU tensors: by its interpreter, which is asked for before the start."""

from __future__ import annotations

import os

import torch

# NumPy has no bfloat16: the interpreter calculates with its bits as with integers.
WRONG = frozenset({torch.bfloat16})


def refuses(device: torch.device, dtype: torch.dtype, what: str) -> str | None:
    """Why kernels can't run on a device, to be read after `backend="triton"`; None where they can.

    Args:
        device: of the kernels' operands.
        dtype: in which they compute.
        what: the operand that is on the device, "the input is".
    """
    if device.type == "cuda":
        return None
    if os.environ.get("TRITON_INTERPRET") != "1":
        return (
            f'needs a GPU, and {what} on {device}: move to one, use backend="auto", or set '
            "TRITON_INTERPRET=1 before the start to interpret the kernels"
        )
    if dtype in WRONG:
        return (
            f"can't compute in {dtype} on {device}, where Triton's interpreter takes its bits for "
            'integers: use float32 or float16, or backend="auto"'
        )
    return None
