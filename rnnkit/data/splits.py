"""Which file is which part of a corpus: by its name in a folder, or because it is named itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from rnnkit.data.packing import ENDINGS
from rnnkit.data.registry import DataError

SPLITS = ("train", "valid", "test")
"""The parts of a corpus."""

NAMES = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "devel": "valid",
    "testa": "valid",
    "test": "test",
    "testb": "test",
}
"""What people call the parts, and which part each name means; CoNLL's testa is for validation."""

OR_NAMED = "; or name each file with --data.train PATH, --data.valid PATH and --data.test PATH"
"""What ends an error about a folder that lacks a part."""

# Hidden files, macOS's among them, and what editors and people leave beside a file.
_LEFT_BEHIND = re.compile(
    r"\..*|#.*#|.*~|.*\.(?:bak|backup|old|orig|rej|save|swo|swp|tmp)", re.IGNORECASE
)

_NO_TEXT = re.compile(
    r".*\.(?:7z|bin|ckpt|docx?|gif|h5|html|ini|ipynb|jpe?g|jsonl?|log|md|np[yz]|onnx|parquet|pdf|"
    r"pickle|pkl|png|pth?|py|rar|rst|safetensors|sh|svg|tar|tgz|toml|xlsx?|xml|ya?ml|zip|zst)"
    rf"(?:{'|'.join(map(re.escape, ENDINGS))})?",
    re.IGNORECASE,
)


def named_files(train: str | None, valid: str | None, test: str | None) -> dict[str, Path]:
    """The files that somebody has named, by their parts of a corpus; None: not named."""
    paths = zip(SPLITS, (train, valid, test), strict=True)
    return {split: Path(path).expanduser() for split, path in paths if path is not None}


def called(corpus: str, named: Mapping[str, Path]) -> str:
    """What to call a corpus of which some files are named: by the first one if all of them are."""
    return str(named["train"]) if len(named) == len(SPLITS) else corpus


def check_not_mixed(corpus: str, named: Mapping[str, Path]) -> None:
    """Refuse training text of one's own that would be validated on what is built in.

    Args:
        corpus: One that is made, as the corpora are that stand for one that is not given.
        named: Files that take the place of its parts.

    Raises:
        DataError: The training text is named, and another part is not.
    """
    if "train" in named:
        raise DataError(
            f"--data.train names a text beside the corpus {corpus}, which has another: name "
            "--data.valid and --data.test too, or with --data.corpus the folder that has them"
        )


def folder_files(folder: Path) -> dict[str, Path]:
    """Files of a folder by their names, without hidden ones and backups."""
    return {
        file.name: file
        for file in sorted(folder.iterdir())
        if not _LEFT_BEHIND.fullmatch(file.name) and file.is_file()
    }


def may_be_text(name: str) -> bool:
    """Whether the ending of a file's name is none of those that results, pictures and so on have.

    Example:
        >>> may_be_text("test.conll.gz"), may_be_text("test-results.json")
        (True, False)
    """
    return not _NO_TEXT.fullmatch(name)


def two_files(corpus: str, split: str, first: str, second: str) -> DataError:
    """The error about two files that may be the same part of a corpus."""
    return DataError(
        f"{corpus} has two files for {split}: {first} and {second}: name the one that is meant, "
        f"--data.{split} PATH"
    )
