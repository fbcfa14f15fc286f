"""Autocast on a CPU: torch.nn's dtypes, compiled too, and on processors where torch.nn raises."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnkit
from rnnkit_kernels.dispatch import autocast
from tests.conftest import BFLOAT16_LSTM, NATIVE
from tests.nn.layers import STANDARD, differentiable, gradients, random_state, tensors, twins
from tests.nn.test_imports import run

LENGTHS = torch.tensor([4, 2])
BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
RUNS_IN_TORCH = [kind for kind in STANDARD if kind != "LSTM" or BFLOAT16_LSTM]


def results(layer: Any, form: str, x: Tensor, hx: Any = None) -> list[Tensor]:
    with torch.autocast("cpu", BFLOAT16):
        if form == "lengths":
            return tensors(layer(x, hx, lengths=LENGTHS))
        if form == "packed":
            return differentiable(layer(pack_padded_sequence(x, LENGTHS), hx))
        return tensors(layer(x, hx))


def dtypes(found: list[Tensor]) -> list[torch.dtype]:
    return [value.dtype for value in found]


@pytest.mark.parametrize("form", ["batched", "packed"])
@pytest.mark.parametrize("kind", RUNS_IN_TORCH)
def test_the_rule_is_torchs(kind: str, form: str) -> None:
    """Whatever dtypes input, states and weights have."""
    for weights, of_x, of_h, of_c in itertools.product((FLOAT32, BFLOAT16), repeat=4):
        ours, theirs = twins(kind, 3, 4, 2, bidirectional=True, backend="eager")
        x = torch.randn(4, 2, 3).to(of_x)
        states = [
            s.to(d) for s, d in zip(tensors(random_state(ours, 2)), (of_h, of_c), strict=False)
        ]
        hx = tuple(states) if len(states) > 1 else states[0]
        found = [dtypes(results(layer.to(weights), form, x, hx)) for layer in (ours, theirs)]
        assert found[0] == found[1], (weights, of_x, of_h, of_c)


@pytest.mark.compiler
@pytest.mark.parametrize("form", ["batched", "lengths"])
@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in ("LSTM", "GRU") else pytest.param(kind, marks=pytest.mark.slow)
        for kind in STANDARD
    ],
)
def test_a_compiled_layer_keeps_the_dtypes_and_values(kind: str, form: str) -> None:
    torch._dynamo.reset()
    ours, theirs = twins(kind, 3, 4)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 2, 3)
    found = results(compiled, form, x)
    exact = tensors(ours(x, lengths=LENGTHS) if form == "lengths" else ours(x))
    if kind in RUNS_IN_TORCH:
        expected = results(theirs, "packed" if form == "lengths" else form, x)
        assert dtypes(found) == dtypes(expected)
    for a, c in zip(found, exact, strict=True):
        torch.testing.assert_close(a.float(), c, rtol=0.02, atol=0.02)
    leaves = list(ours.parameters())
    for a, c in zip(gradients(found, leaves), gradients(exact, leaves), strict=True):
        assert a.dtype == FLOAT32
        torch.testing.assert_close(a, c, rtol=0.05, atol=0.05)


@pytest.fixture
def _without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autocast, "_LACKS", {BFLOAT16})


@pytest.mark.usefixtures("_without_bfloat16")
def test_an_engine_of_ours_runs_where_onednn_lacks_the_dtype() -> None:
    layer = rnnkit.LSTM(3, 4, 2, bidirectional=True)
    x = torch.randn(4, 2, 3)
    exact = tensors(layer(x))
    found = results(layer, "batched", x)
    assert dtypes(found) == [BFLOAT16] * 3
    for a, c in zip(found, exact, strict=True):
        torch.testing.assert_close(a.float(), c, rtol=2**-8, atol=1e-6)  # one rounding
    leaves = list(layer.parameters())
    for a, c in zip(gradients(found, leaves), gradients(exact, leaves), strict=True):
        torch.testing.assert_close(a, c, rtol=0.02, atol=0.02)
    with torch.autocast("cpu", BFLOAT16):
        decision = rnnkit.explain(layer, x).decision
    assert decision.engine == ("native" if NATIVE else "eager")
    assert "has no torch.bfloat16 on this processor" in decision.reason


@pytest.mark.usefixtures("_without_bfloat16")
def test_what_asked_for_torch_is_told_in_a_sentence() -> None:
    layer = rnnkit.LSTM(3, 4, backend="torch")
    with pytest.raises(RuntimeError, match=r"has no torch.bfloat16 .*use backend=\"auto\""):
        results(layer, "batched", torch.randn(4, 2, 3))
    assert dtypes(results(layer, "lengths", torch.randn(4, 2, 3))) == [FLOAT32] * 3
    with torch.backends.mkldnn.flags(enabled=False):
        assert results(layer, "batched", torch.randn(4, 2, 3))


@pytest.mark.process
def test_a_processor_without_avx512_trains_in_bfloat16() -> None:
    code = """
    import torch, rnnkit
    assert not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    for kind in (torch.nn.LSTM, rnnkit.LSTM):
        layer = kind(3, 4)
        try:
            with torch.autocast("cpu", torch.bfloat16):
                output = layer(torch.randn(4, 2, 3))[0]
            output.float().sum().backward()
            print(output.dtype, layer.weight_hh_l0.grad.dtype)
        except RuntimeError as error:
            print("could not create a primitive" in str(error))
    """
    environment = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    lines = run(code, **environment).splitlines()
    assert lines == ["True", "torch.bfloat16 torch.float32"]


def test_float64_stays_as_it_is() -> None:
    layer = rnnkit.LSTM(3, 4).double()
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    with torch.autocast("cpu", BFLOAT16):
        assert dtypes(tensors(layer(x))) == dtypes(tensors(nn.LSTM(3, 4).double()(x)))


def test_a_packed_output_is_whole() -> None:
    with torch.autocast("cpu", BFLOAT16):
        output, _ = rnnkit.GRU(3, 4, backend="eager")(
            pack_padded_sequence(torch.randn(4, 2, 3), LENGTHS)
        )
    assert isinstance(output, PackedSequence)
    assert output.data.dtype == FLOAT32
