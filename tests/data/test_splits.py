"""Which file is which part of a corpus: alike in all tasks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rnnkit.cli import main
from rnnkit.data.registry import DataError
from rnnkit.language_modeling.corpora import read_corpus
from rnnkit.language_modeling.data import LanguageModelingData
from rnnkit.tagging.corpora import read_tagged, tagged_files
from rnnkit.tagging.data import TaggingData
from rnnkit.translation.corpora import read_parallel
from rnnkit.translation.data import TranslationData

TEXT = "Ada B-PER\nwrites O\n"  # a text, columns and lines to translate at once


def read_text(folder: str, **named: str) -> list[object]:
    corpus = read_corpus(folder, "word", **named)
    return [corpus.train[0], corpus.valid[0], corpus.test[0]]


def read_columns(folder: str, **named: str) -> list[object]:
    corpus = read_tagged(folder, "BIO", **named)
    return [part[0].words[0] for part in (corpus.train, corpus.valid, corpus.test)]


def read_pairs(folder: str, **named: str) -> list[object]:
    corpus = read_parallel(folder, "de", "en", **named)
    return [part[0][1].split()[0] for part in (corpus.train, corpus.valid, corpus.test)]


Read = Callable[..., list[object]]
TASKS: dict[str, tuple[Read, tuple[str, ...]]] = {
    "text": (read_text, (".txt",)),
    "columns": (read_columns, (".txt",)),
    "pairs": (read_pairs, (".de", ".en")),
}


def write(stem: Path, endings: tuple[str, ...], word: str = "Ada") -> None:
    for ending in endings:
        stem.with_name(stem.name + ending).write_text(TEXT.replace("Ada", word))


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> tuple[Read, tuple[str, ...]]:
    return TASKS[request.param]


@pytest.mark.parametrize("valid", ["valid", "val", "validation", "dev", "devel", "testa"])
@pytest.mark.parametrize("test", ["test", "testb"])
def test_parts_have_the_names_that_are_usual(
    tmp_path: Path, task: tuple[Read, tuple[str, ...]], valid: str, test: str
) -> None:
    read, endings = task
    for name in ("train", valid, test):
        write(tmp_path / name, endings, name)
    assert read(str(tmp_path)) == ["train", valid, test]


def test_hidden_files_and_backups_are_no_parts(
    tmp_path: Path, task: tuple[Read, tuple[str, ...]]
) -> None:
    read, endings = task
    for split in ("train", "valid", "test"):
        write(tmp_path / split, endings, split)
        for ending in endings:
            name = f"{split}{ending}"
            for other in ("._{}", ".{}.swp", "{}~", "{}.bak", "{}.orig", "#{}#", ".#{}", "{}.old"):
                (tmp_path / other.format(name)).write_text("other O\n")
    assert read(str(tmp_path)) == ["train", "valid", "test"]


def test_what_is_no_text_is_no_part_of_a_tagged_corpus(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write(tmp_path / split, (".conll",), split)
        for ending in ("json", "md", "png", "log", "yaml", "tar.gz", "zip", "ckpt", "HTML"):
            (tmp_path / f"{split}-results.{ending}").touch()
    assert [path.name for path in tagged_files(str(tmp_path)).values()] == [
        "train.conll",
        "valid.conll",
        "test.conll",
    ]


def test_of_two_files_for_a_part_one_can_be_named(
    tmp_path: Path, task: tuple[Read, tuple[str, ...]]
) -> None:
    read, endings = task
    for name in ("train", "valid", "dev", "test"):
        write(tmp_path / name, endings, name)
    with pytest.raises(
        DataError, match=r"two files for valid: .* and .*: name .*, --data\.valid PATH"
    ):
        read(str(tmp_path))
    named = str(tmp_path / "dev") + ("" if len(endings) > 1 else endings[0])
    assert read(str(tmp_path), valid=named) == ["train", "dev", "test"]


def test_named_files_take_the_place_of_a_corpus_or_of_its_parts(
    tmp_path: Path, task: tuple[Read, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, endings = task
    (tmp_path / "all").mkdir()
    for name in ("train", "valid", "test"):
        write(tmp_path / "all" / name, endings, f"old{name}")
    paths = {}
    for split, name in (("train", "one"), ("valid", "two"), ("test", "three")):
        write(tmp_path / name, endings, name)
        paths[split] = str(tmp_path / name) + ("" if len(endings) > 1 else endings[0])
    assert read("nowhere", **paths) == ["one", "two", "three"]
    # A file may be called as a corpus is.
    for corpus in ("announcements", "dates", "python-docs"):
        write(tmp_path / corpus, endings if len(endings) > 1 else ("",), corpus)
        monkeypatch.chdir(tmp_path)
        assert read("nowhere", **paths | {"train": corpus}) == [corpus, "two", "three"]
    whole = str(tmp_path / "all")
    assert read(whole, test=paths["test"]) == ["oldtrain", "oldvalid", "three"]
    for ending in endings:
        (tmp_path / "all" / f"valid{ending}").unlink()
    assert read(whole, valid=paths["valid"]) == ["oldtrain", "two", "oldtest"]
    missing = r"lacks valid.*--data\.valid PATH"
    with pytest.raises(DataError, match=missing):
        read(whole, test=paths["test"])
    with pytest.raises(DataError, match=r"nowhere"):
        read(whole, valid=str(tmp_path / "nowhere"))


def test_a_text_that_is_cut_may_have_a_test_text_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("some words here\n" * 20)
    write(tmp_path / "other", (".txt",), "other")
    corpus = read_corpus(str(tmp_path), "word", test=str(tmp_path / "other.txt"))
    assert (len(corpus.train), len(corpus.valid), corpus.test[0]) == (72, 4, "other")


@pytest.mark.parametrize(
    ("make", "ending"), [(LanguageModelingData, ".txt"), (TaggingData, ".txt")]
)
def test_built_in_text_is_not_mixed_with_training_text_of_ones_own(
    tmp_path: Path, make: Callable[..., object], ending: str
) -> None:
    write(tmp_path / "mine", (ending,))
    with pytest.raises(DataError, match=r"--data\.valid and --data\.test too"):
        make(train=str(tmp_path / f"mine{ending}"))


def test_built_in_pairs_are_not_mixed_with_training_pairs_of_ones_own(tmp_path: Path) -> None:
    write(tmp_path / "mine", (".english", ".iso"))
    with pytest.raises(DataError, match=r"dates, .*--data\.valid and --data\.test too"):
        TranslationData(train=str(tmp_path / "mine"))
    data = TranslationData(test=str(tmp_path / "mine"))
    assert len(data.test_dataloader()) == 1


def test_a_language_is_left_out_of_the_path_of_pairs(tmp_path: Path) -> None:
    write(tmp_path / "train", (".de", ".en"))
    for split in ("valid", "test"):
        write(tmp_path / split, (".de", ".en"))
    path = str(tmp_path / "train.de")
    with pytest.raises(DataError, match=r"no file .*train\.de\.de: --data\.train PATH stands for"):
        read_parallel(str(tmp_path), "de", "en", train=path)


def test_the_data_are_called_by_what_was_named(tmp_path: Path) -> None:
    write(tmp_path / "mine", (".txt",))
    path = str(tmp_path / "mine.txt")
    assert str(TaggingData(train=path, valid=path, test=path)) == f"TaggingData({path!r})"


@pytest.mark.training
def test_files_are_named_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine", (".conll",))
    files = [f"--data.{split}=mine.conll" for split in ("train", "valid", "test")]
    arguments = ["fit", "--data", "rnnkit.tagging.TaggingData", *files]
    arguments += ["--model", "rnnkit.tagging.Tagger", "--trainer.fast_dev_run=1"]
    assert main(arguments) == 0, capsys.readouterr().err
    (tmp_path / "mine.conll").unlink()
    assert main(arguments) == 1
    assert "mine.conll" in capsys.readouterr().err
