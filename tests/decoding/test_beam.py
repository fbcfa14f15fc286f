import itertools
import math

import pytest
import torch

from rnnkit.decoding import BeamSearch
from rnnkit.decoding.beam import gnmt_penalty
from tests.decoding.table_models import Chain, TableModel, plain_beam_search, rescored

BEGIN = torch.tensor([4])
A, B, C, EOS = range(4)


def worked():
    """P(A, B, C, EOS) after A, B, C and EOS, and in the first step."""
    after = [[0.2, 0.1, 0.6, 0.1], [0.4, 0.2, 0.3, 0.1], [0.1, 0.7, 0.1, 0.1]]
    return Chain([*after, [0.0, 0.0, 0.0, 1.0], [0.5, 0.3, 0.15, 0.05]])


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_the_worked_example(alpha):
    search = BeamSearch(beam_size=3, length_penalty=alpha, max_length=2, n_best=3)
    (found,) = search(worked(), None, BEGIN, EOS)
    assert [one.tokens for one in found] == [[A, C], [B, A], [C, B]]
    expected = [0.30, 0.12, 0.105]
    assert [math.exp(one.log_probability) for one in found] == pytest.approx(expected)
    assert [one.score for one in found] == pytest.approx(
        [math.log(p) / (7 / 6) ** alpha for p in expected]
    )
    assert not any(one.finished for one in found)


def sentences(vocabulary, end, limit):
    """Every sentence that ends, and every one that is cut."""
    others = [token for token in range(vocabulary) if token != end]
    for length in range(1, limit + 1):
        for beginning in itertools.product(others, repeat=length - 1):
            yield [*beginning, end]
            if length == limit:
                yield from ([*beginning, last] for last in others)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_full_width_finds_the_best_of_all_sentences(alpha):
    for seed in range(50):
        vocabulary, limit, end = 3 + seed % 2, 2 + seed % 3, seed % 3
        model = TableModel.random(vocabulary, sources=2, seed=seed)
        search = BeamSearch(vocabulary**limit, alpha, limit, n_best=5)
        found = search(model, torch.arange(2), torch.full((2,), vocabulary), end)
        for source, hypotheses in enumerate(found):
            ranked = sorted(
                (
                    rescored(model, torch.tensor([source]), vocabulary, tokens)
                    / ((5 + len(tokens)) / 6) ** alpha,
                    tokens,
                )
                for tokens in sentences(vocabulary, end, limit)
            )[:-6:-1]
            assert [one.tokens for one in hypotheses] == [tokens for _, tokens in ranked]
            assert [one.score for one in hypotheses] == pytest.approx([s for s, _ in ranked])


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_a_narrow_beam_finds_what_a_plain_loop_to_the_maximum_length_finds(alpha):
    stopped_early = 0
    for seed in range(50):
        size, end = 1 + seed % 4, seed % 5
        model = TableModel.random(5, sources=3, seed=seed)
        search = BeamSearch(size, alpha, max_length=8, n_best=1 + seed % size)
        found = search(model, torch.arange(3), torch.full((3,), 5), end)
        stopped_early += len(model.rows) < 8
        for source, hypotheses in enumerate(found):
            expected = plain_beam_search(
                model,
                torch.tensor([source]),
                5,
                end,
                size=size,
                alpha=alpha,
                limit=8,
                count=search.n_best,
            )
            assert [one.tokens for one in hypotheses] == [tokens for _, tokens in expected]
            assert [one.score for one in hypotheses] == pytest.approx([s for s, _ in expected])
    assert stopped_early > 5


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_of_equals_the_earlier_beam_and_the_lower_token_come_first(alpha):
    for seed in range(50):
        # Whole numbers from -2 to 0, which are summed exactly: nearly everything is equal.
        values = torch.randint(-2, 1, (1, 997, 70), generator=torch.Generator().manual_seed(seed))
        model = TableModel(values.float())
        size = 1 + seed % 5
        search = BeamSearch(size, alpha, max_length=5, n_best=size)
        (found,) = search(model, torch.tensor([0]), torch.tensor([70]), end=seed)
        expected = plain_beam_search(
            model, torch.tensor([0]), 70, seed, size=size, alpha=alpha, limit=5, count=size
        )
        assert [one.tokens for one in found] == [tokens for _, tokens in expected]


