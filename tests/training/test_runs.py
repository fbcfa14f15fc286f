"""Where the command keeps its runs, and what they are called."""

from pathlib import Path

import pytest

from rnnkit.cli import main
from rnnkit.training.runs import name_of_run
from tests.small_tasks import language_model

FAST = (
    *("--trainer.accelerator", "cpu", "--trainer.max_steps", "1", "--trainer.val_check_interval"),
    *("1", "--trainer.check_val_every_n_epoch", "null", "--trainer.limit_val_batches", "1"),
    *("--trainer.limit_test_batches", "1", "--trainer.enable_progress_bar", "false"),
)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("configs/lm/hafez.yaml", "hafez"),
        ("runs/hafez/version_0/config.yaml", "hafez"),
        ("elsewhere/hafez/version_12/config.yaml", "hafez"),
        ("mine/config.yaml", "mine"),
        ("mine/version_a/config.yaml", "version_a"),
    ],
)
def test_a_run_is_called_after_its_configuration_or_the_run_of_that(path, name):
    assert name_of_run(path) == name


def test_a_bare_config_yaml_is_called_after_the_folder_one_is_in(tmp_path, monkeypatch):
    (tmp_path / "hafez" / "version_3").mkdir(parents=True)
    for folder in (tmp_path / "hafez", tmp_path / "hafez" / "version_3"):
        monkeypatch.chdir(folder)
        assert name_of_run("config.yaml") == "hafez"


@pytest.fixture
def rnnkit(tmp_path, monkeypatch, capsys, no_pictures):
    """Runs a command in an empty folder `work`; gives the files that are in there afterwards."""
    (tmp_path / "work").mkdir()
    arguments = language_model(tmp_path)
    monkeypatch.chdir(tmp_path / "work")

    def run(command, *options, config=arguments[1]):
        given = (*arguments[2:], *FAST) if config == arguments[1] else ()
        assert main([command, "-c", str(config), *given, *options]) == 0, capsys.readouterr().err
        return {path.as_posix() for path in Path().rglob("*") if path.is_file()}

    return run


RUN = {"config.yaml", "metrics.csv", "ppl.png", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}


def of_run(folder, files=frozenset(RUN)):
    return {f"{folder}/{name}" for name in files}


@pytest.mark.training
def test_default_root_dir_is_the_folder_of_the_runs_and_of_their_tests(rnnkit):
    folder = "there/ptb_zaremba_small/version_0"
    assert rnnkit("fit", "--trainer.default_root_dir", "there") == of_run(folder)
    checkpoint = ("--ckpt_path", f"{folder}/checkpoints/best.ckpt")
    before = of_run(folder)
    tested = rnnkit("test", *checkpoint, config=f"{folder}/config.yaml") - before
    # The saved configuration says where its runs are kept, and its folder what they are called.
    assert tested == of_run("there/ptb_zaremba_small/version_1", {"config.yaml", "metrics.csv"})


@pytest.mark.training
def test_without_a_logger_the_run_has_its_folder_all_the_same(rnnkit):
    first = of_run("runs/ptb_zaremba_small/version_0", RUN - {"metrics.csv", "ppl.png"})
    assert rnnkit("fit", "--trainer.logger", "false") == first
    second = of_run("there/ptb_zaremba_small/version_0", RUN - {"metrics.csv", "ppl.png"})
    there = ("--trainer.default_root_dir", "there")
    assert rnnkit("fit", "--trainer.logger", "false", *there) == first | second
    checkpoint = ("--ckpt_path", "runs/ptb_zaremba_small/version_0/checkpoints/best.ckpt")
    assert rnnkit("test", *checkpoint, "--trainer.logger", "false") == first | second


@pytest.mark.training
def test_without_a_logger_and_checkpoints_nothing_is_kept(rnnkit):
    no = ("--trainer.logger", "false", "--trainer.enable_checkpointing", "false")
    assert rnnkit("fit", *no, "--trainer.callbacks", "null") == set()


@pytest.mark.training
def test_the_logger_true_is_the_one_that_is_used_where_none_is_named(rnnkit):
    assert rnnkit("fit", "--trainer.logger", "true") == of_run("runs/ptb_zaremba_small/version_0")


@pytest.mark.training
def test_a_logger_that_is_named_keeps_its_folder(rnnkit):
    logger = ("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "logs")
    root = ("--trainer.default_root_dir", "there")
    assert rnnkit("fit", *logger, *root) == of_run("logs/lightning_logs/version_0")
