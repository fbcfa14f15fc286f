"""One number of threads gives one training run, bit for bit, wherever its tensors lie."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import needs_engine
from tests.nn.layers import CLASSES, assert_equal

RUNS, STEPS = 20, 2


@pytest.fixture
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=[1, 2])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def train(layer_class: Any, batch: int, ragged: bool) -> list[Tensor]:
    """Losses and last parameters."""
    torch.manual_seed(0)
    # Large enough for two threads: with fewer than 8 sequences they share units, else rows.
    layer = layer_class(40, 72, 2, bidirectional=True, dropout=0.3, backend="native")
    input, lengths = torch.randn(5, batch, 40), torch.randint(0, 6, (batch,))
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.01)
    losses = []
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss = layer(input, lengths=lengths if ragged else None)[0].square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return [*losses, *(parameter.detach() for parameter in layer.parameters())]


@needs_engine
@pytest.mark.slow
@pytest.mark.usefixtures("_deterministic", "_threads")
@pytest.mark.parametrize(("batch", "ragged"), [(3, False), (16, True)])
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_twenty_runs_of_a_number_of_threads_are_one(name: str, batch: int, ragged: bool) -> None:
    first, between = train(CLASSES[name][0], batch, ragged), []
    assert first[0] > first[STEPS - 1]
    for run in range(1, RUNS):
        between.append(torch.empty(1 + 977 * run))  # so that the next tensors lie elsewhere
        assert_equal(train(CLASSES[name][0], batch, ragged), first)
