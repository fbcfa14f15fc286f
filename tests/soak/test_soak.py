"""The programs of `make soak` do what they are for, and find what is planted."""

import mmap
from pathlib import Path

import pytest
import torch

from tests.small_tasks import language_model
from tests.soak import kills, memory

pytestmark = pytest.mark.process


def test_a_chain_of_killed_runs_ends_as_the_undisturbed_one(tmp_path):
    count = kills.Count()
    for attempt in range(5):  # a kill may come too early or too late
        folder = tmp_path / str(attempt)
        folder.mkdir()
        count = kills.soak(language_model, 1, folder)
        assert (count.chains, count.different) == (1, 0)
        if count.resumed:
            break
    assert count.kills >= count.resumed >= 1


def test_another_end_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(kills, "STEPS", 12)
    task, count = language_model(tmp_path), kills.Count()
    assert kills.command(tmp_path, kills.arguments(task, "undisturbed")) == 0
    path = tmp_path / "runs" / "undisturbed" / "version_0" / "checkpoints" / "middle.ckpt"
    expected = torch.load(path, weights_only=True)
    next(iter(expected["state_dict"].values())).view(-1)[0] += 1e-6
    monkeypatch.setattr(kills, "MOST_KILLS", 0)
    kills.kill_and_go_on(task, tmp_path, expected, 1.0, 0, count)
    assert (count.kills, count.different) == (0, 1)


def leak(folder: Path, steps: int, kept: list) -> int:
    files, samples = [], []
    for step in range(steps):
        if "memory" in kept:
            files.append(mmap.mmap(-1, 2**19))  # new pages, where malloc may have old ones left
            files[-1].write(b"x" * 2**19)
        if "objects" in kept:
            files += [[step] for _ in range(100)]
        if "files" in kept:
            files.append(open("log"))  # noqa: SIM115
        samples.append(memory.sample(step))
    memory.note(samples)
    return 0


def test_what_grows_is_found(tmp_path, monkeypatch):
    found = {}
    for kept in ("nothing", "memory", "objects", "files"):

        def run(folder, steps, kept=kept):
            return leak(folder, steps, [kept])

        monkeypatch.setitem(memory.RUNS, kept, run)
        found[kept] = memory.growth(memory.watch(kept, 80, tmp_path))
    assert memory.flat(found["nothing"]), found
    for kept in ("memory", "objects", "files"):
        assert not memory.flat(found[kept]), found
    assert found["memory"].resident > 2**19 * 30
    assert found["files"].files == 40  # from the middle of the second quarter to that of the last


@pytest.mark.parametrize("name", memory.RUNS)
def test_runs_leave_samples(name, tmp_path):
    steps = 400 if name == "decoding" else 100  # a search is a hundred steps
    samples = memory.watch(name, steps, tmp_path)
    assert len(samples) >= 4
    assert samples[-1].step >= 0.95 * steps
    assert samples[-1].resident > 2**20
    assert samples[-1].files > 2
