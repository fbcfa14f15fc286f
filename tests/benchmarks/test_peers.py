"""Every peer that a CPU can run does the same work, and says what it can't."""

import importlib.util
from dataclasses import replace

import pytest
import torch

from benchmarks.cases import CASES, DTYPES, Case, select
from benchmarks.parity import Expected
from benchmarks.peers import Peer, peers
from benchmarks.peers import flashrnn as flash
from benchmarks.peers import select as select_peers
from benchmarks.peers.loops import Loop
from benchmarks.peers.torch_layers import cudnn_algorithm
from benchmarks.work import Work, products_in
from rnnkit_kernels.cpu import native
from rnnkit_kernels.cpu.library import library

CPU = torch.device("cpu")
PLAIN = Case("plain", "a test", 5, 3, 4, 6)
ALL = Case("all", "a test", 5, 4, 3, 6, layers=2, directions=2, ragged=True)
NATIVE = ("rnnkit native",) if library() is not None else ()
ON_CPU = ("torch.nn", "rnnkit auto", *NATIVE, "rnnkit eager", "loop in PyTorch")


def error_of(peer: Peer, case: Case, cell: str, dtype: str = "fp32") -> float:
    work = Work.of(case, cell, dtype, CPU)
    assert peer.absent(work) is None
    with products_in(dtype):
        return Expected.of(work).error(peer.prepare(work, "train").everything("train"))


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
@pytest.mark.parametrize("name", ON_CPU)
def test_layers_with_all_options_are_right(name: str, cell: str) -> None:
    assert error_of(peers()[name], ALL, cell) <= 1


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("name", [*ON_CPU, "torch.nn, step by step", "torchrl"])
def test_rollouts_with_resets_are_right(name: str, cell: str) -> None:
    case = replace(PLAIN, steps=7, reset_every=3)
    peer, work = peers()[name], Work.of(case, cell, "fp32", CPU)
    assert work.resets is not None
    assert work.resets[1:].any()
    if name == "torchrl" and (reason := peer.absent(work)) is not None:
        pytest.skip(reason)
    assert error_of(peer, case, cell) <= 1


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_sixteen_bits_are_right(dtype: str) -> None:
    assert error_of(peers()["rnnkit auto"], PLAIN, "lstm", dtype) <= 1


@pytest.mark.parametrize("mode", ["inference", "forward"])
def test_modes_without_gradients_give_the_same_results(mode: str) -> None:
    work = Work.of(ALL, "lstm", "fp32", CPU)
    expected = peers()["torch.nn"].prepare(work, "train").everything("inference")
    for name in ON_CPU:
        found = peers()[name].prepare(work, mode).everything(mode)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.compiler
@pytest.mark.process
def test_a_compiled_loop_gives_the_loops_results() -> None:
    work = Work.of(replace(PLAIN, steps=2), "lstm", "fp32", CPU)
    plain, compiled = (
        Loop(compiled=compiled).prepare(work, "inference").everything("inference")
        for compiled in (False, True)
    )
    for a, b in zip(compiled, plain, strict=True):
        torch.testing.assert_close(a, b)


needs_flashrnn = pytest.mark.skipif(
    importlib.util.find_spec("flashrnn") is None, reason="flashrnn is not installed"
)


