import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from rnnkit.metrics import Perplexity
from rnnkit.metrics.perplexity import bits_per_token


def score(logits, target):
    perplexity = Perplexity()
    perplexity.update(logits, target)
    return perplexity.compute()


@pytest.mark.parametrize(("ppl", "bits"), [(1.8, 0.848), (2.3, 1.202), (2.5, 1.322), (50, 5.644)])
def test_perplexities_in_bits(ppl, bits):
    assert float(bits_per_token(torch.tensor(ppl))) == pytest.approx(bits, abs=5e-4)


@pytest.mark.parametrize("ppl", [1.8, 2.3, 2.5, 50.0])
def test_perplexity_is_the_inverse_of_a_constant_probability(ppl):
    logits = torch.tensor([1 / ppl, 1 - 1 / ppl]).log().expand(7, 2)
    assert float(score(logits, torch.zeros(7, dtype=torch.int64))) == pytest.approx(ppl, rel=1e-6)


def test_uniform_logits_score_the_size_of_the_vocabulary():
    assert float(score(torch.zeros(3, 4, 50), torch.ones(3, 4, dtype=torch.int64))) == (
        pytest.approx(50, rel=1e-6)
    )


def test_ignored_targets_are_not_scored():
    logits = torch.randn(6, 5)
    target = torch.tensor([0, 1, -100, 2, -100, 4])
    kept = target != -100
    assert score(logits, target) == score(logits[kept], target[kept])


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 100))
def test_cutting_a_text_into_batches_changes_nothing(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(sum(sizes), 9, generator=generator)
    target = torch.randint(9, (sum(sizes),), generator=generator)
    perplexity = Perplexity()
    for part, goal in zip(logits.split(sizes), target.split(sizes), strict=True):
        perplexity.update(part, goal)
    whole = math.exp(F.cross_entropy(logits.double(), target).item())
    assert float(perplexity.compute()) == pytest.approx(whole, rel=1e-6)


def test_sums_of_two_processes_add_up():
    logits, target = torch.randn(10, 5), torch.arange(10) % 5
    first, second = Perplexity(), Perplexity()
    first.update(logits[:3], target[:3])
    second.update(logits[3:], target[3:])
    first.merge_state(second)
    assert float(first.compute()) == pytest.approx(float(score(logits, target)), rel=1e-12)


def test_a_long_text_is_summed_without_loss():
    perplexity = Perplexity()
    perplexity.negative_log_likelihood += 1e9  # where a float32 sum moves in steps of 64
    perplexity.tokens += 10**9
    before = float(perplexity.negative_log_likelihood)
    perplexity.update(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    gained = float(perplexity.negative_log_likelihood) - before
    assert gained == pytest.approx(math.log(2), rel=1e-6)
    assert perplexity.compute().dtype == torch.float64


def test_logits_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\).*got \(4, 3, 5\)"):
        Perplexity().update(torch.zeros(4, 3, 5), torch.zeros(3, 4, dtype=torch.int64))
