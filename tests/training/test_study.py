"""`rnnkit study`: runs one after the other, that go on where they were stopped."""

import csv
import json
import os
import signal
import time

import pytest
import torch
from lightning.pytorch import Callback

from rnnkit.cli import main
from rnnkit.training.studies.gradients import GradientStudy, Learned
from rnnkit.training.studies.perplexity import PerplexityStudy
from rnnkit.training.studies.study import Member
from rnnkit.training.study import STUDIES

pytestmark = pytest.mark.training

CONFIG = """\
seed_everything: 0
data:
  class_path: rnnkit.language_modeling.LanguageModelingData
  init_args: {corpus: CORPUS, batch_size: 4, window: 5, eval_batch_size: 2}
model:
  class_path: rnnkit.language_modeling.LanguageModel
  init_args:
    {embedding_size: 8, hidden_size: 8, num_layers: 1, dropout: DROPOUT,
     optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.5}},
     lr_scheduler: {class_path: torch.optim.lr_scheduler.StepLR,
                    init_args: {step_size: 1, gamma: 0.5}}}
trainer:
  max_epochs: 3
  accelerator: cpu
  log_every_n_steps: 10
  num_sanity_val_steps: 0
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {monitor: val/ppl, mode: min, filename: best,
                  enable_version_counter: false}
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of two runs on a tiny corpus, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    members = [Member("plain", "LSTM", "plain"), Member("dropped", "LSTM", "dropped")]
    monkeypatch.setitem(STUDIES, "ptb-small", PerplexityStudy(members))
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "corpus").mkdir()
    for name, count in (("train", 900), ("valid", 200), ("test", 210)):
        ids = torch.randint(12, (count,), generator=generator).tolist()
        (tmp_path / "corpus" / f"{name}.txt").write_text(" ".join(f"w{i}" for i in ids))
    (tmp_path / "configs").mkdir()
    for name, dropout in (("plain", "0.0"), ("dropped", "0.25")):
        text = CONFIG.replace("CORPUS", str(tmp_path / "corpus")).replace("DROPOUT", dropout)
        (tmp_path / "configs" / f"{name}.yaml").write_text(text)
    return tmp_path


def curve(place):
    return STUDIES["ptb-small"].curve(place)


def run(*arguments):
    return main(["study", "ptb-small", "--configs", "configs", *arguments])


def test_every_run_has_its_curve_its_picture_and_its_row(study, capsys):
    assert run("--report", "report") == 0
    report = study / "report"
    for name in ("plain_seed0", "dropped_seed0"):
        assert (report / f"{name}.png").stat().st_size > 10_000
        with (report / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["epoch"] for row in rows] == ["1", "2", "3"]
        assert [float(row["lr"]) for row in rows] == [0.5, 0.25, 0.125]
        assert all(float(row[f"{stage}/ppl"]) > 1 for row in rows
                   for stage in ("train", "train_eval", "val", "test"))  # fmt: skip
    results = json.loads((report / "results.json").read_text())["runs"]
    assert {each["name"] for each in results} == {"plain_seed0", "dropped_seed0"}
    for each in results:
        with (report / f"{each['name']}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        best = min(rows, key=lambda row: float(row["val/ppl"]))
        assert each["best_epoch"] == int(best["epoch"])
        # The 80,000 tokens are the whole text here, with the weights of the same epoch.
        assert each["train"] == pytest.approx(float(best["train_eval/ppl"]), rel=1e-4)
        assert each["valid"] == pytest.approx(float(best["val/ppl"]), rel=1e-5)
        assert each["test"] == pytest.approx(float(best["test/ppl"]), rel=1e-5)
    printed = capsys.readouterr().out
    assert "dropped_seed0: LSTM, dropout 0.25, learning rate 0.5, cut to 0.12" in printed
    assert "plain_seed0: LSTM, no dropout" in (report / "table.md").read_text()


@pytest.mark.usefixtures("no_pictures")
def test_a_study_keeps_its_runs_where_its_options_say(study):
    options = ("--trainer.default_root_dir", "there", "--trainer.max_epochs", "1")
    assert run("--runs", "plain", "--", *options) == 0
    assert (study / "there" / "ptb_small" / "plain_seed0" / "result.json").is_file()
    assert not (study / "runs").exists()


@pytest.mark.usefixtures("no_pictures")
def test_a_study_goes_on_where_it_was_stopped(study):
    assert run("--runs", "dropped") == 0
    unbroken = study / "runs" / "ptb_small" / "dropped_seed0"
    expected, weights = curve(unbroken), last(unbroken)
    unbroken.rename(study / "unbroken")
    stop = ("--", "--trainer.callbacks+", f"{__name__}.InterruptInTheSecondEpoch")
    assert run("--runs", "dropped", *stop) == 130
    again = study / "runs" / "ptb_small" / "dropped_seed0"
    assert not (again / "result.json").exists()
    assert run("--runs", "dropped") == 0
    assert json.loads((again / "result.json").read_text())["epochs"] == 3
    for found, row in zip(curve(again), expected, strict=True):
        # What is logged of training is a mean over the steps since the last time or the start.
        assert float(found.pop("train/ppl")) == pytest.approx(float(row.pop("train/ppl")), rel=0.01)
        assert found == row
    for name, value in last(again).items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.usefixtures("no_pictures")
def test_a_study_that_was_stopped_scores_the_best_epoch_of_all_its_parts(study):
    worse = ("--model.init_args.lr_scheduler.init_args.gamma", "40")  # after the first epochs
    stop = ("--trainer.callbacks+", f"{__name__}.InterruptInTheThirdEpoch")
    assert run("--runs", "plain", "--", *worse, *stop) == 130
    assert run("--runs", "plain", "--", *worse) == 0
    place = study / "runs" / "ptb_small" / "plain_seed0"
    scores = [float(row["val/ppl"]) for row in curve(place)]
    result = json.loads((place / "result.json").read_text())
    assert min(scores) < scores[2]
    assert result["best_epoch"] == 1 + scores.index(min(scores))
    assert result["valid"] == pytest.approx(min(scores), rel=1e-5)


class InterruptInTheThirdEpoch(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("no_pictures")
def test_a_trial_with_fewer_epochs_is_gone_on_with(study):
    result = study / "runs" / "ptb_small" / "plain_seed0" / "result.json"
    assert run("--runs", "plain", "--", "--trainer.max_epochs", "1") == 0
    assert json.loads(result.read_text())["epochs"] == 1
    assert run("--runs", "plain") == 0
    found = json.loads(result.read_text())
    assert (found["epochs"], found["max_epochs"]) == (3, 3)
    # Other options without more epochs change nothing but the record.
    assert run("--runs", "plain", "--", "--trainer.log_every_n_steps", "9") == 0
    again = json.loads(result.read_text())
    assert again["options"] == ["--trainer.log_every_n_steps", "9"]
    for name in ("epochs", "best_epoch", "train", "valid", "test", "checkpoint"):
        assert again[name] == found[name]


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_diverges_does_not_keep_the_others_from_theirs(study, capsys):
    (study / "configs" / "plain.yaml").write_text(
        (study / "configs" / "plain.yaml").read_text().replace("lr: 0.5", "lr: .inf")
    )
    assert run() == 1
    captured = capsys.readouterr()
    assert "plain_seed0 diverged: " in captured.err
    assert "without a result: plain_seed0" in captured.err
    assert "dropped_seed0: LSTM" in captured.out
    assert (study / "runs" / "ptb_small" / "dropped_seed0" / "result.json").exists()
    with pytest.raises(KeyboardInterrupt):  # the process has its own Ctrl-C back
        signal.raise_signal(signal.SIGINT)


class InterruptInTheSecondEpoch(Callback):
    """Ctrl-C by a user."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch == 1 and trainer.global_step == 60:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("no_pictures")
