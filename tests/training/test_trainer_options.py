"""Options of Lightning's that change what a run is made of: barebones, finders, schedulers."""

import csv
from pathlib import Path

import pytest

from rnnkit.cli import main
from tests.small_tasks import TASKS, language_model, tagging, translation

pytestmark = [pytest.mark.training, pytest.mark.usefixtures("no_pictures")]

FINDER = (
    *("--trainer.callbacks+", "LearningRateFinder"),
    *("--trainer.callbacks.num_training_steps", "30"),
)
MONITOR = ("--trainer.callbacks+", "LearningRateMonitor")
SCHEDULER = "--model.init_args.lr_scheduler"


def run(monkeypatch, folder, task, *options):
    monkeypatch.chdir(folder)
    common = ("--trainer.accelerator", "cpu", "--trainer.max_epochs", "3")
    return main(["fit", *task, *common, *options])


def scheduler(name, **arguments):
    given = [SCHEDULER, f"torch.optim.lr_scheduler.{name}"]
    for argument, value in arguments.items():
        given += [f"{SCHEDULER}.{argument}", str(value)]
    return given


def rates(name="lr-SGD"):
    (file,) = Path("runs").rglob("metrics.csv")
    with file.open(newline="") as lines:
        return [float(row[name]) for row in csv.DictReader(lines) if row[name]]


@pytest.mark.parametrize("task", TASKS)
def test_barebones_trains_and_leaves_nothing(task, tmp_path, monkeypatch, capsys):
    arguments = task(tmp_path)
    before = set(tmp_path.rglob("*"))
    assert run(monkeypatch, tmp_path, arguments, "--trainer.barebones", "true") == 0
    assert set(tmp_path.rglob("*")) == before
    shown = capsys.readouterr()
    assert shown.out.startswith("barebones: no checkpoints, logs, pictures and progress")
    assert "self.log" not in shown.err


def test_a_rate_is_found_and_trained_with(tmp_path, monkeypatch):
    arguments = language_model(tmp_path)
    cosine = scheduler("CosineAnnealingLR", T_max=3)
    assert run(monkeypatch, tmp_path, arguments, *cosine, *FINDER, *MONITOR) == 0
    first, second, third = rates()
    assert 0 < first < 1, "one between those that were tried, and not the configuration's 1"
    assert (second, third) == pytest.approx((0.75 * first, 0.25 * first))


def test_a_plateau_goes_on_from_the_rate_that_was_found(tmp_path, monkeypatch):
    plateau = scheduler("ReduceLROnPlateau", patience=0, threshold=1, factor=0.5)
    arguments = language_model(tmp_path)
    assert run(monkeypatch, tmp_path, arguments, *plateau, *FINDER, *MONITOR) == 0
    first, second, third = rates()
    assert 0 < first < 1
    assert (second, third) == pytest.approx((0.5 * first, 0.25 * first))


@pytest.mark.parametrize(
    "own",
    [scheduler("OneCycleLR", max_lr=2, total_steps=99), scheduler("LinearLR")],
    ids=["one cycle", "warm-up"],
)
def test_a_rate_that_would_not_count_is_told(own, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, tmp_path, language_model(tmp_path), *own, *FINDER) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "begins with a learning rate of its own, so that which LearningRateFinder has" in told


@pytest.mark.parametrize(
    ("task", "mode"),
    [(language_model, "min"), (translation, "min"), (translation, "max"), (tagging, "max")],
)
def test_torchs_plateau_watches_the_score_of_the_task(task, mode, tmp_path, monkeypatch):
    # No change is as large: the rate falls after the second validation and every one from then on.
    plateau = scheduler("ReduceLROnPlateau", mode=mode, patience=0, threshold=1e6, factor=0.5)
    arguments = task(tmp_path)
    once = ("--trainer.check_val_every_n_epoch", "1", "--trainer.val_check_interval", "1.0")
    assert run(monkeypatch, tmp_path, arguments, *plateau, *MONITOR, *once) == 0
    (file,) = Path("runs").rglob("metrics.csv")
    (name,) = (each for each in file.read_text().splitlines()[0].split(",") if each[:3] == "lr-")
    found = rates(name)
    assert found[0] > found[-1] > 0


def test_a_plateau_without_a_score_says_what_names_one(tmp_path, monkeypatch, capsys):
    plateau = scheduler("ReduceLROnPlateau", mode="max")
    assert run(monkeypatch, tmp_path, language_model(tmp_path), *plateau) == 1
    assert "use lightning.pytorch.cli.ReduceLROnPlateau" in capsys.readouterr().err
