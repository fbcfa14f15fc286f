"""Kernels under Triton's interpreter on CPU tensors; on a machine with a GPU, the `gpu` tests.

Triton decides when a kernel is decorated, so one process can do one of the two: with a GPU the
interpreted tests are skipped (`CUDA_VISIBLE_DEVICES= pytest tests/kernels` runs them).
"""

import importlib
import os

import pytest
import torch

HAS_GPU = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)

if not HAS_GPU:
    _before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    for _module in ("exchange", "forward", "backward"):
        importlib.import_module(f"rnnkit_kernels.recurrence.{_module}")
    if _before is None:
        del os.environ["TRITON_INTERPRET"]
    else:
        os.environ["TRITON_INTERPRET"] = _before


@pytest.fixture(autouse=True)
def _where_kernels_run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    wants_gpu = request.node.get_closest_marker("gpu") is not None
    if wants_gpu and not HAS_GPU:
        pytest.skip("needs an NVIDIA GPU of compute capability 8.0 or later")
    if not wants_gpu and HAS_GPU:
        pytest.skip("interpreted: run with CUDA_VISIBLE_DEVICES= set to nothing")
    if not HAS_GPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
