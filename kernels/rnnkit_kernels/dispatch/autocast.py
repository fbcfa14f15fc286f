"""Autocast: what is cast to which dtype, and what torch's own layers make of it on a CPU.

On a GPU all is cast, as torch does for cuDNN's layers. On a CPU torch has no rule of its own for
recurrent layers: the operands of products are cast, and all of oneDNN's LSTM; the rest follows from
the dtypes that meet in a step. There our engines compute in the dtype of the weights, and hand on
results in torch's dtypes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Asked once: the compiler can't trace the questions.
_ONEDNN: bool = torch._C._has_mkldnn
_LACKS = {
    dtype
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "fp16"))
    if _ONEDNN and not getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported")()
}


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on; asking that of a device without it (meta) raises."""
    kind = device.type
    if kind in ("cpu", "cuda"):  # they always have it, and every call asks
        return torch.is_autocast_enabled(kind)
    # What is traced is on no such device, and torch 2.11 can't trace the question.
    available = torch.compiler.is_compiling() or torch.amp.is_autocast_available(kind)
    return available and torch.is_autocast_enabled(kind)


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that autocast, where it is on, or `tensor` asks for; autocast leaves float64."""
    if tensor.dtype == torch.float64 or not autocasts(tensor.device):
        return tensor.dtype
    return torch.get_autocast_dtype(tensor.device.type)


def cast(
    data: Tensor, state: tuple[Tensor, ...], weights: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, tuple[Tensor, ...], Sequence[Tensor]]:
    """The operands of a layer in one dtype; the very same ones where they are in it."""
    if all(tensor.dtype == dtype for tensor in (weights[1], data, *state)):
        return data, state, weights
    return data.to(dtype), tuple(v.to(dtype) for v in state), [w.to(dtype) for w in weights]


def result_dtypes(
    cell: str, weight: Tensor, states: Sequence[Tensor], ragged: bool, has_projections: bool
) -> tuple[torch.dtype, ...]:
    """Dtypes that torch's own layers give to h, which is the output too, and to c where it is.

    Args:
        cell: one that torch has.
        weight: one of the layer's.
        states: the initial ones, as the caller gave them.
        ragged: whether sequences are packed or have lengths.
        has_projections: whether h is projected.

    Returns:
        () unless autocast is on on a CPU.
    """
    if weight.device.type != "cpu" or not autocasts(weight.device):
        return ()
    dtype = compute_dtype(weight)
    mixed = [torch.promote_types(dtype, state.dtype) for state in states]
    if cell == "gru":
        return (mixed[0],)
    if cell != "lstm":
        return (dtype,)
    if has_projections:
        return dtype, mixed[1]
    return (mixed[1], mixed[1]) if ragged or not _ONEDNN else (dtype, dtype)


def onednn_refuses(cell: str, input: Tensor, ragged: bool, has_projections: bool) -> str:
    """Why torch's own LSTM raises under autocast on this processor; empty where it runs."""
    if input.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return ""
    dtype = torch.get_autocast_dtype("cpu")
    dense = cell == "lstm" and not ragged and not has_projections and input.numel() > 0
    if not dense or dtype not in _LACKS or input.dtype != torch.float32:
        return ""
    if not torch.backends.mkldnn.enabled:
        return ""
    return f"torch's own LSTM is oneDNN's, which has no {dtype} on this processor"
