import gzip
import logging
import time
from pathlib import Path

import pytest

from rnnkit.data.registry import DataError
from rnnkit.data.schemes import entities
from rnnkit.tagging.columns import Sentence, read_columns


def file(folder: Path, text: str) -> Path:
    path = folder / "tagged.txt"
    path.write_bytes(text.encode())
    return path


def words(sentences: list[Sentence]) -> list[list[str]]:
    return [sentence.words for sentence in sentences]


def test_blank_lines_end_sentences(tmp_path: Path) -> None:
    path = file(tmp_path, "\n\nAda B-PER\nwrites O\n\n\n \t\nParis B-LOC\n\n")
    assert read_columns(path) == [
        Sentence(["Ada", "writes"], ["B-PER", "O"], line=3, document=0),
        Sentence(["Paris"], ["B-LOC"], line=8, document=0),
    ]


def test_the_path_may_be_a_string(tmp_path: Path) -> None:
    assert words(read_columns(str(file(tmp_path, "Ada B-PER\n")))) == [["Ada"]]


@pytest.mark.parametrize(
    ("word_column", "tag_column", "first"),
    [
        (0, -1, ("EU", "I-ORG")),
        (0, 3, ("EU", "I-ORG")),
        (0, 1, ("EU", "NNP")),
        (-4, -2, ("EU", "I-NP")),
        (3, 0, ("I-ORG", "EU")),
    ],
)
def test_word_and_tag_are_taken_from_any_column(
    tmp_path: Path, word_column: int, tag_column: int, first: tuple[str, str]
) -> None:
    path = file(tmp_path, "EU NNP I-NP I-ORG\nrejects VBZ I-VP O\n")
    sentence = read_columns(path, word_column, tag_column)[0]
    assert (sentence.words[0], sentence.tags[0]) == first
    assert len(sentence.words) == len(sentence.tags) == 2


def test_blanks_and_tabs_in_any_number_separate_columns(tmp_path: Path) -> None:
    path = file(tmp_path, "  EU\t\tNNP   I-ORG \nrejects \t VBZ\tO\t\t\n")
    assert read_columns(path)[0][:2] == (["EU", "rejects"], ["I-ORG", "O"])


def test_a_no_break_space_belongs_to_its_token(tmp_path: Path) -> None:
    path = file(tmp_path, "10\u00a0000 O\n\u00a0 O\nx\u2028y O\n")
    assert read_columns(path)[0].words == ["10\u00a0000", "\u00a0", "x\u2028y"]


def test_a_separator_keeps_blanks_within_columns(tmp_path: Path) -> None:
    path = file(tmp_path, "New York\tB-LOC  \n\nin 2 days\tO\n")
    assert read_columns(path, separator="\t") == [
        Sentence(["New York"], ["B-LOC"], 1, 0),
        Sentence(["in 2 days"], ["O"], 3, 0),
    ]


def test_a_separator_may_be_longer_than_a_character(tmp_path: Path) -> None:
    path = file(tmp_path, "Ada ||| B-PER\r\n\r\nand/or ||| O")
    assert [sentence[:2] for sentence in read_columns(path, separator=" ||| ")] == [
        (["Ada"], ["B-PER"]),
        (["and/or"], ["O"]),
    ]


def test_an_empty_separator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one character or more, got ''"):
        read_columns(file(tmp_path, "Ada O\n"), separator="")


def test_words_alone_have_no_tags(tmp_path: Path) -> None:
    path = file(tmp_path, "Ada\nwrites\n\nParis\n")
    assert read_columns(path, tag_column=None) == [
        Sentence(["Ada", "writes"], [], 1, 0),
        Sentence(["Paris"], [], 4, 0),
    ]


def test_words_alone_are_not_taken_for_their_own_tags(tmp_path: Path) -> None:
    path = file(tmp_path, "\nAda\n")
    with pytest.raises(
        DataError,
        match=r"tagged\.txt has one column in line 2 and so no tags: expected a word and its tag",
    ):
        read_columns(path)
    with pytest.raises(
        DataError, match=r"word column 1 and tag column -1 of .* are the same of 2 in line 1"
    ):
        read_columns(file(tmp_path, "Ada B-PER\n"), word_column=1)


