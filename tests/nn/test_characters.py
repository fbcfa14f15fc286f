import pytest
import torch
from torch.nn import functional as F

from rnnkit.nn.characters import CharacterCNN, CharacterLSTM

WORDS = [[2, 3, 4, 5], [6], [3, 3], [5, 4, 3, 2, 2, 6]]
KINDS = {"lstm": CharacterLSTM, "cnn": CharacterCNN}


def make(kind, **changes):
    return KINDS[kind](7, 5, 4, **changes)


def batch(words, padding=0):
    length = max(map(len, words)) + padding
    characters = torch.tensor([word + [0] * (length - len(word)) for word in words]).T
    return characters, torch.tensor([len(word) for word in words])


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_s_vector_depends_on_its_characters_alone(kind):
    model = make(kind)
    together = model(*batch(WORDS))
    assert together.shape == (4, model.output_size)
    torch.testing.assert_close(model(*batch(WORDS, padding=3)), together)
    for u, word in enumerate(WORDS):
        torch.testing.assert_close(model(*batch([word]))[0], together[u])
    assert not torch.allclose(model(*batch([[2, 3, 4]]))[0], model(*batch([[3, 2, 4]]))[0])


def test_the_lstm_s_vector_is_the_last_state_of_either_direction():
    model = make("lstm")
    plain = torch.nn.LSTM(5, 4, bidirectional=True)
    plain.load_state_dict(model.rnn.state_dict())
    found = model(*batch(WORDS))
    for u, word in enumerate(WORDS):
        outputs, _ = plain(model.embedding(torch.tensor(word)))
        torch.testing.assert_close(found[u], torch.cat([outputs[-1, :4], outputs[0, 4:]]))


def test_the_cnn_s_vector_is_the_maximum_over_the_word():
    model = make("cnn")
    weight, bias = model.convolution.weight, model.convolution.bias
    with torch.no_grad():
        bias -= 10  # every feature of a word is below the zeros that padding might give
    found = model(*batch(WORDS, padding=2))
    for u, word in enumerate(WORDS):
        around = F.pad(model.embedding.weight[torch.tensor(word)], (0, 0, 1, 1))
        features = [(weight * around[t : t + 3].T).sum((1, 2)) + bias for t in range(len(word))]
        torch.testing.assert_close(found[u], torch.stack(features).amax(0))
    assert found.max() < 0


def test_no_gradient_reaches_padding():
    for kind in KINDS:
        model = make(kind)
        model(*batch(WORDS)).sum().backward()
        gradient = model.embedding.weight.grad
        assert gradient[0].eq(0).all()
        assert gradient[2:].ne(0).any(1).all()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_characters_are_dropped_in_training_only(kind):
    model = make(kind, dropout=0.5)
    inputs = batch(WORDS)
    assert not torch.equal(model(*inputs), model(*inputs))
    model.eval()
    assert torch.equal(model(*inputs), model(*inputs))


def test_an_even_width_is_refused():
    with pytest.raises(ValueError, match="odd width, the same before and after, got 4"):
        make("cnn", width=4)