@needs_flashrnn
@pytest.mark.parametrize("layout", flash.LAYOUTS)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_flashrnn_gets_its_weights_in_each_backends_order(
    cell: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plain backend permutes whatever order it is told to its own."""
    monkeypatch.setitem(flash.LAYOUTS, "vanilla", flash.LAYOUTS[layout])
    assert error_of(flash.FlashRNN("vanilla"), replace(PLAIN, layers=2), cell) <= 1


@needs_flashrnn
@pytest.mark.parametrize(
    ("backend", "case", "cell", "reason"),
    [
        ("cuda", PLAIN, "lstm", "for GPUs"),
        ("vanilla", PLAIN, "rnn_relu", "has no rnn_relu"),
        ("vanilla", ALL, "lstm", "one direction"),
    ],
)
def test_flashrnn_says_what_it_lacks(backend: str, case: Case, cell: str, reason: str) -> None:
    absent = flash.FlashRNN(backend).absent(Work.of(case, cell, "fp32", CPU))
    assert absent is not None
    assert reason in absent


def test_peers_that_are_not_installed_or_have_no_gpu_are_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    work, known = Work.of(PLAIN, "lstm", "fp32", CPU), peers()
    assert known["torchrl"].absent(work) == "torchrl is not installed"
    assert known["flashrnn cuda_fused"].absent(work) == "flashrnn is not installed"
    assert known["torch.nn without cuDNN"].absent(work) == "cuDNN is for GPUs"
    for name in ("triton", "resident", "data", "counter", "launch"):
        assert "needs a GPU" in (known[f"rnnkit {name}"].absent(work) or "")
    assert "32 steps" in (
        known["torch.compile of a loop"].absent(replace(work, case=replace(PLAIN, steps=33))) or ""
    )


def test_the_native_engine_is_absent_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = peers()["rnnkit native"]
    if NATIVE:
        work = Work.of(PLAIN, "lstm", "fp32", CPU)
        assert peer.absent(work) is None
        assert peer.prepare(work, "inference").engine == "native"
        half = peer.absent(Work.of(PLAIN, "lstm", "bf16", CPU))
        assert "computes in float32 and float64" in (half or "")
    monkeypatch.setattr(native, "_unavailable", lambda cell: "it was never built")
    assert "it was never built" in (peer.absent(Work.of(PLAIN, "gru", "fp32", CPU)) or "")


@pytest.mark.parametrize(
    ("case", "cell", "dtype", "algorithm"),
    [
        ("persistent-1024", "lstm", "fp16", "PERSIST_STATIC"),
        ("persistent-1024", "gru", "fp16", "STANDARD"),
        ("persistent-1024", "lstm", "bf16", "STANDARD"),
        ("persistent-1024-b1", "lstm", "fp16", "STANDARD"),
        ("persistent-1024-b256", "lstm", "fp16", "STANDARD"),
        ("flashrnn-768", "lstm", "fp16", "PERSIST_STATIC"),
        ("small-h-trap", "lstm", "fp32", "PERSIST_STATIC_SMALL_H forward, STANDARD backward"),
        ("many-rows", "gru", "bf16", "PERSIST_STATIC_SMALL_H"),
        ("tagger", "lstm", "fp32", "STANDARD"),
        ("odd", "rnn_tanh", "fp32", "PERSIST_STATIC_SMALL_H forward, STANDARD backward"),
        ("odd", "lstm", "fp32", "STANDARD"),
    ],
)
def test_pytorchs_rule_for_cudnn(case: str, cell: str, dtype: str, algorithm: str) -> None:
    assert cudnn_algorithm(CASES[case], cell, DTYPES[dtype][0], 90) == algorithm


def test_lengths_spread_and_reach_all_steps() -> None:
    for case in CASES.values():
        lengths = case.lengths()
        assert len(lengths) == case.batch
        assert max(lengths) == case.steps
        assert min(lengths) >= (case.steps // 4 if case.ragged else case.steps)
        if case.ragged:
            assert len(set(lengths)) >= min(case.batch, case.steps) / 2


def test_padding_is_zero_and_numbers_are_the_same_in_every_dtype() -> None:
    single, half = (Work.of(ALL, "lstm", dtype, CPU) for dtype in ("fp32", "bf16"))
    assert torch.equal(single.x.bfloat16(), half.x)
    assert all(
        torch.equal(a.bfloat16(), b) for a, b in zip(single.arriving, half.arriving, strict=True)
    )
    assert single.lengths is not None
    for b, length in enumerate(single.lengths):
        assert single.x[length:, b].abs().sum() == single.arriving[0][length:, b].abs().sum() == 0
        assert (single.x[:length, b] != 0).all()


def test_operations_of_a_known_shape() -> None:
    case = Case("known", "a test", 7, 2, 3, 5, layers=2)
    of_input, of_recurrence = case.products("lstm")
    assert of_input == 2 * 14 * 20 * (3 + 5)
    assert of_recurrence == 2 * 14 * 20 * 5 * 2
    assert case.operations("lstm", "train") == 3 * (of_input + of_recurrence)


def test_unknown_names_are_refused_with_those_known() -> None:
    with pytest.raises(ValueError, match=r"no case is called 'ptb-tiny': .*ptb-small"):
        select(["ptb-tiny"])
    with pytest.raises(ValueError, match=r"no peer is called 'cudnn': .*torch\.nn"):
        select_peers(["cudnn"])
    assert [case.name for case in select(["ptb-*"])] == ["ptb-medium", "ptb-small", "ptb-large"]


def test_the_rule_for_errors_by_hand() -> None:
    """Twice the plain loop's error, 8 units, and for sums over 15 rows √15/2 units of float32."""
    work = Work.of(PLAIN, "lstm", "bf16", CPU)
    expected = Expected.of(work)
    plain = Loop(compiled=False, ahead=False).prepare(work, "train").everything("train")
    bits = {"bf16": 2.0**-7, "fp32": 2.0**-23}
    for i, (a, b) in enumerate(zip(plain, expected.exact, strict=True)):
        own = float((a - b).abs().max())
        units = 8 * bits["bf16"] + (15**0.5 / 2 * bits["fp32"] if i >= 6 else 0)
        largest = float(b.abs().max())
        assert expected.allowed[i] == pytest.approx(2 * own + units * largest)
        spoilt = [
            c + (1.01 * expected.allowed[i] if j == i else 0) for j, c in enumerate(expected.exact)
        ]
        assert expected.error(spoilt) == pytest.approx(1.01)
    assert expected.error(expected.exact) == 0
