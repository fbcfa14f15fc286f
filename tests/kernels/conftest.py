"""Interpreted where there is no GPU, compiled where there is one; see tests/conftest.py."""

from collections.abc import Iterator
from typing import Any

import pytest
from triton.runtime import interpreter

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


class _Once:
    """The interpreter's functions in the place of those of `tl`, put there once a launch.

    Triton puts them there again at each call of a function inside a kernel, which takes a quarter
    of the time of a launch. Functions of another module may see another part of `tl`.
    """

    def __init__(self) -> None:
        self.patch = interpreter._patch_lang
        self.scope: Any = None
        self.modules: set[int] = set()

    def __call__(self, function: Any) -> "_Once":
        module = id(function.__globals__)
        if self.scope is None:
            self.scope, self.modules = self.patch(function), {module}
        elif module not in self.modules:
            self.patch(function)
            self.modules.add(module)
        return self

    def restore(self) -> None:
        """Called at the end of a launch alone."""
        scope, self.scope = self.scope, None
        scope.restore()


@pytest.fixture(scope="session", autouse=True)
def _patched_once_a_launch() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if not HAS_GPU:
            patch.setattr(interpreter, "_patch_lang", _Once())
        yield
