"""Where in an epoch a run goes on: behind its last step, whichever limit ended it."""

import pytest
import torch
from lightning.pytorch import Callback

from rnnkit.cli import main
from tests.small_tasks import TASKS

pytestmark = [pytest.mark.training, pytest.mark.usefixtures("no_pictures")]

STEPS = 12  # of an epoch


class StopAt(Callback):
    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.should_stop or trainer.global_step == 4


def fit(task, name, *options, checkpoint="last"):
    arguments = ["fit", *task, "--trainer.accelerator", "cpu", "--trainer.logger", "CSVLogger"]
    arguments += ["--trainer.logger.save_dir", "runs", "--trainer.logger.name", name]
    assert main([*arguments, *options]) == 0
    return f"runs/{name}/version_0/checkpoints/{checkpoint}.ckpt"


def assert_same(path, other):
    one, two = (torch.load(each, weights_only=True) for each in (path, other))
    assert one["global_step"] == two["global_step"] == 3 * STEPS
    for name, value in two["state_dict"].items():
        assert torch.equal(one["state_dict"][name], value), name


@pytest.mark.parametrize("validation", ["1.0", "0"])
def test_a_limit_of_steps_goes_on_with_the_epoch_after_a_whole_one(
    validation, tmp_path, monkeypatch
):
    """Where Lightning trains a batch too many, or an epoch too few."""
    monkeypatch.chdir(tmp_path)
    task = [*TASKS[0](tmp_path), "--trainer.limit_val_batches", validation]
    both = ("--trainer.max_epochs", "3", "--trainer.max_steps", "1000")
    steps = ("--trainer.max_epochs", "-1", "--trainer.max_steps")
    unbroken = fit(task, "unbroken", *both)
    first = fit(task, "first", *steps, str(STEPS))
    assert_same(fit(task, "both", *both, "--ckpt_path", first), unbroken)
    assert_same(fit(task, "steps", *steps, str(3 * STEPS), "--ckpt_path", first), unbroken)


def test_a_best_checkpoint_of_an_epoch_that_was_cut_goes_on_within_it(tmp_path, monkeypatch):
    """It is written at the end of the epoch, which Lightning has counted by then."""
    monkeypatch.chdir(tmp_path)
    task = [*TASKS[0](tmp_path), "--trainer.max_epochs", "3"]
    unbroken = fit(task, "unbroken")
    stop = ("--trainer.callbacks+", f"{__name__}.StopAt")
    best = fit(task, "first", *stop, checkpoint="best")
    assert torch.load(best, weights_only=True)["global_step"] == 4
    assert_same(fit(task, "again", "--ckpt_path", best), unbroken)
