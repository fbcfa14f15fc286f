"""`explain`: the engine that runs a call, and the reason."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnkit
from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.cpu.library import missing
from tests.conftest import NATIVE, needs_engine
from tests.nn.layers import STANDARD, build

LOOP = "native" if NATIVE else "eager"  # of what torch lacks


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_engine), False])
@pytest.mark.parametrize("kind", STANDARD)
def test_the_cpu_runs_the_native_engine_or_torchs_own_layers(
    kind: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "measured to be slower here" if NATIVE else missing(CELLS["lstm"])
    if native:
        reason = "measured to be faster here"
    monkeypatch.setattr("rnnkit_kernels.cpu.rule.faster", lambda *_, **__: (native, reason))
    layer, input = build(kind, 3, 4), torch.randn(5, 2, 3)
    found = rnnkit.explain(layer, input)
    assert found.decision.engine == ("native" if native else "torch")
    assert str(found).splitlines() == [
        repr(layer),
        "  runs: the native CPU engine" if native else "  runs: torch's own implementation",
        f"  because: {reason}",
    ]
    packed = pack_padded_sequence(input, torch.tensor([5, 3]))
    assert rnnkit.explain(layer, packed).decision == found.decision
    lengths = torch.tensor([5, 3])
    assert rnnkit.explain(layer, input, lengths=lengths).decision == found.decision


def test_what_torch_lacks_runs_the_native_engine_or_the_loop() -> None:
    layer = rnnkit.GRU(3, 4, reset_after=False)
    found = rnnkit.explain(layer, torch.randn(5, 2, 3))
    assert found.decision.engine == LOOP
    assert ("the native CPU engine" if NATIVE else "the loop in PyTorch") in str(found)
    assert "torch has no gru_reset_before" in str(found)


@pytest.mark.parametrize(
    ("options", "engine", "reason"),
    [
        ({"peephole": True}, LOOP, "torch has no lstm_peephole"),
        ({"coupled": True}, LOOP, "torch has no lstm_coupled"),
        ({"zoneout": (0.0, 0.1)}, LOOP, "torch has no zoneout"),
        ({"recompute": True}, LOOP, "torch has no recomputation of gates"),
        ({"layer_norm": True}, "reference", "layer normalisation sums over all units"),
        ({"weight_drop": 0.5, "backend": "torch"}, "torch", 'backend="torch" was asked for'),
        ({"zoneout": 0.0, "backend": "torch"}, "torch", 'backend="torch" was asked for'),
    ],
    ids=str,
)
def test_options_name_what_torch_lacks(options: dict[str, Any], engine: str, reason: str) -> None:
    layer = rnnkit.LSTM(3, 4, **options)
    input, state = torch.randn(5, 2, 3), torch.get_rng_state()
    found = rnnkit.explain(layer, input)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.decision.engine == engine
    assert reason in str(found)
    assert repr(layer) in str(found)


@pytest.mark.parametrize(
    ("hidden", "batch", "engine"), [(20, 2, "resident"), (300, 2, "data"), (300, 4096, "launch")]
)
def test_a_plan_is_printed_with_its_tiles(
    hidden: int, batch: int, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    layer = rnnkit.LSTM(3, hidden, peephole=True, zoneout=0.1, backend="triton")
    layer = layer.to(torch.float16)
    found = rnnkit.explain(layer, torch.randn(5, batch, 3, dtype=torch.float16))
    assert found.decision.engine == engine
    plan = found.decision.plan
    assert plan is not None
    _, runs, because, forward, backward, precision = str(found).splitlines()
    assert runs.startswith("  runs: Triton")
    assert because == f"  because: {plan.reason}"
    tiles = plan.forward
    assert forward == (
        f"  forward: tiles of {tiles.block_h} units × {tiles.block_b} sequences, "
        f"{tiles.num_warps} warps"
    )
    assert backward.startswith("  backward: tiles of ")
    assert precision == f"  float32 products: {plan.precision}"


def test_a_backend_that_was_asked_for_is_named() -> None:
    layer = rnnkit.LSTM(3, 4, backend="torch")
    assert 'backend="torch" was asked for' in str(rnnkit.explain(layer, torch.randn(5, 2, 3)))


def test_it_raises_what_the_call_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    layer = rnnkit.LSTM(3, 4, backend="triton")
    with pytest.raises(RuntimeError, match='backend="triton" needs a GPU'):
        rnnkit.explain(layer, torch.randn(5, 2, 3))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert rnnkit.explain(layer, torch.randn(5, 2, 3)).decision.engine == "resident"
    with pytest.raises(RuntimeError, match=r"can't compute in torch.bfloat16.*interpreter"):
        rnnkit.explain(layer.bfloat16(), torch.randn(5, 2, 3).bfloat16())


@pytest.mark.parametrize("module", [nn.LSTM(3, 4), nn.Linear(3, 4), nn.Sequential()], ids=repr)
def test_other_modules_are_refused_by_name(module: nn.Module) -> None:
    with pytest.raises(TypeError, match=f"got {type(module).__name__}"):
        rnnkit.explain(module, torch.randn(5, 2, 3))


def test_a_model_is_told_layer_by_layer() -> None:
    model = nn.ModuleDict(
        {
            "ours": rnnkit.LSTM(3, 4, 2, backend="torch"),
            "step": rnnkit.GRUCell(3, 4),
            "theirs": nn.GRU(3, 4),
            "patched": nn.RNNCell(3, 4),
            "head": nn.Linear(4, 2),
        }
    )
    model["again"] = model["theirs"]
    model["patched"].forward = print
    found = rnnkit.explain(model)
    assert list(found.rnnkits) == ["ours", "step"]
    assert list(found.torchs) == ["theirs", "patched"]
    assert str(found).splitlines()[:-1] == [
        "2 rnnkit's",
        "  ours: LSTM(3, 4, num_layers=2, backend='torch')",
        "  step: GRUCell(3, 4)",
        "2 torch's",
        "  theirs: GRU(3, 4): replace_rnns replaces it",
        "  patched: RNNCell(3, 4): replace_rnns leaves it: its forward was replaced",
    ]
    assert "quantize_dynamic" in str(found)
    assert "rnnkit.to_torch(model)" in str(found)
    left = rnnkit.replace_rnns(model).left
    assert found.torchs["patched"].endswith(left["patched"])
    assert list(rnnkit.explain(model).rnnkits) == ["ours", "step", "theirs"]
    rnnkit.to_torch(model)
    assert "to_torch" not in str(rnnkit.explain(model))


def test_a_model_without_recurrent_layers_and_a_bare_layer() -> None:
    assert str(rnnkit.explain(nn.Linear(3, 4))) == "no recurrent layers"
    text = str(rnnkit.explain(nn.LSTM(3, 4)))
    assert text.endswith("\n  the module itself: LSTM(3, 4): replace_rnns needs a module around it")
    assert "the module itself: GRU(3, 4), backend='auto'" in str(rnnkit.explain(rnnkit.GRU(3, 4)))