def test_document_starts_count_documents_and_are_no_sentence(tmp_path: Path) -> None:
    path = file(
        tmp_path,
        "-DOCSTART- -X- O O\n\na x O\n\n-DOCSTART-\n\n-DOCSTART- -X- O O\nb x O\nc x O\n"
        "-DOCSTART- -X- -X- O\nd x O\n\ne x O\n",
    )
    found = read_columns(path)
    assert words(found) == [["a"], ["b", "c"], ["d"], ["e"]]
    assert [sentence.document for sentence in found] == [0, 1, 2, 2]
    assert [sentence.line for sentence in found] == [3, 8, 11, 13]


def test_the_first_document_needs_no_start(tmp_path: Path) -> None:
    found = read_columns(file(tmp_path, "a O\n\n-DOCSTART- O\n\nb O\n"))
    assert [(sentence.words[0], sentence.document) for sentence in found] == [("a", 0), ("b", 1)]


def test_comments_before_a_sentence_are_left_out(tmp_path: Path) -> None:
    path = file(
        tmp_path,
        "# newdoc id = n01\n# text = Ada writes\n1\tAda\tB-PER\n2\twrites\tO\n\n"
        "# text = a comment alone\n\n# text = No .\n1\tNo\tO\n2\t.\tO\n",
    )
    for separator in ("\t", None):
        found = read_columns(path, word_column=1, separator=separator)
        assert words(found) == [["Ada", "writes"], ["No", "."]]
        assert [sentence.line for sentence in found] == [3, 9]


def test_the_token_number_sign_is_no_comment(tmp_path: Path) -> None:
    text = "# O\n1 O\n\n# newpar in two\nthe O\n# O\n\n#tag O\n\n# B-MISC\n"
    found = read_columns(file(tmp_path, text))
    assert words(found) == [["#", "1"], ["the", "#"], ["#tag"], ["#"]]
    assert found[3].tags == ["B-MISC"]


def test_a_file_may_hold_nothing_but_number_signs(tmp_path: Path) -> None:
    assert words(read_columns(file(tmp_path, "# O\n"))) == [["#"]]
    assert words(read_columns(file(tmp_path, "#\n\n#\n"), tag_column=None)) == [["#"], ["#"]]


# As GermEval, MultiCoNER, Universal NER and others write them.
COMMENTS = {
    "a comment with as many tabs": (
        "#\thttp://example.org/a\t[2009-10-17]\t\n1\tIn\tO\tO\n2\tUlm\tB-LOC\tO\n",
        {"word_column": 1, "tag_column": 2},
    ),
    "a comment with as many blanks": ("# id 0372\tdomain=dev\nIn _ _ O\nUlm _ _ B-LOC\n", {}),
    "a text of as many words": (
        "# text = In Ulm\n1\tIn\tO\t-\t-\n2\tUlm\tB-LOC\t-\t-\n",
        {"word_column": 1, "tag_column": 2},
    ),
    "a text that ends like a tag": (
        "# text = by E-mail\n1\tIn\t-\t-\tO\n2\tUlm\t-\t-\tB-LOC\n",
        {"word_column": 1},
    ),
    "no blank after the sign": ("#id=1\nIn O\nUlm B-LOC\n", {}),
    "the sign alone": ("#\nIn O\nUlm B-LOC\n", {}),
}


