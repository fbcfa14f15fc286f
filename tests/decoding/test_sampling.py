import itertools
import math
from collections import Counter as Counts

import pytest
import torch

from rnnkit.decoding import Sampler
from tests.decoding.table_models import Chain, TableModel, rescored


class Counter:
    """Follows each token by the next one, or by any other with little probability."""

    def start(self, source):
        return len(source)

    def step(self, tokens, state):
        logits = torch.zeros(len(tokens), 10)
        logits[torch.arange(len(tokens)), (tokens + 1) % 10] = 3.0
        return logits.log_softmax(-1), state + 1


def draw(sampler, probabilities, count=20_000):
    generator = torch.Generator().manual_seed(1)
    tokens = sampler.choose(torch.tensor(probabilities).log().expand(count, -1), generator)
    return torch.bincount(tokens, minlength=len(probabilities)) / count


def test_tokens_are_drawn_with_their_probabilities():
    assert torch.allclose(
        draw(Sampler(), [0.2, 0.5, 0.3]), torch.tensor([0.2, 0.5, 0.3]), atol=0.02
    )


def test_temperature_raises_probabilities_to_its_inverse():
    expected = torch.tensor([0.2, 0.5, 0.3]) ** 2
    drawn = draw(Sampler(temperature=0.5), [0.2, 0.5, 0.3])
    assert torch.allclose(drawn, expected / expected.sum(), atol=0.02)


def test_temperature_zero_takes_the_most_probable_token():
    assert draw(Sampler(temperature=0.0), [0.2, 0.5, 0.3]).tolist() == [0, 1, 0]


def test_top_k_draws_from_the_k_most_probable():
    expected = torch.tensor([0.0, 0.5, 0.3]) / 0.8
    assert torch.allclose(draw(Sampler(top_k=2), [0.2, 0.5, 0.3]), expected, atol=0.02)


def test_top_k_beyond_the_vocabulary_keeps_all():
    assert (draw(Sampler(top_k=99), [0.2, 0.5, 0.3]) > 0).all()


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.4, [1]), (0.5, [1]), (0.51, [1, 2]), (0.81, [0, 1, 2]), (1.0, [0, 1, 2])]
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p, kept):
    drawn = draw(Sampler(top_p=top_p), [0.2, 0.5, 0.3])
    assert drawn.nonzero().flatten().tolist() == kept


def test_top_p_sees_the_distribution_after_the_temperature():
    # Squared and normalised: 0.105, 0.658, 0.237; the first two no longer reach 0.9.
    assert (draw(Sampler(temperature=0.5, top_p=0.89), [0.2, 0.5, 0.3]) > 0).sum() == 2
    assert (draw(Sampler(top_p=0.89), [0.2, 0.5, 0.3]) > 0).sum() == 3


def generate(sampler, length=30):
    source = torch.zeros(2, 4, dtype=torch.int64)
    return sampler.generate(Counter(), source, torch.arange(4), length)


def test_the_seed_decides_what_is_drawn():
    first, again, other = (generate(Sampler(seed=seed)) for seed in (3, 3, 4))
    assert first.shape == (30, 4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_seed_draws_anew_every_time():
    assert not torch.equal(generate(Sampler()), generate(Sampler()))


def test_each_step_reads_the_token_drawn_before():
    drawn = generate(Sampler(temperature=0.0), length=12)
    assert torch.equal(drawn, (torch.arange(1, 13).unsqueeze(1) + torch.arange(4)) % 10)


@pytest.mark.parametrize("sampler", [Sampler(seed=0), Sampler(temperature=0.0), Sampler(top_k=2)])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_what_cannot_be_drawn_from_is_reported_with_its_sentence(sampler, value):
    class Breaks(Counter):
        def step(self, tokens, state):
            log_probabilities, state = super().step(tokens, state)
            log_probabilities[2] = log_probabilities[2] if state < 5 else value
            return log_probabilities, state

    source = torch.zeros(2, 4, dtype=torch.int64)
    assert len(sampler.generate(Breaks(), source, torch.arange(4), 2)) == 2
    with pytest.raises(FloatingPointError, match="for sentence 2 of the batch: look for NaN in"):
        sampler.generate(Breaks(), source, torch.arange(4), 9)


def draw_sentences(sampler, model, count, end=0):
    source = torch.zeros(count, dtype=torch.int64)
    return [one.tokens for (one,) in sampler(model, source, torch.full((count,), 3), end)]


def test_sentences_are_drawn_with_their_probabilities():
    count, model = 20_000, TableModel.random(3, sources=1)
    drawn = Counts(map(tuple, draw_sentences(Sampler(seed=0, max_length=3), model, count)))
    probabilities = {
        tokens: math.exp(rescored(model, torch.tensor([0]), 3, tokens))
        for length in (1, 2, 3)
        for tokens in itertools.product(range(3), repeat=length)
        if 0 not in tokens[:-1] and (tokens[-1] == 0 or length == 3)
    }
    assert sum(probabilities.values()) == pytest.approx(1.0)
    assert drawn.keys() <= probabilities.keys()
    squares = sum((drawn[key] - count * p) ** 2 / (count * p) for key, p in probabilities.items())
    freedom = len(probabilities) - 1  # the mean of chi-square, half its variance
    assert squares < freedom + 5 * math.sqrt(2 * freedom)


def test_the_seed_decides_which_sentences_are_drawn():
    model = TableModel.random(9, sources=1)
    first, again, other = (
        draw_sentences(Sampler(seed=seed, max_length=8), model, 20) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_a_cut_distribution_leaves_the_log_probability_to_the_model():
    model = Chain([[0.2, 0.5, 0.3]] * 3)
    (found,) = Sampler(top_k=1, max_length=2)(model, None, torch.tensor([0]), end=None)
    assert found[0].tokens == [1, 1]
    assert found[0].log_probability == pytest.approx(math.log(0.25))


@pytest.mark.parametrize(
    "arguments",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
    ],
)
def test_settings_out_of_range_are_refused(arguments):
    (name, value), *_ = arguments.items()
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        Sampler(**arguments)
