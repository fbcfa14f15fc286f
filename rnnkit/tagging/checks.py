"""What the tags of a corpus are, and what is refused: in files and lines."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Literal, TypeAlias

from rnnkit.data.registry import DataError
from rnnkit.data.schemes import SCHEMES, Scheme, detect, split_tag, tag_types, violations
from rnnkit.screen.terminal import UNSAFE, visible
from rnnkit.tagging.columns import Sentence

_log = logging.getLogger(__name__)

UnseenTypes = Literal["error", "missed"]

# Sentences of each split, and what to call their place in an error.
Splits: TypeAlias = dict[str, tuple[str, list[Sentence]]]

_SHOWN = 5  # tags, enough to see whether the column is the right one

ANOTHER_COLUMN = "if another column has the tags, name it with --data.tag_column"
"""What ends an error about tags of which there is only one."""

NO_ENTITY = f"holds no entity: every tag is O; {ANOTHER_COLUMN}"


def are_labels(corpus: str, splits: Splits) -> bool:
    """Whether no tag has the form of an entity's, and some are no O: it is told then."""
    counts = Counter(
        tag for _, each in splits.values() for sentence in each for tag in sentence.tags
    )
    if counts.keys() == {"O"} or any(tag != "O" and split_tag(tag, None) for tag in counts):
        return False
    shown = [tag for tag, _ in counts.most_common(_SHOWN)] + ["..."] * (len(counts) > _SHOWN)
    _log.warning(
        "Note: none of the %d tags of %s (%s) has the form of an entity's, as B-PER has: they are "
        "labels of words, scored by accuracy and macro F1 (scheme labels).",
        *(len(counts), visible(corpus), visible(", ".join(shown))),
    )
    return True


def check_types(
    place: str,
    sentences: list[Sentence],
    types: list[str],
    scheme: Scheme,
    unseen_types: UnseenTypes,
) -> None:
    """Refuse types or labels that training lacks, or tell how many words have them.

    Args:
        place: The file.
        sentences: Of the file.
        types: Those of the training tags.
        scheme: Of the tags.
        unseen_types: What to do.

    Raises:
        DataError: There is one, which is an error; names the line.
    """
    words: Counter[str] = Counter()
    lines: list[int] = []  # of the first such word of each sentence
    for sentence in sentences:
        found = tag_types(sentence.tags, scheme)
        unseen = [step for step, type_ in enumerate(found) if type_ and type_ not in types]
        words.update(found[step] for step in unseen)
        lines += [sentence.line_of(step) for step in unseen[:1]]
    if not words:
        return
    what = "label" if scheme == "labels" else "type"
    if unseen_types == "error":
        raise DataError(
            f"{place}, line {lines[0]}: no training tag has the {what} {next(iter(words))}, which "
            f"a model can't learn then; its {what}s are {', '.join(types)}; "
            "--data.unseen_types missed scores it as missed"
        )
    _log.warning(
        "Note: %s has a %s that no training tag has (%s) on %d of %d words, in %d of %d sentences: "
        "they are scored as missed, and the loss leaves these words out, or with output crf the "
        "sentences.",
        *(visible(place), what, ", ".join(sorted(words)), words.total()),
        *(sum(len(sentence.words) for sentence in sentences), len(lines), len(sentences)),
    )


def check_tags(splits: Splits, file_scheme: Scheme | None) -> None:
    """Refuse a tag that is of no scheme, or that no table and no legend could show."""
    known: set[str] = set()
    for place, sentences in splits.values():
        for sentence in sentences:
            for step, tag in enumerate(sentence.tags):
                if tag in known:
                    continue
                if file_scheme != "labels" and split_tag(tag, None) is None:
                    raise DataError(
                        f"{place}, line {sentence.line_of(step)}: {tag!r} is no tag of any scheme: "
                        "expected O, or a letter of BILUES, a hyphen and a type, as in B-PER; "
                        "--data.file_scheme labels takes tags for labels of words, not for entities"
                    )
                if UNSAFE.search(tag):
                    raise DataError(
                        f"{place}, line {sentence.line_of(step)}: the tag {tag!r} holds a "
                        "character that would act on a terminal: name the type otherwise"
                    )
                known.add(tag)


def detect_scheme(corpus: str, splits: Splits) -> Scheme:
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
            raise DataError(f"{corpus} {NO_ENTITY}") from error
        raise DataError(
            f"the tags of {corpus} fit no scheme: correct them, or name the scheme that is meant "
            "(file_scheme) and let fix: true read what breaks it as conlleval does:\n"
            + "\n".join(told)
        ) from error
