"""What breaks while a run trains, really broken: the last good checkpoint is left to go on from."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import FSDPStrategy

from rnnkit.cli import main
from rnnkit.training.callbacks.checkpoint_io import read_checkpoint
from tests.forks import Process
from tests.small_tasks import TASKS, language_model


def fit(task, folder, name):
    """Arguments of 30 steps with a checkpoint every five, in `runs/NAME/version_0`."""
    return [
        *("fit", *task(folder), "--trainer.accelerator", "cpu", "--trainer.max_steps", "30"),
        *("--trainer.max_epochs", "-1", "--trainer.log_every_n_steps", "4"),
        *("--trainer.callbacks+", "lightning.pytorch.callbacks.ModelCheckpoint"),
        *("--trainer.callbacks.every_n_train_steps", "5"),
        *("--trainer.callbacks.filename", "middle-{step}", "--trainer.callbacks.save_top_k", "-1"),
        *("--trainer.logger", "lightning.pytorch.loggers.CSVLogger"),
        *("--trainer.logger.save_dir", "runs", "--trainer.logger.name", name),
    ]


def weights(name, checkpoint="last"):
    path = Path("runs", name, "version_0", "checkpoints", f"{checkpoint}.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


class TakeAway(Callback):
    """Moves the corpus away at the end of the first epoch."""

    def on_train_epoch_end(self, trainer, *_):
        corpus = Path(trainer.datamodule.corpus)
        if corpus.exists():
            corpus.rename(corpus.with_name("gone"))


@pytest.mark.training
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("task", TASKS)
def test_files_that_vanish_or_change_between_epochs_do_no_harm(task, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    unbroken = fit(task, tmp_path, "unbroken")
    assert main(unbroken) == 0
    robbed = [*unbroken[:-1], "robbed"]
    assert main([*robbed, "--trainer.callbacks+", f"{__name__}.TakeAway"]) == 0
    expected = weights("unbroken")
    assert all(torch.equal(value, expected[name]) for name, value in weights("robbed").items())

    # A run that goes on reads the files anew.
    checkpoints = tmp_path / "runs" / "robbed" / "version_0" / "checkpoints"
    middle = str(checkpoints / "middle-step=15.ckpt")  # within an epoch of 11 or 12 steps
    assert main([*unbroken[:-1], "gone", "--ckpt_path", middle]) == 1
    assert "corpus" in capsys.readouterr().err.splitlines()[-1]
    corpus = next(tmp_path.glob("gone"))
    corpus = corpus.rename(tmp_path / TAKEN[task.__name__])
    assert main([*unbroken[:-1], "same", "--ckpt_path", middle]) == 0
    assert all(torch.equal(value, expected[name]) for name, value in weights("same").items())
    for file in corpus.glob("train.*"):  # the same vocabulary and as many of each word
        separator = {"language_model": " ", "translation": "\n", "tagging": "\n\n"}[task.__name__]
        examples = file.read_text().rstrip("\n").split(separator)
        file.write_text(separator.join(examples[::-1]) + "\n")
    capsys.readouterr()
    assert main([*unbroken[:-1], "changed", "--ckpt_path", middle]) == 1
    assert "training data have changed" in capsys.readouterr().err.splitlines()[-1]


TAKEN = {"language_model": "corpus", "translation": "pairs", "tagging": "tagged"}


@pytest.mark.process
@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0,
    reason="needs a mount namespace of its own",
)
@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoints_before(tmp_path):
    larger = ("--model.init_args.hidden_size", "128", "--trainer.max_epochs", "1")
    command = [
        *(sys.executable, "-m", "rnnkit.cli", *fit(language_model, tmp_path, "run"), *larger)
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    roomy = tmp_path / "roomy"
    roomy.mkdir()
    assert Process(command, cwd=roomy, env=environment).wait(timeout=120) == 0
    size = next(roomy.rglob("last.ckpt")).stat().st_size
    (tmp_path / "disk").mkdir()
    # Room for two checkpoints, those of steps 5 and 10, and a part of the next.
    script = (
        f"mount -t tmpfs -o size={int(2.7 * size)} tmpfs disk && cd disk || exit 99\n"
        '"$@"; status=$?; cp -r . ../saved; exit $status'
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    told = done.stderr.splitlines()[-1]
    assert told.startswith("rnnkit fit: cannot write the checkpoint ")
    assert "No space left on device" in told
    checkpoints = next((tmp_path / "saved").rglob("checkpoints"))
    steps = {read_checkpoint(path)["global_step"] for path in checkpoints.glob("*.ckpt")}
    assert steps == {5, 10}
    assert not list(checkpoints.glob(".*"))


class WithoutGPU(FSDPStrategy):
    """FSDP as far as a machine without a GPU comes; its own way to read checkpoints runs code."""


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_fsdp_gets_no_checkpoint_that_holds_code(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "step": Harmful()}, "bad.ckpt")
    strategy = f"trainer:\n  strategy:\n    class_path: {__name__}.WithoutGPU\n"
    Path("fsdp.yaml").write_text(strategy)
    arguments = [*fit(language_model, tmp_path, "run"), "-c", "fsdp.yaml"]
    assert main([*arguments, "--ckpt_path", "bad.ckpt"]) == 1
    assert "more than tensors and plain data" in capsys.readouterr().err
    assert not Path("harm").exists()


class KillingFile:
    """The process is gone at the 20th write to it."""

    def __init__(self, file):
        self.file, self.writes = file, 0

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        self.writes += 1
        if self.writes == 20:
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.file.write(data)


class KillOnWrite(Callback):
    """kill -9 when a part of the checkpoint of step 15 is in its file."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 14:
            save = torch.save
            torch.save = lambda checkpoint, file: save(checkpoint, KillingFile(file))


@pytest.mark.process
def test_a_kill_within_writing_leaves_the_checkpoint_before(tmp_path):
    arguments = fit(language_model, tmp_path, "run")
    arguments[arguments.index("middle-{step}")] = "middle"
    at = arguments.index("--trainer.callbacks.save_top_k")
    arguments[at : at + 2] = ["--trainer.callbacks.enable_version_counter", "false"]
    process = Process(
        [
            *(sys.executable, "-m", "rnnkit.cli", *arguments),
            *("--trainer.callbacks+", f"{__name__}.KillOnWrite"),
        ],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
    )
    _, told = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, told
    checkpoints = next(tmp_path.rglob("checkpoints"))
    assert read_checkpoint(checkpoints / "middle.ckpt")["global_step"] == 10
    assert len(list(checkpoints.glob(".middle.*.ckpt"))) == 1  # what was written of the next one


def test_too_large_a_model_says_what_to_reduce(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    size = ("--model.init_args.hidden_size", "3000000")  # 144 TB a matrix
    assert main([*fit(language_model, tmp_path, "run"), *size]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "you tried to allocate" in told
    assert "lower batch_size, batch_tokens or window of the data, or the sizes of the model" in told