@pytest.mark.parametrize("kind", COMMENTS)
@pytest.mark.parametrize("separator", [None, "\t"])
def test_comments_are_no_tokens_whatever_their_columns(
    tmp_path: Path, kind: str, separator: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    text, options = COMMENTS[kind]
    if separator and "\t" not in text.splitlines()[1]:
        text = text.replace(" ", "\t")
    path = file(tmp_path, f"{text}\n{text}")
    with caplog.at_level(logging.WARNING):
        found = read_columns(path, separator=separator, **options)
    assert [each[:2] for each in found] == [(["In", "Ulm"], ["O", "B-LOC"])] * 2
    assert [each.line for each in found] == [2, 6]
    (record,) = caplog.records
    assert (
        f"lines of {path} that begin with # are read as comments, 2 in all" in record.getMessage()
    )
    assert "the first is line 1" in record.getMessage()


@pytest.mark.parametrize("separator", [None, "\t"])
def test_hashtags_and_number_signs_are_tokens(
    tmp_path: Path, separator: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    text = "#nlp\tO\n#\tO\nAda\tB-PER\n\n#1\tO\n\n#\tO\n1\tO\n\n#x\tB-MISC\n"
    with caplog.at_level(logging.WARNING):
        found = read_columns(file(tmp_path, text), separator=separator)
    assert words(found) == [["#nlp", "#", "Ada"], ["#1"], ["#", "1"], ["#x"]]
    assert not caplog.records


def test_a_number_sign_with_a_bare_class_is_a_token_where_other_rows_have_the_class(
    tmp_path: Path,
) -> None:
    found = read_columns(file(tmp_path, "# NOUN\n1 NUM\n\nNo NOUN\n\n# text\nfour NUM\n"))
    assert words(found) == [["#", "1"], ["No"], ["four"]]


def test_a_tag_of_hashtags_alone_is_known_from_those_within_sentences(
    tmp_path: Path,
) -> None:
    # As in Ritter's and Gimpel's tweets, whose hashtags have a part of speech of their own.
    found = read_columns(file(tmp_path, "#nlp HT\nis V\n#fun HT\n\n# text\n#ai HT\n"))
    assert words(found) == [["#nlp", "is", "#fun"], ["#ai"]]


def test_a_file_of_comments_alone_has_no_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 2 lines and no sentence"):
        read_columns(file(tmp_path, "# text = nothing\n# follows here now\n"))


def test_a_comment_within_a_sentence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected 2 columns as in line 1 .* got 3 in line 2"):
        read_columns(file(tmp_path, "a O\n# a comment\nb O\n"))


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n", "\r\n\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_marks_and_ends_of_lines_are_no_part_of_words_and_tags(
    tmp_path: Path, mark: str, end: str
) -> None:
    newline = "\r\n" if "\r" in end else "\n"
    text = mark + newline.join(["Ada B-PER", "writes O", "", "Paris B-LOC"]) + end
    assert read_columns(file(tmp_path, text)) == [
        Sentence(["Ada", "writes"], ["B-PER", "O"], 1, 0),
        Sentence(["Paris"], ["B-LOC"], 4, 0),
    ]


def test_files_may_be_compressed(tmp_path: Path) -> None:
    path = tmp_path / "tagged.txt.gz"
    path.write_bytes(gzip.compress("Ada B-PER\nnaïve O\n".encode()))
    assert read_columns(path) == [Sentence(["Ada", "naïve"], ["B-PER", "O"], 1, 0)]


def test_bytes_that_are_no_utf8_are_told_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "tagged.txt"
    path.write_bytes("Ada O\nnaïve O\n".encode("latin1"))
    with pytest.raises(DataError, match=r"tagged\.txt is no UTF-8: byte 0xef in line 2"):
        read_columns(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*nowhere\.txt"):
        read_columns(tmp_path / "nowhere.txt")


@pytest.mark.parametrize(("line", "got"), [("b O", 2), ("b x y O", 4)])
def test_ragged_lines_are_told_with_both_lines_and_numbers(
    tmp_path: Path, line: str, got: int
) -> None:
    path = file(tmp_path, f"\na x O\n\nc x O\n{line}\n")
    with pytest.raises(
        DataError,
        match=rf"expected 3 columns as in line 2 of .*tagged\.txt, got {got} in line 5: if col",
    ):
        read_columns(path)
    with pytest.raises(DataError, match=rf"got {got} in line 5: they are separated by ' '"):
        read_columns(path, separator=" ")


def test_the_first_line_of_a_sentence_must_have_every_column_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected 2 columns as in line 1 .* got 1 in line 3"):
        read_columns(file(tmp_path, "a O\n\nb\n"))


@pytest.mark.parametrize("column", [-4, 3, 7])
def test_columns_out_of_range_are_told_with_those_there_are(tmp_path: Path, column: int) -> None:
    path = file(tmp_path, "\na x O\n")
    numbers = rf"column {column}: line 2 has 3 columns, -3 to 2"
    with pytest.raises(DataError, match=rf"tagged\.txt has no tag {numbers}"):
        read_columns(path, tag_column=column)
    with pytest.raises(DataError, match=rf"tagged\.txt has no word {numbers}"):
        read_columns(path, word_column=column)


def test_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tagged\.txt is empty"):
        read_columns(file(tmp_path, ""))


@pytest.mark.parametrize("text", ["\n", "\n \n\t\n", "-DOCSTART- O\n\n"])
def test_files_without_a_sentence_are_refused(tmp_path: Path, text: str) -> None:
    lines = text.count("\n")
    with pytest.raises(DataError, match=rf"tagged\.txt has {lines} lines and no sentence"):
        read_columns(file(tmp_path, text))


def test_empty_tags_and_tokens_are_told_with_their_line(tmp_path: Path) -> None:
    path = file(tmp_path, "Ada\tB-PER\nwrites\t\n")
    with pytest.raises(DataError, match=r"tagged\.txt has an empty tag in line 2, column 1"):
        read_columns(path, separator="\t")
    with pytest.raises(DataError, match="empty token in line 2, column 1"):
        read_columns(path, word_column=1, tag_column=0, separator="\t")
    assert read_columns(path, tag_column=None, separator="\t")[0].words == ["Ada", "writes"]


def test_a_word_may_be_ten_thousand_characters_long(tmp_path: Path) -> None:
    word = "ab" * 5_000
    assert read_columns(file(tmp_path, f"{word} O\n"))[0].words == [word]


def test_a_hundred_thousand_lines_are_read_in_two_seconds_of_one_core(tmp_path: Path) -> None:
    path = file(tmp_path, ("word NN I-NP O\n" * 24 + "\n") * 4_000)
    started = time.process_time()
    found = read_columns(path)
    # Takes 0.4 s; reading that grows with the square of the length takes minutes.
    assert time.process_time() - started < 2
    assert (len(found), found[-1].line) == (4_000, 99_976)
    assert all(len(sentence.words) == 24 for sentence in found)


def told(caplog: pytest.LogCaptureFixture, path: Path) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        read_columns(path)
    return [record.getMessage() for record in caplog.records]


def test_a_file_that_is_one_long_sentence_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (message,) = told(caplog, file(tmp_path, "word O\n" * 101))
    assert "no blank line stands between the 101 tokens of" in message
    assert "tagged.txt, so they are one sentence" in message
    assert "--data.sentence_column" in message
    assert not told(caplog, file(tmp_path, "word O\n" * 100))


def test_a_long_sentence_is_told_with_its_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = file(tmp_path, "Ada B-PER\n\n" + "word O\n" * 1001)
    (message,) = told(caplog, path)
    assert f"the sentence in line 3 of {path} has 1,001 tokens" in message
    assert not told(caplog, file(tmp_path, "Ada B-PER\n\n" + "word O\n" * 1000))


def test_a_blank_line_after_each_token_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (message,) = told(caplog, file(tmp_path, "word O\n\n" * 100))
    assert "each of the 100 sentences of" in message
    assert not told(caplog, file(tmp_path, "word O\n\n" * 99 + "a O\nb O\n"))


def test_numbers_of_tokens_that_are_read_as_tokens_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = "1\tIn\tO\n2\tUlm\tB-LOC\n\n1\tAda\tB-PER\n"
    (message,) = told(caplog, file(tmp_path, rows))
    assert "the tokens that are read from" in message
    assert "are their own numbers, 1, 2, 3 ...: name the column of the words" in message
    assert "--data.word_column 1" in message
    assert not told(caplog, file(tmp_path, rows.replace("2\t", "3\t")))
    assert not told(caplog, file(tmp_path, "1 O\n\n1 O\n\nAda B-PER\n"))
    conllu = tmp_path / "a.conllu"
    conllu.write_text("".join(f"{i}\tAda\t_\tPROPN{6 * chr(9)}\n" for i in (1, 2)))
    caplog.clear()
    read_columns(conllu, word_column=0, tag_column="upos")
    assert "--data.word_column form" in caplog.text


def test_tokens_that_nobody_can_see_are_kept_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unseen = ["\u200b", "\u00ad", "\ufe0f", "\u200d\ufe0f", "\ufeff", "\u00a0"]
    text = "".join(f"{token} O\n" for token in ["Ada", *unseen, "co\u00adop", "❤\ufe0f"])
    (message,) = told(caplog, file(tmp_path, text))
    assert "that nobody can see, 6 in all" in message
    assert "the first is U+200B in line 2" in message
    assert read_columns(tmp_path / "tagged.txt")[0].words[1:7] == unseen


@pytest.mark.data
def test_conll2003_has_the_published_counts(real_data: Path) -> None:
    folder = real_data / "conll2003"
    if not folder.is_dir():
        pytest.skip("RNNKIT_DATA_DIR holds no conll2003")
    # Tjong Kim Sang and De Meulder 2003, tables 1 and 2.
    for name, sentences, tokens, documents, names in (
        ("eng.train", 14_041, 203_621, 946, 23_499),
        ("eng.testa", 3_250, 51_362, 216, 5_942),
        ("eng.testb", 3_453, 46_435, 231, 5_648),
    ):
        found = read_columns(folder / name)
        assert len(found) == sentences
        assert sum(len(sentence.words) for sentence in found) == tokens
        assert found[-1].document == documents - 1
        assert sum(len(entities(sentence.tags, "IOB1")) for sentence in found) == names
