"""Tables: a header that names the columns, and ids of sentences in place of blank lines."""

import logging
from pathlib import Path

import pytest

from rnnkit.data.registry import DataError
from rnnkit.tagging.columns import read_columns

KAGGLE = """\
Sentence #,Word,POS,Tag
Sentence: 1,Ada,NNP,B-per
,",",",",O
,\"\"\"\",``,O
Sentence: 2,"Paris",NNP,B-geo
,.,.,O
"""
IDS_ON_EACH_ROW = """\
sentence_id,word,label
0,Ada,B-PER
0,writes,O
1,Paris,B-LOC
"""


def write(folder: Path, text: str, name: str = "train.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv_with_a_header_is_read_by_its_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, KAGGLE)
    with caplog.at_level(logging.WARNING):
        found = read_columns(path)
    assert [each[:3] for each in found] == [
        (["Ada", ",", '"'], ["B-per", "O", "O"], 2),
        (["Paris", "."], ["B-geo", "O"], 5),
    ]
    (record,) = caplog.records
    assert f"line 1 of {path} is read as a header: Word names the tokens" in record.getMessage()
    assert "Sentence # begins the sentences" in record.getMessage()
    assert read_columns(path, tag_column="pos")[1].tags == ["NNP", "."]
    assert read_columns(path, word_column="POS")[1].words == ["NNP", "."]


def test_ids_may_stand_on_every_row_and_columns_be_separated_by_semicolons(tmp_path: Path) -> None:
    for text in (IDS_ON_EACH_ROW, IDS_ON_EACH_ROW.replace(",", ";")):
        found = read_columns(write(tmp_path, text))
        assert [each.words for each in found] == [["Ada", "writes"], ["Paris"]]


def test_a_column_of_ids_is_named_where_none_has_a_known_name(tmp_path: Path) -> None:
    path = write(tmp_path, "a 1 O\nb 1 O\nc 2 O\n\nd 2 O\n", "train.txt")
    assert [each.words for each in read_columns(path)] == [["a", "b", "c"], ["d"]]
    found = read_columns(path, sentence_column=1)
    assert [each.words for each in found] == [["a", "b"], ["c"], ["d"]]
    assert [each.line for each in found] == [1, 3, 5]


def test_a_csv_without_a_header_has_blank_lines(tmp_path: Path) -> None:
    found = read_columns(write(tmp_path, 'Ada, "B-PER"\n",",O\n,\n"#",O\n'))
    assert [each[:2] for each in found] == [(["Ada", ","], ["B-PER", "O"]), (["#"], ["O"])]


def test_commas_and_semicolons_make_a_csv_whatever_the_name(tmp_path: Path) -> None:
    path = write(tmp_path, 'Ada,B-PER\n",",O\n', "train.txt")
    assert read_columns(path, separator=",")[0].words == ["Ada", ","]
    path = write(tmp_path, '"Ada";B-PER\n";";O\n', "train.txt")
    assert read_columns(path, separator=";")[0].words == ["Ada", ";"]
    with pytest.raises(DataError, match=r"one column .*--data\.separator ','"):
        read_columns(write(tmp_path, "Ada,B-PER\nwrites,O\n", "train.txt"))


def test_a_quote_without_end_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'quote .*line 2 .*as """"'):
        read_columns(write(tmp_path, 'Ada,B-PER\n",O\nwrites,O\n",O\n'))
    with pytest.raises(DataError, match=r'quote .*line 2 .*as """"'):
        read_columns(write(tmp_path, 'Ada,B-PER\n",O\nwrites,O\n'))


def test_a_csv_in_name_alone_is_read_as_before(tmp_path: Path) -> None:
    assert read_columns(write(tmp_path, "Ada B-PER\n, O\n"))[0].words == ["Ada", ","]


@pytest.mark.parametrize("header", ["token\ttag", "Word\tNER", "Form\tx", "Text\tner_tags"])
def test_a_header_of_a_table_is_no_token(
    tmp_path: Path, header: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, f"{header}\nAda\tB-PER\nwrites\tO\n", "train.tsv")
    with caplog.at_level(logging.WARNING):
        assert read_columns(path)[0].words == ["Ada", "writes"]
    assert f"line 1 of {path} is read as a header" in caplog.text


@pytest.mark.parametrize(
    "text", ["token O\nAda B-PER\n", "Word NN\nis VB\nword NN\n", "form x\n", "a tag\nb tag\n"]
)
def test_a_first_token_is_no_header(tmp_path: Path, text: str) -> None:
    assert len(read_columns(write(tmp_path, text, "train.txt"))[0].words) == text.count("\n")


def test_a_name_that_the_header_lacks_is_told_with_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no tag column 'ner': line 1 names Sentence #, Word, POS, Tag"
    ):
        read_columns(write(tmp_path, KAGGLE), tag_column="ner")
    with pytest.raises(DataError, match=r"2 columns named 'tag'"):
        read_columns(write(tmp_path, "w,tag,Tag\na,O,O\n"), tag_column="tag")


def test_one_column_for_words_and_tags_is_told_by_its_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"word column 1 and tag column 1 of .* are the same of 4"):
        read_columns(write(tmp_path, KAGGLE), tag_column=1)
    with pytest.raises(DataError, match=r"word column -1 and tag column 1 of .* are the same of 2"):
        read_columns(write(tmp_path, "a O\n", "train.txt"), word_column=-1, tag_column=1)


def test_a_name_needs_a_header_and_tokens_below_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tag column 'tag': line 1 names #, O"):
        read_columns(write(tmp_path, "# O\n", "train.txt"), tag_column="tag")
    with pytest.raises(DataError, match=r"a header in line 1 and no token below it"):
        read_columns(write(tmp_path, "word,tag\n"), tag_column="tag")
