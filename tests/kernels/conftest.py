"""Interpreted where there is no GPU, compiled where there is one; see tests/conftest.py."""

import pytest

from tests.conftest import HAS_GPU


@pytest.fixture(autouse=True)
def _where_kernels_run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    wants_gpu = request.node.get_closest_marker("gpu") is not None
    if wants_gpu and not HAS_GPU:
        pytest.skip("needs an NVIDIA GPU of compute capability 8.0 or later")
    if not wants_gpu and HAS_GPU:
        pytest.skip("interpreted: run with CUDA_VISIBLE_DEVICES= set to nothing")
    if not HAS_GPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
