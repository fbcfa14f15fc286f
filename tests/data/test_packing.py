"""Packed files: known by what they hold, not only by how they are called."""

import bz2
import gzip
import io
import logging
import lzma
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from rnnkit.data.files import ALWAYS_UNPACKED, read_lines
from rnnkit.data.registry import DataError
from rnnkit.data.vectors import read_vectors
from rnnkit.language_modeling.corpora import read_corpus
from rnnkit.training.lines import decoded_lines

PACKED = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
NAMES = {"gz": "gzip", "bz2": "bzip2", "xz": "xz"}


def tar(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", content)
    return file.getvalue()


@pytest.mark.parametrize("ending", PACKED)
def test_a_packed_text_is_read(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"a.txt.{ending}"
    path.write_bytes(PACKED[ending](b"one 1\ntwo 2\n") + PACKED[ending](b"three 3\n"))
    with caplog.at_level(logging.WARNING):
        assert read_lines(path) == ["one 1", "two 2", "three 3"]
        assert read_vectors(path)[0] == ["one", "two", "three"]
    assert not caplog.records


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("name", ["a.txt", "a.gz", "a.xz"])
def test_the_content_decides_where_the_name_says_otherwise_and_that_is_said(
    tmp_path: Path, ending: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).write_bytes(PACKED[ending](b"one 1\n"))
    for read in (read_lines, read_vectors):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            read(tmp_path / name)
        if name.endswith(ending):
            assert not caplog.records
            continue
        (record,) = caplog.records
        said = record.getMessage()
        assert f"{name} is packed by {NAMES[ending]}, which its name does not say" in said


@pytest.mark.parametrize("ending", PACKED)
def test_a_packed_archive_by_its_short_name_is_no_other_than_its_name_says(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"a.t{ending}"
    path.write_bytes(PACKED[ending](tar(b"one 1\n")))
    with pytest.raises(DataError, match=rf"a\.t{ending} is a tar archive"):
        read_lines(path)
    assert not caplog.records


@pytest.mark.parametrize("ending", PACKED)
def test_a_plain_text_called_packed_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"one 1\n")
    for read in (read_lines, read_vectors):
        with pytest.raises(DataError, match=rf"a\.{ending} cannot be unpacked .*not packed by"):
            read(path)


@pytest.mark.parametrize("ending", PACKED)
def test_a_damaged_file_is_named(tmp_path: Path, ending: str) -> None:
    whole = PACKED[ending](b"".join(b"word%d %d\n" % (i * i, i) for i in range(900)))
    path = tmp_path / f"a.{ending}"
    for damaged in (whole[:-9], whole[:100] + b"\xff" * 9 + whole[109:]):
        path.write_bytes(damaged)
        for read in (read_lines, read_vectors):
            with pytest.raises(DataError, match=rf"a\.{ending} cannot be unpacked \("):
                read(path)


@pytest.mark.parametrize("ending", ["bz2", "xz"])
def test_a_bomb_is_not_unpacked_into_memory(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(PACKED[ending](bytes(ALWAYS_UNPACKED + 2**20)))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"bytes and unpacks to more than 67,108,864"):
        read_lines(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * ALWAYS_UNPACKED


@pytest.mark.parametrize("ending", ["", *PACKED])
def test_an_archive_of_files_is_told_with_what_unpacks_it(tmp_path: Path, ending: str) -> None:
    pack = PACKED.get(ending, bytes)
    for name, content, command in (
        ("a.tar", tar(b"one 1\n"), "tar -xf"),
        ("a.zip", zipped(b"one 1\n"), "unzip"),
    ):
        path = tmp_path / f"{name}.{ending}".rstrip(".")
        path.write_bytes(pack(content))
        for read in (read_lines, read_vectors, lambda path: read_corpus(str(path), "word")):
            with pytest.raises(DataError, match=rf"a {name[2:]} archive: .*`{command}") as error:
                read(path)
            assert str(path) in str(error.value)


def test_what_zstd_packed_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\x28\xb5\x2f\xfd\x04\x58\x31\x00\x00one 1\n")
    for read in (read_lines, read_vectors):
        with pytest.raises(DataError, match=r"a\.txt is packed by zstd: .*`zstd -d`"):
            read(path)


@pytest.mark.parametrize("ending", PACKED)
def test_packed_standard_input_is_told(ending: str) -> None:
    content = PACKED[ending](b"some words\n")
    with pytest.raises(DataError, match=rf"input holds what is packed by {NAMES[ending]}: .* -dc`"):
        list(decoded_lines(io.BytesIO(content), print))


def test_a_text_that_is_packed_twice_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(lzma.compress(b"some words\n")))
    with pytest.raises(DataError, match=r"a\.gz holds what is packed by xz: .*`xz -dc`"):
        read_lines(path)
