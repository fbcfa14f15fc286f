import gzip
import logging
from pathlib import Path

import pytest

from rnnkit.data.files import read_lines
from rnnkit.data.registry import DataError
from rnnkit.translation.corpora import read_pairs, read_parallel


def write(folder: Path, **texts: str) -> str:
    """Files named `train_de` for train.de, and so on."""
    for name, text in texts.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8", newline="")
    return str(folder)


def corpus(folder: Path, **texts: str) -> str:
    whole = {
        f"{split}_{language}": f"{split} {language} 1\n{split} {language} 2\n"
        for split in ("train", "valid", "test")
        for language in ("de", "en")
    }
    return write(folder, **whole | texts)


def test_a_folder_holds_three_pairs_of_files(tmp_path: Path) -> None:
    texts = read_parallel(corpus(tmp_path), "de", "en")
    assert (texts.source, texts.target, texts.empty_pairs) == ("de", "en", 0)
    assert texts.train == [("train de 1", "train en 1"), ("train de 2", "train en 2")]
    assert texts.valid[1] == ("valid de 2", "valid en 2")
    assert texts.test[0] == ("test de 1", "test en 1")


def test_the_direction_can_be_turned(tmp_path: Path) -> None:
    texts = read_parallel(corpus(tmp_path), "en", "de")
    assert (texts.source, texts.target) == ("en", "de")
    assert texts.test[0] == ("test en 1", "test de 1")


def test_a_path_may_be_the_beginning_of_the_files_names(tmp_path: Path) -> None:
    corpus(tmp_path)
    for file in tmp_path.iterdir():
        file.rename(tmp_path / f"news.{file.name}")
    assert read_parallel(str(tmp_path / "news"), "de", "en").train[0][0] == "train de 1"


def test_files_may_be_compressed_and_validation_be_called_val(tmp_path: Path) -> None:
    corpus(tmp_path)
    (tmp_path / "valid.de").rename(tmp_path / "val.de")
    (tmp_path / "valid.en").unlink()
    (tmp_path / "val.en.gz").write_bytes(gzip.compress(b"zipped 1\nzipped 2\n"))
    texts = read_parallel(str(tmp_path), "de", "en")
    assert texts.valid == [("valid de 1", "zipped 1"), ("valid de 2", "zipped 2")]


def test_a_byte_order_mark_is_left_out(tmp_path: Path) -> None:
    path = corpus(tmp_path, train_de="\ufeffeins\nzwei\n", train_en="\ufeffone\ntwo\n")
    assert read_parallel(path, "de", "en").train[0] == ("eins", "one")


def test_lines_end_at_lf_or_crlf_alone(tmp_path: Path) -> None:
    write(tmp_path, text_de="a\u2028b\x0cc\r\nd\x85\n\ne")
    assert read_lines(tmp_path / "text.de") == ["a\u2028b\x0cc", "d\x85", "", "e"]


@pytest.mark.parametrize(("source", "target"), [("a\nb\n", "c\nd\ne\n"), ("a\nb\ne\n", "c\nd\n")])
def test_unequal_numbers_of_lines_are_told_with_the_line(
    tmp_path: Path, source: str, target: str
) -> None:
    write(tmp_path, x_de=source, x_en=target)
    longer = "en" if len(target) > len(source) else "de"
    counts = rf"x\.de has {source.count(chr(10))} lines and .*x\.en has {target.count(chr(10))}"
    with pytest.raises(DataError, match=rf"{counts}: line 3 of x\.{longer} \('e'\) has no"):
        read_pairs(tmp_path / "x.de", tmp_path / "x.en")


def test_empty_lines_leave_training_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = corpus(tmp_path, train_de="a\n\nc\nd\n", train_en="A\nB\n \t\nD\n")
    with caplog.at_level(logging.WARNING):
        texts = read_parallel(path, "de", "en")
    assert texts.train == [("a", "A"), ("d", "D")]
    assert texts.empty_pairs == 2
    assert "2 of 4 training pairs" in caplog.text
    assert "the first in line 2" in caplog.text


@pytest.mark.parametrize(("split", "name"), [("valid", "validation"), ("test", "test")])
def test_empty_lines_stay_in_the_texts_that_are_scored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, split: str, name: str
) -> None:
    path = corpus(tmp_path, **{f"{split}_de": "a\nb\n\n", f"{split}_en": "A\nB\nC\n"})
    with caplog.at_level(logging.WARNING):
        texts = read_parallel(path, "de", "en")
    assert getattr(texts, split) == [("a", "A"), ("b", "B"), ("", "C")]
    assert f"1 of 3 {name} pairs" in caplog.text
    assert "the first in line 3; they are kept" in caplog.text


def test_empty_lines_are_told_with_the_file_that_has_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine").mkdir()
    own = corpus(tmp_path / "mine", test_de="a\n\n", train_de="a\n\n")
    paths = {split: f"{own}/{split}" for split in ("train", "test")}
    with caplog.at_level(logging.WARNING):
        read_parallel(corpus(tmp_path, valid_de="\nb\n"), "de", "en", **paths)
    assert f"1 of 2 training pairs of {own}/train have" in caplog.text
    assert f"1 of 2 validation pairs of {tmp_path} have" in caplog.text
    assert f"1 of 2 test pairs of {own}/test have" in caplog.text


