import math
import sys
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnkit.language_modeling.corpora import read_corpus
from rnnkit.language_modeling.ngram import InterpolatedKneserNey, UnigramModel, absolute_discount

V = 7
TEXTS = st.lists(st.integers(0, V - 1), min_size=1, max_size=40)


@given(text=TEXTS)
def test_unigram_probabilities_sum_to_one_and_none_is_zero(text: list[int]) -> None:
    probabilities = UnigramModel(torch.tensor(text), V).probabilities
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-12)
    assert float(probabilities.min()) > 0


@settings(deadline=None, max_examples=60)
@given(text=TEXTS, order=st.integers(1, 4))
def test_probabilities_sum_to_one_in_every_context(text: list[int], order: int) -> None:
    model = InterpolatedKneserNey(torch.tensor(text), V, order, start=0)
    known = [tuple(([0] * order + text)[i : i + order - 1]) for i in range(len(text) + 1)]
    for context in {*known, (V - 1,) * (order - 1), (*range(2, order), 1)[: order - 1]}:
        contexts = torch.tensor([context] * V, dtype=torch.int64).view(V, order - 1)
        probabilities = model.probability(contexts, torch.arange(V))
        assert float(probabilities.sum()) == pytest.approx(1, abs=1e-12)
        assert float(probabilities.min()) > 0


class PlainKneserNey:
    """The equations with dictionaries, one gram at a time."""

    def __init__(self, text: list[int], order: int, start: int, size: int = V) -> None:
        self.size = size
        padded = [start] * (order - 1) + text
        grams = [tuple(padded[i : i + order]) for i in range(len(text))]
        self.counts = {order: Counter(grams)}
        for k in range(order - 1, 0, -1):
            self.counts[k] = Counter(gram[1:] for gram in set(self.counts[k + 1]))

    @staticmethod
    def discount(counts: Counter) -> float:
        seen = Counter(counts.values())
        return seen[1] / (seen[1] + 2 * seen[2]) if seen[1] else 0.5

    def probability(self, context: tuple[int, ...], token: int) -> float:
        counts = self.counts[len(context) + 1]
        share = self.discount(counts)
        after = {gram: count for gram, count in counts.items() if gram[:-1] == context}
        if not context and len(after) == self.size:
            return counts[(token,)] / sum(after.values())
        lower = self.probability(context[1:], token) if context else 1 / self.size
        if not after:
            return lower
        kept = max(counts[(*context, token)] - share, 0)
        return (kept + share * len(after) * lower) / sum(after.values())


@settings(deadline=None, max_examples=60)
@given(text=TEXTS, order=st.integers(1, 4))
def test_the_model_follows_its_equations(text: list[int], order: int) -> None:
    model = InterpolatedKneserNey(torch.tensor(text), V, order, start=3)
    plain = PlainKneserNey(text, order, start=3)
    padded = [3] * (order - 1) + text
    known = {tuple(padded[i : i + order - 1]) for i in range(len(text))}
    for context in {*known, *(tuple(reversed(one)) for one in known)}:  # some are new
        contexts = torch.tensor([context] * V, dtype=torch.int64).view(V, order - 1)
        actual = model.probability(contexts, torch.arange(V))
        expected = [plain.probability(context, token) for token in range(V)]
        assert actual.tolist() == pytest.approx(expected, rel=1e-12)


def test_every_token_is_scored_after_the_ones_before_it() -> None:
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(4, (300,), generator=generator)
    train, test = text[:250], text[250:].tolist()
    plain = PlainKneserNey(train.tolist(), 3, start=2)
    padded = [2, 2, *test]
    likelihood = sum(
        math.log(plain.probability(tuple(padded[i : i + 2]), test[i])) for i in range(len(test))
    )
    # The plain model knows of V types; three are never seen.
    model = InterpolatedKneserNey(train, V, 3, start=2)
    assert model.perplexity(torch.tensor(test)) == pytest.approx(
        math.exp(-likelihood / len(test)), rel=1e-12
    )


