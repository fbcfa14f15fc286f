"""Every problem's answers, made anew from its sequences; its baseline, from their frequencies."""

import math

import pytest
import torch
from torch import Generator, Tensor

from rnnkit.sequences import Adding, AnBn, CopyMemory, Dyck, Parity, TemporalOrder
from rnnkit.sequences.problem import IGNORED

COUNT = 4000


def draw(problem, length, count=50):
    return problem.draw(count, length, Generator().manual_seed(0))


def ids(input: Tensor) -> list[list[int]]:
    """Of one-hot steps, a list a sequence; -1 where a step is all zeros."""
    found = torch.where(input.sum(-1) > 0, input.argmax(-1), -1)
    return found.t().tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("length", [2, 7, 40])
def test_adding_asks_for_the_sum_of_a_number_in_each_half(length):
    input, target = draw(Adding(), length)
    assert input.shape == (length, 50, 2)
    for sequence, answer in zip(input.unbind(1), target.tolist(), strict=True):
        marked = sequence[:, 1].nonzero().flatten().tolist()
        assert len(marked) == 2
        assert marked[0] < length // 2 <= marked[1]
        assert sequence[marked, 0].sum().item() == pytest.approx(answer)


def test_who_always_answers_one_has_the_baseline_of_adding():
    _, target = draw(Adding(), 20, COUNT)
    assert float((target - 1).square().mean()) == pytest.approx(Adding().baseline(20), abs=0.01)


def test_copy_memory_asks_for_ten_symbols_after_the_delimiter():
    input, target = draw(CopyMemory(), 30)
    assert input.shape == (50, 50, 10)
    for read, written in zip(ids(input), target.t().tolist(), strict=True):
        assert all(0 <= symbol < 8 for symbol in read[:10])
        assert read[10:] == [8] * 29 + [9] + [8] * 10
        assert written == [8] * 40 + read[:10]


def test_the_baseline_of_copy_memory_is_that_of_arjovsky_et_al():
    assert CopyMemory().baseline(100) == pytest.approx(10 * math.log(8) / 120)


@pytest.mark.parametrize("length", [10, 33, 100])
def test_temporal_order_asks_which_came_first_and_which_second(length):
    input, target = draw(TemporalOrder(), length, 200)
    seen = set()
    for read, answer in zip(ids(input), target.tolist(), strict=True):
        places = [t for t, symbol in enumerate(read) if symbol < 2]
        assert len(places) == 2
        assert length // 10 <= places[0] < length * 2 // 10
        assert length * 5 // 10 <= places[1] < length * 6 // 10
        assert answer == 2 * read[places[0]] + read[places[1]]
        seen.add(answer)
    assert seen == {0, 1, 2, 3}
    assert TemporalOrder().baseline(length) == pytest.approx(math.log(4))


def test_anbn_asks_at_every_b_whether_it_is_the_last():
    input, target = draw(AnBn(), 6, 200)
    numbers = set()
    for read, answers in zip(ids(input), target.t().tolist(), strict=True):
        n = read.count(0)
        assert read == [0] * n + [1] * n + [-1] * (12 - 2 * n)
        assert answers == [IGNORED] * n + [0] * (n - 1) + [1] + [IGNORED] * (12 - 2 * n)
        numbers.add(n)
    assert numbers == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("kinds", [1, 2])
def test_dyck_asks_which_bracket_is_the_last_open_one(kinds):
    input, target = draw(Dyck(kinds), 40)
    assert input.shape == (40, 50, 2 * kinds)
    deepest = 0
    for read, answers in zip(ids(input), target.t().tolist(), strict=True):
        stack: list[int] = []
        for bracket, answer in zip(read, answers, strict=True):
            if bracket < kinds:
                stack.append(bracket)
            else:
                assert stack.pop() == bracket - kinds
            assert answer == (stack[-1] + 1 if stack else 0)
            deepest = max(deepest, len(stack))
    assert deepest > 5


def test_parity_asks_after_every_bit():
    input, target = draw(Parity(), 30)
    assert torch.equal(input[..., 0].cumsum(0).long() % 2, target)


@pytest.mark.parametrize("problem", [AnBn(), Dyck(1), Dyck(2), Parity()])
@pytest.mark.parametrize("length", [1, 2, 15])
def test_the_baseline_of_counting_is_the_entropy_of_the_classes_at_each_step(problem, length):
    _, target = draw(problem, length, COUNT)
    total = asked = 0.0
    for answers in target:
        answers = answers[answers != IGNORED]
        shares = (answers.bincount().double() / len(answers)).tolist()
        total -= len(answers) * sum(share * math.log(share) for share in shares if share > 0)
        asked += len(answers)
    assert total / asked == pytest.approx(problem.baseline(length), abs=0.02)
