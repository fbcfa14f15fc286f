"""CoNLL-U: ten columns with names, ranges of words and empty nodes, entities in MISC."""

import gzip
import logging
from pathlib import Path

import pytest

from rnnkit.data.registry import DataError
from rnnkit.tagging.columns import read_columns

# "Voilà du pain", whose second word is two by syntax, then an empty node.
ROWS = [
    "# newdoc id = first",
    "# sent_id = 1",
    "# text = Ada mange du pain",
    "1|Ada|Ada|PROPN|NP|Number=Sing|2|nsubj|_|NER=B-PER|SpaceAfter=No",
    "2|mange|manger|VERB|V|_|0|root|_|_",
    "3-4|du|_|_|_|_|_|_|_|_",
    "3|de|de|ADP|P|_|5|case|_|_",
    "4|le|le|DET|D|_|5|det|_|_",
    "4.1|bon|bon|ADJ|_|_|_|_|_|_",
    "5|pain|pain|NOUN|NC|_|2|obj|_|SpaceAfter=No",
    "",
    "# newdoc id = second",
    "# text = New York",
    "1|New York|New York|PROPN|NP|_|0|root|_|NER=B-LOC",
    "",
]


def conllu(folder: Path, name: str = "fr-train.conllu", rows: list[str] = ROWS) -> Path:
    path = folder / name
    lines = ["\t".join(row.split("|", 9)) for row in rows]
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["a.conllu", "a.conll-u", "a.CONLLU", "a.conllu.gz", "a.txt"])
def test_a_named_column_tags_the_words_alone(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = conllu(tmp_path, name)
    with caplog.at_level(logging.WARNING):
        found = read_columns(path, tag_column="upos")
    assert [each.words for each in found] == [["Ada", "mange", "de", "le", "pain"], ["New York"]]
    assert [each.tags for each in found] == [["PROPN", "VERB", "ADP", "DET", "NOUN"], ["PROPN"]]
    assert [each.document for each in found] == [0, 1]
    (record,) = caplog.records
    told = record.getMessage()
    assert f"{path} is read as CoNLL-U" in told
    assert "1 multiword ranges and 1 empty nodes are left out, the first in line 6" in told


@pytest.mark.parametrize(
    ("column", "tags"),
    [
        ("misc.NER", ["B-PER", "O", "O", "O", "O"]),
        ("MISC.NER", ["B-PER", "O", "O", "O", "O"]),
        ("xpos", ["NP", "V", "P", "D", "NC"]),
        ("DepRel", ["nsubj", "root", "case", "det", "obj"]),
        ("feats", ["Number=Sing", "_", "_", "_", "_"]),
        (3, ["PROPN", "VERB", "ADP", "DET", "NOUN"]),
    ],
)
def test_any_column_may_be_the_tags(tmp_path: Path, column: int | str, tags: list[str]) -> None:
    assert read_columns(conllu(tmp_path), tag_column=column)[0].tags == tags


def test_the_words_may_be_another_column(tmp_path: Path) -> None:
    found = read_columns(conllu(tmp_path), word_column="lemma", tag_column="upos")
    assert found[0].words == ["Ada", "manger", "de", "le", "pain"]


def test_lines_of_tokens_are_told_past_those_left_out(tmp_path: Path) -> None:
    first, second = read_columns(conllu(tmp_path), tag_column="upos")
    assert [first.line_of(position) for position in range(5)] == [4, 5, 7, 8, 10]
    assert second.line_of(0) == second.line == 14


@pytest.mark.parametrize("column", [-1, 9, "misc"])
def test_a_column_of_many_things_is_refused_with_the_names(
    tmp_path: Path, column: int | str
) -> None:
    with pytest.raises(
        DataError,
        match=r"MISC.* name .*--data\.tag_column upos.*--data\.tag_column misc\.NER .*"
        r"\(its MISC has NER, SpaceAfter\)",
    ):
        read_columns(conllu(tmp_path), tag_column=column)


def test_an_entry_that_no_row_has_is_told_and_leaves_every_tag_o(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = read_columns(conllu(tmp_path), tag_column="misc.Entity")
    assert {tag for each in found for tag in each.tags} == {"O"}
    assert "has Entity=, so every tag is O; it has NER, SpaceAfter." in caplog.text


def test_names_of_no_column_are_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tag column 'pos': .*id, form, .*, misc"):
        read_columns(conllu(tmp_path), tag_column="pos")
    plain = tmp_path / "plain.txt"
    plain.write_text("Ada B-PER\n")
    with pytest.raises(DataError, match=r"is not CoNLL-U, .* no tag column 'upos'"):
        read_columns(plain, tag_column="upos")


def test_a_file_may_begin_with_a_range_and_lack_heads(tmp_path: Path) -> None:
    rows = ["1-2|du|_|_|_|_|_|_|_|_", "1|de|_|ADP|_|_|_|_|_|_", "2|le|_|DET|_|_|_|_|_|NER="]
    path = conllu(tmp_path, "train.txt", rows)
    assert read_columns(path, tag_column="upos")[0][:2] == (["de", "le"], ["ADP", "DET"])
    with pytest.raises(DataError, match="empty tag in line 3"):
        read_columns(path, tag_column="misc.NER")


def test_an_id_that_is_none_is_refused(tmp_path: Path) -> None:
    path = conllu(tmp_path, rows=[*ROWS[:5], "x|le|le|DET|D|_|5|det|_|_"])
    with pytest.raises(DataError, match=r"ID 'x' in line 6"):
        read_columns(path, tag_column="upos")
