from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from rnnkit.data import storage
from rnnkit.data.registry import DATASETS, DataError, DataFile, Dataset

CONTENT = b"a b c\n" * 20_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
GIT_BLOB = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()

Register = Callable[..., Dataset]


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT at /whole, breaks off after half of it at /half, and knows little else.

    What comes from /endless has no end; /moved leads to /whole, and /round to itself; /named comes
    with a name of its own.
    """

    def do_GET(self) -> None:
        if self.path in ("/moved", "/round"):
            self.send_response(302)
            self.send_header("Location", "/whole" if self.path == "/moved" else self.path)
            self.end_headers()
            return
        if self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):  # who reads has had enough
                while True:
                    self.wfile.write(CONTENT)
        if self.path not in ("/whole", "/half", "/named"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        if self.path == "/named":
            self.send_header("Content-Disposition", 'attachment; filename="../../evil.txt"')
        self.end_headers()
        half = len(CONTENT) // 2
        self.wfile.write(CONTENT[:half] if self.path == "/half" else CONTENT)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Register:
    """Adds a dataset `little` of one file, text.txt."""

    def add(licence_note: str | None = None, **file: str | None) -> Dataset:
        files = (DataFile("text.txt", len(CONTENT), **file),)
        dataset = Dataset("little", "tests", "3 words", "none", files, licence_note, "ask for it")
        monkeypatch.setitem(DATASETS, "little", dataset)
        return dataset

    return add


def left_behind(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_download_lands_in_the_cache_under_the_datasets_name(
    cache: Path, server: str, register: Register
) -> None:
    register(sha256=SHA256, url=f"{server}/whole")
    paths = storage.fetch("little", progress=False)
    assert paths == {"text.txt": cache / "little" / "text.txt"}
    assert paths["text.txt"].read_bytes() == CONTENT
    assert left_behind(cache) == [paths["text.txt"]]


def test_a_download_shows_its_progress(
    cache: Path, server: str, register: Register, capfd: pytest.CaptureFixture[str]
) -> None:
    register(sha256=SHA256, url=f"{server}/whole")
    storage.fetch("little")
    assert "100%" in capfd.readouterr().err


def test_what_is_in_the_cache_is_not_downloaded_again(
    cache: Path, server: str, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(sha256=SHA256, url=f"{server}/whole")
    first = storage.fetch("little", progress=False)
    monkeypatch.setattr(requests, "get", None)
    assert storage.fetch("little", progress=False) == first


def test_the_users_folder_is_searched_before_the_cache(
    cache: Path, tmp_path: Path, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(sha256=SHA256)
    for root in (cache, tmp_path / "own"):
        (root / "little").mkdir(parents=True)
        (root / "little" / "text.txt").write_bytes(CONTENT)
    assert storage.fetch("little")["text.txt"].is_relative_to(cache)
    monkeypatch.setenv("RNNKIT_DATA_DIR", str(tmp_path / "own"))
    assert storage.fetch("little")["text.txt"].is_relative_to(tmp_path / "own")


def test_a_download_with_another_checksum_is_refused_and_removed(
    cache: Path, server: str, register: Register
) -> None:
    register(sha256="0" * 64, url=f"{server}/whole")
    with pytest.raises(DataError) as error:
        storage.fetch("little", progress=False)
    message = str(error.value)
    assert f"sha256 {SHA256}, expected {'0' * 64}" in message
    assert f"put the file at {cache / 'little' / 'text.txt'}" in message
    assert left_behind(cache) == []


def test_a_download_may_be_verified_by_its_git_blob_id(
    cache: Path, server: str, register: Register
) -> None:
    register(git_blob=GIT_BLOB, url=f"{server}/whole")
    assert storage.fetch("little", progress=False)["text.txt"].read_bytes() == CONTENT


def test_a_permuted_copy_is_never_accepted_from_the_network(
    cache: Path, server: str, register: Register
) -> None:
    register(git_blob="1" * 40, permuted_sha256=SHA256, url=f"{server}/whole")
    with pytest.raises(DataError, match=f"git blob id {GIT_BLOB}, expected {'1' * 40}"):
        storage.fetch("little", progress=False)
    assert left_behind(cache) == []


def test_a_permuted_copy_of_the_users_own_is_accepted_with_a_note(
    cache: Path,
    tmp_path: Path,
    register: Register,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    register(git_blob="1" * 40, permuted_sha256=SHA256)
    path = tmp_path / "little" / "text.txt"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    monkeypatch.setenv("RNNKIT_DATA_DIR", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert storage.fetch("little") == {"text.txt": path}
    assert "not comparable with published figures" in caplog.text


def test_a_damaged_file_is_named_with_both_checksums(cache: Path, register: Register) -> None:
    register(sha256=SHA256)
    path = cache / "little" / "text.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    actual = hashlib.sha256(b"damaged").hexdigest()
    with pytest.raises(DataError) as error:
        storage.fetch("little")
    assert f"{path} is not the known file (sha256 {actual}, expected {SHA256})" in str(error.value)
    assert path.read_bytes() == b"damaged"  # it may be the user's only copy


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/nowhere", "the server answered 404"), ("/half", "the connection broke off")],
)
def test_a_failed_download_leaves_nothing_and_says_where_to_put_the_file(
    cache: Path, server: str, register: Register, path: str, reason: str
) -> None:
    register(sha256=SHA256, url=server + path)
    with pytest.raises(DataError) as error:
        storage.fetch("little", progress=False)
    message = str(error.value)
    assert f"cannot download {server}{path} ({reason})" in message
    assert str(cache / "little" / "text.txt") in message
    assert "\n" not in message
    assert left_behind(cache) == []


@pytest.mark.parametrize("path", ["/moved", "/named"])
def test_a_download_gets_our_name_wherever_the_server_sends_it(
    cache: Path, server: str, register: Register, path: str
) -> None:
    register(sha256=SHA256, url=server + path)
    storage.fetch("little", progress=False)
    assert left_behind(cache.parent.parent) == [cache / "little" / "text.txt"]


def test_a_server_that_sends_round_in_circles_is_one_sentence(
    cache: Path, server: str, register: Register
) -> None:
    register(sha256=SHA256, url=f"{server}/round")
    with pytest.raises(DataError, match="cannot download"):
        storage.fetch("little", progress=False)
    assert left_behind(cache) == []


def test_a_download_without_end_is_broken_off_at_the_known_size(
    cache: Path, server: str, register: Register
) -> None:
    register(sha256=SHA256, url=f"{server}/endless")
    with pytest.raises(DataError, match=f"sent more than the {len(CONTENT):,} bytes"):
        storage.fetch("little", progress=False)
    assert left_behind(cache) == []


def test_a_link_in_the_cache_is_replaced_and_not_written_through(
    cache: Path, server: str, register: Register, tmp_path: Path
) -> None:
    register(sha256=SHA256, url=f"{server}/whole")
    outside = tmp_path / "outside.txt"
    link = cache / "little" / "text.txt"
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    storage.fetch("little", progress=False)
    assert not link.is_symlink()
    assert not outside.exists()


def test_no_network_is_one_sentence(cache: Path, register: Register) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as closed:
        port = closed.server_port
    register(sha256=SHA256, url=f"http://127.0.0.1:{port}/whole")
    with pytest.raises(DataError, match=r"\(no connection\): put the file at") as error:
        storage.fetch("little", progress=False)
    assert "\n" not in str(error.value)
    assert left_behind(cache) == []


def test_an_interrupted_download_leaves_nothing(
    cache: Path, server: str, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(sha256=SHA256, url=f"{server}/whole")

    def interrupt(path: Path) -> str:
        assert path.stat().st_size == len(CONTENT)  # written, but not yet under its name
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "_sha256", interrupt)
    with pytest.raises(KeyboardInterrupt):
        storage.fetch("little", progress=False)
    assert left_behind(cache) == []


def test_a_cache_that_cannot_be_written_is_named(
    cache: Path, server: str, register: Register
) -> None:
    register(sha256=SHA256, url=f"{server}/whole")
    cache.parent.mkdir(parents=True)
    cache.write_text("a file in the folder's place")
    with pytest.raises(DataError, match=f"cannot write {cache}"):
        storage.fetch("little", progress=False)


def test_a_restricted_dataset_needs_an_accepted_licence(
    cache: Path, server: str, register: Register
) -> None:
    register("Ask the owner", sha256=SHA256, url=f"{server}/whole")
    with pytest.raises(DataError, match=r"^Ask the owner: .*`rnnkit data get little --accept-lic"):
        storage.fetch("little", progress=False)
    assert left_behind(cache) == []
    storage.fetch("little", accept_licence=True, progress=False)
    storage.fetch("little", progress=False)  # present: nothing is asked any more


def test_a_dataset_without_a_source_says_how_to_obtain_it(cache: Path, register: Register) -> None:
    register(sha256=SHA256)
    with pytest.raises(DataError, match=r"little cannot be downloaded \(ask for it\): put the"):
        storage.fetch("little", accept_licence=True)


def test_a_data_dir_that_is_no_folder_is_named(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNKIT_DATA_DIR", str(tmp_path / "typo"))
    with pytest.raises(DataError, match="typo, which is no folder"):
        storage.fetch("ptb")


def test_an_unknown_dataset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(DataError, match="no dataset 'pbt': choose from ptb, wikitext2"):
        storage.fetch("pbt")


def test_every_file_can_be_verified_or_is_user_supplied() -> None:
    for dataset in DATASETS.values():
        for file in dataset.files:
            if file.url is None:
                assert dataset.how_to_obtain
            else:
                assert file.url.startswith("https://")
                assert len(file.sha256 or "") == 64 or len(file.git_blob or "") == 40


def test_restricted_datasets_are_never_downloaded_without_a_note() -> None:
    restricted = [dataset for dataset in DATASETS.values() if "restricted" in dataset.licence]
    assert {dataset.name for dataset in restricted} == {"ptb", "conll2003"}
    for dataset in restricted:
        assert dataset.licence_note or all(file.url is None for file in dataset.files)


@pytest.mark.data
def test_real_files_have_the_registered_checksums_and_sizes(real_data: Path) -> None:
    for dataset in DATASETS.values():
        if (real_data / dataset.name).is_dir():
            paths = storage.fetch(dataset.name)
            for file in (file for file in dataset.files if file.sha256):
                assert paths[file.name].stat().st_size == file.size
