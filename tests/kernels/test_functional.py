"""Stacks, directions and padding around the operator, against torch's own layers."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from rnnkit_kernels import functional, layers, wavefront
from rnnkit_kernels.dispatch.choice import choose
from rnnkit_kernels.ops.recurrence import recurrence
from rnnkit_kernels.recurrence import backward, forward
from tests.conftest import NATIVE, needs_engine
from tests.kernels.layers import random_layer

NATIVELY = pytest.param("native", marks=needs_engine)
LAYERS = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}


def setup(kind: str, **options: Any) -> tuple[torch.nn.RNNBase, Tensor, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    layer = LAYERS[kind](3, 5, **options)
    directions = 2 if layer.bidirectional else 1
    shape = (layer.num_layers * directions, 4, 5)
    state = tuple(torch.randn(shape) for _ in range(2 if kind == "lstm" else 1))
    return layer, torch.randn(6, 4, 3), state


def run(
    layer: torch.nn.RNNBase, x: Tensor, state: tuple[Tensor, ...], **options: Any
) -> tuple[Tensor, ...]:
    kind = type(layer).__name__.lower()
    hx = state if len(state) > 1 else state[0]
    return getattr(functional, kind)(  # type: ignore[no-any-return]
        x,
        hx,
        layer._flat_weights,
        num_layers=layer.num_layers,
        bidirectional=layer.bidirectional,
        **options,
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["triton", NATIVELY])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_stack_matches_torchs(kind: str, bidirectional: bool, backend: str) -> None:
    layer, x, state = setup(kind, num_layers=2, bidirectional=bidirectional)
    y, *last = run(layer, x, state, backend=backend)
    expected, states = layer(x, state if kind == "lstm" else state[0])
    torch.testing.assert_close(y, expected)
    for a, b in zip(last, states if kind == "lstm" else [states], strict=True):
        torch.testing.assert_close(a, b)
    ours = torch.autograd.grad(y.square().sum(), layer.parameters())
    theirs = torch.autograd.grad(expected.square().sum(), layer.parameters())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("padded", ["triton", NATIVELY])
@pytest.mark.parametrize("backend", ["triton", "torch", NATIVELY])
@pytest.mark.parametrize("kind", LAYERS)
def test_lengths_on_a_device_give_what_lengths_on_the_host_give(
    kind: str, backend: str, padded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The T·B layout that a GPU uses, here on the CPU, padding filled with NaN."""
    layer, x, state = setup(kind, num_layers=2, bidirectional=True)
    lengths = torch.tensor([2, 6, 0, 3])
    past = torch.arange(6)[:, None] >= lengths
    x[past] = float("nan")
    x.requires_grad_()
    expected, *states = run(layer, x, state, lengths=lengths, backend=backend)
    with monkeypatch.context() as patch:
        patch.setattr(layers, "on_host", lambda lengths, decision: False)
        y, *last = run(layer, x, state, lengths=lengths, backend=padded)
    torch.testing.assert_close(y, expected)
    for a, b in zip(last, states, strict=True):
        torch.testing.assert_close(a, b)
    parameters = list(layer.parameters())
    ours = torch.autograd.grad(y.square().sum(), [x, *parameters])
    theirs = torch.autograd.grad(expected.square().sum(), [x, *parameters])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert (ours[0][past] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["transposed", "batch first", "expanded", "odd offset"])
