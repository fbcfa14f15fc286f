"""The engine's build: what it needs, what it says, and a cell that is registered at run time."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.cpu import build, native
from rnnkit_kernels.cpu.library import PACKAGE, library
from tests.compilers import NONE, quick_compiler, script
from tests.conftest import needs_engine
from tests.kernels.cells.test_example import example  # noqa: F401
from tests.kernels.layers import Layer, assert_as_exact, random_layer


@pytest.mark.process
def test_building_imports_neither_torch_nor_triton() -> None:
    code = "import sys, rnnkit_kernels.cpu.build; print(*{'torch', 'triton'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_help_begins_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build.main(["--help"])
    help_ = capsys.readouterr().out
    assert help_.splitlines()[2].startswith("    python -m rnnkit_kernels.cpu.build  ")


@needs_engine
def test_what_is_built_is_not_built_again(
    monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", NONE)
    assert build.main([]) == 0
    assert capsys.readouterr().out == f"{PACKAGE}\n"


def test_without_a_compiler_one_sentence_says_so(
    monkeypatch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", NONE)
    monkeypatch.setattr(build, "current", lambda path: False)
    assert build.main([]) == 1
    needs = "the native engine needs a C++ compiler, and"
    assert capsys.readouterr().err == f"{needs} CXX={NONE} is not there\n"
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.main([]) == 1
    assert capsys.readouterr().err == f"{needs} no c++, g++ or clang++ is there\n"


@pytest.mark.process
@pytest.mark.skipif(sys.platform == "win32", reason="a script of sh")
def test_a_compiler_s_error_is_told_and_leaves_nothing_behind(
    monkeypatch: Any, tmp_path: Path
) -> None:
    fails = script(tmp_path, 'for i in 1 2 3 4 5 6; do echo "line $i" >&2; done; exit 1')
    monkeypatch.setenv("CXX", fails)
    target = tmp_path / "package" / "engine.so"
    with pytest.raises(build.BuildError) as caught:
        build.build(target)
    said = [f"line {i}" for i in range(2, 7)]
    sentence = f"{fails} can't compile the native engine, and says last:"
    assert str(caught.value).splitlines() == [sentence, *said]
    assert list(target.parent.iterdir()) == []


def test_where_nothing_can_be_written_one_sentence_says_so(
    monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", sys.executable)
    (tmp_path / "file").touch()
    with pytest.raises(build.BuildError, match=r"^the native engine can't be written: "):
        build.build(tmp_path / "file" / "engine.so")


@pytest.mark.parametrize("module", ["no_such_module", "no_such_file.py", "rnnkit_kernels.cells"])
def test_a_module_that_registers_nothing_is_refused(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main(["--module", module]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert module in told.err


def run(layer: Layer) -> list[torch.Tensor]:
    """Results and gradients by the native engine, like `layer.run`."""
    cell = CELLS[layer.cell]
    inputs = [None if t is None else t.detach() for t in layer.operator_inputs()[:-2]]
    y, h_n, _, saved, states = native.forward(cell, *inputs, layer.rows, layer.reverse, True, True)
    dy, dh_n = layer.gradients
    dx, *gradients = native.backward(
        cell, dy, dh_n[None], None, *inputs, layer.rows, layer.reverse, y, saved, states, True
    )
    assert dx is not None
    return [y[:, 0], h_n[0], dx, *(t[0] for t in gradients if t is not None)]


@pytest.mark.process
@pytest.mark.slow
def test_a_cell_that_is_registered_at_run_time_is_built_and_as_exact_as_a_plain_loop(
    example: str,  # noqa: F811
    monkeypatch: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("RNNKIT_NATIVE", raising=False)  # the tests may run without the engine
    monkeypatch.setenv("RNNKIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", quick_compiler(tmp_path))
    assert build.main(["--module", str(tmp_path / "janet.py")]) == 0
    found = library(CELLS[example])
    assert found is not None
    assert capsys.readouterr().out == f"{found.path}\n"
    assert list(found.cells) == [example]
    monkeypatch.setattr(native, "library", lambda *_: found)
    for dtype in (torch.float32, torch.float64):
        layer = random_layer(example, "packed", hidden=13).to(dtype)
        exact = layer.to(torch.float64).run("reference")
        assert_as_exact(run(layer), layer.run("reference"), exact, dtype)
    # Not built again; and a cell of other maths is not taken for this one.
    monkeypatch.setenv("CXX", NONE)
    assert build.main(["--module", str(tmp_path / "janet.py")]) == 0
    capsys.readouterr()
    text = (tmp_path / "janet.py").read_text()
    (tmp_path / "janet.py").write_text(text.replace("1 - forget_gate", "1 + forget_gate"))
    assert build.main(["--module", str(tmp_path / "janet.py")]) == 1
    assert library(CELLS[example]) is None
