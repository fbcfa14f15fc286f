"""What holds for every way of searching."""

import math
from itertools import chain

import pytest
import torch

from rnnkit.decoding import BeamSearch, GreedySearch, Sampler
from tests.decoding.table_models import Chain, TableModel, rescored

END = 2
SEARCHES = {
    "greedy": GreedySearch(max_length=6),
    "beam of 1": BeamSearch(beam_size=1, max_length=6),
    "beam of 4": BeamSearch(beam_size=4, max_length=6, n_best=3),
    "sampler": Sampler(temperature=0.8, seed=0, max_length=6),
    "sampler at 0": Sampler(temperature=0.0, max_length=6),
}
each_search = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
same_alone = pytest.mark.parametrize(
    "search",
    [search for name, search in SEARCHES.items() if name != "sampler"],
    ids=[name for name in SEARCHES if name != "sampler"],
)


def run(search, model, sources, end=END, limits=None):
    sources = torch.as_tensor(sources)
    return search(model, sources, torch.full_like(sources, 5), end, limits)


def random_model(seed):
    return TableModel.random(5, sources=16, seed=seed)


@pytest.mark.parametrize(
    "other",
    [
        BeamSearch(beam_size=1, length_penalty=0.0, max_length=9),
        Sampler(temperature=0.0, max_length=9),
        Sampler(top_k=1, max_length=9),
    ],
    ids=["beam of 1", "temperature 0", "top 1"],
)
def test_greedy_search_is_reached_in_three_other_ways(other):
    for seed in range(20):
        model = random_model(seed)
        expected = run(GreedySearch(max_length=9), model, range(16))
        found = run(other, model, range(16))
        assert found == expected
        # The attention, which holds the tokens read, is not compared by `==`.
        for (one,), (two,) in zip(found, expected, strict=True):
            assert torch.equal(one.attention, two.attention)


def test_greedy_takes_the_most_probable_token_and_the_first_of_equals():
    model = Chain([[0.1, 0.4, 0.4, 0.1], [0.2, 0.1, 0.1, 0.6], [0.0] * 4, [0.3, 0.3, 0.3, 0.1]])
    (found,) = GreedySearch(max_length=4)(model, None, torch.tensor([0]), end=2)
    assert found[0].tokens == [1, 3, 0, 1]
    assert found[0].log_probability == pytest.approx(math.log(0.4 * 0.6 * 0.3 * 0.4))
    assert found[0].score == found[0].log_probability
    assert not found[0].finished


@same_alone
def test_a_sentence_alone_is_decoded_as_in_any_batch(search):
    for seed in range(10):
        model = random_model(seed)
        limits = 1 + torch.arange(16) % 7
        together = run(search, model, range(16), limits=limits)
        order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
        shuffled = run(search, model, order, limits=limits[order])
        for i, source in enumerate(order.tolist()):
            alone = run(search, model, [source], limits=limits[source : source + 1])
            assert together[source] == alone[0] == shuffled[i]
            for one, two in zip(together[source], alone[0], strict=True):
                assert torch.equal(one.attention, two.attention)


@each_search
def test_a_hypothesis_has_the_log_probability_of_its_tokens(search):
    for seed in range(10):
        model = random_model(seed)
        for source, hypotheses in enumerate(run(search, model, range(16))):
            for one in hypotheses:
                expected = rescored(model, torch.tensor([source]), 5, one.tokens)
                assert one.log_probability == pytest.approx(expected, rel=1e-5)
                assert one.finished == (one.tokens[-1] == END)
                assert one.tokens.count(END) == one.finished
                assert one.finished or len(one.tokens) == 6


@each_search
def test_each_token_has_the_attention_it_was_chosen_with(search):
    for hypotheses in run(search, random_model(3), range(16)):
        assert hypotheses
        for one in hypotheses:
            read = [5, *one.tokens[:-1]]
            expected = [(read[i::-1] + [0] * 6)[:6] for i in range(len(read))]
            assert one.attention.tolist() == expected


@each_search
def test_without_attention_in_the_state_a_hypothesis_has_none(search):
    model = Chain([[0.5, 0.5], [0.5, 0.5]])
    (found,) = search(model, None, torch.tensor([0]), end=1)
    assert found[0].attention is None


@each_search
def test_the_attention_can_be_used_in_training_code(search):
    weight = torch.ones(6, requires_grad=True)
    found = run(search, random_model(0), [0])
    (found[0][0].attention * weight).sum().backward()
    assert weight.grad is not None


