import gzip
import io
import struct
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rnnkit.data import vectors
from rnnkit.data.registry import DataError
from rnnkit.data.vectors import read_vectors

GLOVE = "the 0.5 -1.5 2\nof 1e-3 .25 -0\nand 3 4 5\n"
FLOATS = [[0.5, -1.5, 2], [1e-3, 0.25, 0], [3, 4, 5]]


def file(folder: Path, text: str) -> Path:
    path = folder / "vectors.txt"
    path.write_bytes(text.encode())
    return path


def assert_vectors(
    found: tuple[list[str], Tensor], words: list[str], rows: list[list[float]]
) -> None:
    assert found[0] == words
    expected = torch.tensor(rows, dtype=torch.float32)
    torch.testing.assert_close(found[1], expected, rtol=0, atol=0)


@pytest.mark.parametrize("text", [GLOVE, f"3 3\n{GLOVE}"], ids=["glove", "word2vec"])
@pytest.mark.parametrize("compressed", [False, True])
def test_both_text_formats_are_read(tmp_path: Path, text: str, compressed: bool) -> None:
    path = file(tmp_path, text)
    if compressed:
        path = path.rename(tmp_path / "vectors.txt.gz")
        path.write_bytes(gzip.compress(text.encode()))
    assert_vectors(read_vectors(path), ["the", "of", "and"], FLOATS)
    assert_vectors(read_vectors(str(path)), ["the", "of", "and"], FLOATS)


def test_marks_blank_lines_tabs_and_ends_of_lines_are_no_part_of_words(tmp_path: Path) -> None:
    text = "\ufeffthe 0.5 -1.5 2 \r\nof\t1e-3\t.25   -0\r\n\r\n  and 3 4 5"
    assert_vectors(read_vectors(file(tmp_path, text)), ["the", "of", "and"], FLOATS)
    with_header = file(tmp_path, f"\ufeff3 3 \r\n{text[1:]}")
    assert_vectors(read_vectors(with_header), ["the", "of", "and"], FLOATS)


def test_only_the_words_that_are_asked_for_are_kept(tmp_path: Path) -> None:
    path = file(tmp_path, GLOVE)
    assert_vectors(read_vectors(path, {"and", "the", "absent"}), ["the", "and"], FLOATS[::2])


def test_asking_for_absent_words_alone_gives_no_rows(tmp_path: Path) -> None:
    words, rows = read_vectors(file(tmp_path, GLOVE), {"The"})
    assert words == []
    assert rows.shape == (0, 3)
    assert rows.dtype == torch.float32


@pytest.mark.parametrize("header", ["", "3 3\n"])
def test_the_limit_counts_the_vectors_of_the_file(tmp_path: Path, header: str) -> None:
    path = file(tmp_path, header + GLOVE)
    assert_vectors(read_vectors(path, limit=2), ["the", "of"], FLOATS[:2])
    assert_vectors(read_vectors(path, {"of", "and"}, limit=2), ["of"], FLOATS[1:2])
    assert len(read_vectors(path, limit=3)[0]) == len(read_vectors(path, limit=9)[0]) == 3


def test_nothing_is_read_past_the_limit(tmp_path: Path) -> None:
    assert read_vectors(file(tmp_path, "the 1 2\nof x\n"), limit=1)[0] == ["the"]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(tmp_path: Path, limit: int) -> None:
    with pytest.raises(ValueError, match=f"1 or more, got {limit}"):
        read_vectors(file(tmp_path, GLOVE), limit=limit)


def test_the_first_of_several_vectors_of_a_word_counts(tmp_path: Path) -> None:
    path = file(tmp_path, "5 1\nthe 1\nof 2\nthe 3\nof 4\nThe 5\n")
    assert_vectors(read_vectors(path), ["the", "of", "The"], [[1], [2], [5]])
    assert_vectors(read_vectors(path, {"of"}), ["of"], [[2]])


@pytest.mark.parametrize("header", ["", "4 2\n"])
def test_words_may_hold_blanks(tmp_path: Path, header: str) -> None:
    lines = ["at name@domain.com 1 2", ". . . 3 4", "Catch 22 b 5 6", "so 7 8"]
    found = read_vectors(file(tmp_path, header + "\n".join(lines)))
    words = ["at name@domain.com", ". . .", "Catch 22 b", "so"]
    assert_vectors(found, words, [[1, 2], [3, 4], [5, 6], [7, 8]])


def test_words_may_be_numbers_and_hold_other_separators(tmp_path: Path) -> None:
    text = "0.5 1 2\n10\u00a0000 3 4\n\u00a0 5 6\nx\u2028\x85y 7 8\n"
    words = ["0.5", "10\u00a0000", "\u00a0", "x\u2028\x85y"]
    assert_vectors(read_vectors(file(tmp_path, text)), words, [[1, 2], [3, 4], [5, 6], [7, 8]])


def test_a_word_may_be_ten_thousand_characters_long(tmp_path: Path) -> None:
    word = "ab" * 5_000
    assert_vectors(read_vectors(file(tmp_path, f"{word} 1 2\n")), [word], [[1, 2]])


@pytest.mark.parametrize(("line", "got"), [("and 5", 1), ("and", 0), ("and 5 6 7", 3)])
@pytest.mark.parametrize(
    ("header", "reason", "number"), [("", "as in line 1", 3), ("3 2\n", "as line 1 says", 4)]
)
def test_ragged_lines_are_told_with_both_numbers(
    tmp_path: Path, line: str, got: int, header: str, reason: str, number: int
) -> None:
    path = file(tmp_path, f"{header}the 1 2\nof 3 4\n{line}\n")
    told = rf"expected 2 numbers {reason}, got {got} in line {number} of .*vectors\.txt"
    with pytest.raises(DataError, match=told):
        read_vectors(path)
    with pytest.raises(DataError, match=told):
        read_vectors(path, {"the"})


