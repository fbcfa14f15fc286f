import math
import sys
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnnkit.data.text import read_corpus
from rnnkit.ngram import InterpolatedKneserNeyBigram, UnigramModel, absolute_discount

V = 7
TEXTS = st.lists(st.integers(0, V - 1), min_size=1, max_size=40)


@given(text=TEXTS)
def test_unigram_probabilities_sum_to_one_and_none_is_zero(text: list[int]) -> None:
    probabilities = UnigramModel(torch.tensor(text), V).probabilities
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-12)
    assert float(probabilities.min()) > 0


@given(text=TEXTS)
def test_bigram_probabilities_sum_to_one_in_every_context(text: list[int]) -> None:
    model = InterpolatedKneserNeyBigram(torch.tensor(text), V, start=0)
    tokens = torch.arange(V)
    for context in range(V):
        probabilities = model.probability(torch.full((V,), context), tokens)
        assert float(probabilities.sum()) == pytest.approx(1, abs=1e-12)
        assert float(probabilities.min()) > 0


@given(text=TEXTS)
def test_bigram_follows_its_equations(text: list[int]) -> None:
    pairs = Counter(zip([3, *text], text, strict=False))
    contexts = Counter(pair[0] for pair in pairs.elements())
    followers = Counter(context for context, _ in pairs)
    continuations = Counter(token for _, token in pairs)

    def discount(counts: Counter) -> float:
        seen = Counter(counts.values())
        return seen[1] / (seen[1] + 2 * seen[2]) if seen[1] else 0.5

    def lower(token: int) -> float:
        if len(continuations) == V:
            return continuations[token] / len(pairs)
        share = discount(continuations)
        kept = max(continuations[token] - share, 0)
        return (kept + share * len(continuations) / V) / len(pairs)

    model = InterpolatedKneserNeyBigram(torch.tensor(text), V, start=3)
    for context in range(V):
        for token in range(V):
            expected = lower(token)
            if contexts[context]:
                kept = max(pairs[context, token] - discount(pairs), 0)
                back_off = discount(pairs) * followers[context] * expected
                expected = (kept + back_off) / contexts[context]
            actual = model.probability(torch.tensor([context]), torch.tensor([token]))
            assert float(actual) == pytest.approx(expected, rel=1e-12)


def test_unigram_perplexity_of_its_own_text_is_that_of_the_entropy() -> None:
    text = torch.tensor([0, 0, 1, 2])
    entropy = 0.5 * math.log(2) + 0.5 * math.log(4)
    assert UnigramModel(text, 3).perplexity(text) == pytest.approx(math.exp(entropy), rel=1e-12)


def test_a_uniform_unigram_has_the_vocabulary_as_its_perplexity() -> None:
    assert UnigramModel(torch.arange(V), V).perplexity(torch.tensor([3])) == pytest.approx(V)


def test_the_first_token_is_scored_after_the_start() -> None:
    text = torch.tensor([1, 2, 1, 2, 1, 2, 0, 2])
    model = InterpolatedKneserNeyBigram(text, 3, start=2)
    first = float(model.probability(torch.tensor([2]), torch.tensor([1])))
    assert model.perplexity(torch.tensor([1])) == pytest.approx(1 / first, rel=1e-12)


def test_the_discount_comes_from_the_counts_of_counts() -> None:
    assert absolute_discount(torch.tensor([1, 1, 1, 2, 5])) == 3 / 5
    assert absolute_discount(torch.tensor([2, 3])) == 0.5


@pytest.mark.parametrize("wrong", [-1, 3])
def test_ids_outside_the_vocabulary_are_refused(wrong: int) -> None:
    text = torch.tensor([0, 1, 2])
    bigram, unigram = InterpolatedKneserNeyBigram(text, 3, start=0), UnigramModel(text, 3)
    message = f"ids from 0 to 2, got {wrong}"
    with pytest.raises(ValueError, match=message):
        UnigramModel(torch.tensor([0, wrong]), 3)
    with pytest.raises(ValueError, match=message):
        InterpolatedKneserNeyBigram(text, 3, start=wrong)
    for model in (unigram, bigram):
        with pytest.raises(ValueError, match=message):
            model.perplexity(torch.tensor([0, wrong]))


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r"N > 0, got \(0,\)"):
        UnigramModel(torch.tensor([], dtype=torch.int64), 3)


def test_the_bigram_knows_python_docs_far_better_than_the_unigram() -> None:
    corpus = read_corpus("python-docs", "word")
    vocabulary = corpus.vocabulary()
    train, test = vocabulary.encode(corpus.train), vocabulary.encode(corpus.test)
    unigram = UnigramModel(train, len(vocabulary)).perplexity(test)
    start = vocabulary.index("<eos>")
    bigram = InterpolatedKneserNeyBigram(train, len(vocabulary), start).perplexity(test)
    assert bigram < unigram / 2
    if sys.version_info[:2] == (3, 11):  # the topics' texts differ between versions of Python
        assert unigram == pytest.approx(79.06, rel=0.02)
        assert bigram == pytest.approx(17.77, rel=0.02)
