"""Tagged corpora: from a name or a path to three lists of sentences in one scheme.

A corpus is a folder with a file each for training, validation and test: a word a line with its tag
in a column, a blank line between sentences, as CoNLL has them. Or it is the name of a dataset. A
file that is named for a part takes its place.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import get_args

from rnnkit.data import storage
from rnnkit.data.registry import DATASETS, DataError
from rnnkit.data.schemes import Scheme, entities, lenient, tag_types, to_tags, violations
from rnnkit.data.splits import (
    NAMES,
    OR_NAMED,
    SPLITS,
    called,
    check_not_mixed,
    folder_files,
    may_be_text,
    named_files,
    two_files,
)
from rnnkit.screen.terminal import visible
from rnnkit.tagging.announcements import announcements
from rnnkit.tagging.checks import (
    ANOTHER_COLUMN,
    NO_ENTITY,
    Splits,
    UnseenTypes,
    are_labels,
    check_tags,
    check_types,
    detect_scheme,
)
from rnnkit.tagging.columns import Sentence, read_columns
from rnnkit.tagging.layout import Column

_log = logging.getLogger(__name__)

BUILT_IN = "announcements"
"""Name of the corpus that every machine can make."""

_LAYOUT = (
    "a tagged corpus is a folder with three files in whose names train, valid (or dev, testa) and "
    f"test (or testb) stand by themselves, as in train.txt or eng.testa{OR_NAMED}"
)

# Sentences, and entities in the last of four columns, for copies differ in what stands between the
# sentences.
_KNOWN = {"conll2003": {"train": (14_041, 23_499), "valid": (3_250, 5_942), "test": (3_453, 5_648)}}


@dataclass(frozen=True)
class TaggedCorpus:
    """The sentences of a corpus, with their tags in one scheme.

    Attributes:
        train: Training sentences.
        valid: Validation sentences.
        test: Test sentences.
        types: Types of the entities in the training sentences, in alphabetical order; the labels
            where the tags are labels.
        scheme: Scheme of the tags.
    """

    train: list[Sentence]
    valid: list[Sentence]
    test: list[Sentence]
    types: list[str]
    scheme: Scheme


def read_tagged(
    corpus: str,
    scheme: Scheme,
    *,
    train: str | None = None,
    valid: str | None = None,
    test: str | None = None,
    file_scheme: Scheme | None = None,
    fix: bool = False,
    word_column: Column | None = None,
    tag_column: Column = -1,
    separator: str | None = None,
    sentence_column: Column | None = None,
    unseen_types: UnseenTypes = "error",
) -> TaggedCorpus:
    """Read or make a tagged corpus.

    Where no tag of the files has the form of an entity's tag, as with parts of speech, all of them
    are labels, whatever `scheme` is; a warning says so.

    Args:
        corpus: announcements, built in; a tagging dataset (conll2003); or the path of a folder. A
            name wins over a folder of that name: write `./conll2003` for the folder.
        scheme: Scheme of the tags in the result; labels: the tags as they are.
        train: Path of a training file to read instead of the corpus's. With all three, `corpus` is
            not read.
        valid: The same for validation.
        test: The same for the test.
        file_scheme: Scheme of the tags in the files, labels for those that write no entities; None:
            the one that they all fit.
        fix: Read tags that break `file_scheme` as conlleval does, and warn how many there are.
        word_column: As for `read_columns`, which says what is read; so are the next three.
        tag_column: Column of the tags.
        separator: What stands between columns.
        sentence_column: Column that tells sentences apart.
        unseen_types: error, or missed: a warning counts the validation and test tags with a type
            that no training tag has, and they stay.

    Raises:
        DataError: There is no such corpus, a file is missing or makes no sense, a tag breaks the
            scheme and is not to be fixed, a validation or test tag has a type that no training
            tag has and that is an error, or a known corpus has other counts than it should.
        ValueError: Labels are asked of files whose tags are said to write entities, or there is no
            such `unseen_types`.
    """
    named = named_files(train, valid, test)
    corpus = called(corpus, named)
    if unseen_types not in get_args(UnseenTypes):
        raise ValueError(f"expected unseen_types error or missed, got {unseen_types!r}")
    if scheme == "labels" and file_scheme not in (None, "labels"):
        raise ValueError(
            f"scheme labels leaves tags as they are, and file_scheme {file_scheme} reads entities "
            "in them: leave --data.file_scheme out, or name another --data.scheme"
        )
    splits = _read(corpus, named, word_column, tag_column, separator, sentence_column)
    if scheme == "labels" or (file_scheme is None and are_labels(corpus, splits)):
        file_scheme = "labels"
    if file_scheme == "labels":
        scheme = "labels"
    check_tags(splits, file_scheme)
    if file_scheme is None:
        file_scheme = detect_scheme(corpus, splits)
    broken = 0
    parts: dict[str, list[Sentence]] = {}
    for name, (place, sentences) in splits.items():
        part = []
        for sentence in sentences:
            faults = violations(sentence.tags, file_scheme)
            if faults and not fix:
                raise DataError(
                    f"{place}, line {sentence.line_of(faults[0].position)}: {faults[0].reason}; "
                    "fix: true reads such tags as conlleval does"
                )
            broken += len(faults)
            if scheme != "labels":
                found = lenient(sentence.tags) if faults else entities(sentence.tags, file_scheme)
                sentence = sentence._replace(tags=to_tags(found, len(sentence.words), scheme))
            part.append(sentence)
        parts[name] = part
    if broken:
        _log.warning(
            "Note: tags of %s break %s, %d in all, and are read as conlleval does (fix).",
            *(visible(corpus), file_scheme, broken),
        )
    if corpus in _KNOWN and not named:
        of_entities = scheme != "labels" and tag_column in (-1, 3)
        _check_counts(corpus, parts, scheme if of_entities else None)
    found_types = (tag_types(sentence.tags, scheme) for sentence in parts["train"])
    types = sorted(set().union(*found_types) - {""})  # which O has
    place = splits["train"][0]
    if types == (["O"] if scheme == "labels" else []):
        raise DataError(f"{place} {NO_ENTITY}")
    if scheme == "labels" and len(types) == 1:
        raise DataError(f"{place} gives each word the label {types[0]}; {ANOTHER_COLUMN}")
    for name in ("valid", "test"):
        check_types(splits[name][0], parts[name], types, scheme, unseen_types)
    return TaggedCorpus(parts["train"], parts["valid"], parts["test"], types, scheme)


def _read(
    corpus: str,
    named: Mapping[str, Path],
    word_column: Column | None,
    tag_column: Column,
    separator: str | None,
    sentence_column: Column | None,
) -> Splits:
    if tag_column is None:  # a configuration may say null
        raise DataError(
            "tag_column is null, and without tags there is nothing to learn: give the number or "
            "the name of their column, as in --data.tag_column -1"
        )
    made: Splits = {}
    paths = named
    if len(named) < len(SPLITS) and corpus == BUILT_IN:
        check_not_mixed(corpus, named)
        parts = zip(SPLITS, announcements(), strict=True)
        made = {name: (f"{corpus} ({name})", sentences) for name, sentences in parts}
    elif len(named) < len(SPLITS):
        paths = tagged_files(corpus, named)
    columns = word_column, tag_column, separator, sentence_column
    read = {name: (str(path), read_columns(path, *columns)) for name, path in paths.items()}
    return {name: (made | read)[name] for name in SPLITS}


def tagged_files(corpus: str, named: Mapping[str, Path] = MappingProxyType({})) -> dict[str, Path]:
    """The files of a corpus: `train`, `valid` and `test`.

    Args:
        corpus: Name of a dataset or path of a folder.
        named: Files that take the place of the corpus's, by their parts.

    Raises:
        DataError: There is no such dataset or folder, or a part is missing or there twice.
    """
    if corpus in DATASETS:
        if DATASETS[corpus].task != "tagging":
            raise DataError(
                f"{corpus} is a dataset for {DATASETS[corpus].task}, not for tagging: choose from "
                f"{_names()}, or give the path of a folder"
            )
        files: Mapping[str, Path] = storage.fetch(corpus)
    else:
        path = Path(corpus).expanduser()
        if not path.is_dir():
            raise DataError(
                f"there is no tagged corpus {corpus!r}: choose from {_names()}, or give the path "
                f"of a folder (looked for {path.absolute()})"
            )
        files = {name: file for name, file in folder_files(path).items() if may_be_text(name)}
    parts: dict[str, Path] = {}
    for name, path in files.items():
        splits = {NAMES[part] for part in re.split(r"[._-]", name.lower()) if part in NAMES}
        wanted = splits - named.keys()
        if len(splits) > 1 and wanted:
            raise DataError(
                f"{corpus} has a file for {' and '.join(sorted(splits))} at once: {name}{OR_NAMED}"
            )
        for split in wanted:
            if split in parts:
                raise two_files(corpus, split, parts[split].name, name)
            parts[split] = path
    parts |= named
    missing = [split for split in SPLITS if split not in parts]
    if missing:
        found = ", ".join(files) or "no file"
        raise DataError(f"{corpus} has {found} but lacks {', '.join(missing)}: {_LAYOUT}")
    return {split: parts[split] for split in SPLITS}


def _check_counts(corpus: str, parts: Mapping[str, list[Sentence]], scheme: Scheme | None) -> None:
    """Refuse other counts than the known ones: of sentences, with a scheme of entities too."""
    for name, (sentences, known) in _KNOWN[corpus].items():
        found = known
        if scheme is not None:
            found = sum(len(entities(sentence.tags, scheme)) for sentence in parts[name])
        if (len(parts[name]), found) != (sentences, known):
            expected, got = f"{sentences:,} sentences", f"{len(parts[name]):,}"
            if scheme is not None:
                expected, got = f"{expected} with {known:,} entities", f"{got} with {found:,}"
            raise DataError(
                f"the {name} file of {corpus} is not the known one: expected {expected}, got {got}"
            )


def _names() -> str:
    named = [dataset.name for dataset in DATASETS.values() if dataset.task == "tagging"]
    return ", ".join([BUILT_IN, *named])
