"""A fresh interpreter: what `import rnnkit` brings in, and what the layers need."""

import importlib.metadata
import os
import subprocess
import sys
import textwrap

import pytest

import rnnkit
from tests.conftest import NATIVE

pytestmark = pytest.mark.process


def run(code: str, **environment: str) -> str:
    """Standard output of a fresh interpreter."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=kept | environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LAYERS = """
import torch, rnnkit
for layer in (rnnkit.LSTM(3, 4), rnnkit.GRU(3, 4, reset_after=False), rnnkit.RNN(3, 4)):
    output = layer(torch.randn(5, 2, 3), lengths=torch.tensor([5, 2]))[0]
    output.sum().backward()
    print(tuple(output.shape), rnnkit.explain(layer, torch.randn(5, 2, 3)).decision.engine)
"""


def test_importing_the_layers_and_running_torchs_cells_brings_in_no_more_than_torch() -> None:
    unwanted = (
        "lightning",
        "pytorch_lightning",
        "matplotlib",
        "jsonargparse",
        "torchmetrics",
        "pooch",
        "rich",
        "triton",
    )
    found = run(
        f"""
        import sys
        import rnnkit, torch
        def report():
            print(sorted(set(sys.modules) & set({unwanted!r})))
        report()
        for layer in (rnnkit.LSTM(3, 4), rnnkit.GRU(3, 4), rnnkit.RNN(3, 4)):
            layer(torch.randn(5, 2, 3), lengths=torch.tensor([5, 2]))[0].sum().backward()
        report()
        """
    )
    assert found.splitlines() == ["[]", "[]"]


def test_the_layers_work_where_triton_cannot_be_imported() -> None:
    block = """
    from importlib.machinery import PathFinder
    find = PathFinder.find_spec
    def find_spec(name, path=None, target=None):
        return None if name.split(".")[0] == "triton" else find(name, path, target)
    PathFinder.find_spec = find_spec
    try:
        import triton
    except ModuleNotFoundError:
        print("blocked")
    """
    found = run(textwrap.dedent(block) + LAYERS).splitlines()
    plain, loop = ("native", "native") if NATIVE else ("torch", "eager")
    assert found == ["blocked", *(f"(5, 2, 4) {engine}" for engine in (plain, loop, plain))]


def test_the_triton_backend_without_triton_says_what_is_missing() -> None:
    found = run(
        """
        import sys
        sys.modules["triton"] = None
        import torch, rnnkit
        try:
            rnnkit.LSTM(3, 4, backend="triton")(torch.randn(5, 2, 3))
        except RuntimeError as error:
            print(error)
        """,
        TRITON_INTERPRET="1",
    )
    assert "triton is not installed" in found


def test_the_version_is_the_installed_one_and_costs_nothing_before_it_is_asked_for() -> None:
    assert rnnkit.__version__ == importlib.metadata.version("rnnkit")
    assert "__version__" not in vars(rnnkit)
    with pytest.raises(AttributeError, match="module 'rnnkit' has no attribute 'nonsense'"):
        rnnkit.nonsense  # noqa: B018


def test_a_checkout_that_is_not_installed_has_a_version_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert rnnkit.__version__ == "0+unknown"
