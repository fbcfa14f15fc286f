"""Texts in other encodings than UTF-8: read, or told with the command that converts them."""

import codecs
import io
from pathlib import Path

import pytest

from rnnkit.data.files import read_lines
from rnnkit.data.registry import DataError
from rnnkit.data.vectors import read_vectors
from rnnkit.language_modeling.corpora import read_corpus
from rnnkit.tagging.columns import read_columns
from rnnkit.training.lines import decoded_lines

LINES = ["the café costs 5 €", "", "and “naïve” words"] * 20
TEXT = "\n".join(LINES) + "\n"
MARKED = {
    "UTF-8": codecs.BOM_UTF8 + TEXT.encode(),
    "UTF-16LE": codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
    "UTF-16BE": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "UTF-32LE": codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
    "UTF-32BE": codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"),
}


def file(folder: Path, content: bytes) -> Path:
    path = folder / "some.txt"
    path.write_bytes(content)
    return path


def told(path: Path) -> str:
    with pytest.raises(DataError) as error:
        read_lines(path)
    message = str(error.value)
    assert "\n" not in message
    assert "some.txt" in message
    # A text for a language model is read by the same function.
    with pytest.raises(DataError) as again:
        read_corpus(str(path), "word")
    assert str(again.value) == message
    return message


@pytest.mark.parametrize("encoding", MARKED)
def test_a_byte_order_mark_names_the_encoding_and_is_no_word(tmp_path: Path, encoding: str) -> None:
    path = file(tmp_path, MARKED[encoding])
    assert read_lines(path) == LINES
    corpus = read_corpus(str(path), "word")
    assert corpus.train[:3] == ["the", "café", "costs"]
    plain = read_corpus(str(file(tmp_path, TEXT.encode())), "word")
    assert corpus == plain


def test_columns_are_read_in_utf16_too(tmp_path: Path) -> None:
    path = file(tmp_path, "Zoë B-PER\r\nlacht O\r\n".encode("utf-16"))
    assert read_columns(path)[0].words == ["Zoë", "lacht"]


@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"])
@pytest.mark.parametrize("text", [TEXT, "plain words\n" * 20, "猫坐在垫子上，狗也一样。\n" * 20])
def test_wide_characters_without_a_mark_are_told(tmp_path: Path, encoding: str, text: str) -> None:
    message = told(file(tmp_path, text.encode(encoding)))
    assert f"looks like {encoding} without a byte-order mark" in message
    assert f"`iconv -f {encoding} -t UTF-8`" in message
    assert "in line 1" in message


def test_what_was_converted_as_if_it_were_latin1_is_told(tmp_path: Path) -> None:
    message = told(file(tmp_path, MARKED["UTF-16LE"].decode("latin1").encode()))
    assert "zero byte in line 1" in message
    assert "UTF-16 that was converted as if it were LATIN1" in message
    assert "the original with `iconv -f UTF-16 -t UTF-8`" in message


def test_a_damaged_text_of_wide_characters_is_told(tmp_path: Path) -> None:
    content = MARKED["UTF-16LE"]
    assert "begins as UTF-16, but is damaged in line 60" in told(file(tmp_path, content[:-1]))
    assert "zero byte in line 2" in told(file(tmp_path, "a\nb\0\n".encode("utf-16")))


@pytest.mark.parametrize(
    ("encoding", "text", "found"),
    [
        (
            "CP1252",
            "ein Café\nfünf “Worte”\n",
            r"byte 0xe9 in line 1; it looks like CP1252 \('Café'",
        ),
        (
            "LATIN1",
            "ein\nzwei\nfünf Worte\n",
            r"byte 0xfc in line 3; it looks like LATIN1 \('fünf'",
        ),
    ],
)
def test_western_encodings_are_guessed_and_shown_by_a_word(
    tmp_path: Path, encoding: str, text: str, found: str
) -> None:
    path = file(tmp_path, text.encode(encoding))
    with pytest.raises(DataError, match=found):
        read_lines(path)
    assert f"`iconv -f {encoding} -t UTF-8`" in told(path)


@pytest.mark.parametrize(
    "content",
    [
        "привет мир\n".encode("cp1251"),
        "你好世界\n".encode("gb18030"),
        "caf\xe9 \x81 and more words\n".encode("latin1"),  # in no letter of CP1252
    ],
)
def test_no_encoding_is_named_where_none_is_likely(tmp_path: Path, content: bytes) -> None:
    message = told(file(tmp_path, content * 9))
    assert "in line 1; it looks like no Western encoding" in message
    assert "`iconv -f ENCODING -t UTF-8`" in message


