"""Kernels run in Triton's interpreter on CPU tensors; on a machine with a GPU, compiled.

Triton decides when a function is decorated, its own library's functions included, so it has to be
imported before any test does, and one process can do one of the two: with a GPU the interpreted
tests are skipped (`CUDA_VISIBLE_DEVICES= pytest tests/kernels` runs them). Outside tests/kernels
the variable is unset, as it is for users.
"""

import functools
import importlib.util
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.cpu.library import library, missing

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell without job control lets what it starts in the background ignore Ctrl-C, and so would
    # the processes that tests send it to.
    signal.signal(signal.SIGINT, signal.default_int_handler)

HAS_GPU = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)

# Without it torch's own LSTM raises under autocast on a CPU.
BFLOAT16_LSTM = torch.ops.mkldnn._is_mkldnn_bf16_supported()
# Where nothing has built it, everything runs in PyTorch.
NATIVE = library(CELLS["lstm"]) is not None
needs_engine = pytest.mark.skipif(not NATIVE, reason=missing(CELLS["lstm"]))

if not HAS_GPU:
    _before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    for _module in (
        "recurrence.exchange",
        "recurrence.forward",
        "recurrence.backward",
        "crf.kernels",
        "vocabulary.tiles",
    ):
        importlib.import_module(f"rnnkit_kernels.{_module}")
    if _before is None:
        del os.environ["TRITON_INTERPRET"]
    else:
        os.environ["TRITON_INTERPRET"] = _before

# What a test of `--quick` does not do.
SLOW = ("process", "compiler", "training", "slow")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick", action="store_true", help=f"leave out what is marked {', '.join(SLOW)}"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("quick"):
        given, left_out = config.option.markexpr, f"not ({' or '.join(SLOW)})"
        config.option.markexpr = f"({given}) and {left_out}" if given else left_out


@pytest.fixture(scope="session", autouse=True)
def _marks_are_honest(request: pytest.FixtureRequest) -> Iterator[None]:
    """With `--quick` a test that lacks a mark fails, and is told which one."""
    if not request.config.getoption("quick"):
        yield
        return

    def refuse(owner: object, name: str, mark: str) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def told(*arguments: Any, **options: Any) -> Any:
            command = arguments[1] if mark == "process" and len(arguments) > 1 else ()
            if command and command[0] == "git":  # a few milliseconds
                return original(*arguments, **options)
            pytest.fail(f"this test has to be marked {mark}: it calls {original.__qualname__}")

        patch.setattr(owner, name, told)

    with pytest.MonkeyPatch.context() as patch:
        refuse(subprocess.Popen, "__init__", "process")
        refuse(torch, "compile", "compiler")
        refuse(torch.export, "export", "compiler")
        if importlib.util.find_spec("triton") is not None:
            refuse(importlib.import_module("triton"), "compile", "compiler")
        if importlib.util.find_spec("lightning") is not None:
            refuse(importlib.import_module("lightning.pytorch").Trainer, "fit", "training")
        yield


WORDS = ["the", "a", "cat", "dog", "bird", "sees", "hears", "likes", "under", "mat", "tree"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads only wait for each other in models as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def real_data() -> Path:
    """The folder with the real corpora."""
    folder = os.environ.get("RNNKIT_DATA_DIR")
    if not folder:
        pytest.skip("RNNKIT_DATA_DIR is not set")
    return Path(folder)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no RNNKIT_DATA_DIR."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("pooch.os_cache", lambda name: folder / name)
    monkeypatch.delenv("RNNKIT_DATA_DIR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return folder / "rnnkit"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with about 1,000 tokens of training text, 160 of validation, 160 of test."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = torch.Generator().manual_seed(0)
    for name, lines in (("train", 125), ("valid", 20), ("test", 20)):
        ids = torch.randint(len(WORDS), (lines, 7), generator=generator).tolist()
        text = "\n".join(" ".join(WORDS[i] for i in line) for line in ids)
        (folder / f"{name}.txt").write_text(text + "\n")
    return str(folder)
