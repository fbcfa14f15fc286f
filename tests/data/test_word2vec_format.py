import struct
from pathlib import Path

import pytest
import torch

from rnnkit.data.registry import DataError
from rnnkit.data.vectors import read_vectors
from rnnkit.data.word2vec_format import write_vectors

WORDS = ["the", "naïve", "Ωmega", "ゆき", "no\xa0break"]


def drawn() -> torch.Tensor:
    """Floats of every size, down to the smallest and up to the largest."""
    bits = torch.randint(-(2**31), 2**31 - 1, (len(WORDS), 40), dtype=torch.int64)
    rows = bits.to(torch.int32).view(torch.float32)
    return torch.where(rows.isfinite(), rows, torch.tensor(0.1)).clone()


@pytest.mark.parametrize("binary", [False, True])
def test_what_is_written_is_read_bit_for_bit(tmp_path: Path, binary: bool) -> None:
    torch.manual_seed(0)
    rows = drawn()
    rows[0, :4] = torch.tensor([0.0, -0.0, 1e-45, 3.4028235e38])
    write_vectors(tmp_path / "vectors", WORDS, rows, binary)
    words, found = read_vectors(tmp_path / "vectors")
    assert words == WORDS
    assert torch.equal(found.view(torch.int32), rows.view(torch.int32))


def test_the_binary_format_is_word2vec_s(tmp_path: Path) -> None:
    write_vectors(
        tmp_path / "vectors.bin", ["a", "b"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]), True
    )
    expected = b"2 2\na " + struct.pack("<2f", 1, 2) + b"\nb " + struct.pack("<2f", 3, 4) + b"\n"
    assert (tmp_path / "vectors.bin").read_bytes() == expected


@pytest.mark.parametrize(
    ("words", "rows", "match"),
    [
        (["a", "b"], [[1.0]], r"each of 2 words, got \(1, 1\)"),
        (["a", "a"], [[1.0], [2.0]], "'a' is there twice"),
        (["a b"], [[1.0]], "'a b' is empty or holds a blank"),
        ([""], [[1.0]], "'' is empty"),
        (["a"], [[float("nan")]], "of 'a' holds a number that is not finite"),
    ],
)
def test_what_no_reader_could_read_is_refused(
    tmp_path: Path, words: list[str], rows: list[list[float]], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        write_vectors(tmp_path / "vectors.txt", words, torch.tensor(rows))
    assert not (tmp_path / "vectors.txt").exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (
            b"2 2\na " + b"\1" * 8 + b"\nb " + b"\1" * 5,
            "within vector 2 of 2, which has 5 of 8 bytes",
        ),
        (b"2 2\na " + b"\1" * 8 + b"\n", "ends before vector 2 of 2: it is cut off"),
        (b"1 2\na " + b"\1" * 8 + b"\nb " + b"\1" * 8, "says 1 vectors of 2 numbers, and more"),
        (b"1 2\na " + struct.pack("<2f", 1, float("inf")), "of 'a' in .* is not finite"),
        (b"1 2\n\xff\1 " + b"\1" * 8, "word 1 of .* is no UTF-8"),
        (b"1 0\na \1\1", "vectors of 0 numbers"),
    ],
)
def test_damaged_binary_files_are_told(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "vectors.bin").write_bytes(content)
    with pytest.raises(DataError, match=match):
        read_vectors(tmp_path / "vectors.bin")


def test_of_a_word_that_is_there_twice_the_first_vector_counts(tmp_path: Path) -> None:
    content = b"3 1\n" + b"".join(
        word + b" " + struct.pack("<f", value) + b"\n"
        for word, value in ((b"a", 1e-30), (b"a", 2e-30), (b"b", 3e-30))
    )
    (tmp_path / "vectors.bin").write_bytes(content)
    words, rows = read_vectors(tmp_path / "vectors.bin")
    assert words == ["a", "b"]
    torch.testing.assert_close(rows.flatten(), torch.tensor([1e-30, 3e-30]))
