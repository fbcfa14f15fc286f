"""kill -9 in the middle of an epoch: the run that goes on equals one that nobody stopped."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Callback

from rnnkit.cli import main
from rnnkit_kernels.functional import cpu_engine
from tests.forks import Process
from tests.small_tasks import TASKS

pytestmark = [pytest.mark.process, pytest.mark.training]

KILLED_AT = 19  # of 30 steps; an epoch has 11 or 12


class Kill(Callback):
    """The process is gone within a step, without a word."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("task", TASKS)
def test_a_killed_run_goes_on_to_the_same_parameters(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [
        *("fit", *task(tmp_path), "--trainer.accelerator", "cpu", "--trainer.max_steps", "30"),
        *("--trainer.max_epochs", "-1", "--trainer.log_every_n_steps", "4"),
        *("--trainer.callbacks+", "lightning.pytorch.callbacks.ModelCheckpoint"),
        *("--trainer.callbacks.every_n_train_steps", "5"),
        *("--trainer.callbacks.filename", "middle"),
        *("--trainer.callbacks.enable_version_counter", "false"),
        *("--trainer.logger", "lightning.pytorch.loggers.CSVLogger"),
        *("--trainer.logger.save_dir", "runs", "--trainer.logger.name"),
    ]
    kill = ("--trainer.callbacks+", f"{__name__}.Kill")
    killed = Process(
        [sys.executable, "-m", "rnnkit.cli", *arguments, "killed", *kill],
        stderr=subprocess.PIPE,
        text=True,
    )
    _, told = killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL, told
    left = tmp_path / "runs" / "killed" / "version_0" / "checkpoints"
    assert main([*arguments, "unbroken"]) == 0
    for checkpoint, steps in (("last", (11, 12)), ("middle", (15,))):  # of an epoch, in an epoch
        path = left / f"{checkpoint}.ckpt"
        assert torch.load(path, weights_only=True)["global_step"] in steps
        assert main([*arguments, checkpoint, "--ckpt_path", str(path)]) == 0
        again, unbroken = (
            torch.load(f"runs/{name}/version_0/checkpoints/middle.ckpt", weights_only=True)
            for name in (checkpoint, "unbroken")
        )
        assert again["global_step"] == unbroken["global_step"] == 30
        assert again["cpu_engine"] == unbroken["cpu_engine"] == cpu_engine()
        for name, value in unbroken["state_dict"].items():
            assert torch.equal(again["state_dict"][name], value), name
