"""Plain-text corpora: from a name or a path to three lists of tokens.

A corpus is a folder with `train.txt`, `valid.txt` and `test.txt` (or `ptb.train.txt` and so on),
a folder with one `input.txt`, or one text file; a single text is cut into the first 90 % of its
tokens for training and 5 % each for validation and test. Or it is the name of a dataset, of which
two have a division of their own: `python_docs.py` and `ghazals.py`. A file that is named for a part
takes its place.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

from rnnkit.data import storage
from rnnkit.data.files import read_text
from rnnkit.data.packing import ENDINGS
from rnnkit.data.registry import BUILT_IN, DATASETS, DataError
from rnnkit.data.splits import (
    NAMES,
    OR_NAMED,
    SPLITS,
    check_not_mixed,
    folder_files,
    named_files,
    two_files,
)
from rnnkit.data.vocabulary import SENTENCE_END, UNKNOWN, Vocabulary
from rnnkit.language_modeling import ghazals, python_docs

Level = Literal["word", "character"]

_PACKED = f"(?:{'|'.join(map(re.escape, ENDINGS))})?"
_SPLIT_FILE = re.compile(rf"(?:.+\.)?({'|'.join(NAMES)})\.txt{_PACKED}", re.IGNORECASE)
_SINGLE_FILE = re.compile(rf"input\.txt{_PACKED}", re.IGNORECASE)
_LAYOUT = (
    "a corpus is a folder with train.txt, valid.txt (or dev.txt) and test.txt (or NAME.train.txt "
    f"and so on), a folder with one input.txt, or one text file{OR_NAMED}"
)


@dataclass(frozen=True)
class Tokenizer:
    """Cuts a text into tokens and joins them again.

    Args:
        level: `word`: the words of a line, separated by white space, and `<eos>` at the end of
            each line, blank ones included. `character`: every character, line ends included.
        lowercase: Lower-case the text first.
        split_marks: At word level, cut words further: letters, digits and underscores stay
            together, every other mark is a token of its own.

    Raises:
        ValueError: There is no such level.
    """

    level: Level
    lowercase: bool = False
    split_marks: bool = False

    def __post_init__(self) -> None:
        if self.level not in get_args(Level):
            raise ValueError(f"expected a level of word or character, got {self.level!r}")

    @property
    def start(self) -> str:
        """The token before the first one: `<eos>`, or the line end at character level."""
        return SENTENCE_END if self.level == "word" else "\n"

    def tokenize_line(self, line: str) -> list[str]:
        """Tokens of a line or a part of it, without the end of the line."""
        if self.lowercase:
            line = line.lower()
        if self.level == "character":
            return list(line)
        return re.findall(r"\w+|[^\w\s]", line) if self.split_marks else line.split()

    def tokenize(self, text: str) -> list[str]:
        """Tokens of a whole text. A last line without a line end counts as a line."""
        if self.level == "character":
            return self.tokenize_line(text)
        lines = text.split("\n")  # splitlines would also cut at U+2028 and its like
        if not lines[-1]:
            lines.pop()
        tokens = []
        for line in lines:
            tokens += self.tokenize_line(line)
            tokens.append(SENTENCE_END)
        return tokens

    def detokenize(self, tokens: list[str]) -> str:
        """Text of tokens: words separated by one blank, a line end for each `<eos>`."""
        if self.level == "character":
            return "".join(tokens)
        text = " ".join("\n" if token == SENTENCE_END else token for token in tokens)
        return re.sub(" ?\n ?", "\n", text)


@dataclass(frozen=True)
class Corpus:
    """Tokens of the three parts of a corpus, and the tokenizer that made them."""

    tokenizer: Tokenizer
    train: list[str]
    valid: list[str]
    test: list[str]

    def vocabulary(self, min_count: int = 1) -> Vocabulary:
        """Vocabulary of the training text.

        `<eos>` (the line end at character level) always belongs to it, and so does `<unk>` at
        word level; at character level only where some text holds a character without an id.

        Args:
            min_count: Fewest occurrences in the training text for a token to be kept.

        Raises:
            ValueError: `min_count` is below 1.
        """
        counts = Counter(self.train)
        special = [self.tokenizer.start]
        if self.tokenizer.level == "word" or any(
            counts[token] < min_count and token != self.tokenizer.start
            for token in {*counts, *self.valid, *self.test}
        ):
            special.append(UNKNOWN)
        return Vocabulary.from_counts(counts, min_count=min_count, special=special)


def read_corpus(
    corpus: str,
    level: Level,
    lowercase: bool = False,
    *,
    train: str | None = None,
    valid: str | None = None,
    test: str | None = None,
) -> Corpus:
    """Read a corpus.

    Args:
        corpus: Name of a language-modelling dataset, or path of a folder or a text file. A name
            wins over a folder of that name: write `./ptb` for the folder.
        level: Tokens are words or characters.
        lowercase: Lower-case the text. The words of `python-docs` are lower-cased in any case.
        train: Path of a training text to read instead of the corpus's. With all three, `corpus` is
            not read.
        valid: The same for validation.
        test: The same for the test.

    Raises:
        DataError: The corpus does not exist, lacks a part, is empty or in an unknown encoding, or
            only the training text of a built-in one is replaced.
    """
    named = named_files(train, valid, test)
    if len(named) < len(SPLITS) and corpus in (BUILT_IN, *ghazals.FILES):
        if corpus == BUILT_IN:
            check_not_mixed(corpus, named)
            made = _read_python_docs(level, lowercase)
        else:
            made = _read_ghazals(corpus, level, lowercase)
        read = _read_parts(named, made.tokenizer)
        return Corpus(made.tokenizer, *(read.get(name, getattr(made, name)) for name in SPLITS))
    paths = named if len(named) == len(SPLITS) else corpus_files(corpus, named)
    tokenizer = Tokenizer(level, lowercase)
    parts = _read_parts(paths, tokenizer)
    if "input" in parts:
        tokens = parts["input"]
        ends = len(tokens) * 90 // 100, len(tokens) * 95 // 100
        if not 0 < ends[0] < ends[1]:
            raise DataError(
                f"{paths['input']} has {len(tokens)} tokens, too few to be cut into 90 % for "
                "training and 5 % each for validation and test"
            )
        cut = tokens[: ends[0]], tokens[ends[0] : ends[1]], tokens[ends[1] :]
        parts = dict(zip(SPLITS, cut, strict=True)) | parts
    return Corpus(tokenizer, parts["train"], parts["valid"], parts["test"])


def _read_parts(paths: Mapping[str, Path], tokenizer: Tokenizer) -> dict[str, list[str]]:
    parts = {name: tokenizer.tokenize(read_text(path)) for name, path in paths.items()}
    for name, tokens in parts.items():
        if not any(token != tokenizer.start for token in tokens):
            raise DataError(f"{paths[name]} is empty: expected text, got {len(tokens)} tokens")
    return parts


def corpus_files(corpus: str, named: Mapping[str, Path]) -> dict[str, Path]:
    """Files of a corpus: `train`, `valid` and `test`, or `input` for a single text.

    Args:
        corpus: As `read_corpus` has it.
        named: Files that take the place of the corpus's, by their parts.

    Raises:
        DataError: There is no such dataset, folder or file, or a part is missing.
    """
    if corpus in DATASETS:
        if DATASETS[corpus].task != "language modelling":
            raise DataError(
                f"{corpus} is a dataset for {DATASETS[corpus].task}, not for language modelling: "
                f"choose from {_names()}, or give a path"
            )
        return _assign(corpus, storage.fetch(corpus), named)
    path = Path(corpus).expanduser()
    if path.is_file():
        return {"input": path, **named}
    if not path.is_dir():
        raise DataError(
            f"there is no corpus {corpus!r}: choose from {_names()}, or give the path of a folder "
            "or a text file"
        )
    return _assign(corpus, folder_files(path), named)


def _assign(corpus: str, files: Mapping[str, Path], named: Mapping[str, Path]) -> dict[str, Path]:
    parts: dict[str, Path] = {}
    for name, path in files.items():
        match = _SPLIT_FILE.fullmatch(name)
        if match is None or (split := NAMES[match[1].lower()]) in named:
            continue
        if split in parts:
            raise two_files(corpus, split, parts[split].name, name)
        parts[split] = path
    single = [path for name, path in files.items() if _SINGLE_FILE.fullmatch(name)]
    if not parts and single:
        return {"input": single[0], **named}
    missing = [f"{split}.txt" for split in SPLITS if split not in (*parts, *named)]
    if missing:
        found = ", ".join(path.name for path in parts.values()) or "no corpus file"
        raise DataError(f"{corpus} has {found} but lacks {', '.join(missing)}: {_LAYOUT}")
    return {**parts, **named}


def _names() -> str:
    names = [d.name for d in DATASETS.values() if d.task == "language modelling"]
    return ", ".join([BUILT_IN, *names, *ghazals.FILES])


def _read_ghazals(corpus: str, level: Level, lowercase: bool) -> Corpus:
    tokenizer = Tokenizer(level, lowercase)
    path = storage.fetch("hafez")[ghazals.FILES[corpus]]
    parts = ghazals.split(read_text(path), str(path))
    return Corpus(tokenizer, *(tokenizer.tokenize(part) for part in parts))


def _read_python_docs(level: Level, lowercase: bool) -> Corpus:
    tokenizer = Tokenizer(level, lowercase or level == "word", split_marks=level == "word")
    train, valid, test = (
        list(chain.from_iterable(tokenizer.tokenize(topic) for topic in part))
        for part in python_docs.topics()
    )
    if level == "character":
        return Corpus(tokenizer, train, valid, test)
    # Rare words are replaced here, as the Penn Treebank comes with its own replaced: the corpus
    # is the same whatever min_count a model asks for.
    counts = Counter(train)
    train, valid, test = (
        [token if counts[token] >= python_docs.MIN_COUNT else UNKNOWN for token in part]
        for part in (train, valid, test)
    )
    return Corpus(tokenizer, train, valid, test)
