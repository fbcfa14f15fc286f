"""Files that nobody would write by mistake: each ends in a result or in one sentence."""

import gzip
import time
import tracemalloc
from pathlib import Path

import pytest

from rnnkit.data.files import ALWAYS_UNPACKED, MOST_UNPACKED, read_bytes, read_lines
from rnnkit.data.registry import DataError, DataFile, Dataset
from rnnkit.data.schemes import convert, detect, entities, lenient, violations
from rnnkit.data.vectors import read_vectors
from rnnkit.data.vocabulary import Vocabulary
from rnnkit.language_modeling.corpora import read_corpus
from rnnkit.screen.terminal import MOST_TOLD, UNSAFE, json_line, sentence, visible
from rnnkit.tagging.columns import read_columns
from rnnkit.tagging.corpora import read_tagged
from rnnkit.translation.corpora import read_pairs

# A right-to-left override, an escape sequence, a zero character.
NASTY = "a\u202eb\x1b[2J\0c"


def refused(error):
    message = str(error.value)
    assert "\n" not in message
    return message


def folder_of(tmp_path, content, ending="txt"):
    for part in ("train", "valid", "test"):
        (tmp_path / f"{part}.{ending}").write_bytes(content)
    return str(tmp_path)


@pytest.mark.parametrize("level", ["word", "character"])
def test_a_line_of_ten_million_characters_is_a_line(tmp_path, level):
    text = b"ab " * 3_333_333 + b"\n"
    corpus = read_corpus(folder_of(tmp_path, text), level)
    assert len(corpus.train) == (3_333_334 if level == "word" else 10_000_000)


def test_a_column_of_ten_million_characters_is_a_word(tmp_path):
    path = tmp_path / "train.txt"
    path.write_bytes(b"a" * 10_000_000 + b" O\n")
    assert len(read_columns(path)[0].words[0]) == 10_000_000


def test_overrides_in_a_text_are_characters_as_others_and_zeros_are_refused(tmp_path):
    word = NASTY.replace("\0", "")
    corpus = read_corpus(folder_of(tmp_path, f"{word} x\n".encode() * 9), "word")
    assert corpus.train[0] == word
    lines = tmp_path / "lines"
    lines.write_text(word, encoding="utf-8")
    assert read_lines(lines) == [word]
    lines.write_text(NASTY, encoding="utf-8")
    with pytest.raises(DataError, match="has a zero byte in line 1"):
        read_lines(lines)


def test_an_encoded_half_of_a_character_is_no_utf8(tmp_path):
    half = "\ud800".encode("utf-8", "surrogatepass")
    folder_of(tmp_path, b"a O\n" + half + b" O\n")
    path = tmp_path / "train.txt"
    for read in (read_columns, read_lines, read_vectors):
        if read is read_vectors:
            path.write_bytes(b"a 1\n" + half + b" 1\n")
        with pytest.raises(DataError, match=r"no UTF-8: byte 0xed in line 2") as error:
            read(path)
        refused(error)
    with pytest.raises(DataError, match="byte 0xed in line 2"):
        read_corpus(str(tmp_path), "word")


def test_a_million_distinct_words_take_seconds_and_no_message_names_them(tmp_path):
    words = [f"w{i}" for i in range(1_000_000)]
    started = time.process_time()
    here = Vocabulary.from_counts(dict.fromkeys(words, 1), special=["<unk>"])
    other = Vocabulary.from_state_dict([*here.tokens[:-1], NASTY])
    assert here.encode(words).unique().numel() == len(words)
    assert time.process_time() - started < 30  # 4 on a core of 2020
    message = here.difference(other)
    assert len(message) < 200
    assert not UNSAFE.search(message)  # the names are written as Python writes them
    assert len(repr(here)) < 100
    assert len(sentence(", ".join(words))) < MOST_TOLD + 100


def test_a_long_message_tells_how_much_of_it_is_left_out():
    assert sentence("x" * MOST_TOLD) == "x" * MOST_TOLD
    long = sentence("a" * 10_000 + "\x1b")
    assert long.startswith("aaa")
    assert "8,004 characters" in long  # the escape sequence is 4 of them by then
    assert long.endswith(r"a\x1b")


