"""Kernels under Triton's interpreter: fp32 and fp16, on CPU tensors."""

import importlib
import os

import pytest

_before = os.environ.get("TRITON_INTERPRET")
os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated
try:
    for module in ("exchange", "forward", "backward"):
        importlib.import_module(f"rnnkit_kernels.recurrence.{module}")
finally:
    if _before is None:
        del os.environ["TRITON_INTERPRET"]
    else:
        os.environ["TRITON_INTERPRET"] = _before


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `backend="triton"` take CPU tensors in these tests only."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
