"""Autocast on a CPU: the dtypes of torch's own layers there, and where oneDNN lets them down.

torch has no rule of its own for recurrent layers. Autocast casts the operands of products and all
of oneDNN's LSTM; the rest follows from the dtypes that meet in a step. Engines of ours compute in
the dtype of the weights and hand on results in these.
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


def result_dtypes(
    cell: str,
    dtype: torch.dtype,
    states: Sequence[Tensor],
    ragged: bool,
    has_projections: bool,
) -> tuple[torch.dtype, ...]:
    """Dtypes of h, which is also the output's, and of c where there is one.

    Args:
        cell: one that torch has.
        dtype: autocast's, or float64 for weights in it.
        states: the initial ones.
        ragged: whether sequences are packed or have lengths.
        has_projections: whether h is projected.
    """
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
    if not torch.is_autocast_enabled("cpu") or input.device.type != "cpu":
        return ""
    dtype = torch.get_autocast_dtype("cpu")
    dense = cell == "lstm" and not ragged and not has_projections and input.numel() > 0
    if not dense or dtype not in _LACKS or input.dtype != torch.float32:
        return ""
    if not torch.backends.mkldnn.enabled:
        return ""
    return f"torch's own LSTM is oneDNN's, which has no {dtype} on this processor"
