"""Attention against loops over sentences, steps and words."""

import pytest
import torch
from torch import Tensor

from rnnkit.nn.attention import AdditiveAttention, Attention, DotAttention, GeneralAttention

B, T, S, Q, C = 3, 2, 5, 4, 6
LENGTHS = [5, 1, 3]


def build(kind: str) -> Attention:
    torch.manual_seed(0)
    if kind == "additive":
        return AdditiveAttention(Q, C, 7).double()
    if kind == "general":
        return GeneralAttention(Q, C).double()
    return DotAttention(C, C).double()


def score(attention: Attention, query: Tensor, state: Tensor) -> Tensor:
    if isinstance(attention, AdditiveAttention):
        summed = attention.query.weight @ query + attention.memory.weight @ state
        return attention.score.weight[0] @ torch.tanh(summed + attention.memory.bias)
    if isinstance(attention, GeneralAttention):
        return query @ (attention.memory.weight @ state)
    return query @ state


@pytest.mark.parametrize("kind", ["additive", "general", "dot"])
def test_contexts_and_weights_are_those_of_a_plain_loop(kind: str) -> None:
    attention = build(kind)
    query = torch.randn(B, T, attention.query_size, dtype=torch.float64)
    memory = torch.randn(B, S, C, dtype=torch.float64)
    mask = torch.arange(S) < torch.tensor(LENGTHS)[:, None]
    context, weights = attention(query, attention.keys(memory), memory, mask)
    assert context.shape == (B, T, C)
    for b, length in enumerate(LENGTHS):
        for t in range(T):
            scores = [score(attention, query[b, t], memory[b, s]) for s in range(length)]
            expected = torch.stack(scores).softmax(0)
            torch.testing.assert_close(weights[b, t, :length], expected)
            assert torch.equal(weights[b, t, length:], torch.zeros(S - length).double())
            summed = sum(w * memory[b, s] for s, w in enumerate(expected))
            torch.testing.assert_close(context[b, t], summed)


@pytest.mark.parametrize("kind", ["additive", "general", "dot"])
def test_padding_changes_nothing_and_gets_no_gradient(kind: str) -> None:
    attention = build(kind)
    query = torch.randn(B, T, attention.query_size, dtype=torch.float64)
    memory = torch.randn(B, S, C, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(S) < torch.tensor(LENGTHS)[:, None]
    context, _ = attention(query, attention.keys(memory), memory, mask)
    context.square().sum().backward()
    assert memory.grad is not None
    assert memory.grad[~mask].abs().max() == 0
    assert memory.grad[mask].abs().min() > 0
    other = torch.where(mask[..., None], memory, torch.full_like(memory, 1e3))
    torch.testing.assert_close(attention(query, attention.keys(other), other, mask)[0], context)


def test_dot_attention_refuses_states_of_two_sizes() -> None:
    with pytest.raises(ValueError, match="got 4 in the decoder and 6 in the encoder"):
        DotAttention(Q, C)
