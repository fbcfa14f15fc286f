"""Parallel text: pairs of lines, one a translation of the other, from a name or a path.

A corpus on disk is a folder with `train.SRC` and `train.TGT`, `valid.SRC` and `valid.TGT` (or
val, or dev) and `test.SRC` and `test.TGT`, where SRC and TGT name the languages; each file may be
compressed (`.gz`). Instead of a folder, `PATH` stands for files `PATH.train.SRC` and so on. Line n
of one file belongs to line n of the other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rnnkit.data import storage
from rnnkit.data.files import read_lines
from rnnkit.data.registry import DATASETS, DataError
from rnnkit.screen.terminal import visible
from rnnkit.translation import pairs
from rnnkit.translation.pairs import Pair, Splits

_log = logging.getLogger(__name__)

# Corpora that are made, with their usual direction.
_BUILT_IN: dict[str, tuple[str, str, Callable[[], Splits]]] = {
    "dates": ("english", "iso", pairs.dates),
    "numbers": ("words", "digits", pairs.numbers),
}

# The languages of named datasets, in their usual direction.
_LANGUAGES = {"multi30k": ("de", "en")}

_SPLITS = {
    "train": ("train",),
    "valid": ("valid", "val", "dev"),
    "test": ("test", "test_2016_flickr"),
}
_LAYOUT = (
    "a parallel corpus is a folder with train.SRC, valid.SRC, test.SRC and the same three .TGT, "
    "plain or .gz"
)


@dataclass(frozen=True)
class ParallelCorpus:
    """The pairs of a corpus in one direction, as they are written.

    Attributes:
        source: Language of the source lines: the ending of their files.
        target: Language of the target lines.
        train: Training pairs (source line, target line) of which both lines hold text.
        valid: Validation pairs, all of them.
        test: Test pairs, all of them.
        empty_pairs: Number of training pairs that were left out.
    """

    source: str
    target: str
    train: list[Pair]
    valid: list[Pair]
    test: list[Pair]
    empty_pairs: int = 0


def read_parallel(
    corpus: str, source: str | None = None, target: str | None = None
) -> ParallelCorpus:
    """Read or make a parallel corpus.

    Training pairs with an empty line are left out. In validation and test they stay, for a score
    counts every line of its file. Either is told in a warning.

    Args:
        corpus: dates or numbers, built in; a translation dataset (multi30k); or the path of a
            folder, or of files up to their `.train.SRC`. A name wins over a folder of that name:
            write `./dates` for the folder.
        source: Language to translate from. A named corpus has a usual one.
        target: Language to translate to.

    Raises:
        DataError: There is no such corpus or language, a file is missing, empty or unreadable,
            or two files differ in their numbers of lines.
    """
    if corpus in _BUILT_IN:
        first, second, make = _BUILT_IN[corpus]
        source, target = _direction(corpus, (first, second), source, target)
        train, valid, test = make()
        if source == second:
            train, valid, test = ([(b, a) for a, b in part] for part in (train, valid, test))
        return ParallelCorpus(source, target, train, valid, test)
    if corpus in DATASETS:
        if corpus not in _LANGUAGES:
            raise DataError(
                f"{corpus} is a dataset for {DATASETS[corpus].task}, not for translation: choose "
                f"from {_names()}, or give a path"
            )
        source, target = _direction(corpus, _LANGUAGES[corpus], source, target)
        files = storage.fetch(corpus)
    else:
        files = _files(corpus)
        if source is None or target is None or source == target:
            raise DataError(
                f"the corpus {corpus} needs a source and a target language, the endings of its "
                f"files, got {source} and {target}: found {_found(files)}"
            )
    paths = _assign(corpus, files, source, target)
    train, valid, test = (read_pairs(*paths[split]) for split in _SPLITS)
    for split, part in (("validation", valid), ("test", test)):
        if empty := _empty(part):
            _log.warning(
                "Note: %d of %d %s pairs of %s have an empty line, the first in line %d; they are "
                "kept and scored.",
                *(len(empty), len(part), split, visible(corpus), empty[0] + 1),
            )
    empty = _empty(train)
    if len(empty) == len(train):
        raise DataError(f"{corpus} has no training pair of which both lines hold text")
    if empty:
        _log.warning(
            "Note: %d of %d training pairs of %s have an empty line, the first in line %d; they "
            "are left out.",
            *(len(empty), len(train), visible(corpus), empty[0] + 1),
        )
        train = [pair for pair in train if _holds_text(pair)]
    return ParallelCorpus(source, target, train, valid, test, len(empty))


def _empty(part: list[Pair]) -> list[int]:
    return [i for i, pair in enumerate(part) if not _holds_text(pair)]


def _holds_text(pair: Pair) -> bool:
    return bool(pair[0].strip() and pair[1].strip())


def read_pairs(source: Path, target: Path) -> list[Pair]:
    """Pairs of the lines of two files.

    Raises:
        DataError: A file cannot be read, or has no line, or their numbers of lines differ.
    """
    sources, targets = read_lines(source), read_lines(target)
    if len(sources) != len(targets):
        shared = min(len(sources), len(targets))
        longer, lines = max((source, sources), (target, targets), key=lambda item: len(item[1]))
        raise DataError(
            f"{source} has {len(sources)} lines and {target} has {len(targets)}: line "
            f"{shared + 1} of {longer.name} ({_excerpt(lines[shared])}) has no counterpart; line n "
            "of one must be the translation of line n of the other"
        )
    if not sources:
        raise DataError(f"{source} and {target} are empty: expected a pair of lines or more, got 0")
    return list(zip(sources, targets, strict=True))


def _direction(
    corpus: str, languages: tuple[str, str], source: str | None, target: str | None
) -> tuple[str, str]:
    """Source and target of a corpus that has two languages; one that is left out follows."""
    first, second = languages
    if source == second or target == first:
        first, second = second, first
    if source not in (None, first) or target not in (None, second):
        raise DataError(
            f"{corpus} has the languages {languages[0]} and {languages[1]}, one as source and the "
            f"other as target, got {source} and {target}"
        )
    return first, second


def _files(corpus: str) -> dict[str, Path]:
    """Files of a corpus on disk, by their names without what they share."""
    path = Path(corpus).expanduser()
    if path.is_dir():
        return {file.name: file for file in sorted(path.iterdir()) if file.is_file()}
    prefix = f"{path.name}."
    files = sorted(path.parent.glob("*")) if path.parent.is_dir() else []
    found = {file.name.removeprefix(prefix): file for file in files if file.name.startswith(prefix)}
    if not any(name.startswith("train.") for name in found):
        raise DataError(
            f"there is no parallel corpus {corpus!r}: choose from {_names()}, or give the path of "
            f"a folder (looked for {path.absolute()} and {path.absolute()}.train.*)"
        )
    return found


def _assign(
    corpus: str, files: Mapping[str, Path], source: str, target: str
) -> dict[str, tuple[Path, Path]]:
    paths: dict[str, list[Path]] = {split: [] for split in _SPLITS}
    missing = []
    for split, stems in _SPLITS.items():
        for language in (source, target):
            names = [f"{stem}.{language}{end}" for stem in stems for end in ("", ".gz")]
            found = [name for name in names if name in files]
            if len(found) > 1:
                raise DataError(f"{corpus} has two files for {split}: {' and '.join(found)}")
            if found:
                paths[split].append(files[found[0]])
            else:
                missing.append(f"{split}.{language}")
    if missing:
        raise DataError(f"{corpus} lacks {', '.join(missing)}, found {_found(files)}: {_LAYOUT}")
    return {split: (sides[0], sides[1]) for split, sides in paths.items()}


def _found(files: Mapping[str, Path]) -> str:
    stems = tuple(f"{stem}." for stems in _SPLITS.values() for stem in stems)
    return ", ".join(name for name in files if name.startswith(stems)) or "no file of a corpus"


def _excerpt(line: str) -> str:
    return repr(line if len(line) <= 40 else f"{line[:40]}...")


def _names() -> str:
    return ", ".join([*_BUILT_IN, *_LANGUAGES])
