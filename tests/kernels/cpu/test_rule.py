"""What "auto" takes on a CPU: each answer is one that was measured."""

import pytest
import torch

import rnnkit
from rnnkit_kernels.cpu import rule
from tests.conftest import needs_engine

SLOW_MKL = pytest.mark.parametrize("slow_mkl", [True, False])


@SLOW_MKL
@pytest.mark.parametrize("cell", rule.IN_TORCH)
@pytest.mark.parametrize("trains", [True, False])
def test_the_engine_runs_sequences_of_several_lengths(
    cell: str, trains: bool, slow_mkl: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rule, "mkl_is_slow", lambda: slow_mkl)
    assert rule.faster(cell, 35, 20, 200, trains, ragged=True)[0]


@SLOW_MKL
@pytest.mark.parametrize("cell", rule.IN_TORCH)
def test_the_engine_runs_single_steps_without_gradients_and_torch_small_ones_with_them(
    cell: str, slow_mkl: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rule, "mkl_is_slow", lambda: slow_mkl)
    assert rule.faster(cell, 1, 1, 256, trains=False, ragged=False)[0]
    # oneDNN's LSTM takes longer over one step than the engine's autograd.
    assert rule.faster(cell, 1, 1, 256, trains=True, ragged=False)[0] == (cell == "lstm")
    assert rule.faster(cell, 1, 64, 650, trains=True, ragged=False)[0]


def test_a_dense_lstm_goes_to_whoever_was_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {
        # slow MKL, T, B, H, trains: the engine
        (True, 35, 20, 200, True): False,
        (True, 100, 64, 256, True): True,
        (True, 100, 64, 256, False): False,
        (True, 35, 20, 650, False): False,
        (True, 35, 64, 1024, False): True,
        (True, 50, 1, 256, True): True,
        (False, 35, 20, 200, True): True,
        (False, 35, 20, 650, False): False,
        (False, 35, 20, 200, False): True,
    }
    for (slow_mkl, *shape), expected in measured.items():
        monkeypatch.setattr(rule, "mkl_is_slow", lambda slow_mkl=slow_mkl: slow_mkl)
        assert rule.faster("lstm", *shape, False)[0] == expected, shape


@needs_engine
@pytest.mark.parametrize("batch_first", [False, True])
def test_explain_and_a_call_see_the_same_shape(
    batch_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def faster(*shape: object) -> tuple[bool, str]:
        seen.append(shape[:6])
        return False, "a test says so"

    monkeypatch.setattr(rule, "faster", faster)
    layer, x = rnnkit.LSTM(3, 4, num_layers=2, batch_first=batch_first), torch.randn(7, 2, 3)
    rnnkit.explain(layer, x)
    layer(x)
    steps, batch = (2, 7) if batch_first else (7, 2)
    assert seen == [("lstm", steps, batch, 4, True, False)] * 2


@needs_engine
def test_explain_says_which_and_why() -> None:
    layer = rnnkit.GRU(4, 5)
    told = str(rnnkit.explain(layer, torch.randn(7, 2, 4)))
    assert "runs: the native CPU engine" in told
    assert "measured to be faster" in told
    told = str(rnnkit.explain(layer, torch.randn(1, 2, 4)))
    assert "runs: torch's own implementation" in told
    assert "as fast, or faster" in told