@each_search
def test_a_sentence_that_cannot_end_is_cut_at_its_limit(search):
    model = random_model(0)
    model.table[:, :, END] = -torch.inf
    found = run(search, model, [0, 1, 2], limits=torch.tensor([2, 9, 4]))
    for hypotheses, length in zip(found, (2, 6, 4), strict=True):
        assert {len(one.tokens) for one in hypotheses} == {length}
        assert not any(one.finished for one in hypotheses)


@each_search
def test_without_an_end_token_each_sentence_goes_on_to_its_limit(search):
    found = run(search, random_model(0), [0, 1], end=None, limits=torch.tensor([5, 3]))
    for hypotheses, length in zip(found, (5, 3), strict=True):
        assert {len(one.tokens) for one in hypotheses} == {length}
        assert not any(one.finished for one in hypotheses)


@each_search
def test_sentences_that_are_done_cost_no_more(search):
    model = random_model(0)
    width = getattr(search, "beam_size", 1)
    run(search, model, [0, 1, 2], end=None, limits=torch.tensor([1, 3, 2]))
    assert model.rows == [3, 2 * width, width]


@each_search
def test_a_sentence_without_possible_tokens_has_no_hypothesis(search):
    model = random_model(0)
    model.table[1] = -torch.inf
    found = run(search, model, [0, 1, 2])
    assert found[1] == []
    assert found[0]
    assert found[2]
    dead_end = Chain([[0.0, 1.0, 0.0], [0.0] * 3, [0.0] * 3])
    (found,) = search(dead_end, None, torch.tensor([0]), end=2)
    assert found == []
    assert dead_end.steps == 2


@each_search
def test_nan_is_reported_with_its_sentence(search):
    model = random_model(0)
    model.table[1] = torch.nan
    with pytest.raises(FloatingPointError, match="for sentence 2 of the batch"):
        run(search, model, [0, 3, 1, 1], end=None)


@each_search
def test_half_precision_is_summed_in_single(search):
    # In half precision the sum stays at -2048: -2049 is none of its numbers.
    table = torch.full((1, 997, 2), -torch.inf, dtype=torch.float16)
    table[..., 0] = -1
    model = TableModel(table)
    many = type(search)(max_length=2500)
    (found,) = many(model, torch.tensor([0]), torch.tensor([0]), end=None)
    assert found[0].log_probability == -2500


@each_search
def test_a_model_in_double_precision_is_decoded_alike(search):
    model = random_model(0)
    expected = run(search, model, range(16))
    model.table = model.table.double()
    assert run(search, model, range(16)) == expected


@each_search
def test_the_states_are_free_of_gradients_and_the_model_is_left_alone(search):
    model = random_model(0)
    model.table.requires_grad_()
    found = run(search, model, [0, 1])
    assert not found[0][0].attention.requires_grad
    assert model.table.grad is None


@each_search
def test_no_sentence_is_no_hypothesis(search):
    assert run(search, random_model(0), torch.zeros(0, dtype=torch.int64)) == []


@each_search
@pytest.mark.parametrize(
    ("begin", "limits", "message"),
    [
        (torch.zeros(2, 1, dtype=torch.int64), None, r"int64 \(B,\), got torch.int64 \(2, 1\)"),
        (torch.zeros(2), None, r"int64 \(B,\), got torch.float32 \(2,\)"),
        ([0, 0], torch.tensor([3]), r"integers \(2,\), one for .*got torch.int64 \(1,\)"),
        ([0, 0], torch.tensor([3.0, 3.0]), r"integers \(2,\), .*got torch.float32 \(2,\)"),
        ([0, 0], torch.tensor([3, 0]), "limits of 1 or more, got 0"),
    ],
)
def test_arguments_of_a_wrong_shape_or_type_are_refused(search, begin, limits, message):
    with pytest.raises(ValueError, match=message):
        search(random_model(0), torch.tensor([0, 0]), torch.as_tensor(begin), END, limits)


@pytest.mark.parametrize("strategy", [GreedySearch, Sampler])
def test_a_maximum_length_below_one_is_refused(strategy):
    with pytest.raises(ValueError, match="max_length of 1 or more, got 0"):
        strategy(max_length=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@same_alone
def test_the_gpu_finds_what_the_cpu_finds(search):
    for seed in range(5):
        model = random_model(seed)
        limits = 1 + torch.arange(16) % 7
        expected = run(search, model, range(16), limits=limits)
        model.table = model.table.cuda()
        sources = torch.arange(16, device="cuda")
        found = run(search, model, sources, limits=limits)
        for one, two in zip(chain(*found), chain(*expected), strict=True):
            assert one.tokens == two.tokens
            assert one.log_probability == pytest.approx(two.log_probability, rel=1e-6)
            assert torch.equal(one.attention.cpu(), two.attention)