def test_nothing_unsafe_is_left_in_what_is_shown():
    unsafe = [chr(i) for i in range(0x110000) if UNSAFE.match(chr(i))]
    assert {"\x00", "\x1b", "\x7f", "\x9b", "\u2028", "\u202e", "\u2066", "\ud800"} <= {*unsafe}
    for character in unsafe:
        assert character in "\n\t" or not UNSAFE.search(visible(character))
        assert not UNSAFE.search(json_line({character: [character]}))


def test_a_bomb_is_not_unpacked_into_memory(tmp_path):
    path = tmp_path / "train.en.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(300):
            file.write(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"bytes and unpacks to more than 67,108,864"):
        read_lines(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * ALWAYS_UNPACKED
    with pytest.raises(DataError, match="is no text"):
        read_vectors(path)


def test_what_is_packed_as_text_is_unpacked_whatever_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr("rnnkit.data.files.ALWAYS_UNPACKED", 10)
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes(range(256)) * 20))
    assert path.stat().st_size < 5120 < MOST_UNPACKED * path.stat().st_size
    assert len(read_bytes(path)) == 5120


@pytest.mark.parametrize("name", ["vectors.txt", "vectors.gz"])
def test_a_line_without_end_is_no_vector(tmp_path, name, monkeypatch):
    monkeypatch.setattr("rnnkit.data.vectors._LONGEST_LINE", 5000)
    content = b"a 1 2\n" + b"b" * 5001 + b" 1 2\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(DataError, match=r"line 2 of .* has more than 5,000 bytes"):
        read_vectors(path)


def test_a_device_has_no_text():
    with pytest.raises(DataError, match=r"/dev/zero \(it is a device"):
        read_lines(Path("/dev/zero"))


def test_a_name_with_a_zero_is_no_file():
    for read in (read_lines, read_columns, read_vectors):
        with pytest.raises(DataError, match="cannot read"):
            read(Path("a\0b"))


@pytest.mark.parametrize(
    "header", [b"1 99999999999999999999", b"9" * 5000 + b" 2", b"2 " + b"9" * 5000]
)
def test_a_header_of_impossible_sizes_is_told(tmp_path, header):
    path = tmp_path / "vectors.txt"
    path.write_bytes(header + b"\na 1 2\n")
    with pytest.raises(DataError) as error:
        read_vectors(path)
    refused(error)


def test_a_tag_with_unsafe_characters_is_told_safely(tmp_path):
    tag = "B-\u202e\x1b[31m"
    folder = folder_of(tmp_path, f"a {tag}\n".encode())
    with pytest.raises(DataError, match=r"line 1: the tag 'B-\\u202e") as error:
        read_tagged(folder, "BIO")
    assert not UNSAFE.search(refused(error))
    assert entities([tag], "BIO") == lenient([tag])
    assert convert([tag], "BIO", "BIOES") == [f"S-{tag[2:]}"]
    broken = f"I-{NASTY}"
    for found in violations([broken], "BIO"):
        assert broken in found.reason
    with pytest.raises(ValueError, match="fit no scheme"):
        detect([["B-X", "U-Y", "E-Z"]])


def test_a_million_columns_and_blank_lines_are_read_in_seconds(tmp_path):
    wide, tall = tmp_path / "wide", tmp_path / "tall"
    wide.write_bytes(b"a " * 1_000_000 + b"O\n")
    tall.write_bytes(b"a O\n" + b"\n" * 1_000_000 + b"b O\n")
    assert read_columns(wide)[0].tags == ["O"]
    assert [each.line for each in read_columns(tall)] == [1, 1_000_002]


def test_lines_that_only_one_side_has_are_told_with_a_part_of_the_first(tmp_path):
    (tmp_path / "a").write_text("x\n")
    (tmp_path / "b").write_text("x\n" + NASTY * 100_000)
    with pytest.raises(DataError) as error:
        read_pairs(tmp_path / "a", tmp_path / "b")
    assert len(refused(error).replace(str(tmp_path), "")) < 300


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/b", "/etc/passwd", "a\\b", "c:a", "a\0"]
)
def test_no_name_in_the_registry_leads_out_of_the_cache(name):
    with pytest.raises(ValueError, match="the name of one file or folder"):
        DataFile(name, 1)
    with pytest.raises(ValueError, match="the name of one file or folder"):
        Dataset(name, "", "", "", ())
