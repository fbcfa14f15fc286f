"""Segments against calls of one step each, whose state is chosen outside."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rnnkit_kernels import layers, resets
from rnnkit_kernels.dispatch.choice import Decision
from rnnkit_kernels.functional import recurrent
from rnnkit_kernels.resets import find_segments

STEPS, BATCH, FEATURES, HIDDEN = 7, 4, 3, 5
LENGTHS = torch.tensor([7, 0, 3, 5])
RESETS = torch.tensor(
    [
        [1, 0, 0, 0],
        [0, 1, 0, 1],
        [1, 0, 1, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 0],
        [1, 0, 0, 1],
        [1, 0, 0, 1],
    ]
).bool()
# How the engine that runs finds its rows: by what the host reads, by what it may not read, and by
# the definition, step by step.
WAYS = ("segments", "padded", "definition")


def call(
    cell: str, directions: int, lengths: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...], list[Tensor], dict[str, Any]]:
    torch.manual_seed(0)
    gates, states = {"lstm": (4, 2), "gru": (3, 1)}[cell]
    x = torch.randn(STEPS, BATCH, FEATURES, dtype=torch.float64)
    weights = []
    for _ in range(directions):
        for shape in ((gates * HIDDEN, FEATURES), (gates * HIDDEN, HIDDEN)):
            weights.append(torch.randn(shape, dtype=torch.float64))
        weights += [torch.randn(gates * HIDDEN, dtype=torch.float64) for _ in range(2)]
    hx = torch.randn(states, directions, BATCH, HIDDEN, dtype=torch.float64)
    anew = torch.randn(states, directions, HIDDEN, dtype=torch.float64)
    options = {"bidirectional": directions == 2, "lengths": lengths, "backend": "eager"}
    return x, tuple(hx), tuple(anew), weights, options


def by_steps(
    cell: str,
    x: Tensor,
    hx: tuple[Tensor, ...],
    anew: tuple[Tensor, ...],
    weights: list[Tensor],
    lengths: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Calls of one step and one direction: what is reset and what is over is chosen by hand."""
    ends = torch.full((BATCH,), STEPS) if lengths is None else lengths
    outputs, last = [], []
    for m in range(len(weights) // 4):
        own, state = weights[4 * m : 4 * m + 4], [value[m : m + 1] for value in hx]
        found = [x.new_zeros(BATCH, HIDDEN)] * STEPS
        for t in reversed(range(STEPS)) if m else range(STEPS):
            boundary = t + m  # between this step and the one before it in the direction
            if boundary < STEPS:
                cut = (RESETS[boundary] & (boundary < ends)).view(1, BATCH, 1)
                state = [torch.where(cut, a[m], s) for a, s in zip(anew, state, strict=True)]
            y, new = recurrent(cell, x[t : t + 1], tuple(state), own, backend="eager")
            runs = (t < ends).view(1, BATCH, 1)
            state = [torch.where(runs, a, b) for a, b in zip(new, state, strict=True)]
            found[t] = (y * runs)[0]
        outputs.append(torch.stack(found))
        last.append(state)
    return torch.cat(outputs, -1), tuple(torch.cat(parts) for parts in zip(*last, strict=True))


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("way", WAYS)
def test_resets_equal_calls_of_one_step(
    way: str, cell: str, directions: int, lengths: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, hx, anew, weights, options = call(cell, directions, lengths)
    expected, ends = by_steps(cell, x, hx, anew, weights, lengths)
    if way == "padded":
        monkeypatch.setattr(resets, "_may_read", lambda values: False)
    elif way == "definition":
        monkeypatch.setattr(resets, "by_definition", lambda extras: True)
        monkeypatch.setattr(layers, "choose", lambda *given: Decision("reference", ""))
    y, last = recurrent(cell, x, hx, weights, resets=RESETS, hx_reset=anew, **options)
    torch.testing.assert_close(y, expected)
    for a, b in zip(last, ends, strict=True):
        torch.testing.assert_close(a, b)


def test_segments_of_known_resets() -> None:
    found = find_segments(RESETS, LENGTHS, on_host=True)
    assert found is not None
    pairs = list(zip(found.sequence.tolist(), found.begins.tolist(), strict=True))
    # Sequence 0: steps 0–1, 2–4, 5, 6; 2: 0–1, 2; 3: 0, 1–4. Equal ones stay in their order.
    assert pairs == [(3, 1), (0, 2), (0, 0), (2, 0), (3, 0), (2, 2), (0, 5), (0, 6)]
    assert found.batch_sizes.tolist() == [8, 4, 2, 1]
    assert find_segments(RESETS[:1], None, on_host=True) is None
    assert find_segments(RESETS, torch.tensor([1, 0, 1, 1]), on_host=True) is None
    padded = find_segments(RESETS, LENGTHS, on_host=False)
    assert padded is not None
    assert sorted(padded.source.tolist()) == list(range(STEPS * BATCH))
    assert int(padded.batch_sizes.sum()) == STEPS * BATCH


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("backend", ["auto", "triton", "eager", "torch"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_gpu_gives_what_calls_of_one_step_give(
    cell: str, backend: str, lengths: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
    x, hx, anew, weights, options = call(cell, 2, lengths)
    expected, ends = by_steps(cell, x, hx, anew, weights, lengths)

    def moved(values: Any) -> list[Tensor]:
        return [value.float().to("cuda") for value in values]

    options |= {"backend": backend, "lengths": None if lengths is None else lengths.to("cuda")}
    given = (x.float().to("cuda"), tuple(moved(hx)), moved(weights))
    anew_there = {"resets": RESETS.to("cuda"), "hx_reset": tuple(moved(anew))}
    y, last = recurrent(cell, *given, **anew_there, **options)
    for a, b in zip((y, *last), (expected, *ends), strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-4, atol=1e-5)
