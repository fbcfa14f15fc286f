"""Models whose distributions stand in a table, one for each source and each beginning."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

PRIME = 997


class TableState(NamedTuple):
    source: Tensor  # (B,)
    beginning: Tensor  # a number for the tokens read, (B,)
    attention: Tensor  # the tokens read, the last one first, (B, S)


class TableModel:
    """Knows every token read: a search that mixes up rows gets other distributions.

    `rows` has the number of rows of every step.
    """

    def __init__(self, table: Tensor, attention_size: int = 6) -> None:
        self.table = table  # log-probabilities (sources, PRIME, V)
        self.attention_size = attention_size
        self.rows: list[int] = []

    @classmethod
    def random(cls, vocabulary: int, sources: int = 4, seed: int = 0) -> "TableModel":
        generator = torch.Generator().manual_seed(seed)
        scores = torch.randn(sources, PRIME, vocabulary, generator=generator)
        return cls((1.5 * scores).log_softmax(-1))

    def start(self, source: Tensor) -> TableState:
        read = source.new_zeros(len(source), self.attention_size)
        return TableState(source, torch.zeros_like(source), read)

    def step(self, tokens: Tensor, state: TableState) -> tuple[Tensor, TableState]:
        self.rows.append(len(tokens))
        beginning = (state.beginning * 31 + tokens + 1) % PRIME
        read = torch.cat([tokens.unsqueeze(1), state.attention[:, :-1]], dim=1)
        return self.table[state.source, beginning], TableState(state.source, beginning, read)


class Chain:
    """Its distributions follow from the last token alone: a row of probabilities for each."""

    def __init__(self, probabilities: Sequence[Sequence[float]]) -> None:
        self.log_probabilities = torch.tensor(probabilities).log()
        self.steps = 0

    def start(self, source: Any) -> None:
        return None

    def step(self, tokens: Tensor, state: None) -> tuple[Tensor, None]:
        self.steps += 1
        return self.log_probabilities[tokens], None


def rescored(model: Any, source: Tensor, begin: int, tokens: Sequence[int]) -> float:
    """Log-probability of tokens for one source (1,), by stepping along them."""
    state, total, last = model.start(source), 0.0, begin
    for token in tokens:
        log_probabilities, state = model.step(torch.tensor([last]), state)
        total += float(log_probabilities[0, token])
        last = token
    return total


def plain_beam_search(
    model: Any,
    source: Tensor,
    begin: int,
    end: int | None,
    *,
    size: int,
    alpha: float,
    limit: int,
    count: int,
) -> list[tuple[float, list[int]]]:
    """(score, tokens) of one source (1,): no batch, no early stop, one beam after the other."""
    beams: list[tuple[float, list[int], Any]] = [(0.0, [], model.start(source))]
    found: list[tuple[float, list[int]]] = []
    for length in range(1, limit + 1):
        candidates = []
        for total, tokens, state in beams:
            last = tokens[-1] if tokens else begin
            log_probabilities, after = model.step(torch.tensor([last]), state)
            for token, value in enumerate(log_probabilities[0].tolist()):
                if value != -math.inf:
                    candidates.append((total + value, [*tokens, token], after))
        candidates.sort(key=lambda candidate: -candidate[0])
        beams = []
        for total, tokens, state in candidates[:size]:
            if tokens[-1] == end or length == limit:
                found.append((total / ((5 + length) / 6) ** alpha, tokens))
            else:
                beams.append((total, tokens, state))
    return sorted(found, key=lambda one: -one[0])[:count]
