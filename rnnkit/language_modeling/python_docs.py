"""The built-in corpus: Python's language reference, from the standard library.

`pydoc_data.topics` holds the texts that `help("if")` and its like show: 79 topics, about 125,000
tokens with Python 3.11. Whole topics are held out, so no sentence of a test topic is in training.

The yardsticks of `ngram.py` with Python 3.11: unigram 79.1 and Kneser-Ney bigram 17.8 on the
test topics, 181.7 and 42.2 on the validation topics. The rules under headings, one token a mark,
are a good part of the test topics and easily predicted; hence the lower figures there.
"""

from __future__ import annotations

from rnnkit.data.registry import DataError

MIN_COUNT = 3
"""Words that occur less often in the training topics are `<unk>` in all of them."""

# Fixed by name, so that the parts keep their topics whatever a version of Python adds. The draw
# is random.Random(0).shuffle of the sorted names of Python 3.11, the first 8 and the next 8.
VALID_TOPICS = (
    "assignment",
    "bltin-code-objects",
    "exceptions",
    "function",
    "if",
    "numbers",
    "try",
    "yield",
)
TEST_TOPICS = (
    "await",
    "bltin-type-objects",
    "calls",
    "pass",
    "power",
    "return",
    "shifting",
    "typesseq-mutable",
)


def topics() -> tuple[list[str], list[str], list[str]]:
    """Texts of the training, validation and test topics, each part in the order of its names.

    Raises:
        DataError: This Python was installed without them.
    """
    try:
        from pydoc_data.topics import topics as texts  # half a megabyte, needed only here
    except ImportError as error:
        raise DataError(
            "this Python was installed without pydoc_data.topics, the text of python-docs: install "
            "the whole standard library (on Debian: python3, not python3-minimal), or choose "
            "another corpus"
        ) from error

    held_out = {*VALID_TOPICS, *TEST_TOPICS}
    train = [texts[name] for name in sorted(texts) if name not in held_out]
    valid = [texts[name] for name in VALID_TOPICS if name in texts]
    test = [texts[name] for name in TEST_TOPICS if name in texts]
    return train, valid, test
