import math

import numpy as np
import pytest
import torch

from rnnkit.word_vectors import counts as module
from rnnkit.word_vectors.counts import cooccurrences, ppmi, ppmi_vectors, vocabulary_of

LINES = [line.split() for line in ("a b c a", "b a", "c c b a b", "rare", "")]
IDS = {"a": 0, "b": 1, "c": 2}


def counted(lines: list[list[str]], window: int) -> np.ndarray:
    """Pair by pair."""
    found = np.zeros((3, 3))
    for line in lines:
        known = [IDS[word] for word in line if word in IDS]
        for i, word in enumerate(known):
            for j, other in enumerate(known):
                if 0 < abs(i - j) <= window:
                    found[word, other] += (window - abs(i - j) + 1) / window
    return found


@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("at_once", [1, 4, 1000])
def test_pairs_are_counted_by_their_distance_within_lines(
    window: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WORDS_AT_ONCE", at_once)
    found = cooccurrences(LINES, IDS, window).toarray()
    np.testing.assert_allclose(found, counted(LINES, window))
    np.testing.assert_allclose(found, found.T)


@pytest.mark.parametrize("negatives", [1, 3])
def test_information_is_that_of_the_formula(negatives: int) -> None:
    pairs = cooccurrences(LINES, IDS, 2)
    dense, contexts = pairs.toarray(), pairs.toarray().sum(0) ** 0.75
    found = ppmi(pairs, negatives).toarray()
    for word in range(3):
        for context in range(3):
            expected = 0.0
            if dense[word, context]:
                ratio = dense[word, context] * contexts.sum()
                ratio /= dense[word].sum() * contexts[context]
                expected = max(0.0, math.log(ratio) - math.log(negatives))
            assert found[word, context] == pytest.approx(expected)


def test_vectors_are_the_largest_singular_ones() -> None:
    generator = np.random.default_rng(0)
    lines = [[str(i) for i in generator.integers(12, size=30)] for _ in range(40)]
    ids = {str(i): i for i in range(12)}
    information = ppmi(cooccurrences(lines, ids, 3))
    vectors = ppmi_vectors(information, 4)
    assert vectors.shape == (12, 4)
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, ppmi_vectors(information, 4))
    left, values, _ = np.linalg.svd(information.toarray())
    expected = left[:, :4] * values[:4] ** 0.5
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-5)


def test_the_vocabulary_holds_what_is_frequent() -> None:
    assert list(vocabulary_of(LINES, 1).items()) == [("a", 4), ("b", 4), ("c", 3), ("rare", 1)]
    assert list(vocabulary_of(LINES, 2, most=2)) == ["a", "b"]
    with pytest.raises(ValueError, match="0 of 4 words occur 5 times or more, and 2 are needed"):
        vocabulary_of(LINES)
    with pytest.raises(ValueError, match="1 of 1 words"):
        vocabulary_of([["one"] * 9])
    with pytest.raises(ValueError, match="holds no word"):
        vocabulary_of([[], []])


def test_what_is_out_of_bounds_is_told() -> None:
    pairs = cooccurrences(LINES, IDS, 2)
    with pytest.raises(ValueError, match="window of 1 or more, got 0"):
        cooccurrences(LINES, IDS, 0)
    with pytest.raises(ValueError, match="negatives of 1 or more"):
        ppmi(pairs, 0)
    with pytest.raises(ValueError, match="smoothing above 0"):
        ppmi(pairs, smoothing=0)
    with pytest.raises(ValueError, match="from 1 to 2 for 3 words, got 3"):
        ppmi_vectors(ppmi(pairs), 3)
    with pytest.raises(ValueError, match="nothing to count"):
        ppmi(cooccurrences([["a"], ["b"]], IDS, 2))
