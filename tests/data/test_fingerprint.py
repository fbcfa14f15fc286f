"""A run that goes on within an epoch needs the data that it was reading."""

import pytest

from rnnkit.data.fingerprint import check_fingerprint, fingerprint

EXAMPLES = [(["a", "b"], [1, 2]), (["\udc80"], [3])]
OTHERS = [
    EXAMPLES[::-1],
    EXAMPLES[:1],
    [(["ab"], [1, 2]), EXAMPLES[1]],
    [(["a", "b"], [12]), EXAMPLES[1]],
]


def test_the_same_examples_have_the_same_fingerprint():
    assert fingerprint(EXAMPLES) == fingerprint(iter(EXAMPLES))
    assert fingerprint([memoryview(b"ab")]) != fingerprint([memoryview(b"ac")])


@pytest.mark.parametrize("other", OTHERS)
def test_other_examples_are_refused_within_an_epoch(other):
    saved = {"fingerprint": fingerprint(EXAMPLES)}
    with pytest.raises(ValueError, match=r"have changed .* before batch 2 \(SHA-256"):
        check_fingerprint(2, saved, fingerprint(other))
    check_fingerprint(0, saved, fingerprint(other))  # an epoch begins: any data will do
    check_fingerprint(2, saved, fingerprint(EXAMPLES))


def test_what_is_unknown_is_let_pass():
    check_fingerprint(2, {}, fingerprint(EXAMPLES))
    check_fingerprint(2, {"fingerprint": "0"}, None)
