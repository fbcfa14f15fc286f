from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnkit.data.buckets import BatchLoader, InOrder, TokenBuckets, evenly

LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(2, 30)), min_size=1, max_size=200)


def sentences(pairs: int = 2000, seed: int = 0) -> tuple[list[int], list[int]]:
    """Lengths as sentences have them: both sides alike, few long ones."""
    random = Random(seed)
    sources = [min(40, 3 + int(random.expovariate(0.1))) for _ in range(pairs)]
    return sources, [max(2, source + random.randint(-3, 3)) for source in sources]


def buckets(seed: int = 0, batch_tokens: int = 400) -> TokenBuckets:
    return TokenBuckets(*sentences(), batch_tokens, seed)


@given(lengths=LENGTHS, batch_tokens=st.integers(30, 200), epoch=st.integers(0, 3))
def test_every_pair_is_in_one_batch_within_the_budget_and_epochs_are_equally_long(
    lengths: list[tuple[int, int]], batch_tokens: int, epoch: int
) -> None:
    sources, targets = [source for source, _ in lengths], [target for _, target in lengths]
    batches = TokenBuckets(sources, targets, batch_tokens)
    drawn = batches.epoch(epoch)
    assert len(drawn) == len(batches)
    assert sorted(i for batch in drawn for i in batch) == list(range(len(lengths)))
    for batch in drawn:
        assert len(batch) * max(sources[i] for i in batch) <= batch_tokens
        assert len(batch) * max(targets[i] for i in batch) <= batch_tokens


def test_batches_are_full_and_of_similar_lengths() -> None:
    sources, targets = sentences()
    drawn = buckets().epoch(0)
    padded = [len(b) * max(max(sources[i], targets[i]) for i in b) for b in drawn]
    assert sum(padded) > 0.8 * len(drawn) * 400  # most of the budget is used
    for lengths in (sources, targets):
        padding = sum(len(b) * max(lengths[i] for i in b) for b in drawn) / sum(lengths) - 1
        assert padding < 0.2
    unsorted = [list(range(i, i + 10)) for i in range(0, 2000, 10)]
    assert sum(10 * max(sources[i] for i in b) for b in unsorted) / sum(sources) - 1 > 0.8


def test_pairs_of_equally_long_sides_meet_those_that_are_alike() -> None:
    pairs = [(5, 20)] * 40 + [(20, 5)] * 60 + [(19, 5)] * 20 + [(5, 19)] * 40
    Random(0).shuffle(pairs)
    sources, targets = zip(*pairs, strict=True)
    for batch in TokenBuckets(sources, targets, 200).epoch(0):
        assert len({sources[i] > targets[i] for i in batch}) == 1


def test_epochs_differ_in_batches_and_in_their_order_and_repeat_with_the_seed() -> None:
    first, second = buckets().epoch(0), buckets().epoch(1)
    assert first == buckets().epoch(0)
    assert first != second
    assert not {frozenset(batch) for batch in first} & {frozenset(batch) for batch in second}
    assert first != buckets(seed=1).epoch(0)
    assert second != buckets(seed=1).epoch(0)  # seeds and epochs are no sum


def test_long_and_short_batches_follow_each_other_in_no_order() -> None:
    sources, _ = sentences()
    lengths = [max(sources[i] for i in batch) for batch in buckets().epoch(0)]
    turns = sum(
        (b > a) != (c > b) for a, b, c in zip(lengths, lengths[1:], lengths[2:], strict=False)
    )
    assert turns > 0.4 * len(lengths)


def test_what_is_left_over_joins_the_last_pool() -> None:
    # Eight batches of 10 fill two pools; 3 pairs are left, a batch of their own without the rule.
    batches = TokenBuckets([10] * 83, [10] * 83, 100)
    assert sorted(len(batch) for batch in batches.epoch(0)) == [8, 8, 9, 9, 9, 10, 10, 10, 10]


def test_a_pair_longer_than_the_budget_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"longest pair has 31 tokens .* batch_tokens is 30"):
        TokenBuckets([4, 31], [5, 6], 30)
    with pytest.raises(ValueError, match="longest pair has 31 tokens"):
        TokenBuckets([4, 5], [31, 6], 30)
    with pytest.raises(ValueError, match="1 pair or more, got 0"):
        TokenBuckets([], [], 30)


