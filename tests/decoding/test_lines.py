import pytest
import torch

from rnnkit.decoding import BeamSearch, GreedySearch, Sampler
from rnnkit.decoding.lines import LinesOf
from rnnkit.language_modeling.task import LanguageModel

END, V = 0, 5


class Drawn:
    """Gives every token the same log-probabilities, whatever stands before."""

    def __init__(self, probabilities):
        self.log_probabilities = torch.tensor(probabilities).log()

    def start(self, source):
        return None

    def step(self, tokens, state):
        return self.log_probabilities.expand(len(tokens), -1).clone(), state


EVEN = Drawn([0.5, 0.2, 0.1, 0.1, 0.1])


def write(form, prompts, sampler):
    read = torch.tensor(prompts).t()
    sampler = sampler or Sampler(seed=0, max_length=form.max_length)
    return [found[0].tokens for found in sampler(form, read[:-1], read[-1], form.text_end)]


def lines_of(tokens):
    """Lengths of the lines, a blank one 0, of tokens that end with a line's end."""
    assert tokens[-1] == END
    lengths, line = [], 0
    for token in tokens:
        if token == END:
            lengths.append(line)
        line = 0 if token == END else line + 1
    return lengths


@pytest.mark.parametrize("paired", [False, True])
def test_a_text_has_its_lines_and_no_more(paired):
    form = LinesOf(EVEN, END, V, lines=6, longest=3, paired=paired)
    blanks = set()
    for seed in range(40):
        (tokens,) = write(form, [[END]], Sampler(seed=seed, max_length=form.max_length))
        assert tokens[-1] == V  # it ends by itself
        assert V not in tokens[:-1]
        lengths = lines_of(tokens[:-1])
        assert sum(length > 0 for length in lengths) == 6
        assert max(lengths) <= 3
        assert 0 not in (lengths[0], lengths[-1])
        stanzas = "".join("-" if length else " " for length in lengths).split(" ")
        assert all(stanzas)  # no two blank lines follow each other
        if paired:
            assert all(len(stanza) % 2 == 0 for stanza in stanzas)
        blanks |= {len(stanza) for stanza in stanzas}
    assert blanks == ({2, 4, 6} if paired else {1, 2, 3, 4, 5, 6})


def test_a_line_ends_at_its_limit():
    form = LinesOf(Drawn([1e-9, 0.4, 0.3, 0.2, 0.1]), END, V, lines=2, longest=4)
    assert [t == END for t in write(form, [[END]], GreedySearch(99))[0]] == (
        [*2 * [False, False, False, False, True], False]
    )


def test_the_lines_of_the_prompt_count():
    form = LinesOf(EVEN, END, V, lines=3, longest=2)
    prompts = [[END, 1, END, 2], [END, 1, 1, 1], [END, 1, 2, END], [END, END, END, END]]
    for seed in range(10):
        sampler = Sampler(seed=seed, max_length=form.max_length)
        for prompt, tokens in zip(prompts, write(form, prompts, sampler), strict=True):
            lengths = lines_of([*prompt, *tokens[:-1]][1:])
            assert sum(length > 0 for length in lengths) == 3
            # Only the prompt itself may be longer than a line should be, and blank as often.
            assert max(lengths[1:]) <= 2
            assert lengths.count(0) <= 2 + prompt.count(END)


def test_the_model_goes_on_from_what_it_has_read():
    torch.manual_seed(0)
    model = LanguageModel(V, embedding_size=6, hidden_size=8, init_range=2.0).eval()
    form = LinesOf(model, END, V, lines=4, longest=30)
    prompt = [END, 2, 3]
    read = torch.tensor(prompt)[:, None]
    sampler = Sampler(seed=0, max_length=form.max_length)
    ((found,),) = sampler(form, read[:-1], read[-1], form.text_end)
    tokens = found.tokens[:-1]
    with torch.no_grad():
        logits, _ = model(torch.tensor([*prompt, *tokens[:-1]])[:, None])
    log_probabilities = logits[len(prompt) - 1 :, 0].log_softmax(-1)
    expected = float(log_probabilities[torch.arange(len(tokens)), tokens].sum())
    assert found.log_probability == pytest.approx(expected, rel=1e-5)  # the end costs nothing


def test_beams_keep_the_form_too():
    form = LinesOf(EVEN, END, V, lines=2, longest=2)
    search = BeamSearch(3, max_length=form.max_length, n_best=3)
    begin = torch.tensor([END])
    for one in search(form, begin.new_zeros(0, 1), begin, form.text_end)[0]:
        assert one.finished
        assert sum(length > 0 for length in lines_of(one.tokens[:-1])) == 2


def test_numbers_that_make_no_text_are_refused():
    for name in ("lines", "longest"):
        with pytest.raises(ValueError, match=f"{name} of 1 or more, got 0"):
            LinesOf(EVEN, END, V, **{"lines": 1, "longest": 1, name: 0})
    with pytest.raises(ValueError, match="even number of lines for couplets, got 3"):
        LinesOf(EVEN, END, V, lines=3, longest=1, paired=True)
