"""A real model in every way of searching."""

import pytest
import torch

from rnnkit.decoding import BeamSearch, GreedySearch, Sampler
from rnnkit.language_modeling.task import LanguageModel

END = 3


def make_model(cell):
    torch.manual_seed(0)
    return LanguageModel(
        12, cell=cell, embedding_size=6, hidden_size=8, num_layers=2, init_range=2.0
    ).eval()


def prompts():
    return torch.randint(12, (4, 8), generator=torch.Generator().manual_seed(1))


def total(model, prompt, tokens):
    """Log-probability of tokens after a prompt (T,), in one call."""
    with torch.no_grad():
        logits, _ = model(
            torch.cat([prompt, torch.tensor(tokens[:-1], dtype=torch.int64)])[:, None]
        )
    log_probabilities = logits[len(prompt) - 1 :, 0].log_softmax(-1)
    return float(log_probabilities[torch.arange(len(tokens)), tokens].sum())


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_greedy_search_is_a_loop_of_argmax(cell):
    model, read = make_model(cell), prompts()
    search = GreedySearch(max_length=8)
    # The end is a token that the first sentence takes on its way.
    end = search(model, read[:-1], read[-1], end=None)[0][0].tokens[3]
    lengths = set()
    for column, (found,) in enumerate(search(model, read[:-1], read[-1], end)):
        tokens = read[:, column]
        for _ in range(8):
            with torch.no_grad():
                logits, _ = model(tokens[:, None])
            tokens = torch.cat([tokens, logits[-1, 0].argmax()[None]])
            if tokens[-1] == end:
                break
        assert found.tokens == tokens[len(read) :].tolist()
        lengths.add(len(found.tokens))
    assert len(lengths) > 1  # some ended before the others


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize(
    "search",
    [GreedySearch(max_length=8), BeamSearch(4, max_length=8, n_best=4), Sampler(max_length=8)],
    ids=["greedy", "beam", "sampler"],
)
def test_the_state_follows_the_tokens(cell, search):
    model, read = make_model(cell), prompts()
    for column, hypotheses in enumerate(search(model, read[:-1], read[-1], END)):
        for one in hypotheses:
            expected = total(model, read[:, column], one.tokens)
            assert one.log_probability == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_beam_may_begin_without_a_prompt(cell):
    model, begin = make_model(cell), torch.tensor([0, 7])
    search = BeamSearch(3, max_length=5, n_best=3)
    found = search(model, begin.new_zeros(0, 2), begin, end=END)
    for token, hypotheses in zip(begin, found, strict=True):
        assert len(hypotheses) == 3
        for one in hypotheses:
            expected = total(model, token[None], one.tokens)
            assert one.log_probability == pytest.approx(expected, rel=1e-4)
