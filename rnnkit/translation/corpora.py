"""Parallel text: pairs of lines, one a translation of the other, from a name or a path.

A corpus on disk is a folder with `train.SRC` and `train.TGT`, `valid.SRC` and `valid.TGT` (or
dev, and so on) and `test.SRC` and `test.TGT`, where SRC and TGT name the languages; each file may
be packed (`.gz`, `.bz2`, `.xz`). Instead of a folder, `PATH` stands for files `PATH.train.SRC` and
so on. Files that are named for a part, by what is before the language, take its place. Line n of
one file belongs to line n of the other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from rnnkit.data import storage
from rnnkit.data.files import read_lines
from rnnkit.data.packing import ENDINGS
from rnnkit.data.registry import DATASETS, DataError
from rnnkit.data.splits import (
    NAMES,
    OR_NAMED,
    SPLITS,
    called,
    check_not_mixed,
    folder_files,
    named_files,
    two_files,
)
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

_NAMES = {**NAMES, "test_2016_flickr": "test"}  # Multi30k's
_LAYOUT = (
    "a parallel corpus is a folder with train.SRC, valid.SRC (or dev.SRC), test.SRC and the same "
    f"three .TGT, plain or packed{OR_NAMED}, which stands for PATH.SRC and PATH.TGT"
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
    corpus: str,
    source: str | None = None,
    target: str | None = None,
    *,
    train: str | None = None,
    valid: str | None = None,
    test: str | None = None,
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
        train: Path of two training files up to the language, to read instead of the corpus's. With
            all three, `corpus` is not read.
        valid: The same for validation.
        test: The same for the test.

    Raises:
        DataError: There is no such corpus or language, a file is missing, empty or unreadable,
            or two files differ in their numbers of lines.
    """
    named = named_files(train, valid, test)
    corpus = called(corpus, named)
    made: dict[str, list[Pair]] = {}
    files: dict[str, Path] = {}
    if len(named) < len(SPLITS) and corpus in _BUILT_IN:
        check_not_mixed(corpus, named)
        first, second, make = _BUILT_IN[corpus]
        source, target = _direction(corpus, (first, second), source, target)
        made = dict(zip(SPLITS, make(), strict=True))
        if source == second:
            made = {split: [(b, a) for a, b in part] for split, part in made.items()}
    elif len(named) < len(SPLITS) and corpus in DATASETS:
        if corpus not in _LANGUAGES:
            raise DataError(
                f"{corpus} is a dataset for {DATASETS[corpus].task}, not for translation: choose "
                f"from {_names()}, or give a path"
            )
        source, target = _direction(corpus, _LANGUAGES[corpus], source, target)
        files = storage.fetch(corpus)
    else:
        files = {} if len(named) == len(SPLITS) else _files(corpus)
        if source is None or target is None or source == target:
            found = "" if len(named) == len(SPLITS) else f": found {_found(files)}"
            raise DataError(
                f"the corpus {corpus} needs a source and a target language, the endings of its "
                f"files (--data.source and --data.target), got {source} and {target}{found}"
            )
    paths = {
        split: (_side(path, split, source), _side(path, split, target))
        for split, path in named.items()
    }
    if not made:
        paths |= _assign(corpus, files, source, target, named)
    parts = made | {split: read_pairs(*both) for split, both in paths.items()}
    told = {split: visible(str(named.get(split, corpus))) for split in SPLITS}
    for split, name in (("valid", "validation"), ("test", "test")):
        part = parts[split]
        if empty := _empty(part):
            _log.warning(
                "Note: %d of %d %s pairs of %s have an empty line, the first in line %d; they are "
                "kept and scored.",
                *(len(empty), len(part), name, told[split], empty[0] + 1),
            )
    whole = parts["train"]
    empty = _empty(whole)
    if len(empty) == len(whole):
        raise DataError(f"{told['train']} has no training pair of which both lines hold text")
    if empty:
        _log.warning(
            "Note: %d of %d training pairs of %s have an empty line, the first in line %d; they "
            "are left out.",
            *(len(empty), len(whole), told["train"], empty[0] + 1),
        )
        parts["train"] = [pair for pair in whole if _holds_text(pair)]
    return ParallelCorpus(source, target, **parts, empty_pairs=len(empty))


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
        return folder_files(path)
    prefix = f"{path.name}."
    files = folder_files(path.parent) if path.parent.is_dir() else {}
    found = {
        name.removeprefix(prefix): file for name, file in files.items() if name.startswith(prefix)
    }
    if not any(name.startswith("train.") for name in found):
        raise DataError(
            f"there is no parallel corpus {corpus!r}: choose from {_names()}, or give the path of "
            f"a folder (looked for {path.absolute()} and {path.absolute()}.train.*)"
        )
    return found


def _side(path: Path, split: str, language: str) -> Path:
    """One of the two files of a part that is named by what their names share."""
    for ending in ("", *ENDINGS):
        file = path.with_name(f"{path.name}.{language}{ending}")
        if file.is_file():
            return file
    raise DataError(
        f"there is no file {path}.{language}: --data.{split} PATH stands for PATH.SRC and "
        "PATH.TGT, each plain or packed"
    )


def _assign(
    corpus: str, files: Mapping[str, Path], source: str, target: str, named: Container[str]
) -> dict[str, tuple[Path, Path]]:
    paths: dict[str, list[Path]] = {split: [] for split in SPLITS if split not in named}
    missing = []
    for split in paths:
        stems = [stem for stem, meant in _NAMES.items() if meant == split]
        for language in (source, target):
            names = [f"{stem}.{language}{end}" for stem in stems for end in ("", *ENDINGS)]
            found = [name for name in names if name in files]
            if len(found) > 1:
                raise two_files(corpus, split, found[0], found[1])
            if found:
                paths[split].append(files[found[0]])
            else:
                missing.append(f"{split}.{language}")
    if missing:
        raise DataError(f"{corpus} lacks {', '.join(missing)}, found {_found(files)}: {_LAYOUT}")
    return {split: (sides[0], sides[1]) for split, sides in paths.items()}


def _found(files: Mapping[str, Path]) -> str:
    stems = tuple(f"{stem}." for stem in _NAMES)
    return ", ".join(name for name in files if name.startswith(stems)) or "no file of a corpus"


def _excerpt(line: str) -> str:
    return repr(line if len(line) <= 40 else f"{line[:40]}...")


def _names() -> str:
    return ", ".join([*_BUILT_IN, *_LANGUAGES])
