import hashlib
from pathlib import Path

import pytest

from rnnkit.data.command import main
from rnnkit.data.registry import BUILT_IN, DATASETS, DataFile, Dataset
from rnnkit.tagging import corpora as tagging
from rnnkit.translation import corpora as translation


@pytest.fixture
def little(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset `little` of two files, the first of which lies in the cache."""
    files = tuple(
        DataFile(name, 3, hashlib.sha256(name.encode()).hexdigest()) for name in ("a", "b")
    )
    dataset = Dataset("little", "tests", "2 letters", "CC0", files, how_to_obtain="ask for it")
    monkeypatch.setitem(DATASETS, "little", dataset)
    folder = cache / "little"
    folder.mkdir(parents=True)
    (folder / "a").write_text("a")
    return folder


def test_list_shows_size_licence_and_presence(
    little: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["list"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert rows["python-docs"].rstrip().endswith("built in")
    assert "6.0 MB" in rows["ptb"]
    assert "LDC, restricted" in rows["ptb"]
    assert rows["ptb"].rstrip().endswith("no")
    assert rows["little"].rstrip().endswith("1 of 2 files")


def test_every_corpus_that_is_built_in_is_listed_with_its_task(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    built_in = {line[0]: line[1] for line in lines if line[-2:] == ["built", "in"]}
    tasks = {BUILT_IN: "language", **dict.fromkeys(translation._BUILT_IN, "translation:")}
    assert built_in == {**tasks, tagging.BUILT_IN: "tagging:"}


def test_what_is_built_in_has_no_file(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["get", "announcements"]) == 0
    sentence = "announcements is built in: it has no file, `--data.corpus announcements` reads it"
    assert sentence in capsys.readouterr().err
    assert main(["where", "announcements"]) == 1
    said = capsys.readouterr()
    assert sentence in said.err
    assert not said.out


@pytest.mark.parametrize("root", ["cache", "data dir"])
def test_list_says_where_a_complete_dataset_lies(
    root: str, little: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (little / "b").write_text("b")
    if root == "data dir":
        monkeypatch.setattr("pooch.os_cache", lambda name: little / "elsewhere")
        monkeypatch.setenv("RNNKIT_DATA_DIR", str(little.parent))
    assert main(["list"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "little " in line)
    assert row.rstrip().endswith(root)


def test_get_prints_the_path_of_every_file(
    little: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (little / "b").write_text("b")
    assert main(["get", "little"]) == 0
    assert capsys.readouterr().out.split() == [str(little / "a"), str(little / "b")]


def test_get_goes_on_after_a_failure_and_reports_it(
    little: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (little / "b").write_text("b")
    assert main(["get", "ptb", "little"]) == 1
    printed = capsys.readouterr()
    assert printed.out.split() == [str(little / "a"), str(little / "b")]
    assert len(printed.err.splitlines()) == 1
    assert "LDC99T42" in printed.err
    assert "--accept-licence" in printed.err


def test_get_shows_the_licence_note_that_is_accepted(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accepted = []
    monkeypatch.setattr(
        "rnnkit.data.command.fetch",
        lambda name, *, accept_licence: accepted.append((name, accept_licence)) or {},
    )
    assert main(["get", "ptb", "--accept-licence"]) == 0
    assert "Linguistic Data Consortium" in capsys.readouterr().err
    assert accepted == [("ptb", True)]


def test_where_prints_what_is_there_and_where_to_put_the_rest(
    little: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["where", "little"]) == 1
    printed = capsys.readouterr()
    assert printed.out.split() == [str(little / "a")]
    assert str(little / "b") in printed.err
    (little / "b").write_text("b")
    assert main(["where", "little"]) == 0


def test_where_without_a_name_prints_the_folders(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["where"]) == 0
    printed = capsys.readouterr().out
    assert "not set" in printed
    assert str(cache) in printed


@pytest.mark.parametrize("argv", [[], ["get"], ["get", "pbt"], ["where", "pbt"], ["fetch"]])
def test_arguments_that_make_no_sense_end_with_status_2(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert "usage: rnnkit data" in capsys.readouterr().err


def test_help_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "RNNKIT_DATA_DIR" in capsys.readouterr().out


def test_a_wrong_data_dir_is_one_sentence(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RNNKIT_DATA_DIR", str(cache / "typo"))
    assert main(["list"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