@pytest.mark.parametrize("wrong", ["x", "nan", "-inf", "1e39", "1,5", "½"])
@pytest.mark.parametrize("place", [1, 2, 3])
def test_columns_that_are_no_finite_numbers_are_told_with_their_line(
    tmp_path: Path, wrong: str, place: int
) -> None:
    columns = ["and", "5", "6", "7"]
    columns[place] = wrong
    path = file(tmp_path, f"the 1 2 3\nof 3 4 5\n{' '.join(columns)}\n")
    with pytest.raises(DataError, match=rf"line 3 of .*vectors\.txt, got '{wrong}'"):
        read_vectors(path)
    assert read_vectors(path, {"the", "of"})[0] == ["the", "of"]


def test_opposite_infinities_do_not_cancel(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1 of .*, got 'inf'"):
        read_vectors(file(tmp_path, "the 1 inf -inf\n"))


def test_a_sum_beyond_float32_is_no_error(tmp_path: Path) -> None:
    assert_vectors(read_vectors(file(tmp_path, "a 3e38 3e38\n")), ["a"], [[3e38, 3e38]])


@pytest.mark.parametrize(
    ("line", "told"), [("the 1 x", "x"), ("the", ""), ("the x", "x"), ("the 1 x 2", "x")]
)
def test_a_first_line_that_is_no_vector_is_refused(tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(DataError, match=f"numbers in line 1 of .*, got '{told}'"):
        read_vectors(file(tmp_path, f"{line}\nof 1 2\n"))


@pytest.mark.parametrize("text", ["", "\n \n", "0 5\n", "\ufeff"])
def test_files_without_a_vector_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"vectors\.txt holds no vector"):
        read_vectors(file(tmp_path, text))


def test_a_header_of_vectors_without_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1 of .* declares vectors of 0 numbers"):
        read_vectors(file(tmp_path, "3 0\nthe\n"))


@pytest.mark.parametrize("declared", [2, 4])
def test_a_cut_off_file_is_told_with_both_counts(tmp_path: Path, declared: int) -> None:
    path = file(tmp_path, f"{declared} 3\n{GLOVE}")
    told = f"says {declared} vectors of 3 numbers, and the file holds 3: it is cut off"
    for keep in (None, {"the"}):
        with pytest.raises(DataError, match=told):
            read_vectors(path, keep)
    assert read_vectors(path, limit=1)[0] == ["the"]


def test_bytes_that_are_no_utf8_are_told_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_bytes("the 1 2\nnaïve 3 4\n".encode("latin1"))
    with pytest.raises(DataError, match=r"vectors\.txt is no UTF-8: byte 0xef in line 2"):
        read_vectors(path)


def test_word2vecs_binary_format_is_read(tmp_path: Path) -> None:
    rows = [[0.1, -0.2, 1.0], [2.0, 3.0, 4.0]]
    for end in (b"\n", b""):  # word2vec.c's and gensim's
        content = b"2 3\n" + b"".join(
            word + b" " + struct.pack("<3f", *row) + end
            for word, row in zip((b"the", b"of"), rows, strict=True)
        )
        (tmp_path / "news.bin").write_bytes(content)
        (tmp_path / "news.bin.gz").write_bytes(gzip.compress(content))
        for name in ("news.bin", "news.bin.gz"):
            assert_vectors(read_vectors(tmp_path / name), ["the", "of"], rows)
            assert_vectors(read_vectors(tmp_path / name, {"of"}), ["of"], rows[1:])
            assert_vectors(read_vectors(tmp_path / name, limit=1), ["the"], rows[:1])


def test_other_binary_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "vectors.txt").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"vectors\.txt is no text: expected a word and its num"):
        read_vectors(tmp_path / "vectors.txt")


@pytest.mark.parametrize("damage", ["cut", "plain"])
def test_damaged_archives_are_named(tmp_path: Path, damage: str) -> None:
    content = {"cut": gzip.compress(GLOVE.encode())[:-9], "plain": GLOVE.encode()}[damage]
    (tmp_path / "vectors.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"vectors\.gz cannot be unpacked"):
        read_vectors(tmp_path / "vectors.gz")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*nowhere\.txt \(No such file"):
        read_vectors(tmp_path / "nowhere.txt")
    with pytest.raises(DataError, match=r"cannot read .* \(Is a directory"):
        read_vectors(tmp_path)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("compressed", [False, True])
def test_large_files_show_their_progress_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool
) -> None:
    path = tmp_path / ("vectors.gz" if compressed else "vectors.txt")
    lines = "".join(f"w{i} {i} 1\n" for i in range(5_000)).encode()
    path.write_bytes(gzip.compress(lines) if compressed else lines)
    monkeypatch.setattr(vectors, "_BAR_BYTES", path.stat().st_size)
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        assert len(read_vectors(path)[0]) == 5_000
        assert (path.name in stream.getvalue()) == shown
    monkeypatch.setattr(vectors, "_BAR_BYTES", path.stat().st_size + 1)
    monkeypatch.setattr(sys, "stderr", Terminal())
    read_vectors(path)
    assert sys.stderr.getvalue() == ""