def test_a_few_broken_bytes_are_no_other_encoding(tmp_path: Path) -> None:
    message = told(file(tmp_path, TEXT.encode() + b"caf\xe9 noir\n"))
    assert "byte 0xe9 in line 61; the rest looks like UTF-8" in message
    assert "`iconv -c -f UTF-8 -t UTF-8`" in message


def test_a_zero_byte_is_told_with_its_line(tmp_path: Path) -> None:
    message = told(file(tmp_path, b"a few words\nand a\0zero\n"))
    assert "has a zero byte in line 2" in message
    assert "`tr -d '\\000'`" in message


@pytest.mark.parametrize("level", ["word", "character"])
def test_lines_end_alike_whatever_ends_them(tmp_path: Path, level: str) -> None:
    path = file(tmp_path, TEXT.encode())
    lines, corpus = read_lines(path), read_corpus(str(path), level)
    for end in ("\r\n", "\r"):
        file(tmp_path, TEXT.replace("\n", end).encode())
        assert read_lines(path) == lines
        assert read_corpus(str(path), level) == corpus


def test_vectors_in_other_encodings_are_told(tmp_path: Path) -> None:
    text = "the 1 2\n“ 3 4\n"
    for encoding in ("UTF-16", "UTF-16LE", "CP1252"):
        with pytest.raises(DataError, match=rf"`iconv -f {encoding} -t UTF-8`"):
            read_vectors(file(tmp_path, text.encode(encoding)))


def test_vectors_in_lines_that_end_in_cr_alone_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"end in CR alone: convert it with `tr "):
        read_vectors(file(tmp_path, b"the 1 2\rof 3 4\r"))
    assert read_vectors(file(tmp_path, b"the 1 2\r\nof 3 4\r\n"))[0] == ["the", "of"]


def streamed(content: bytes) -> tuple[list[str], list[str]]:
    notes: list[str] = []
    return list(decoded_lines(io.BytesIO(content), notes.append)), notes


@pytest.mark.parametrize("encoding", MARKED)
def test_a_stream_is_read_by_its_mark(encoding: str) -> None:
    assert streamed(MARKED[encoding]) == (LINES, [])


def test_a_stream_may_end_its_lines_by_cr_alone() -> None:
    for encoding in ("utf-8", "utf-16"):
        assert streamed(TEXT.replace("\n", "\r").encode(encoding)) == (LINES, [])
        assert streamed("a\rb".encode(encoding)) == (["a", "b"], [])
    assert streamed(b"a\rb\nc\rd") == (["a\rb", "c\rd"], [])


def test_the_lines_of_a_wide_stream_come_one_by_one() -> None:
    asked = []

    def stream():
        for line in io.BytesIO("eins\nzwei\n".encode("utf-16-le")):
            asked.append(line)
            yield codecs.BOM_UTF16_LE + line if len(asked) == 1 else line

    lines = decoded_lines(stream(), print)
    assert next(lines) == "eins"
    assert len(asked) <= 2


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ("fünf\n".encode("latin1"), "line 1 is no UTF-8 and looks like LATIN1 (iconv -f LATIN1 -t"),
        ("x\n“fünf”\n".encode("cp1252"), "line 2 is no UTF-8 and looks like CP1252 (iconv -f CP12"),
        ("привет\n".encode("cp1251"), "line 1 is no UTF-8 (iconv -f ENCODING -t UTF-8 converts"),
        ("some words\n".encode("utf-16-le"), "line 1 looks like UTF-16LE (iconv -f UTF-16LE -t"),
        ("a\nb".encode("utf-16")[:-1], "line 2 is no UTF-16"),
    ],
)
def test_a_stream_in_another_encoding_is_noted(content: bytes, note: str) -> None:
    _, notes = streamed(content)
    assert notes[0].startswith(note)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_all_lines_of_a_wide_stream_are_told_to_be_in_one_encoding(encoding: str) -> None:
    # A line feed is cut off within its character: from then on lines begin amid one.
    _, notes = streamed("the red dog\nsees a cat\nand a bird\n".encode(encoding))
    named = encoding.replace("-", "").upper().replace("UTF", "UTF-")
    told = [note.removeprefix(f"line {i} ") for i, note in enumerate(notes, 1)]
    assert told == [f"looks like {named} (iconv -f {named} -t UTF-8 converts)"] * len(notes)
    assert len(notes) >= 3


def test_a_zero_in_a_line_of_a_stream_is_a_character() -> None:
    assert streamed(b"ab\0c\n") == (["ab\0c"], [])


def test_a_replacement_character_of_the_text_itself_is_not_noted() -> None:
    assert streamed("a \ufffd b\n".encode()) == (["a \ufffd b"], [])
