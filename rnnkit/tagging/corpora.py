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
from typing import TypeAlias

from rnnkit.data import storage
from rnnkit.data.registry import DATASETS, DataError
from rnnkit.data.schemes import (
    SCHEMES,
    Scheme,
    detect,
    entities,
    lenient,
    to_tags,
    violations,
)
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
from rnnkit.screen.terminal import UNSAFE, visible
from rnnkit.tagging.announcements import announcements
from rnnkit.tagging.columns import Sentence, read_columns
from rnnkit.tagging.layout import Column

_log = logging.getLogger(__name__)

BUILT_IN = "announcements"
"""Name of the corpus that every machine can make."""

_LAYOUT = (
    "a tagged corpus is a folder with three files in whose names train, valid (or dev, testa) and "
    f"test (or testb) stand by themselves, as in train.txt or eng.testa{OR_NAMED}"
)

# Sentences of each split, and what to call their place in an error.
_Splits: TypeAlias = dict[str, tuple[str, list[Sentence]]]

# Sentences and entities, for copies differ in what stands between the sentences.
_KNOWN = {"conll2003": {"train": (14_041, 23_499), "valid": (3_250, 5_942), "test": (3_453, 5_648)}}


@dataclass(frozen=True)
class TaggedCorpus:
    """The sentences of a corpus, with their tags in one scheme.

    Attributes:
        train: Training sentences.
        valid: Validation sentences.
        test: Test sentences.
        types: Types of the entities in the training sentences, in alphabetical order.
    """

    train: list[Sentence]
    valid: list[Sentence]
    test: list[Sentence]
    types: list[str]


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
) -> TaggedCorpus:
    """Read or make a tagged corpus.

    Args:
        corpus: announcements, built in; a tagging dataset (conll2003); or the path of a folder. A
            name wins over a folder of that name: write `./conll2003` for the folder.
        scheme: Scheme of the tags in the result.
        train: Path of a training file to read instead of the corpus's. With all three, `corpus` is
            not read.
        valid: The same for validation.
        test: The same for the test.
        file_scheme: Scheme of the tags in the files; None: the one that they all fit.
        fix: Read tags that break `file_scheme` as conlleval does, and warn how many there are.
        word_column: As for `read_columns`, which says what is read; so are the next three.
        tag_column: Column of the tags.
        separator: What stands between columns.
        sentence_column: Column that tells sentences apart.

    Raises:
        DataError: There is no such corpus, a file is missing or makes no sense, a tag breaks the
            scheme and is not to be fixed, a validation or test tag has a type that no training
            tag has, or a known corpus has other counts than it should.
    """
    named = named_files(train, valid, test)
    corpus = called(corpus, named)
    splits = _read(corpus, named, word_column, tag_column, separator, sentence_column)
    _check_tags(splits)
    if file_scheme is None:
        file_scheme = _detect(corpus, splits)
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
            found = lenient(sentence.tags) if faults else entities(sentence.tags, file_scheme)
            tags = to_tags(found, len(sentence.words), scheme)
            part.append(sentence._replace(tags=tags))
        parts[name] = part
    if broken:
        _log.warning(
            "Note: %d tags of %s break %s and are read as conlleval does (fix).",
            *(broken, visible(corpus), file_scheme),
        )
    if corpus in _KNOWN and not named:
        _check_counts(corpus, parts, scheme)
    types = sorted({one.type for each in parts["train"] for one in entities(each.tags, scheme)})
    if not types:
        raise DataError(f"{splits['train'][0]} holds no entity: every tag is O")
    for name, (place, _) in splits.items():
        for sentence in parts[name]:
            for one in entities(sentence.tags, scheme):
                if one.type not in types:
                    raise DataError(
                        f"{place}, line {sentence.line_of(one.start)}: no training tag has the "
                        f"type {one.type}, which a model can't learn then; its types are "
                        f"{', '.join(types)}"
                    )
    return TaggedCorpus(parts["train"], parts["valid"], parts["test"], types)


def _read(
    corpus: str,
    named: Mapping[str, Path],
    word_column: Column | None,
    tag_column: Column,
    separator: str | None,
    sentence_column: Column | None,
) -> _Splits:
    if tag_column is None:  # a configuration may say null
        raise DataError(
            "tag_column is null, and without tags there is nothing to learn: give the number or "
            "the name of their column, as in --data.tag_column -1"
        )
    made: _Splits = {}
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
        splits = {NAMES[part] for part in re.split(r"[._-]", name) if part in NAMES}
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


def _check_tags(splits: _Splits) -> None:
    """Refuse a tag that is of no scheme, or that no table and no legend could show."""
    known: set[str] = set()
    for place, sentences in splits.values():
        for sentence in sentences:
            for step, tag in enumerate(sentence.tags):
                if tag in known:
                    continue
                try:
                    lenient([tag])
                except ValueError:
                    raise DataError(
                        f"{place}, line {sentence.line_of(step)}: {tag!r} is no tag of any scheme: "
                        "expected O, or a letter of BILUES, a hyphen and a type, as in B-PER"
                    ) from None
                if UNSAFE.search(tag):
                    raise DataError(
                        f"{place}, line {sentence.line_of(step)}: the tag {tag!r} holds a "
                        "character that would act on a terminal: name the type otherwise"
                    )
                known.add(tag)


def _detect(corpus: str, splits: _Splits) -> Scheme:
    """The scheme that the tags of all splits fit."""
    try:
        return detect(sentence.tags for _, sentences in splits.values() for sentence in sentences)
    except ValueError as error:
        # In lines of files what the error tells in tokens of sentences.
        told = []
        for scheme in SCHEMES:
            found = [
                f"{place}, line {sentence.line_of(fault.position)}: {fault.reason}"
                for place, sentences in splits.values()
                for sentence in sentences
                for fault in violations(sentence.tags, scheme)
            ]
            told += [f"{scheme} is broken {len(found)} times, first in {one}" for one in found[:1]]
        if not told:
            raise DataError(f"{corpus} holds no entity: every tag is O") from error
        raise DataError(
            f"the tags of {corpus} fit no scheme: correct them, or name the scheme that is meant "
            "(file_scheme) and let fix: true read what breaks it as conlleval does:\n"
            + "\n".join(told)
        ) from error


def _check_counts(corpus: str, parts: Mapping[str, list[Sentence]], scheme: Scheme) -> None:
    for name, (sentences, expected) in _KNOWN[corpus].items():
        found = sum(len(entities(sentence.tags, scheme)) for sentence in parts[name])
        if (len(parts[name]), found) != (sentences, expected):
            raise DataError(
                f"the {name} file of {corpus} is not the known one: expected {sentences:,} "
                f"sentences with {expected:,} entities, got {len(parts[name]):,} with {found:,}"
            )


def _names() -> str:
    named = [dataset.name for dataset in DATASETS.values() if dataset.task == "tagging"]
    return ", ".join([BUILT_IN, *named])
