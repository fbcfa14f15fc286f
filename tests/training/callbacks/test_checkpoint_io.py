import ast
import os
from pathlib import Path

import pytest
import torch

from rnnkit.training.callbacks.checkpoint_io import (
    AtomicCheckpointIO,
    CheckpointError,
    read_checkpoint,
)


class Unwritable:
    def __reduce__(self):
        raise OSError("disk full")


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def save(content, path):
    AtomicCheckpointIO().save_checkpoint(content, path)


def test_a_checkpoint_comes_back(tmp_path):
    save({"weight": torch.arange(3), "step": 4}, tmp_path / "a.ckpt")
    content = read_checkpoint(tmp_path / "a.ckpt")
    assert content["weight"].tolist() == [0, 1, 2]
    assert content["step"] == 4


def test_a_crash_while_writing_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    save({"step": 1}, path)
    with pytest.raises(CheckpointError, match="disk full"):
        save({"weight": torch.zeros(1000), "step": Unwritable()}, path)
    assert read_checkpoint(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_told_in_one_sentence(tmp_path, share):
    path = tmp_path / "last.ckpt"
    save({"weight": torch.randn(1000)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=r"last\.ckpt is ") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint .*nowhere\.ckpt"):
        read_checkpoint(tmp_path / "nowhere.ckpt")


def test_code_in_a_checkpoint_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"step": Harmful()}, "bad.ckpt")
    with pytest.raises(CheckpointError, match="more than tensors and plain data"):
        AtomicCheckpointIO().load_checkpoint("bad.ckpt", map_location="cpu")
    with pytest.raises(ValueError, match="weights_only=False would run code"):
        AtomicCheckpointIO().load_checkpoint("bad.ckpt", weights_only=False)
    assert os.listdir(tmp_path) == ["bad.ckpt"]


def test_a_file_without_a_dictionary_is_no_checkpoint(tmp_path):
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_checkpoint(tmp_path / "list.ckpt")


def test_every_load_says_whether_it_runs_what_it_reads():
    root = Path(__file__).parents[3]
    loads = []
    for folder in ("rnnkit", "kernels", "benchmarks", "demos", "tests"):
        for path in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                    loads.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    assert len(loads) >= 10
    assert [load for load in loads if "weights_only=" not in load] == []
    # Data that is no plain data is read by the one test that asks whether a module can be pickled.
    assert len([load for load in loads if "weights_only=False" in load]) == 1
