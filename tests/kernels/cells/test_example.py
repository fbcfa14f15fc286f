"""The worked example of kernels/README.md: a cell in one block of code, in every mode."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from rnnkit_kernels import reference
from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.ops.recurrence import recurrence
from tests.kernels.layers import assert_as_exact_as_a_plain_loop, random_layer

README = Path(__file__).parents[3] / "kernels" / "README.md"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The code block of the README as a module; Triton reads functions from files."""
    _, code = README.read_text().split("```python\n")
    code = code.split("```")[0]
    assert len(code.splitlines()) < 60
    file = tmp_path / "janet.py"
    file.write_text(code)
    spec = importlib.util.spec_from_file_location("janet", file)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "janet", module)
    spec.loader.exec_module(module)
    yield "janet"
    del CELLS["janet"], reference.STEPS["janet"]


@pytest.mark.parametrize("mode", ["launch", "resident", "counter", "data", "eager"])
def test_the_example_runs_in_every_mode(example: str, mode: str) -> None:
    layer = random_layer(example, "packed", hidden=13, zoneout=mode == "launch")
    assert_as_exact_as_a_plain_loop(layer, mode, torch.float32)


def test_the_example_is_differentiable_twice(example: str) -> None:
    layer = random_layer(example, "packed", hidden=3, features=2)
    inputs = layer.operator_inputs()
    leaves = [t.detach().requires_grad_() for t in inputs[:-2] if t is not None]

    def run(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = iter(values)
        spread = [None if t is None else next(given) for t in inputs[:-2]]
        results = recurrence(*spread, *inputs[-2:], example, False, "eager", True, recompute=True)
        return results[:2]

    torch.autograd.gradcheck(run, leaves, fast_mode=True)
    torch.autograd.gradgradcheck(run, leaves, fast_mode=True)
