from typing import NamedTuple

import pytest
import torch

from rnnkit.decoding import select_rows
from rnnkit.decoding.steps import attention_of


class State(NamedTuple):
    hidden: torch.Tensor
    attention: torch.Tensor | None


def test_rows_are_chosen_in_every_nesting():
    hidden, weights = torch.arange(6.0).view(3, 2), torch.arange(3)
    state = {"a": (hidden, None), "b": [State(hidden + 1, weights), ()], "c": State(hidden, None)}
    rows = torch.tensor([2, 0, 2, 1])
    chosen = select_rows(state, rows)
    assert list(chosen) == ["a", "b", "c"]
    assert isinstance(chosen["a"], tuple)
    assert torch.equal(chosen["a"][0], hidden[rows])
    assert chosen["a"][1] is None
    assert isinstance(chosen["b"], list)
    assert isinstance(chosen["b"][0], State)
    assert torch.equal(chosen["b"][0].hidden, hidden[rows] + 1)
    assert torch.equal(chosen["b"][0].attention, rows)
    assert chosen["b"][1] == ()
    assert torch.equal(chosen["c"].hidden, hidden[rows])


def test_no_row_at_all_may_be_chosen():
    assert select_rows(torch.zeros(3, 2), torch.tensor([], dtype=torch.int64)).shape == (0, 2)


def test_what_has_no_rows_is_refused():
    with pytest.raises(TypeError, match="got a int: rows cannot be chosen"):
        select_rows((torch.zeros(2), 3), torch.tensor([0]))


def test_attention_is_that_of_a_named_field():
    weights = torch.rand(3, 2)
    assert attention_of(State(weights, weights)) is weights
    assert attention_of(State(weights, None)) is None
    assert attention_of((weights, weights)) is None
    assert attention_of({"attention": weights}) is None
    assert attention_of(None) is None
