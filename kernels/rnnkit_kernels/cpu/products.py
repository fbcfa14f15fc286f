"""Products of matrices on a CPU, by oneDNN where `torch.mm` is slow."""

from functools import cache
from typing import Any

import torch
from torch import Tensor


def onednn_suits(input: Tensor) -> bool:
    """Whether oneDNN multiplies this faster than `torch.mm`."""
    if input.device.type != "cpu" or input.dtype != torch.float32 or input.numel() == 0:
        return False
    return mkl_is_slow() and bool(torch.backends.mkldnn.enabled)


@cache
def mkl_is_slow() -> bool:
    """Whether there is oneDNN and `torch.mm` is MKL on an AMD processor.

    There MKL does without AVX-512 and takes longer for an output layer than oneDNN; where it uses
    that, as on Intel's, it is as fast or faster.
    """
    backends: Any = torch.backends
    if not (backends.mkl.is_available() and backends.mkldnn.is_available()):
        return False
    try:
        with open("/proc/cpuinfo") as file:
            return "AuthenticAMD" in file.read(1000)
    except OSError:
        return False


def by_onednn(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, in float32, outside autograd.

    Args:
        input: (N, K).
        weight: (M, K), contiguous or turned: of a part of a matrix oneDNN is a thousand times
            slower.
        bias: (M,) or None.
    """
    bias = None if bias is None else bias.contiguous()  # of its strides oneDNN takes no notice
    product: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return product
