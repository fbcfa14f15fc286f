"""The configurations that come with rnnkit, by their names."""

from pathlib import Path

import pytest

from rnnkit.cli import main
from rnnkit.training.shipped import path_of, shipped, with_paths
from tests.small_tasks import language_model

ROOT = Path(__file__).parents[2]
SMALL = str(ROOT / "configs" / "lm" / "ptb_zaremba_small.yaml")


def test_every_configuration_of_the_tree_has_a_name():
    expected = {
        f"{path.parent.name}/{path.stem}": path for path in (ROOT / "configs").rglob("*.yaml")
    }
    assert shipped() == expected


@pytest.mark.parametrize(
    "name",
    ["lm/ptb_zaremba_small", "lm/ptb_zaremba_small.yaml", "configs/lm/ptb_zaremba_small.yaml"],
)
def test_a_name_is_found_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert path_of(name) == SMALL
    assert with_paths(["fit", "-c", name, "--config", name, f"--config={name}"]) == [
        *("fit", "-c", SMALL, "--config", SMALL, f"--config={SMALL}")
    ]


def test_a_file_of_the_user_comes_first_and_what_is_no_name_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "ptb_zaremba_small").write_text("mine")
    kept = ["fit", "-c", "lm/ptb_zaremba_small", "-c", "../lm/hafez", "--name", "lm/hafez"]
    assert with_paths(kept) == kept


def test_configs_lists_each_with_what_it_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[: len(shipped())]] == list(shipped())
    assert max(map(len, lines)) <= 90
    assert any(line.startswith("lm/python_docs ") and "The demo: a word" in line for line in lines)


def test_configs_prints_one(capsys):
    assert main(["configs", "lm/ptb_zaremba_small"]) == 0
    assert capsys.readouterr().out == Path(SMALL).read_text()
    assert main(["configs", "lm/none"]) == 1
    assert "no configuration lm/none: `rnnkit configs` lists them" in capsys.readouterr().err


@pytest.mark.training
@pytest.mark.usefixtures("no_pictures")
def test_fit_takes_a_name_and_calls_the_run_after_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, path, *arguments = language_model(tmp_path)
    assert path == SMALL
    one = ("--trainer.max_steps", "1", "--trainer.limit_val_batches", "1")
    assert main(["fit", "-c", "lm/ptb_zaremba_small", *arguments, *one]) == 0
    assert (tmp_path / "runs" / "ptb_zaremba_small" / "version_0" / "config.yaml").is_file()


@pytest.mark.training
@pytest.mark.usefixtures("no_pictures")
def test_a_study_finds_its_configurations_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, _, *arguments = language_model(tmp_path)
    one = ("--trainer.max_epochs", "1")
    assert main(["study", "ptb-small", "--runs", "gru", "--", *arguments, *one]) == 0
    assert (tmp_path / "runs" / "ptb_small" / "gru_seed0" / "result.json").is_file()
