import copy

import pytest
import torch

from rnnkit.sequences import SequenceData
from rnnkit.sequences.data import PROBLEMS

SMALL = {"length": 12, "batch_size": 6, "steps_per_epoch": 3, "eval_examples": 10}


def batches(loader):
    return list(loader)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_problem_has_batches_of_its_sizes(problem):
    data = SequenceData(problem, **SMALL, test_length=24, eval_batch_size=4)
    first = batches(data.train_dataloader())
    assert len(first) == 3
    for batch in first:
        assert batch.input.shape[1:] == (6, data.input_size)
        assert batch.target.shape[-1] == 6
        assert batch.target.ndim == 1 + data.every_step
    valid, test = batches(data.val_dataloader()), batches(data.test_dataloader())
    assert sorted(batch.input.shape[1] for batch in valid) == [3, 3, 4]
    assert len(test[0].input) > len(valid[0].input)
    assert set(data.baselines) == {"val", "test"}
    assert problem in str(data)


def test_training_examples_follow_from_the_seed_and_the_step():
    data = SequenceData("adding", **SMALL)
    loader = data.train_dataloader()
    first, second = batches(loader), batches(loader)
    for a, b in zip(first, [*first[1:], *second], strict=False):
        assert a is b or not torch.equal(a.input, b.input)
    assert same(first[1], batches(SequenceData("adding", **SMALL).train_dataloader())[1])
    assert not same(
        first[1], batches(SequenceData("adding", **SMALL, seed=1).train_dataloader())[1]
    )


def test_those_of_validation_and_test_are_the_same_for_every_seed_and_differ():
    one, other = SequenceData("adding", **SMALL), SequenceData("adding", **SMALL, seed=1)
    assert same(batches(one.val_dataloader())[0], batches(other.val_dataloader())[0])
    assert not same(batches(one.val_dataloader())[0], batches(one.test_dataloader())[0])


def test_a_loader_goes_on_where_it_stopped():
    whole = batches(SequenceData("copy", **SMALL).train_dataloader())
    loader = SequenceData("copy", **SMALL).train_dataloader()
    steps = iter(loader)
    next(steps)
    state = copy.deepcopy(loader.state_dict())
    again = SequenceData("copy", **SMALL).train_dataloader()
    again.load_state_dict(state)
    for one, other in zip(whole[1:], batches(again), strict=True):
        assert same(one, other)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"problem": "other"}, "adding, copy, order, anbn, dyck-1, dyck-2, parity, got 'other'"),
        ({"length": 1}, "length of 2 or more for adding, got 1"),
        ({"problem": "order", "length": 9}, "length of 10 or more for order, got 9"),
        ({"test_length": 1}, "test_length of 2 or more for adding, got 1"),
        ({"batch_size": 0}, "batch_size of 1 or more, got 0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch of 1 or more, got 0"),
        ({"eval_examples": 0}, "eval_examples of 1 or more, got 0"),
    ],
)
def test_what_is_out_of_bounds_is_told_with_both_numbers(options, match):
    with pytest.raises(ValueError, match=match):
        SequenceData(**options)


def test_a_checkpoint_of_another_problem_is_refused():
    data = SequenceData("adding")
    data.load_state_dict(SequenceData("adding", length=7).state_dict())
    with pytest.raises(ValueError, match="problem copy, the data are adding"):
        data.load_state_dict(SequenceData("copy").state_dict())
