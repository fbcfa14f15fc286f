"""last.ckpt at the end of a run, wherever its validations are."""

import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from rnnkit.cli import main
from tests.small_tasks import TASKS

pytestmark = [pytest.mark.training, pytest.mark.usefixtures("no_pictures")]

# Of an epoch that has 11 or 12 steps.
ENDS = {
    "before a validation": ("--trainer.max_steps", "7", "--trainer.max_epochs", "-1"),
    "between two": ("--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "2"),
    "within an epoch": (
        *("--trainer.max_epochs", "-1", "--trainer.max_steps", "17"),
        *("--trainer.val_check_interval", "5", "--trainer.check_val_every_n_epoch", "null"),
    ),
    "without any": ("--trainer.max_epochs", "2", "--trainer.limit_val_batches", "0"),
}


class Watch(Callback):
    def on_train_end(self, trainer, *_):
        self.__class__.step = trainer.global_step


class StopAt(Callback):
    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.should_stop or trainer.global_step == 4


class StopWithin(Callback):
    """Asks for the end after the second of four batches that make a step."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.should_stop or batch_idx == 5


class Keep(Callback):
    """Copies last.ckpt as it is before the tenth batch."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 9 and trainer.current_epoch == 0:
            shutil.copy(next(Path().glob("**/last.ckpt")), "kept.ckpt")


def fit(folder, monkeypatch, task, name, *options):
    monkeypatch.chdir(folder)
    arguments = ["fit", *task, "--trainer.accelerator", "cpu", "--trainer.logger", "CSVLogger"]
    arguments += ["--trainer.logger.save_dir", "runs", "--trainer.logger.name", name]
    assert main([*arguments, "--trainer.callbacks+", f"{__name__}.Watch", *options]) == 0
    return folder / "runs" / name / "version_0" / "checkpoints" / "last.ckpt"


def load(path):
    return torch.load(path, weights_only=True)


def assert_same(again, unbroken):
    assert again["global_step"] == unbroken["global_step"]
    for name, value in unbroken["state_dict"].items():
        assert torch.equal(again["state_dict"][name], value), name
    rates, expected = (
        [group["lr"] for group in each["optimizer_states"][0]["param_groups"]]
        for each in (again, unbroken)
    )
    assert rates == expected


@pytest.mark.parametrize("task", TASKS)
def test_a_run_that_ends_leaves_its_last_step(task, tmp_path, monkeypatch):
    arguments = task(tmp_path)
    ends = list(ENDS) if task is TASKS[0] else ["between two"]
    for index, end in enumerate(ends):
        last = fit(tmp_path, monkeypatch, arguments, f"end{index}", *ENDS[end])
        assert load(last)["global_step"] == Watch.step > 0


@pytest.mark.parametrize("task", TASKS)
def test_it_goes_on_to_the_same_parameters(task, tmp_path, monkeypatch):
    arguments = task(tmp_path)
    middle = ("--trainer.val_check_interval", "5", "--trainer.check_val_every_n_epoch", "null")
    steps = ("--trainer.max_epochs", "-1", *middle, "--trainer.max_steps")
    unbroken = load(fit(tmp_path, monkeypatch, arguments, "unbroken", *steps, "19"))
    first = fit(tmp_path, monkeypatch, arguments, "first", *steps, "7")
    second = fit(
        tmp_path, monkeypatch, arguments, "second", *steps, "19", "--ckpt_path", str(first)
    )
    again = load(second)
    assert again["global_step"] == unbroken["global_step"] == 19
    for name, value in unbroken["state_dict"].items():
        assert torch.equal(again["state_dict"][name], value), name


def test_it_goes_on_from_an_epochs_end_without_a_validation(tmp_path, monkeypatch):
    arguments = TASKS[0](tmp_path)
    epochs = ("--trainer.check_val_every_n_epoch", "3", "--trainer.max_epochs")
    unbroken = load(fit(tmp_path, monkeypatch, arguments, "unbroken", *epochs, "3"))
    first = fit(tmp_path, monkeypatch, arguments, "first", *epochs, "2")
    second = fit(
        tmp_path, monkeypatch, arguments, "second", *epochs, "3", "--ckpt_path", str(first)
    )
    again = load(second)
    assert again["global_step"] == unbroken["global_step"]
    for name, value in unbroken["state_dict"].items():
        assert torch.equal(again["state_dict"][name], value), name


def test_a_run_that_a_callback_ends_leaves_it_too(tmp_path, monkeypatch):
    stop = ("--trainer.callbacks+", f"{__name__}.StopAt")
    last = fit(tmp_path, monkeypatch, TASKS[0](tmp_path), "stopped", *stop)
    assert load(last)["global_step"] == 4


def test_training_that_goes_on_writes_none_between_validations(tmp_path, monkeypatch):
    """An epoch may be short, and a checkpoint large."""
    written = []
    monkeypatch.setattr(
        "lightning.pytorch.Trainer.save_checkpoint",
        lambda trainer, *_, **__: written.append(trainer.global_step),
    )
    sparse = ("--trainer.max_epochs", "5", "--trainer.check_val_every_n_epoch", "3")
    fit(tmp_path, monkeypatch, TASKS[0](tmp_path), "sparse", *sparse)
    steps = Watch.step // 5
    assert sorted(set(written)) == [3 * steps, 5 * steps]


STEP_LR = ("--model.lr_scheduler", "torch.optim.lr_scheduler.StepLR")
STEP_LR += ("--model.lr_scheduler.step_size", "1", "--model.lr_scheduler.gamma", "0.5")


@pytest.mark.parametrize("task", [TASKS[0], TASKS[2]])
def test_a_run_that_ends_within_an_epoch_goes_on_within_it(task, tmp_path, monkeypatch):
    arguments = [*task(tmp_path), *STEP_LR]
    whole = ("--trainer.max_epochs", "2")
    unbroken = load(fit(tmp_path, monkeypatch, arguments, "unbroken", *whole))
    steps = ("--trainer.max_steps", str(unbroken["global_step"]), "--trainer.max_epochs", "-1")
    both = (*whole, "--trainer.max_steps", "1000")
    cuts = {
        "steps": ("--trainer.max_epochs", "-1", "--trainer.max_steps", "7"),
        "stop": ("--trainer.callbacks+", f"{__name__}.StopAt"),
    }
    for cut, options in cuts.items():
        first = str(fit(tmp_path, monkeypatch, arguments, cut, *options))
        goals = (whole, steps, both) if cut == "steps" and task is TASKS[0] else (whole,)
        for index, goal in enumerate(goals):
            name = f"{cut}{index}"
            again = fit(tmp_path, monkeypatch, arguments, name, *goal, "--ckpt_path", first)
            assert_same(load(again), unbroken)


@pytest.mark.parametrize("cut", ["on a validation", "between two"])
def test_an_average_goes_on_with_the_scores_of_an_unbroken_run(cut, tmp_path, monkeypatch):
    """A validation that is due counts once, and one that follows from the stop does not."""
    averaging = "rnnkit.training.callbacks.averaging.TriggeredAveraging"
    arguments = [*TASKS[0](tmp_path), "--trainer.callbacks+", averaging]
    arguments += ["--trainer.callbacks.interval", "1", "--trainer.val_check_interval", "5"]
    arguments += ["--model.optimizer.lr", "30"]  # too large, so that it triggers
    arguments += ["--trainer.check_val_every_n_epoch", "null", "--trainer.max_epochs", "-1"]
    steps = ("--trainer.max_steps", "19")
    unbroken = load(fit(tmp_path, monkeypatch, arguments, "unbroken", *steps))
    stop = ("--trainer.callbacks+", f"{__name__}.StopAt", *steps)
    options = ("--trainer.max_steps", "10") if cut == "on a validation" else stop
    first = str(fit(tmp_path, monkeypatch, arguments, "first", *options))
    again = load(fit(tmp_path, monkeypatch, arguments, "again", *steps, "--ckpt_path", first))
    assert_same(again, unbroken)
    scores, expected = (each["callbacks"]["TriggeredAveraging"] for each in (again, unbroken))
    assert scores == expected
    assert expected["triggered"], expected
    assert len(expected["scores"]) == 3


@pytest.mark.parametrize("callback", ["Keep", "StopWithin"])
def test_none_is_written_within_a_step_of_several_batches(callback, tmp_path, monkeypatch):
    """A validation after six batches of four a step, and a stop there: the step ends first."""
    arguments = [*TASKS[0](tmp_path), "--trainer.max_epochs", "2"]
    arguments += ["--trainer.accumulate_grad_batches", "4", "--trainer.val_check_interval", "6"]
    unbroken = load(fit(tmp_path, monkeypatch, arguments, "unbroken"))
    watched = ("--trainer.callbacks+", f"{__name__}.{callback}")
    first = fit(tmp_path, monkeypatch, arguments, "first", *watched)
    first = tmp_path / "kept.ckpt" if callback == "Keep" else first
    assert load(first)["global_step"] == 2
    again = fit(tmp_path, monkeypatch, arguments, "again", "--ckpt_path", str(first))
    assert_same(load(again), unbroken)
