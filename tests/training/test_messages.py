"""What a run tells: what somebody asked for, and none of what Lightning tells by itself."""

import logging
from pathlib import Path

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only

from rnnkit.cli import main
from rnnkit.training.messages import select_messages
from tests.small_tasks import TASKS, language_model

pytestmark = [pytest.mark.training, pytest.mark.usefixtures("no_pictures")]

ASKED = {
    "profiler": ("--trainer.profiler simple", "FIT Profiler Report"),
    "early stopping": (
        "--trainer.callbacks+ EarlyStopping --trainer.callbacks.monitor val/ppl "
        "--trainer.callbacks.verbose true",
        "Metric val/ppl improved. New best score: ",
    ),
    "batch size": (
        "--trainer.callbacks+ BatchSizeFinder --trainer.callbacks.max_trials 2",
        "Finished batch size finder, will continue with full run using batch size 4",
    ),
    "summary": ("--trainer.callbacks+ ModelSummary", "Total params"),
    "time": ("--trainer.max_time 00:00:00:00", "Time limit reached."),
    "checkpoint": (
        "--trainer.callbacks+ ModelCheckpoint --trainer.callbacks.verbose true "
        "--trainer.callbacks.monitor val/bits_per_token",
        "'val/bits_per_token' reached ",
    ),
}
ONE_EPOCH = ("--trainer.accelerator", "cpu", "--trainer.max_epochs", "1")


@pytest.fixture
def told():
    """What Lightning logs."""
    lines = []

    class Kept(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    handler, logger = Kept(), logging.getLogger("lightning.pytorch")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def test_a_note_is_told_by_one_of_several_processes(monkeypatch, caplog):
    noting = logging.getLogger("rnnkit.tagging.columns")
    for rank in (1, 0):
        monkeypatch.setattr(rank_zero_only, "rank", rank)
        select_messages()
        noting.warning("Note: told by process %d", rank)
    assert caplog.messages == ["Note: told by process 0"]


@pytest.mark.parametrize("asked", ASKED)
def test_what_was_asked_for_is_told(asked, told, tmp_path, monkeypatch):
    options, expected = ASKED[asked]
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *language_model(tmp_path), *ONE_EPOCH, *options.split()]) == 0
    assert expected in "\n".join(told)
    assert not [line for line in told if "available" in line or "Trainer.fit" in line]


@pytest.mark.parametrize("task", TASKS)
def test_a_run_of_which_nothing_was_asked_logs_nothing(task, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *task(tmp_path), *ONE_EPOCH]) == 0
    assert told == []
    assert "nothing to do" not in capsys.readouterr().out


def test_a_complete_run_says_which_limit_it_has_reached(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["fit", *language_model(tmp_path), *ONE_EPOCH]
    assert main(arguments) == 0
    last = next(Path("runs").rglob("last.ckpt"))
    for options, expected in (
        ((), "max_epochs=1 is reached, nothing to do: raise --trainer.max_epochs to go on\n"),
        (
            ("--trainer.max_steps", "3", "--trainer.max_epochs", "-1"),
            "max_steps=3 is reached, nothing to do: raise --trainer.max_steps to go on\n",
        ),
        (
            ("--trainer.max_epochs", "2", "--trainer.limit_train_batches", "0"),
            "there are no batches to train on, nothing to do\n",
        ),
    ):
        capsys.readouterr()
        assert main([*arguments, "--ckpt_path", str(last), *options]) == 0
        assert capsys.readouterr().out == expected