@pytest.mark.parametrize("mode", ["resident", "launch", "data", NATIVELY])
def test_states_and_gradients_may_lie_anyhow(
    layout: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wavefront, "wavefront_plan", lambda *given: None)
    layer, x, _ = setup("lstm", num_layers=2)
    makers = {
        "transposed": lambda: torch.randn(2, 5, 4).transpose(1, 2),
        "batch first": lambda: torch.randn(4, 2, 5).transpose(0, 1),
        "expanded": lambda: torch.randn(2, 1, 5).expand(2, 4, 5),
        "odd offset": lambda: torch.randn(41)[1:].view(2, 4, 5),
    }
    state = (makers[layout](), makers[layout]())
    results = []
    for backend in (mode, "torch"):
        leaves = [value.detach().requires_grad_() for value in state]
        y, h_n, c_n = run(layer, x, tuple(leaves), backend=backend)
        torch.manual_seed(1)
        gradients = [torch.randn(4, 6, 5).transpose(0, 1), torch.randn(5).expand(2, 4, 5)]
        inputs = [*leaves, *layer.parameters()]
        found = torch.autograd.grad([y, h_n], inputs, gradients)
        results.append([y, h_n, c_n, *found])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_every_pointer_lies_on_sixteen_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or Triton would compile anew for a batch whose states start elsewhere."""
    seen = []
    for module in (forward, backward):
        for name in ("resident_forward", "resident_backward"):
            kernel = getattr(module, name, None)
            if kernel is None:
                continue

            class Spy:
                def __getitem__(self, grid: Any, kernel: Any = kernel) -> Any:
                    def launch(*inputs: Any, **constants: Any) -> None:
                        found = tree_leaves(inputs)  # those in bundles too
                        seen.extend(t for t in found if isinstance(t, Tensor) and t.numel())
                        kernel[grid](*inputs, **constants)

                    return launch

            monkeypatch.setattr(module, name, Spy())
    layer = torch.nn.LSTM(3, 5, 2)
    x = torch.randn(6 * 3 * 3 + 1)[1:].view(6, 3, 3)
    state = (torch.randn(2, 3, 5), torch.randn(2, 3, 5))
    y, h_n, _ = run(layer, x, state, backend="triton")
    torch.autograd.grad([y, h_n], layer.parameters(), [torch.randn(y.shape), torch.randn(2, 3, 5)])
    assert len(seen) >= 2 * (8 + 10)
    assert all(tensor.data_ptr() % 16 == 0 for tensor in seen)
    assert all(tensor.is_contiguous() for tensor in seen)


@pytest.mark.parametrize(("setting", "expected"), [("tf32", "tf32"), ("ieee", "ieee")])
def test_precision_follows_torch(
    setting: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", setting)
    layer, x, _ = setup("gru")
    decision = choose("gru", x, layer._flat_weights, False, None, "triton")
    assert decision.plan is not None
    assert decision.plan.precision == expected


def test_plans_are_made_for_the_dtype_of_autocast() -> None:
    layer = torch.nn.LSTM(3, 128)
    x = torch.randn(2, 1, 3)
    assert choose("lstm", x, layer._flat_weights, False, None, "triton").engine == "data"
    with torch.autocast("cpu", torch.float16):
        assert choose("lstm", x, layer._flat_weights, False, None, "triton").engine == "resident"


def test_only_a_pass_that_wants_gradients_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, state = setup("lstm")
    saves = []

    def spy(*inputs: Any) -> Any:
        saves.append(inputs[-2])
        return recurrence(*inputs)

    monkeypatch.setattr(layers, "recurrence", spy)
    y = run(layer, x, state, backend="triton")[0]
    with torch.no_grad():
        quiet = run(layer, x, state, backend="triton")[0]
    layer.requires_grad_(False)
    run(layer, x, state, backend="triton")
    assert saves == [True, False, False]
    assert torch.equal(y, quiet)


def test_backward_without_what_it_needs_says_so() -> None:
    layer = random_layer("lstm").to(torch.float32)
    y = recurrence(*layer.operator_inputs(), "lstm", False, "resident", False, False)[0]
    with pytest.raises(RuntimeError, match="with gradients off"):
        y.sum().backward()


@pytest.mark.parametrize("backend", ["triton", "torch", "auto"])
@pytest.mark.parametrize("batch", [0, 3])
def test_empty_sequences_alone_keep_the_graph(batch: int, backend: str) -> None:
    layer, _, _ = setup("lstm", bidirectional=True)
    x = torch.randn(6, batch, 3, requires_grad=True)
    state = (torch.randn(2, batch, 5), torch.randn(2, batch, 5))
    lengths = torch.zeros(batch, dtype=torch.int64)
    y, h_n, c_n = run(layer, x, state, lengths=lengths, backend=backend)
    assert y.shape == (6, batch, 10)
    assert (y == 0).all()
    assert torch.equal(h_n, state[0])
    assert torch.equal(c_n, state[1])
    (y.sum() + h_n.sum()).backward()
    for leaf in (x, *layer.parameters()):
        assert leaf.grad is not None
        assert (leaf.grad == 0).all()


def test_unknown_nonlinearity_is_named() -> None:
    layer, x, state = setup("rnn")
    with pytest.raises(ValueError, match='"tanh" or "relu", got \'sine\''):
        functional.rnn(x, state[0], layer._flat_weights, nonlinearity="sine")


@pytest.mark.parametrize("backend", ["triton", NATIVELY])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_acts_between_layers_and_only_in_training(
    bidirectional: bool, backend: str
) -> None:
    layer, x, state = setup("gru", num_layers=2, bidirectional=bidirectional)
    options = {"backend": backend, "dropout": 1.0}
    quiet = run(layer, x, state, **options)
    torch.testing.assert_close(quiet[0], layer(x, state[0])[0])
    y, h_n = run(layer, x, state, training=True, **options)
    directions = 1 + bidirectional
    torch.testing.assert_close(h_n[:directions], quiet[1][:directions])
    silent = torch.nn.GRU(5 * directions, 5, bidirectional=bidirectional)
    silent.load_state_dict(
        {k.replace("l1", "l0"): v for k, v in layer.state_dict().items() if "l1" in k}
    )
    nothing = torch.zeros(6, 4, 5 * directions)
    torch.testing.assert_close(y, silent(nothing, state[0][directions:])[0])


def test_autocast_runs_the_kernels_in_its_dtype() -> None:
    layer, x, state = setup("lstm")
    with torch.autocast("cpu", torch.float16):
        y, h_n, c_n = run(layer, x, state, backend="triton")
    assert y.dtype == h_n.dtype == c_n.dtype == torch.float16
    torch.testing.assert_close(y.float(), layer(x, state)[0], rtol=0, atol=5e-3)


def test_backends_give_their_reasons() -> None:
    layer, x, _ = setup("lstm")
    weights = layer._flat_weights
    assert choose("lstm", x, weights, False, None, "auto").engine in ("native", "torch")
    assert choose("lstm", x, weights, False, None, "torch").engine == "torch"
    loop = choose("gru_reset_before", x, weights, False, None, "auto")
    assert loop.engine == ("native" if NATIVE else "eager")
    assert loop.reason == "torch has no gru_reset_before"
    if NATIVE:
        assert choose("lstm", x, weights, False, None, "native").engine == "native"
    else:
        with pytest.raises(RuntimeError, match=r"can't run this layer: .*native engine"):
            choose("lstm", x, weights, False, None, "native")
    triton = choose("lstm", x, weights, False, None, "triton")
    assert triton.engine == "resident"
    assert triton.plan is not None
    with pytest.raises(RuntimeError, match="no projection"):
        choose("lstm", x, weights, True, None, "triton")
    with pytest.raises(RuntimeError, match="float16 and bfloat16, not"):
        choose("lstm", x.double(), [w.double() for w in weights], False, None, "triton")


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_no_sequences_have_gradients_of_zero(cell: str, recompute: bool) -> None:
    layer = random_layer(cell, batch=3).to(torch.float32)
    x, *weights, h0, c0, _ = layer.operator_inputs()[:-2]
    states = [None if t is None else t.detach()[:, :0] for t in (h0, c0)]
    assert x is not None
    inputs = (x.detach()[:, :0].requires_grad_(), *weights, *states, None, None, None)
    y = recurrence(*inputs, cell, False, "eager", True, recompute)[0]
    y.sum().backward()
    for leaf in layer.leaves()[1:5]:
        assert leaf.grad is not None
        assert (leaf.grad == 0).all()


def test_backward_runs_where_the_flag_for_float32_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """64 units stay on chip in TF32 and not in IEEE float32."""
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32")
    layer = random_layer("lstm", hidden=64).to(torch.float32)
    results = recurrence(*layer.operator_inputs(), "lstm", False, "resident", True, False)
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
    found = torch.autograd.grad(results[0].sum(), layer.leaves()[:5])
    eager = recurrence(*layer.operator_inputs(), "lstm", False, "eager", True, False)
    expected = torch.autograd.grad(eager[0].sum(), layer.leaves()[:5])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_states_of_another_dtype_are_cast_under_autocast() -> None:
    layer = torch.nn.LSTM(3, 100).to(torch.float16)
    x = torch.randn(2, 2, 3, dtype=torch.float16)
    state = (torch.randn(1, 2, 100), torch.randn(1, 2, 100))
    with torch.autocast("cpu", torch.float16):
        found = run(layer, x, state, backend="triton")
        expected = run(layer, x, tuple(value.half() for value in state), backend="triton")
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_resets_that_do_not_fit_are_refused() -> None:
    layer, x, state = setup("gru")
    for resets in (torch.zeros(6, 4), torch.zeros(4, 6, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"booleans \(6, 4\), as the input, got"):
            run(layer, x, state, resets=resets)
    with pytest.raises(ValueError, match="not with batch_sizes"):
        run(layer, x, state, resets=torch.zeros(6, 4).bool(), batch_sizes=torch.tensor([4]))
    with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
        run(layer, x[:0], state, resets=torch.zeros(0, 4).bool())


@pytest.mark.parametrize("backend", ["resident", "launch", "eager", NATIVELY])
@pytest.mark.parametrize("kind", LAYERS)
def test_results_may_be_changed_in_place(kind: str, backend: str) -> None:
    layer, x, state = setup(kind)
    found = []
    for inplace in (True, False):
        results = run(layer, x, state, backend=backend)
        changed = [value.mul_(3) if inplace else value * 3 for value in results]
        loss = sum(value.square().sum() for value in changed)
        found.append(torch.autograd.grad(loss, layer.parameters()))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("backend", ["triton", "resident", "launch"])
def test_the_interpreter_is_asked_for_no_bfloat16(backend: Any, autocast: bool) -> None:
    layer, x, state = setup("lstm")
    if not autocast:
        layer, x, state = layer.bfloat16(), x.bfloat16(), tuple(v.bfloat16() for v in state)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        pytest.raises(RuntimeError, match=r"can't compute in torch.bfloat16.*use float32"),
    ):
        run(layer, x, state, backend=backend)


def test_the_interpreter_takes_no_bfloat16_for_a_vocabulary() -> None:
    hidden, weight = torch.randn(6, 8).bfloat16(), torch.randn(40, 8).bfloat16()
    target = torch.randint(40, (6,))
    with pytest.raises(RuntimeError, match=r"can't compute in torch.bfloat16.*use float32"):
        functional.linear_cross_entropy(hidden, weight, None, target, backend="triton")
