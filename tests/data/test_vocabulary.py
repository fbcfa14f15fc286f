from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnnkit.data.vocabulary import Vocabulary

WORDS = st.lists(st.sampled_from(["a", "b", "c", "dd", "<unk>", "<eos>", "é"]), max_size=40)


def test_tokens_stand_most_frequent_first_and_ties_in_string_order() -> None:
    counts = Counter(["b", "b", "b", "c", "c", "a", "a", "d"])
    assert Vocabulary.from_counts(counts).tokens == ("b", "a", "c", "d")


def test_order_is_independent_of_the_order_of_the_counts() -> None:
    counts = {"b": 2, "a": 2, "c": 5}
    backwards = dict(reversed(counts.items()))
    assert Vocabulary.from_counts(counts) == Vocabulary.from_counts(backwards)


def test_dropped_tokens_count_as_unknown() -> None:
    counts = {"a": 4, "b": 3, "c": 2, "d": 2, "e": 1}
    vocabulary = Vocabulary.from_counts(counts, min_count=3, special=["<unk>"])
    assert vocabulary.tokens == ("<unk>", "a", "b")  # 5, 4 and 3 occurrences


def test_special_tokens_are_kept_whatever_their_count() -> None:
    vocabulary = Vocabulary.from_counts({"a": 2, "<eos>": 1}, min_count=2, special=["<eos>", "x"])
    assert vocabulary.tokens == ("a", "<eos>", "x")


@given(train=WORDS, text=WORDS, min_count=st.integers(1, 4))
def test_every_text_is_encoded_and_known_tokens_come_back(
    train: list[str], text: list[str], min_count: int
) -> None:
    special = ["<unk>", "<eos>"]
    vocabulary = Vocabulary.from_counts(Counter(train), min_count=min_count, special=special)
    ids = vocabulary.encode(text)
    assert ids.dtype == torch.int64
    assert ids.shape == (len(text),)
    expected = [token if token in vocabulary else "<unk>" for token in text]
    assert vocabulary.decode(ids) == expected


@given(train=WORDS)
def test_state_is_plain_data_and_brings_the_vocabulary_back(train: list[str]) -> None:
    vocabulary = Vocabulary.from_counts(Counter(train), special=["<unk>"])
    state = vocabulary.state_dict()
    assert type(state) is list
    assert {type(token) for token in state} == {str}
    assert Vocabulary.from_state_dict(state) == vocabulary


def test_a_token_without_an_id_and_without_unknown_is_named() -> None:
    with pytest.raises(ValueError, match="'z' is not among the 2 tokens"):
        Vocabulary(["a", "b"]).encode(["a", "z"])


@pytest.mark.parametrize("wrong", [-1, 2])
def test_an_id_outside_the_vocabulary_is_named(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"ids from 0 to 1, got {wrong}"):
        Vocabulary(["a", "b"]).decode([0, wrong])


def test_the_same_token_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'b' with ids 1 and 3"):
        Vocabulary(["a", "b", "c", "b"])


def test_no_token_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 token"):
        Vocabulary([])


def test_min_count_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="1 or more, got 0"):
        Vocabulary.from_counts({"a": 1}, min_count=0)


def test_equal_vocabularies_have_no_difference() -> None:
    one, two = Vocabulary(["a", "b"]), Vocabulary(["a", "b"])
    assert one == two
    assert one.difference(two) is None
    assert hash(one) == hash(two)


def test_difference_names_both_sizes_and_the_first_differing_tokens() -> None:
    difference = Vocabulary(["a", "b", "c"]).difference(Vocabulary(["a", "x"]))
    assert difference == "3 and 2 tokens, first difference at id 1: 'b' and 'x'"


@pytest.mark.parametrize(("one", "two"), [("abc", "ab"), ("ab", "abc")])
def test_difference_names_the_first_token_that_only_one_has(one: str, two: str) -> None:
    difference = Vocabulary(one).difference(Vocabulary(two))
    assert difference is not None
    assert difference.startswith(f"{len(one)} and {len(two)} tokens, the same up to id 1")
    assert difference.endswith("'c'")


def test_a_vocabulary_is_no_other_kind_of_object() -> None:
    assert Vocabulary(["a"]) != ("a",)