def test_a_run_ends_after_the_epoch_it_is_in_when_its_minutes_are_over(study):
    slow = ("--", "--trainer.callbacks+", f"{__name__}.SlowEpochs")
    assert run("--runs", "plain", "--minutes", "0.01", *slow) == 0
    result = json.loads((study / "runs/ptb_small/plain_seed0/result.json").read_text())
    assert (result["epochs"], result["max_epochs"]) == (1, 3)


class SlowEpochs(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        time.sleep(1.1)


def last(place):
    paths = sorted(place.glob("version_*/checkpoints/last.ckpt"), key=lambda p: p.stat().st_mtime)
    return torch.load(paths[-1], weights_only=True)["state_dict"]


@pytest.mark.usefixtures("no_pictures")
def test_a_finished_run_is_not_trained_again(study, capsys):
    assert run("--runs", "plain") == 0
    versions = list((study / "runs" / "ptb_small" / "plain_seed0").glob("version_*"))
    capsys.readouterr()
    assert run() == 0
    assert list((study / "runs" / "ptb_small" / "plain_seed0").glob("version_*")) == versions
    printed = capsys.readouterr().out
    assert "== dropped_seed0" in printed
    assert "== plain_seed0" not in printed


@pytest.mark.usefixtures("no_pictures")
def test_options_after_two_hyphens_go_to_fit_and_seeds_have_runs_of_their_own(study):
    assert run("--runs", "plain", "--seeds", "1", "2", "--", "--trainer.max_epochs", "1") == 0
    places = sorted((study / "runs" / "ptb_small").glob("plain_*/"))
    assert [place.name for place in places if place.is_dir()] == ["plain_seed1", "plain_seed2"]
    values = [json.loads((place / "result.json").read_text())["valid"] for place in places]
    assert values[0] != values[1]


@pytest.mark.usefixtures("no_pictures")
def test_what_there_is_not_is_told(study, capsys):
    assert run("--runs", "lost") == 1
    assert "no run lost in ptb-small: choose from plain, dropped" in capsys.readouterr().err
    assert main(["study", "ptb-small", "--configs", "nowhere"]) == 1
    assert "there is no nowhere/plain.yaml" in capsys.readouterr().err


def test_a_table_without_results_has_a_head_alone():
    assert len(STUDIES["ptb-small"].table([])) == 2


SHORT = ("--data.steps_per_epoch", "2", "--data.eval_examples", "8", "--trainer.max_epochs", "2")


def test_the_gradient_study_tells_who_learns_at_which_length(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runs = ("gru_T50", "tanh_T50", "gru_T100")
    assert main(["study", "gradients", "--runs", *runs, "--report", "report", "--", *SHORT]) == 0
    report = tmp_path / "report"
    for name in ("learned.png", "curves.png"):
        assert (report / name).stat().st_size > 10_000
    with (report / "gru_T50_seed0.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4"]
    losses = [float(row["val/loss"]) for row in rows]
    assert f"| GRU | ({min(losses):.3f}) |" in (report / "table.md").read_text()
    found = json.loads((report / "results.json").read_text())["runs"]
    of_gru = next(each for each in found if each["name"] == "gru_T50_seed0")
    assert (of_gru["length"], of_gru["steps"]) == (50, None)
    assert of_gru["loss"] == pytest.approx(min(losses))
    assert "| model | T = 50 | T = 100 |" in capsys.readouterr().out
    # What is there is not trained again.
    assert main(["study", "gradients", "--runs", *runs, "--report", "report", "--", *SHORT]) == 0
    assert "==" not in capsys.readouterr().out


@pytest.mark.usefixtures("no_pictures")
def test_that_a_run_diverges_is_a_result_of_the_gradient_study(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    infinite = ("--model.optimizer.init_args.lr", ".inf", "--trainer.log_every_n_steps", "1")
    assert main(["study", "gradients", "--runs", "gru_T50", "--", *SHORT, *infinite]) == 0
    captured = capsys.readouterr()
    assert "gru_T50_seed0 diverged: the loss became nan" in captured.err
    assert "| GRU | diverged |" in captured.out


def test_steps_to_learn_are_those_of_the_first_validation_below_the_mark():
    study = GradientStudy()
    common = {"epochs": 1, "max_epochs": 1, "minutes": 0.0, "length": 50}
    results = [
        Learned(name="a", title="tanh", steps=None, loss=0.166, **common),
        Learned(name="b", title="GRU", steps=1200, loss=0.005, **common),
        Learned(name="c", title="GRU", steps=900, loss=0.004, **common),
        Learned(name="d", title="LSTM", steps=None, loss=0.2, diverged=True, **common),
    ]
    assert study.table(results)[2:] == [
        "| GRU | 1,200, 900 |",
        "| LSTM | diverged (0.200) |",
        "| tanh | (0.166) |",
    ]
