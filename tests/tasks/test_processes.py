"""Two processes that share the streams train as one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_train_as_one(tmp_path):
    def train(name, *arguments):
        folder = tmp_path / name
        folder.mkdir()
        subprocess.run(
            [
                *(sys.executable, "-m", "rnnkit.cli", "fit"),
                *("-c", str(ROOT / "configs" / "lm" / "python_docs.yaml")),
                *("--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "4"),
                *("--trainer.max_steps", "8", "--trainer.val_check_interval", "8"),
                *("--trainer.limit_val_batches", "3", "--data.init_args.eval_batch_size", "2"),
                *("--model.init_args.dropout", "0", *arguments),
            ],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
            timeout=120,
        )
        run = folder / "runs" / "python_docs" / "version_0"
        scores = (run / "metrics.csv").read_text().splitlines()[1:]
        scores = [float(value) for row in scores for value in row.split(",") if value]
        return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True), scores

    one, one_scores = train("one")
    two, two_scores = train("two", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert two_scores == pytest.approx(one_scores, rel=1e-5)
    for name, parameter in one["state_dict"].items():
        assert torch.allclose(two["state_dict"][name], parameter, atol=1e-5), name
    for state, expected in zip(two["carried_state"], one["carried_state"], strict=True):
        assert torch.allclose(state, expected, atol=1e-5)
    assert len(two["generators"]) == 2
