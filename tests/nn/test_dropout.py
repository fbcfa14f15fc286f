"""Dropout of sequences against explicit loops that draw the same masks."""

import pytest
import torch
from torch import Tensor, nn

from rnnkit.nn.dropout import DroppedEmbedding, LockedDropout

# Locked dropout


def test_locked_dropout_is_a_loop_over_time_with_one_mask() -> None:
    input = torch.randn(7, 3, 5)
    torch.manual_seed(1)
    dropped = LockedDropout(0.4)(input)
    torch.manual_seed(1)
    mask = nn.functional.dropout(torch.ones(3, 5), 0.4)
    assert torch.equal(dropped, torch.stack([step * mask for step in input]))
    assert 0 < int((mask == 0).sum()) < 15
    assert mask.max() == 1 / 0.6


def test_locked_dropout_differs_from_sequence_to_sequence_and_call_to_call() -> None:
    dropout, ones = LockedDropout(0.5), torch.ones(2, 4, 100)
    first, second = dropout(ones), dropout(ones)
    assert not torch.equal(first, second)
    assert all(not torch.equal(first[0, row], first[0, row - 1]) for row in range(4))
    assert first.mean() == pytest.approx(1, abs=0.2)


def test_locked_dropout_drops_the_gradients_of_what_it_dropped() -> None:
    input = torch.randn(4, 2, 6, requires_grad=True)
    dropped = LockedDropout(0.5)(input)
    dropped.sum().backward()
    assert input.grad is not None
    assert torch.equal(input.grad, (dropped != 0).float() * 2)
    assert not input.grad.all()


# Embedding dropout


def test_embedding_dropout_is_a_loop_over_tokens_in_a_table_of_dropped_rows() -> None:
    embedding = DroppedEmbedding(12, 5, dropout=0.4)
    tokens = torch.randint(12, (6, 4))
    torch.manual_seed(1)
    embedded = embedding(tokens)
    torch.manual_seed(1)
    table = embedding.weight.clone()
    for row, factor in enumerate(nn.functional.dropout(torch.ones(12, 1), 0.4)):
        table[row] = embedding.weight[row] * factor
    expected = [[table[token] for token in step] for step in tokens.tolist()]
    assert torch.equal(embedded, torch.stack([torch.stack(step) for step in expected]))
    zero = (embedded == 0).all(-1)
    assert zero.any()
    assert not zero.all()


def test_embedding_dropout_trains_only_the_rows_that_it_kept() -> None:
    embedding = DroppedEmbedding(40, 3, dropout=0.5)
    tokens = torch.arange(40)
    embedded = embedding(tokens)
    embedded.sum().backward()
    gradient = embedding.weight.grad
    assert gradient is not None
    kept = (embedded != 0).all(-1)
    assert torch.equal(gradient, kept.float().unsqueeze(-1).expand(40, 3) * 2)
    assert 0 < int(kept.sum()) < 40


def test_a_dropped_embedding_has_the_parameters_of_torchs_own() -> None:
    embedding, plain = DroppedEmbedding(7, 3, dropout=0.3), nn.Embedding(7, 3)
    plain.load_state_dict(embedding.state_dict())
    tokens = torch.tensor([1, 5, 1])
    assert torch.equal(embedding.eval()(tokens), plain(tokens))
    assert repr(embedding) == "DroppedEmbedding(7, 3, dropout=0.3)"


# Both


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_dropped_or_drawn_in_evaluation_or_with_probability_0(training: bool) -> None:
    probability = 0.0 if training else 0.5
    locked = LockedDropout(probability).train(training)
    embedding = DroppedEmbedding(7, 3, dropout=probability).train(training)
    input, tokens = torch.randn(4, 2, 3), torch.tensor([[0, 6]])
    before = torch.get_rng_state()
    assert torch.equal(locked(input), input)
    assert torch.equal(embedding(tokens), embedding.weight[tokens])
    assert torch.equal(torch.get_rng_state(), before)


def test_with_probability_1_everything_is_dropped() -> None:
    zero: Tensor = DroppedEmbedding(7, 3, dropout=1.0)(torch.arange(7))
    assert not zero.any()
    assert not LockedDropout(1.0)(torch.ones(2, 2, 2)).any()


@pytest.mark.parametrize("probability", [-0.1, 1.5])
def test_a_probability_out_of_range_is_refused(probability: float) -> None:
    with pytest.raises(ValueError, match=f"range.*got {probability}"):
        LockedDropout(probability)
    with pytest.raises(ValueError, match=f"range.*got {probability}"):
        DroppedEmbedding(7, 3, dropout=probability)