@pytest.mark.parametrize("vocabulary", [20, 300, 5000])
def test_many_equals_in_a_large_vocabulary_come_in_the_order_of_their_ids(vocabulary):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        model = Chain([[1.0]])
        model.log_probabilities = torch.randint(-40, 0, (1, vocabulary), generator=generator) / 4
        search = BeamSearch(beam_size=12, max_length=1, n_best=12)
        (found,) = search(model, None, torch.tensor([0]), end=None)
        expected = model.log_probabilities[0].sort(descending=True, stable=True).indices[:12]
        assert [one.tokens for one in found] == expected.unsqueeze(1).tolist()


def test_a_sentence_is_done_when_no_beam_can_win():
    # The end has 0.9: what is left has 0.1 or less, and log 0.1 / lp(20) is below log 0.9.
    model = Chain([[0.05, 0.05, 0.9]] * 3)
    search = BeamSearch(beam_size=3, max_length=20)
    assert search(model, None, torch.tensor([0]), end=2)[0][0].tokens == [2]
    assert model.steps == 1


def test_the_second_best_has_to_be_safe_too():
    model = Chain([[0.05, 0.05, 0.9]] * 3)
    search = BeamSearch(beam_size=3, length_penalty=0.0, max_length=20, n_best=2)
    assert [one.tokens for one in search(model, None, torch.tensor([0]), end=2)[0]] == [[2], [0, 2]]
    assert model.steps == 2


def test_the_bound_knows_that_a_longer_sentence_is_divided_by_more():
    # Ending at once has log 0.5 / lp(1) = -0.69, ending after ten sure steps log 0.5 / lp(11).
    sure = [[float(column == row + 1) for column in range(12)] for row in range(12)]
    sure[0] = [0.0, 0.499] + [0.0] * 9 + [0.501]
    search = BeamSearch(beam_size=2, length_penalty=1.0, max_length=15)
    (long,) = search(Chain(sure), None, torch.tensor([0]), end=11)[0]
    assert long.tokens == list(range(1, 12))
    assert long.score == pytest.approx(math.log(0.499) / (16 / 6))


def test_the_penalty_counts_the_end_token():
    search = BeamSearch(beam_size=2, length_penalty=1.0, max_length=9)
    (hypothesis,) = search(Chain([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), None, torch.tensor([0]), 2)[0]
    assert hypothesis.tokens == [1, 2]
    lengths = torch.tensor([[1, 7], [19, 5]])
    assert torch.equal(gnmt_penalty(lengths, 1.0), torch.tensor([[1.0, 2.0], [4.0, 10 / 6]]))
    assert torch.equal(gnmt_penalty(lengths, 0.5)[1, :1], torch.tensor([2.0]))
    assert torch.equal(gnmt_penalty(lengths, 0.0), torch.ones(2, 2))


def test_the_first_step_expands_one_row_a_sentence():
    model = TableModel.random(9)
    search = BeamSearch(beam_size=4, max_length=3)
    (first, *_), *_ = search(model, torch.tensor([0, 1]), torch.tensor([9, 9]), end=None)
    assert model.rows == [2, 8, 8]
    assert len(first.tokens) == 3


def test_a_beam_wider_than_the_vocabulary_keeps_all():
    model = TableModel.random(2, sources=1)
    search = BeamSearch(beam_size=7, length_penalty=0.0, max_length=3, n_best=7)
    (found,) = search(model, torch.tensor([0]), torch.tensor([2]), end=1)
    assert sorted(one.tokens for one in found) == [[0, 0, 0], [0, 0, 1], [0, 1], [1]]
    assert sum(math.exp(one.log_probability) for one in found) == pytest.approx(1.0)


def test_what_is_impossible_is_no_hypothesis():
    search = BeamSearch(beam_size=3, length_penalty=0.0, max_length=4, n_best=3)
    # Token 1 is more probable, but nothing follows it.
    dead_end = Chain([[0.0, 0.6, 0.4, 0.0], [0.0] * 4, [0.0, 0.0, 0.0, 1.0]])
    (found,) = search(dead_end, None, torch.tensor([0]), end=3)
    assert [one.tokens for one in found] == [[2, 3]]
    assert search(Chain([[0.0, 0.0]]), None, torch.tensor([0, 0]), end=1) == [[], []]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beam_size": 0}, "beam_size of 1 or more, got 0"),
        ({"max_length": 0}, "max_length of 1 or more, got 0"),
        ({"n_best": 0}, "n_best of 1 or more, got 0"),
        ({"n_best": 3, "beam_size": 2}, "n_best of beam_size or less, got 3 and 2"),
        ({"length_penalty": -0.1}, r"length_penalty of 0 or more, got -0\.1"),
        ({"length_penalty": math.inf}, "length_penalty of 0 or more, got inf"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BeamSearch(**arguments)
