"""Kernels run in Triton's interpreter on CPU tensors; on a machine with a GPU, compiled.

Triton decides when a function is decorated, its own library's functions included, so it has to be
imported before any test does, and one process can do one of the two: with a GPU the interpreted
tests are skipped (`CUDA_VISIBLE_DEVICES= pytest tests/kernels` runs them). Outside tests/kernels
the variable is unset, as it is for users.
"""

import importlib
import os
import signal

import pytest
import torch

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell without job control lets what it starts in the background ignore Ctrl-C, and so would
    # the processes that tests send it to.
    signal.signal(signal.SIGINT, signal.default_int_handler)

HAS_GPU = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)

# Without it torch's own LSTM raises under autocast on a CPU, and so does the layer in its place.
BFLOAT16_LSTM = torch.ops.mkldnn._is_mkldnn_bf16_supported()
needs_bfloat16_lstm = pytest.mark.skipif(
    not BFLOAT16_LSTM, reason="this processor has no bfloat16 in oneDNN, so torch's LSTM raises"
)

if not HAS_GPU:
    _before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    for _module in (
        "recurrence.exchange",
        "recurrence.forward",
        "recurrence.backward",
        "crf_kernels",
        "vocabulary_tiles",
    ):
        importlib.import_module(f"rnnkit_kernels.{_module}")
    if _before is None:
        del os.environ["TRITON_INTERPRET"]
    else:
        os.environ["TRITON_INTERPRET"] = _before
