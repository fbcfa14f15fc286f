"""Where a dataset's files lie: found, verified and, where its licence allows, downloaded.

Order of search for `<name>/<file>`: the folder that the environment variable `RNNKIT_DATA_DIR`
names, then the cache, then the network. A download goes to a temporary file in the cache, is
verified there and only then gets its name, so nothing half-written is ever found.
"""

from __future__ import annotations

import hashlib
import logging
import os
from functools import partial
from pathlib import Path

import pooch  # type: ignore[import-untyped]
import requests
from tqdm import tqdm  # type: ignore[import-untyped]

from rnnkit.data.registry import DATASETS, DataError, DataFile, Dataset
from rnnkit.screen.terminal import visible

_log = logging.getLogger(__name__)

_TIMEOUT = 30  # seconds in which a server has to send something
_CHUNK = 2**16


def data_dir() -> Path | None:
    """The folder that `RNNKIT_DATA_DIR` names, or None where it is unset or empty.

    Raises:
        DataError: It names no folder.
    """
    value = os.environ.get("RNNKIT_DATA_DIR")
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise DataError(f"RNNKIT_DATA_DIR names {folder}, which is no folder: correct or unset it")
    return folder


def cache_dir() -> Path:
    """The folder that downloads go to, in the platform's usual place for caches."""
    return Path(pooch.os_cache("rnnkit"))


def get_dataset(name: str) -> Dataset:
    """The dataset of that name.

    Raises:
        DataError: There is none.
    """
    if name not in DATASETS:
        raise DataError(f"there is no dataset {name!r}: choose from {', '.join(DATASETS)}")
    return DATASETS[name]


def locate(dataset: Dataset, file: DataFile) -> Path | None:
    """Path of a file that is present, unverified; None where it is absent."""
    for root in (data_dir(), cache_dir()):
        if root is not None and (path := root / dataset.name / file.name).is_file():
            return path
    return None


def fetch(name: str, *, accept_licence: bool = False, progress: bool = True) -> dict[str, Path]:
    """All files of a dataset, verified; what is absent is downloaded into the cache.

    Args:
        name: A name in `DATASETS`.
        accept_licence: The user has accepted `licence_note`. Without it a dataset that has such
            a note is not downloaded.
        progress: Draw a progress bar on stderr for each download.

    Returns:
        Path of each file by its name.

    Raises:
        DataError: The name is unknown, a file is damaged, or a file is absent and the licence,
            the network or the file system stands in the way of downloading it.
    """
    dataset = get_dataset(name)
    paths = {}
    for file in dataset.files:
        path = locate(dataset, file)
        if path is None:
            path = _download(dataset, file, accept_licence=accept_licence, progress=progress)
        else:
            verify(path, file)
        paths[file.name] = path
    return paths


def verify(path: Path, file: DataFile) -> None:
    """Compare a present file with its checksum.

    Raises:
        DataError: The checksum differs or the file cannot be read.
    """
    problem = _mismatch(path, file)
    if problem is None:
        return
    if file.permuted_sha256 is not None and _sha256(path) == file.permuted_sha256:
        _log.warning(
            "Note: %s holds its documents in another order than the canonical file: perplexity "
            "after training on it is not comparable with published figures.",
            visible(str(path)),
        )
        return
    raise DataError(f"{path} is not the known file ({problem}): remove or replace it")


def _download(dataset: Dataset, file: DataFile, *, accept_licence: bool, progress: bool) -> Path:
    target = cache_dir() / dataset.name / file.name
    by_hand = (
        f"put the file at {target}, or set RNNKIT_DATA_DIR to a folder that holds "
        f"{dataset.name}/{file.name}"
    )
    if file.url is None:
        raise DataError(f"{dataset.name} cannot be downloaded ({dataset.how_to_obtain}): {by_hand}")
    if dataset.licence_note is not None and not accept_licence:
        raise DataError(
            f"{dataset.licence_note}: if you hold a licence, type "
            f"`rnnkit data get {dataset.name} --accept-licence`, or {by_hand}"
        )
    pooch.get_logger().setLevel("WARNING")  # else it prints a checksum to copy
    try:
        pooch.retrieve(
            file.url,
            # The downloader verifies: pooch has no git blob ids, and its message names no path.
            known_hash=None,
            fname=file.name,
            path=target.parent,
            downloader=partial(_download_verified, file=file, by_hand=by_hand, progress=progress),
        )
    except requests.HTTPError as error:
        answer = f"the server answered {error.response.status_code}"
        raise DataError(f"cannot download {file.url} ({answer}): {by_hand}") from error
    except requests.RequestException as error:
        lost = isinstance(error, (requests.ConnectionError, requests.Timeout))
        reason = "no connection" if lost else "the connection broke off"
        raise DataError(f"cannot download {file.url} ({reason}): {by_hand}") from error
    except OSError as error:
        raise DataError(f"cannot write {target} ({error.strerror or error}): {by_hand}") from error
    return target


def _download_verified(
    url: str, output_file: str, _: object, *, file: DataFile, by_hand: str, progress: bool
) -> None:
    """Downloader for pooch: an exception makes it remove `output_file`, its temporary file.

    Pooch's own writes whatever a server sends, which may have no end.
    """
    written = 0
    with (
        requests.get(url, stream=True, timeout=_TIMEOUT) as answer,
        open(output_file, "wb") as output,
        tqdm(total=file.size, unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        answer.raise_for_status()
        for part in answer.iter_content(_CHUNK):
            written += len(part)
            if written > file.size:
                raise DataError(
                    f"{url} sent more than the {file.size:,} bytes of the known file: {by_hand}"
                )
            output.write(part)
            bar.update(len(part))
    problem = _mismatch(Path(output_file), file)
    if problem is not None:
        raise DataError(f"{url} sent another file than the known one ({problem}): {by_hand}")


def _mismatch(path: Path, file: DataFile) -> str | None:
    """What is wrong with the file at `path`, with both checksums; None where it is right."""
    if file.git_blob is not None:
        kind, expected, actual = "git blob id", file.git_blob, _git_blob(path)
    elif file.sha256 is not None:
        kind, expected, actual = "sha256", file.sha256, _sha256(path)
    else:
        return None
    return None if actual == expected else f"{kind} {actual}, expected {expected}"


def _sha256(path: Path) -> str:
    return hashlib.sha256(_read(path)).hexdigest()


def _git_blob(path: Path) -> str:
    content = _read(path)
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror})") from error
