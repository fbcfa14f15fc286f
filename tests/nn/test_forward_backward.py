"""Probabilities of stretches, against all paths of the CRF and against its partition function."""

import copy
import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rnnkit.nn import CRF
from tests.nn.test_crf import (
    MASKS,
    SPREADS,
    B,
    K,
    T,
    build,
    mask_of,
    paths_and_scores,
    scheme,
)


@pytest.mark.parametrize("masked", MASKS)
@pytest.mark.parametrize("spread", SPREADS)
def test_stretches_have_the_share_of_all_paths_that_pass_through_them(
    masked: str, spread: str
) -> None:
    torch.manual_seed(9)
    model = build(spread, constraints=scheme())
    emissions, mask = torch.randn(T, B, K, dtype=torch.float64) * SPREADS[spread], mask_of(masked)
    best = model.decode(emissions, mask)
    stretches = [[*itertools.combinations(range(len(path) + 1), 2)] for path in best]
    found = model.stretch_probabilities(emissions, best, stretches, mask)
    for b, path in enumerate(best):
        steps = emissions[:, b] if mask is None else emissions[mask[:, b], b]
        paths, scores = paths_and_scores(model, steps, constrained=True)
        shares = scores.softmax(0)
        for (first, behind), value in zip(stretches[b], found[b], strict=True):
            same = (paths[:, first:behind] == torch.tensor(path[first:behind])).all(1)
            assert value == pytest.approx(float(shares[same].sum()), rel=1e-9, abs=1e-12)


def test_stretches_of_a_line_as_long_as_a_book_are_exact_and_take_two_passes() -> None:
    torch.manual_seed(2)
    steps = 3000
    model = CRF(K)
    torch.nn.init.normal_(model.transitions)
    emissions = 40 * torch.randn(steps, 1, K)  # log Z is about 10⁵: float32 has no decimals there
    path = torch.randint(K, (steps,)).tolist()
    places = [(t, t + 2) for t in range(0, steps, 2)]
    passes = Counted()
    with passes:
        (found,) = model.stretch_probabilities(emissions, [path], [places])
    assert passes.counts["aten::logsumexp"] <= steps + 1  # however many stretches there are
    wide = copy.deepcopy(model).double()
    emissions = emissions.double()
    for n in (0, 700, 1499):
        first, behind = places[n]
        held = emissions.clone()
        held[first:behind] = -math.inf
        held[range(first, behind), 0, path[first:behind]] = emissions[
            range(first, behind), 0, path[first:behind]
        ]
        share = wide.log_partition(held) - wide.log_partition(emissions)
        assert found[n] == pytest.approx(float(share.detach().exp()), rel=1e-6)


class Counted(TorchDispatchMode):
    """Counts operators."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.counts[func.name().partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))
