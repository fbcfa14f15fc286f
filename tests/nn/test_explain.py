"""`explain`: the engine that runs a call, and the reason."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnkit
from tests.nn.layers import STANDARD, build


@pytest.mark.parametrize("kind", STANDARD)
def test_the_cpu_runs_torchs_own_layers(kind: str) -> None:
    layer, input = build(kind, 3, 4), torch.randn(5, 2, 3)
    found = rnnkit.explain(layer, input)
    assert found.decision.engine == "torch"
    assert str(found).splitlines() == [
        repr(layer),
        "  runs: torch's own implementation",
        "  because: the kernels are for GPUs; on a CPU torch's own layers run",
    ]
    packed = pack_padded_sequence(input, torch.tensor([5, 3]))
    assert rnnkit.explain(layer, packed).decision == found.decision
    lengths = torch.tensor([5, 3])
    assert rnnkit.explain(layer, input, lengths=lengths).decision == found.decision


def test_what_torch_lacks_runs_the_loop() -> None:
    layer = rnnkit.GRU(3, 4, reset_after=False)
    found = rnnkit.explain(layer, torch.randn(5, 2, 3))
    assert found.decision.engine == "eager"
    assert "the loop in PyTorch" in str(found)
    assert "torch has no gru_reset_before" in str(found)


def test_a_backend_that_was_asked_for_is_named() -> None:
    layer = rnnkit.LSTM(3, 4, backend="torch")
    assert 'backend="torch" was asked for' in str(rnnkit.explain(layer, torch.randn(5, 2, 3)))


def test_it_raises_what_the_call_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    layer = rnnkit.LSTM(3, 4, backend="triton")
    with pytest.raises(RuntimeError, match='backend="triton" needs a GPU'):
        rnnkit.explain(layer, torch.randn(5, 2, 3))


@pytest.mark.parametrize("module", [nn.LSTM(3, 4), nn.Linear(3, 4), nn.Sequential()], ids=repr)
def test_other_modules_are_refused_by_name(module: nn.Module) -> None:
    with pytest.raises(TypeError, match=f"got {type(module).__name__}"):
        rnnkit.explain(module, torch.randn(5, 2, 3))
