"""Stacks, directions and padding around the operator, against torch's own layers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rnnkit_kernels import functional
from rnnkit_kernels.backend import choose

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


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_triton_stack_matches_torch(kind: str, bidirectional: bool) -> None:
    layer, x, state = setup(kind, num_layers=2, bidirectional=bidirectional)
    y, *last = run(layer, x, state, backend="triton")
    expected, states = layer(x, state if kind == "lstm" else state[0])
    torch.testing.assert_close(y, expected)
    for a, b in zip(last, states if kind == "lstm" else [states], strict=True):
        torch.testing.assert_close(a, b)
    ours = torch.autograd.grad(y.square().sum(), layer.parameters())
    theirs = torch.autograd.grad(expected.square().sum(), layer.parameters())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_lengths_on_a_device_give_what_lengths_on_the_host_give(kind: str) -> None:
    """The T·B layout that a GPU uses, here on the CPU, padding filled with NaN."""
    layer, x, state = setup(kind, num_layers=2, bidirectional=True)
    lengths = torch.tensor([2, 6, 0, 3])
    past = torch.arange(6)[:, None] >= lengths
    x[past] = float("nan")
    x.requires_grad_()
    expected, *states = run(layer, x, state, lengths=lengths)
    options = {"cell": "rnn_tanh" if kind == "rnn" else kind, "backend": "triton"}
    decision = choose(options["cell"], x, layer._flat_weights, False, lengths, "triton")
    assert decision.engine == "resident"

    def stack(data: Tensor, start: tuple[Tensor, ...], rows: Any) -> Any:
        outputs, last = data, []
        for i in range(4):
            if i % 2 == 0:
                inputs, outputs = outputs, torch.empty(0)
            weights = layer._flat_weights[4 * i : 4 * i + 4]
            own = tuple(value[i] for value in start)
            y, final = functional._layer(
                options["cell"], decision, inputs, (*weights, None), own, rows, i % 2 == 1
            )
            outputs = y if i % 2 == 0 else torch.cat([outputs, y], -1)
            last.append(final)
        return outputs, tuple(torch.stack(values) for values in zip(*last, strict=True))

    y, last = functional._all_rows(stack, x, state, lengths)
    torch.testing.assert_close(y, expected)
    for a, b in zip(last, states, strict=True):
        torch.testing.assert_close(a, b)
    parameters = list(layer.parameters())
    ours = torch.autograd.grad(y.square().sum(), [x, *parameters])
    theirs = torch.autograd.grad(expected.square().sum(), [x, *parameters])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert (ours[0][past] == 0).all()


def test_dropout_acts_between_layers_and_only_in_training() -> None:
    layer, x, state = setup("gru", num_layers=2)
    options = {"backend": "triton", "dropout": 1.0}
    quiet = run(layer, x, state, **options)
    torch.testing.assert_close(quiet[0], layer(x, state[0])[0])
    y, h_n = run(layer, x, state, training=True, **options)
    torch.testing.assert_close(h_n[0], quiet[1][0])
    silent, _ = torch.nn.GRU(5, 5), None
    silent.load_state_dict(
        {k.replace("l1", "l0"): v for k, v in layer.state_dict().items() if "l1" in k}
    )
    torch.testing.assert_close(y, silent(torch.zeros(6, 4, 5), state[0][1:])[0])


def test_autocast_runs_the_kernels_in_its_dtype() -> None:
    layer, x, state = setup("lstm")
    with torch.autocast("cpu", torch.float16):
        y, h_n, c_n = run(layer, x, state, backend="triton")
    assert y.dtype == h_n.dtype == c_n.dtype == torch.float16
    torch.testing.assert_close(y.float(), layer(x, state)[0], rtol=0, atol=5e-3)


def test_backends_give_their_reasons() -> None:
    layer, x, _ = setup("lstm")
    weights = layer._flat_weights
    assert choose("lstm", x, weights, False, None, "auto").engine == "torch"
    assert choose("lstm", x, weights, False, None, "torch").engine == "torch"
    assert choose("gru_reset_before", x, weights, False, None, "auto").engine == "eager"
    triton = choose("lstm", x, weights, False, None, "triton")
    assert triton.engine == "resident"
    assert triton.plan is not None
    with pytest.raises(RuntimeError, match="no projection"):
        choose("lstm", x, weights, True, None, "triton")
    with pytest.raises(RuntimeError, match="float16 and bfloat16, not"):
        choose("lstm", x.double(), [w.double() for w in weights], False, None, "triton")
