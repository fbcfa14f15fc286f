"""Two processes that share the streams, or the examples of every batch, train as one does."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

# The configuration, with what makes a run small and without chance.
TASKS = {
    "lm/python_docs": [
        *("--trainer.max_steps", "8", "--trainer.val_check_interval", "8"),
        *("--trainer.limit_val_batches", "3", "--data.init_args.eval_batch_size", "2"),
        *("--model.init_args.dropout", "0"),
    ],
    "translation/dates": [
        *("--trainer.max_steps", "8", "--trainer.val_check_interval", "4"),
        *("--trainer.limit_val_batches", "2", "--data.init_args.eval_batch_size", "15"),
        *("--data.init_args.batch_tokens", "301"),
    ],
    "tagging/announcements": [
        *("--trainer.max_steps", "8", "--trainer.val_check_interval", "4"),
        *("--trainer.limit_val_batches", "2", "--data.init_args.eval_batch_size", "15"),
        *("--data.init_args.batch_size", "33", "--model.init_args.dropout", "0"),
        *("--model.init_args.singleton_dropout", "0"),
    ],
}


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.parametrize("task", TASKS)
def test_two_processes_train_as_one(task, tmp_path):
    def train(name, *arguments):
        folder = tmp_path / name
        folder.mkdir()
        subprocess.run(
            [
                *(sys.executable, "-m", "rnnkit.cli", "fit"),
                *("-c", str(ROOT / "configs" / f"{task}.yaml")),
                *("--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "4"),
                *(*TASKS[task], *arguments),
            ],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
            timeout=120,
        )
        run = folder / "runs" / Path(task).name / "version_0"
        with (run / "metrics.csv").open() as file:
            scores = [
                float(value)
                for row in csv.DictReader(file)
                for name, value in row.items()
                if value and name != "train/seconds"
            ]
        return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True), scores

    one, one_scores = train("one")
    two, two_scores = train("two", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert two_scores == pytest.approx(one_scores, rel=1e-5)
    for name, parameter in one["state_dict"].items():
        if parameter.is_floating_point():
            assert torch.allclose(two["state_dict"][name], parameter, atol=1e-5), name
    carried = zip(two.get("carried_state", []), one.get("carried_state", []), strict=True)
    assert all(torch.allclose(state, expected, atol=1e-5) for state, expected in carried)
    assert len(two["generators"]) == 2
    if task.startswith("translation"):
        assert next((tmp_path / "two").rglob("translations.txt")).read_text().count("epoch") == 2
