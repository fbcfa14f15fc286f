"""The engine's library: activations on every instruction set, and files that can't serve."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnnkit_kernels.cells import CELLS, GRU, RNN_TANH
from rnnkit_kernels.cpu import library as libraries
from rnnkit_kernels.cpu.build import BuildError, compiler
from rnnkit_kernels.cpu.library import PACKAGE, Library, Unusable, library, load, missing
from rnnkit_kernels.cpu.sources import INSTRUCTION_SETS, sealed, source_hash
from tests.conftest import needs_engine


def test_where_there_is_a_compiler_the_engine_is_built() -> None:
    if os.environ.get("RNNKIT_NATIVE") == "0":
        pytest.skip(missing())
    try:
        compiler()
    except BuildError as error:
        pytest.skip(str(error))
    assert library() is not None, missing()
    assert missing() == ""


@pytest.fixture(params=INSTRUCTION_SETS)
def engine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Any) -> Library:
    """A copy of the library, which chooses anew."""
    monkeypatch.setenv("RNNKIT_ISA", request.param)
    shutil.copyfile(PACKAGE, tmp_path / PACKAGE.name)
    try:
        found = load(tmp_path / PACKAGE.name, source_hash())
    except Unusable as error:
        pytest.skip(str(error))
    assert found.isa == request.param
    return found


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


FUNCTIONS = [np.exp, sigmoid, np.tanh, lambda x: np.maximum(x, 0)]
WIDER = {np.float32: np.float64, np.float64: np.longdouble}


def apply(engine: Library, which: int, x: Any) -> Any:
    y = np.empty_like(x)
    assert engine.activation(which, x.itemsize, x.ctypes.data, y.ctypes.data, x.size) == 0
    return y


@needs_engine
@pytest.mark.parametrize("dtype", WIDER)
@pytest.mark.parametrize("which", range(4), ids=["exp", "sigmoid", "tanh", "relu"])
def test_activations_are_within_two_units_in_the_last_place(
    engine: Library, which: int, dtype: Any
) -> None:
    info, random = np.finfo(dtype), np.random.default_rng(0)
    if np.finfo(WIDER[dtype]).eps >= info.eps:
        pytest.skip("no wider numbers here")
    sizes = np.exp2(random.uniform(info.minexp, info.maxexp, 50_001).astype(WIDER[dtype]))
    limit = -2 * np.log(info.tiny)
    x = np.concatenate([sizes, -sizes, random.uniform(-limit, limit, 200_000)]).astype(dtype)
    with np.errstate(over="ignore", under="ignore"):
        exact = FUNCTIONS[which](x.astype(WIDER[dtype]))
        rounded = exact.astype(dtype)
        y = apply(engine, which, x)
    normal = (np.abs(rounded) >= info.tiny) & np.isfinite(rounded)
    assert normal.mean() > 0.2
    error = np.abs(y[normal] - exact[normal]) / np.spacing(np.abs(rounded[normal]))
    assert error.max() <= 2, x[normal][error.argmax()]
    np.testing.assert_array_equal(y[np.isinf(rounded)], np.inf)
    assert (np.abs(y[np.abs(rounded) < info.tiny]) <= info.tiny).all()


@needs_engine
@pytest.mark.parametrize("dtype", WIDER)
def test_activations_of_what_is_no_number(engine: Library, dtype: Any) -> None:
    x = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0], dtype)
    exp, logistic, tanh, relu = (apply(engine, which, x) for which in range(4))
    np.testing.assert_array_equal(exp, [np.nan, np.inf, 0, 1, 1])
    np.testing.assert_array_equal(logistic[[0, 1, 3, 4]], [np.nan, 1, 0.5, 0.5])
    assert 0 <= logistic[2] <= np.finfo(dtype).tiny
    np.testing.assert_array_equal(tanh, [np.nan, 1, -1, 0, 0])
    np.testing.assert_array_equal(np.signbit(tanh[3:]), [True, False])
    np.testing.assert_array_equal(relu, [np.nan, np.inf, 0, 0, 0])


@needs_engine
def test_rates_are_of_multiply_adds_and_of_reading(engine: Library) -> None:
    single, double, reading = 0, 1, 2
    assert engine.rate(single, 0, 1) > engine.rate(double, 0, 1) > 1e7
    assert engine.rate(reading, 4096, 2) > 1e7
    # Less than a thread reads at once, and no threads.
    assert engine.rate(reading, 100, 1) == engine.rate(single, 0, 0) == 0


def changed(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(whole: bytes) -> bytes:
        assert old in whole
        return sealed(whole[:-64].replace(old, new))

    return change


@needs_engine
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda whole: whole[:1_000_000], "is damaged: build it anew"),
        (lambda whole: whole[:-1], "is damaged: build it anew"),
        (lambda whole: whole[:5000] + b"?" + whole[5001:], "is damaged: build it anew"),
        (lambda whole: b"", "is damaged: build it anew"),
        (lambda whole: sealed(b"no library"), "can't be loaded: .*"),
        (changed(b"rnnkit_sources", b"rnnkit_origins"), "can't be loaded: .*rnnkit_sources"),
        (changed(source_hash().encode(), b"0" * 64), "was built from other sources .00000000, "),
    ],
    ids=["half", "a byte short", "a bit off", "empty", "no library", "no symbol", "other sources"],
)
def test_a_file_that_cannot_serve_is_refused_with_the_reason(
    change: Callable[[bytes], bytes], reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "engine.so"
    file.write_bytes(change(PACKAGE.read_bytes()))
    with pytest.raises(Unusable, match=f"^the native engine engine.so {reason}"):
        load(file, source_hash())


@needs_engine
def test_an_instruction_set_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("RNNKIT_ISA", "nonsense")
    shutil.copyfile(PACKAGE, tmp_path / "engine.so")
    with pytest.raises(Unusable, match="no code for this processor, RNNKIT_ISA=nonsense"):
        load(tmp_path / "engine.so", source_hash())


@needs_engine
def test_a_library_that_takes_other_calls_is_refused(monkeypatch: Any) -> None:
    monkeypatch.setattr(libraries, "CALL_BYTES", 8)
    with pytest.raises(Unusable, match=r"takes calls of \d+ bytes, expected 8: build it anew"):
        load(PACKAGE, source_hash())


@needs_engine
def test_a_library_in_a_read_only_folder_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "package"
    folder.mkdir()
    shutil.copyfile(PACKAGE, folder / PACKAGE.name)
    folder.chmod(0o555)
    assert load(folder / PACKAGE.name, source_hash()).cells.keys() == CELLS.keys()
    folder.chmod(0o755)


@pytest.fixture
def found_anew(monkeypatch: Any) -> Iterator[None]:
    monkeypatch.delenv("RNNKIT_NATIVE", raising=False)  # the tests may run without the engine
    libraries._found.cache_clear()
    yield
    libraries._found.cache_clear()


def test_the_engine_can_be_turned_off(found_anew: None, monkeypatch: Any) -> None:
    monkeypatch.setenv("RNNKIT_NATIVE", "0")
    assert library() is None
    assert library(GRU) is None
    assert missing(GRU) == missing() == "RNNKIT_NATIVE=0 turned the native engine off"


def test_where_none_is_built_a_sentence_says_how(
    found_anew: None, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(libraries, "PACKAGE", tmp_path / "engine.so")
    assert library(GRU) is None
    assert "is not built: " in missing(GRU)
    assert "python -m rnnkit_kernels.cpu.build" in missing(GRU)


@needs_engine
def test_every_cell_has_the_package_s_library() -> None:
    assert all(library(cell) is library() for cell in CELLS.values())


def test_a_cell_that_is_registered_at_run_time_runs_in_pytorch_until_it_is_built(
    found_anew: None, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("RNNKIT_CACHE_DIR", str(tmp_path))
    cell = dataclasses.replace(RNN_TANH, name="unbuilt")
    assert library(cell) is None
    assert "the native engine lacks the cell unbuilt, which runs in PyTorch unless" in missing(cell)
    assert f"--module FILE has built {tmp_path}/unbuilt-" in missing(cell)
    cell = dataclasses.replace(RNN_TANH, name="un-printable")
    assert library(cell) is None
    assert missing(cell).startswith("un-printable has no CPU engine: ")
