"""Forbidden tokens, under every search and sampler."""

import pytest
import torch

from rnnkit.decoding import BeamSearch, GreedySearch, Sampler, Without
from rnnkit.decoding.lines import LinesOf
from tests.decoding.table_models import Chain, TableModel

BEGIN, END = torch.tensor([3, 3, 3]), 4
SOURCE = torch.arange(3)

SEARCHES = {
    "greedy": GreedySearch(max_length=9),
    "beam": BeamSearch(beam_size=3, max_length=9, n_best=3),
    "sampling": Sampler(seed=0, max_length=9),
    "top-k": Sampler(seed=0, top_k=2, max_length=9),
    "top-p": Sampler(seed=0, top_p=0.5, max_length=9),
    "no temperature": Sampler(temperature=0, max_length=9),
}


def written(search, model):
    return [each for found in search(model, SOURCE, BEGIN, END) for each in found]


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_a_forbidden_token_is_never_written(search):
    model = TableModel.random(6)
    assert any({0, 1} & set(each.tokens) for each in written(search, model))
    found = written(search, Without(model, [0, 1]))
    assert found
    assert not any({0, 1} & set(each.tokens) for each in found)


def test_what_is_left_is_written_as_from_a_table_without_it():
    model = TableModel.random(6)
    rest = model.table.clone()
    rest[..., 2] = -torch.inf
    for search in SEARCHES.values():
        assert written(search, Without(model, [2])) == written(search, TableModel(rest))


def test_samples_follow_the_probabilities_of_the_others():
    model = Without(Chain([[0.1, 0.6, 0.3]] * 3), [1])
    begin = torch.zeros(4000, dtype=torch.int64)
    drawn = Sampler(seed=0).generate(model, begin, begin, 1)
    assert drawn[0].bincount(minlength=3).div(4000).tolist() == pytest.approx(
        [0.25, 0, 0.75], abs=0.03
    )


def test_the_form_of_lines_is_kept_without_a_token():
    form = LinesOf(Without(Chain([[0.2, 0.5, 0.3]] * 3), [1]), 0, 3, lines=2, longest=3)
    search = GreedySearch(form.max_length)
    begin = torch.tensor([0])
    tokens = search(form, begin.new_zeros(0, 1), begin, form.text_end)[0][0].tokens
    assert tokens == [2, 2, 2, 0, 2, 2, 2, 0, 3]