@given(examples=st.integers(1, 40), batch_size=st.integers(1, 45))
def test_evaluation_keeps_the_order_of_the_file(examples: int, batch_size: int) -> None:
    batches = InOrder(examples, batch_size)
    drawn = batches.epoch(0)
    assert drawn == batches.epoch(1)
    assert [i for batch in drawn for i in batch] == list(range(examples))
    assert len(drawn) == len(batches) == -(-examples // batch_size)
    sizes = {len(batch) for batch in drawn}
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_an_evaluation_batch_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="1 or more, got 0"):
        InOrder(3, 0)


def test_items_are_cut_evenly() -> None:
    assert evenly(list(range(7)), 3) == [[0, 1], [2, 3], [4, 5, 6]]


def loader(
    rank: int = 0, world_size: int = 1, limit: int | None = None, seed: int = 0
) -> BatchLoader[list[int]]:
    return BatchLoader(buckets(seed), list, rank, world_size, limit)


def test_each_iteration_is_the_next_epoch() -> None:
    batches = loader()
    assert [list(batches), list(batches)] == [buckets().epoch(0), buckets().epoch(1)]
    assert len(batches) == len(buckets())


def test_an_epoch_of_which_nothing_was_taken_is_not_lost() -> None:
    batches = loader()
    iter(batches)
    iter(batches)
    assert list(batches) == buckets().epoch(0)
    iter(batches)
    assert list(batches) == buckets().epoch(1)


def test_an_abandoned_epoch_is_not_continued() -> None:
    batches = loader()
    next(iter(batches))
    assert list(batches) == buckets().epoch(1)


@pytest.mark.parametrize("epochs", [0, 2])
@pytest.mark.parametrize("consumed", [1, 5, "all but one", "all"])
@pytest.mark.parametrize("unused_iterators", [0, 2])
def test_a_loader_goes_on_where_another_stopped(
    epochs: int, consumed: int | str, unused_iterators: int
) -> None:
    first, second, unbroken = loader(), loader(), loader()
    for _ in range(epochs):
        list(first), list(unbroken)
    taken = {"all": len(first), "all but one": len(first) - 1}.get(str(consumed), consumed)
    iterator = iter(first)
    seen = [next(iterator) for _ in range(int(taken))]
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    for _ in range(unused_iterators):
        iter(second)
    expected = [list(unbroken), list(unbroken)]
    rest = list(second)
    if consumed == "all":
        assert [seen, rest] == expected
    else:
        assert [seen + rest, list(second)] == expected


def test_a_limited_epoch_is_over_after_its_batches() -> None:
    first, second = loader(limit=3), loader(limit=3)
    iterator = iter(first)
    for _ in range(3):
        next(iterator)
    state = first.state_dict()
    assert state == {"epoch": 1, "position": 0, "batches": len(first), "fingerprint": None}
    second.load_state_dict(first.state_dict())
    assert next(iter(second)) == buckets().epoch(1)[0]


def test_a_position_within_an_epoch_of_other_batches_is_refused() -> None:
    first = loader()
    next(iter(first))
    other = BatchLoader(buckets(batch_tokens=500), list)
    with pytest.raises(
        ValueError, match=f"before batch 1 of {len(first)}: .*, got {len(other)}; use the same"
    ):
        other.load_state_dict(first.state_dict())
    list(first)
    other.load_state_dict(first.state_dict())  # between epochs they may change
    assert list(other) == buckets(batch_tokens=500).epoch(2)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_every_batch(world_size: int) -> None:
    whole = list(loader())
    shares = [list(loader(rank, world_size)) for rank in range(world_size)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert Counter(i for part in parts for i in part) == Counter(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert min(map(len, parts)) > 0


def test_a_position_holds_for_any_number_of_processes() -> None:
    first, second = loader(), loader(1, 2)
    iterator = iter(first)
    next(iterator)
    second.load_state_dict(first.state_dict())
    assert next(iter(second)) == next(iterator)[1::2]


def test_batches_too_small_to_be_shared_are_refused() -> None:
    with pytest.raises(ValueError, match="batch of 2 examples cannot be shared by 3 processes"):
        BatchLoader(InOrder(5, 3), list, 0, 3)
