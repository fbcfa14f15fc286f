"""kill -9 in the middle of an epoch: the run that goes on equals one that nobody stopped."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from rnnkit.cli import main

ROOT = Path(__file__).parents[2]
KILLED_AT = 19  # of 30 steps; an epoch has 11 or 12


class Kill(Callback):
    """The process is gone within a step, without a word."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)


def language_model(folder):
    generator = torch.Generator().manual_seed(0)
    (folder / "corpus").mkdir()
    for name, count in (("train", 244), ("valid", 60), ("test", 60)):
        ids = torch.randint(12, (count,), generator=generator).tolist()
        (folder / "corpus" / f"{name}.txt").write_text(" ".join(f"w{i}" for i in ids))
    return [
        *("-c", str(ROOT / "configs/lm/ptb_zaremba_small.yaml")),
        *("--data.init_args.corpus", str(folder / "corpus")),
        *("--data.init_args.batch_size", "4", "--data.init_args.window", "5"),
        *("--model.init_args.embedding_size", "8", "--model.init_args.hidden_size", "8"),
    ]


def translation(folder):
    (folder / "pairs").mkdir()
    for name in ("train", "valid", "test"):
        for language in ("de", "en"):
            lines = [f"{language} {' '.join('abcde'[: 1 + i % 5])}" for i in range(96)]
            (folder / "pairs" / f"{name}.{language}").write_text("\n".join(lines))
    return [
        *("-c", str(ROOT / "configs/translation/multi30k_bahdanau.yaml")),
        *("--data.init_args.corpus", str(folder / "pairs")),
        *("--data.init_args.batch_tokens", "60"),
        *("--model.init_args.embedding_size", "8", "--model.init_args.encoder_size", "8"),
        *("--model.init_args.hidden_size", "8"),
    ]


def tagging(folder):
    (folder / "tagged").mkdir()
    for name in ("train", "valid", "test"):
        sentences = [
            "".join(f"{word} {'B-X' if word == 'c' else 'O'}\n" for word in "abcde"[: 2 + i % 4])
            for i in range(96)
        ]
        (folder / "tagged" / f"{name}.txt").write_text("\n".join(sentences))
    return [
        *("-c", str(ROOT / "configs/tagging/announcements.yaml")),
        *("--data.init_args.corpus", str(folder / "tagged")),
        *("--data.init_args.batch_size", "8"),
        *("--model.init_args.embedding_size", "8", "--model.init_args.hidden_size", "8"),
    ]


@pytest.mark.parametrize("task", [language_model, translation, tagging])
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
    killed = subprocess.run(
        [sys.executable, "-m", "rnnkit.cli", *arguments, "killed", *kill],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)]),
            # As this process, see conftest.py: sums of other shares are rounded otherwise.
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
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
        for name, value in unbroken["state_dict"].items():
            assert torch.equal(again["state_dict"][name], value), name
