"""Around an operator: who looks at it; and the device and float32's precision while it runs."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from rnnkit_kernels.recurrence.plan import Precision


def observed() -> bool:
    """Whether a compiler, torch.jit's tracer or a TorchDispatchMode looks at operators.

    They see nothing of an engine that is called past the dispatcher.
    """
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or traces()


def traces() -> bool:
    """Whether torch.jit traces: what does not pass the dispatcher becomes a constant."""
    return not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None


def recurrent_precision() -> Precision:
    """Precision of float32 products, as torch's setting for cuDNN's RNN has it.

    Only `torch.backends.cudnn.rnn.fp32_precision` is read: `allow_tf32` raises once a user has set
    a precision per operator.
    """
    setting = torch.backends.cudnn.rnn.fp32_precision  # type: ignore[attr-defined]
    return "tf32" if setting == "tf32" else "ieee"


@contextmanager
def gemm_precision(example: Tensor) -> Iterator[None]:
    """Run the products of a layer in the dtype of their operands, at the loop's float32 precision.

    Autocast has cast what it casts before an operator; within, its results have their dtypes.
    """
    if torch.is_autocast_enabled("cpu") and example.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            yield
        return
    if not example.is_cuda or example.dtype != torch.float32:
        yield
        return
    matmul = torch.backends.cuda.matmul
    before, wanted = matmul.fp32_precision, recurrent_precision()
    if before == wanted:
        # Writing even the same value would pin a setting that is inherited.
        yield
        return
    matmul.fp32_precision = wanted
    try:
        yield
    finally:
        matmul.fp32_precision = before


def on_device(x: Tensor) -> AbstractContextManager[None]:
    """Launch on the device of `x`, whatever the current one is."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
