"""What separates columns: what is named, and what is recognised where nothing is."""

import logging
from pathlib import Path

import pytest

from rnnkit.data.registry import DataError
from rnnkit.tagging.columns import read_columns

BLANKS_IN_TOKENS = "Ada\tB-PER\nNew York\tB-LOC\n\nin\tO\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "train.txt"
    path.write_bytes(text.encode())
    return path


def test_tabs_are_taken_where_they_alone_give_one_number_of_columns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, BLANKS_IN_TOKENS)
    with caplog.at_level(logging.WARNING):
        found = read_columns(path)
    assert [each[:3] for each in found] == [
        (["Ada", "New York"], ["B-PER", "B-LOC"], 1),
        (["in"], ["O"], 4),
    ]
    (record,) = caplog.records
    assert f"tabs alone separate the columns of {path}" in record.getMessage()
    assert "line 2" in record.getMessage()


def test_tabs_are_taken_where_blanks_would_cut_every_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, "New York\tB-LOC\nLos Angeles\tB-LOC\n")
    with caplog.at_level(logging.WARNING):
        (sentence,) = read_columns(path)
    assert sentence.words == ["New York", "Los Angeles"]
    assert f"tabs alone separate the columns of {path}, for blanks" in caplog.text


def test_tabs_are_taken_where_a_column_is_empty(tmp_path: Path) -> None:
    path = write(tmp_path, "Ada\tB-PER\tsure\nin\tO\t\n\tO\tx\n")
    with pytest.raises(DataError, match=r"empty token in line 3"):
        read_columns(path, tag_column=1)
    path = write(tmp_path, "Ada\tB-PER\tsure\nin\tO\t\n")
    assert read_columns(path, tag_column=1)[0].tags == ["B-PER", "O"]
    with pytest.raises(DataError, match=r"empty tag in line 2, column 2"):
        read_columns(path)


def test_blanks_are_taken_where_they_give_one_number_of_columns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for text in ("EU\tNNP I-ORG\nrejects\tVBZ O\n", "Ada\tB-PER\t\nin\tO\t\n", "a \tO\nb\tO\n"):
            (sentence,) = read_columns(write(tmp_path, text))
            assert sentence.tags[1] == "O"
            assert sentence.words[0] in ("EU", "Ada", "a")
    assert not caplog.records


def test_a_separator_may_be_written_as_a_backslash_and_a_t(tmp_path: Path) -> None:
    path = write(tmp_path, "New York\tB-LOC\n\nin 2 days\tO\n")
    assert read_columns(path, separator=r"\t") == read_columns(path, separator="\t")
    assert read_columns(path, separator=r"\t")[0].words == ["New York"]


def test_blanks_around_a_column_are_no_part_of_it(tmp_path: Path) -> None:
    (sentence,) = read_columns(write(tmp_path, "New York \t B-LOC\n"), separator="\t")
    assert sentence[:2] == (["New York"], ["B-LOC"])


def test_ragged_lines_are_told_with_the_option_as_it_is_typed(tmp_path: Path) -> None:
    path = write(tmp_path, "Ada\tB-PER\nNew York\tB-LOC\tx\n")
    with pytest.raises(DataError, match=r"got 4 in line 2: .*give --data\.separator '\\t'"):
        read_columns(path)
    with pytest.raises(DataError, match=r"got 3 in line 2: they are separated by '\\t'"):
        read_columns(path, separator=r"\t")
    path = path.rename(tmp_path / "train.csv")
    path.write_text("Ada,B-PER\n,,O\n")
    with pytest.raises(DataError, match=r"got 3 in line 2: they are separated by ','"):
        read_columns(path)