def test_whole_corpora_give_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_parallel(corpus(tmp_path), "de", "en")
    assert not caplog.records


def test_training_files_of_blank_lines_are_refused(tmp_path: Path) -> None:
    path = corpus(tmp_path, train_de="\n\n", train_en="a\nb\n")
    with pytest.raises(DataError, match="no training pair of which both lines hold text"):
        read_parallel(path, "de", "en")


def test_empty_files_are_refused(tmp_path: Path) -> None:
    path = corpus(tmp_path, valid_de="", valid_en="")
    with pytest.raises(DataError, match=r"valid\.de and .*valid\.en are empty.*got 0"):
        read_parallel(path, "de", "en")


@pytest.mark.parametrize("compressed", [False, True])
def test_bytes_that_are_no_utf8_are_told_with_file_and_line(
    tmp_path: Path, compressed: bool
) -> None:
    path = tmp_path / ("x.de.gz" if compressed else "x.de")
    content = b"ein\nzwei\n" + "fünf\n".encode("latin1")
    path.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(DataError, match=rf"{path.name} is no UTF-8: byte 0xfc in line 3"):
        read_lines(path)


@pytest.mark.parametrize("damage", ["cut", "plain", "inside"])
def test_damaged_archives_are_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.de.gz"
    content = gzip.compress(bytes(range(256)) * 9)
    damaged = {
        "cut": content[:-9],
        "plain": b"ein\n",
        "inside": content[:20] + b"\xff" * 9 + content[29:],
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(DataError, match=r"x\.de\.gz cannot be unpacked"):
        read_lines(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*x\.de"):
        read_lines(tmp_path / "x.de")


def test_missing_files_are_listed_beside_what_is_there(tmp_path: Path) -> None:
    path = corpus(tmp_path)
    (tmp_path / "test.en").unlink()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"lacks test\.en, found test\.de, train\.de.*valid\.en: a"):
        read_parallel(path, "de", "en")
    with pytest.raises(DataError, match=r"lacks train\.fr, valid\.fr, test\.fr, test\.en, found"):
        read_parallel(path, "fr", "en")


def test_two_files_for_one_part_are_named(tmp_path: Path) -> None:
    path = corpus(tmp_path, val_de="a\n")
    with pytest.raises(DataError, match=r"two files for valid: valid\.de and val\.de"):
        read_parallel(path, "de", "en")


@pytest.mark.parametrize("languages", [(None, None), ("de", None), (None, "en"), ("de", "de")])
def test_files_need_two_languages(tmp_path: Path, languages: tuple[str | None, str | None]) -> None:
    told = rf"\(--data\.source and --data\.target\), got {languages[0]} and {languages[1]}: found t"
    with pytest.raises(DataError, match=told):
        read_parallel(corpus(tmp_path), *languages)


def test_an_unknown_corpus_is_answered_with_the_known_ones_and_the_places_searched(
    tmp_path: Path,
) -> None:
    nowhere = tmp_path / "nowhere"
    known = "choose from dates, numbers, multi30k"
    places = rf"looked for {nowhere} and {nowhere}\.train\.\*"
    with pytest.raises(DataError, match=rf"no parallel corpus '.*nowhere': {known}.*{places}"):
        read_parallel(str(nowhere), "de", "en")


def test_a_dataset_for_another_task_is_refused() -> None:
    with pytest.raises(DataError, match="ptb is a dataset for language modelling, not for tran"):
        read_parallel("ptb", "de", "en")


def test_built_in_corpora_turn_round() -> None:
    usual = read_parallel("numbers")
    assert (usual.source, usual.target) == ("words", "digits")
    for languages in (("digits", "words"), ("digits", None), (None, "words")):
        turned = read_parallel("numbers", *languages)
        assert (turned.source, turned.target) == ("digits", "words")
        assert turned.test == [(digits, words) for words, digits in usual.test]


@pytest.mark.parametrize("languages", [("de", None), ("iso", "iso"), ("english", "words")])
def test_built_in_corpora_have_two_languages(languages: tuple[str, str | None]) -> None:
    with pytest.raises(DataError, match=f"dates has the languages english and iso.*{languages[0]}"):
        read_parallel("dates", *languages)


@pytest.mark.data
def test_multi30k_has_the_published_counts(real_data: Path) -> None:
    if not (real_data / "multi30k").is_dir():
        pytest.skip("RNNKIT_DATA_DIR holds no multi30k")
    texts = read_parallel("multi30k")
    assert (texts.source, texts.target, texts.empty_pairs) == ("de", "en", 0)
    assert (len(texts.train), len(texts.valid), len(texts.test)) == (29_000, 1_014, 1_000)
    assert read_parallel(str(real_data / "multi30k"), "en", "de").test == [
        (english, german) for german, english in texts.test
    ]