def test_many_tokens_and_a_high_order_do_not_overflow() -> None:
    text = torch.tensor([9_999, 1, 9_998, 2, 9_997, 3] * 3)
    model = InterpolatedKneserNey(text, 10_000, 6, start=0)  # 10,000^6 has no place in 64 bits
    plain = PlainKneserNey(text.tolist(), 6, 0, 10_000)
    for context in ([9_999, 1, 9_998, 2, 9_997], [3, 9_999, 1, 9_998, 2], [2, 9_997, 3, 9_999, 1]):
        for token in (3, 9_997, 9_999, 5_000):
            actual = model.probability(torch.tensor([context]), torch.tensor([token]))
            assert float(actual) == pytest.approx(plain.probability((*context,), token), rel=1e-12)


def test_unigram_perplexity_of_its_own_text_is_that_of_the_entropy() -> None:
    text = torch.tensor([0, 0, 1, 2])
    entropy = 0.5 * math.log(2) + 0.5 * math.log(4)
    assert UnigramModel(text, 3).perplexity(text) == pytest.approx(math.exp(entropy), rel=1e-12)


def test_a_uniform_unigram_has_the_vocabulary_as_its_perplexity() -> None:
    assert UnigramModel(torch.arange(V), V).perplexity(torch.tensor([3])) == pytest.approx(V)


def test_the_first_token_is_scored_after_the_start() -> None:
    text = torch.tensor([1, 2, 1, 2, 1, 2, 0, 2])
    model = InterpolatedKneserNey(text, 3, 2, start=2)
    first = float(model.probability(torch.tensor([[2]]), torch.tensor([1])))
    assert model.perplexity(torch.tensor([1])) == pytest.approx(1 / first, rel=1e-12)


def test_the_discount_comes_from_the_counts_of_counts() -> None:
    assert absolute_discount(torch.tensor([1, 1, 1, 2, 5])) == 3 / 5
    assert absolute_discount(torch.tensor([2, 3])) == 0.5


@pytest.mark.parametrize("wrong", [-1, 3])
def test_ids_outside_the_vocabulary_are_refused(wrong: int) -> None:
    text = torch.tensor([0, 1, 2])
    bigram, unigram = InterpolatedKneserNey(text, 3, 2, start=0), UnigramModel(text, 3)
    message = f"ids from 0 to 2, got {wrong}"
    with pytest.raises(ValueError, match=message):
        UnigramModel(torch.tensor([0, wrong]), 3)
    with pytest.raises(ValueError, match=message):
        InterpolatedKneserNey(text, 3, 2, start=wrong)
    for model in (unigram, bigram):
        with pytest.raises(ValueError, match=message):
            model.perplexity(torch.tensor([0, wrong]))


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r"N > 0, got \(0,\)"):
        UnigramModel(torch.tensor([], dtype=torch.int64), 3)


def test_a_wrong_order_and_contexts_of_another_are_refused() -> None:
    text = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="order of 1 or more, got 0"):
        InterpolatedKneserNey(text, 3, 0, start=0)
    with pytest.raises(
        ValueError, match=r"shape \(3, 2\), 2 tokens before each of 3, got \(3, 1\)"
    ):
        InterpolatedKneserNey(text, 3, 3, start=0).probability(text[:, None], text)


def test_the_bigram_knows_python_docs_far_better_than_the_unigram() -> None:
    corpus = read_corpus("python-docs", "word")
    vocabulary = corpus.vocabulary()
    train, test = vocabulary.encode(corpus.train), vocabulary.encode(corpus.test)
    unigram = UnigramModel(train, len(vocabulary)).perplexity(test)
    start = vocabulary.index("<eos>")
    bigram = InterpolatedKneserNey(train, len(vocabulary), 2, start).perplexity(test)
    assert bigram < unigram / 2
    if sys.version_info[:2] == (3, 11):  # the topics' texts differ between versions of Python
        assert unigram == pytest.approx(79.06, rel=0.02)
        assert bigram == pytest.approx(17.77, rel=0.02)
