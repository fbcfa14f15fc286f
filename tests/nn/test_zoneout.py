"""Zoneout while training: who keeps its state, how often, and on what that depends."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.func import functional_call, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnkit
from rnnkit_kernels import layers
from tests.nn.layers import CLASSES, assert_close, assert_equal, gradients, leaf, random_state
from tests.nn.layers import tensors as tensors_of

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "LSTM": ("LSTM", {}),
    "LSTM coupled": ("LSTM", {"coupled": True, "peephole": True}),
    "LSTM normalised": ("LSTM", {"layer_norm": True}),
    "GRU": ("GRU", {}),
    "GRU reset before": ("GRU", {"reset_after": False}),
    "RNN": ("RNN", {}),
}
STEPS, BATCH, UNITS = 5, 4, 64
FEW = ["LSTM", "GRU reset before"]  # kinds for what every kind shares


def build(kind: str, *sizes: int, **options: Any) -> Any:
    name, extra = KINDS[kind]
    return CLASSES[name][0](*sizes, **extra, **{"dtype": torch.float64} | options)


def draw(layer: Any, *arguments: Any, seed: int = 5, **options: Any) -> Any:
    """The layer's results for one seed of torch's generator."""
    torch.manual_seed(seed)
    return layer(*arguments, **options)


def shares(layer: Any) -> tuple[float, ...]:
    return layer.zoneout if isinstance(layer.zoneout, tuple) else (layer.zoneout,)


def trajectories(layer: Any, input: Tensor, hx: Any) -> list[list[Tensor]]:
    """Each state (B, H) before the first step and after each: a shorter call draws the same."""
    found = [[value[0] for value in tensors_of(hx)]]
    for steps in range(1, STEPS + 1):
        found.append([value[0] for value in tensors_of(draw(layer, input[:steps], hx)[1])])
    return [list(values) for values in zip(*found, strict=True)]


@pytest.mark.parametrize("zoneout", [0.3, (0.1, 0.6), (0.0, 0.5)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_keeps_its_state_or_takes_the_cells(kind: str, zoneout: Any) -> None:
    if isinstance(zoneout, tuple) and KINDS[kind][0] != "LSTM":
        zoneout = zoneout[1]
    layer = build(kind, 3, UNITS, zoneout=zoneout)
    plain = build(kind, 3, UNITS)
    plain.load_state_dict(layer.state_dict())
    input = torch.randn(STEPS, BATCH, 3, dtype=torch.float64)
    hx = random_state(layer, BATCH)
    states = trajectories(layer, input, hx)
    torch.testing.assert_close(draw(layer, input, hx)[0], torch.stack(states[0][1:]))
    probabilities = shares(layer) * (len(states) if isinstance(zoneout, float) else 1)
    for probability, values, place in zip(probabilities, states, range(2), strict=False):
        kept = 0
        for t in range(STEPS):
            before = tuple(state[t][None] for state in states)
            new = plain(input[t : t + 1], before if len(before) > 1 else before[0])[1]
            fresh = tensors_of(new)[place][0]
            stays = (values[t + 1] - values[t]).abs() < 1e-12
            torch.testing.assert_close(values[t + 1], torch.where(stays, values[t], fresh))
            kept += int(stays.sum())
        count = STEPS * BATCH * UNITS
        spread = (count * probability * (1 - probability)) ** 0.5
        assert abs(kept - count * probability) <= 5 * spread


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_sequence_layer_direction_and_state_draws_its_own(kind: str) -> None:
    layer = build(kind, 3, UNITS, 2, bidirectional=True, zoneout=0.5)
    input = torch.randn(1, BATCH, 3, dtype=torch.float64)
    hx = random_state(layer, BATCH)
    last = tensors_of(draw(layer, input, hx)[1])
    masks = [
        (a - b).abs() < 1e-12 for a, b in zip(last, tensors_of(hx), strict=True)
    ]  # (layers·directions, B, H) each
    rows = [row for mask in masks for row in mask.flatten(0, 1)]
    single = build(kind, 3, UNITS, zoneout=0.5)
    input, start = torch.randn(STEPS, BATCH, 3, dtype=torch.float64), random_state(single, BATCH)
    hidden = trajectories(single, input, start)[0]
    kept = [(a - b).abs() < 1e-12 for a, b in zip(hidden[1:], hidden, strict=False)]
    assert len({tuple(row.tolist()) for row in rows}) == len(rows) == 4 * BATCH * len(masks)
    assert len({tuple(row.tolist()) for mask in kept for row in mask}) == STEPS * BATCH


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_certain_zoneout_keeps_the_initial_state(kind: str, training: bool) -> None:
    layer = build(kind, 3, 5, 2, zoneout=1.0).train(training)
    input, hx = torch.randn(STEPS, BATCH, 3, dtype=torch.float64), random_state(layer, BATCH)
    output, last = layer(input, hx)
    assert_equal(list(tensors_of(last)), tensors_of(hx))
    assert torch.equal(output, tensors_of(hx)[0][1].expand(STEPS, BATCH, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_no_zoneout_is_the_plain_layer(kind: str) -> None:
    layer, plain = build(kind, 3, 5, zoneout=0.0), build(kind, 3, 5)
    plain.load_state_dict(layer.state_dict())
    input = torch.randn(STEPS, BATCH, 3, dtype=torch.float64)
    assert_equal(layer(input), plain(input))


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_draws_nothing(kind: str) -> None:
    layer = build(kind, 3, 5, zoneout=0.5).eval()
    input = torch.randn(STEPS, BATCH, 3, dtype=torch.float64)
    before = torch.get_rng_state()
    assert_equal(layer(input), layer(input))
    assert torch.equal(torch.get_rng_state(), before)
    layer.train()
    assert not torch.equal(layer(input)[0], layer(input)[0])


def test_the_attribute_may_change_after_the_layer_is_built() -> None:
    layer = build("GRU", 3, 5, zoneout=0.5)
    input = torch.randn(STEPS, BATCH, 3, dtype=torch.float64)
    plain = build("GRU", 3, 5)
    plain.load_state_dict(layer.state_dict())
    layer.zoneout = 0.0
    assert_equal(layer(input), plain(input))


LENGTHS = torch.tensor([2, 5, 3, 4])


def forms(
    layer: Any, input: Tensor, hx: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Any]]:
    """The same real steps in other storage, each from the same seed."""
    yield "lengths", draw(layer, input, hx, lengths=LENGTHS)
    packed, last = draw(layer, pack_padded_sequence(input, LENGTHS, enforce_sorted=False), hx)
    yield "packed", (pad_packed_sequence(packed)[0], last)
    with monkeypatch.context() as patch:  # the T·B rows that a GPU runs
        patch.setattr(layers, "on_host", lambda *_: False)
        yield "rows for every step", draw(layer, input, hx, lengths=LENGTHS)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    yield "traced", draw(compiled, input, hx, lengths=LENGTHS)


@pytest.mark.compiler
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("kind", FEW)
def test_masks_depend_neither_on_storage_nor_on_the_order_of_sorting(
    kind: str, both: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout between layers too: rnnkit's engines draw it the same way."""
    layer = build(kind, 3, 5, 2, bidirectional=both, zoneout=0.3, dropout=0.4)
    input, hx = torch.randn(STEPS, BATCH, 3, dtype=torch.float64), random_state(layer, BATCH)
    outside = torch.arange(STEPS)[:, None] >= LENGTHS
    found = dict(forms(layer, input, hx, monkeypatch))
    for name, result in found.items():
        assert_close(result, found["lengths"], rtol=1e-12, atol=1e-13)
        assert torch.count_nonzero(result[0][outside]) == 0, name
    if both:
        return
    # One way, real steps see nothing of what comes after them.
    dense = draw(layer, input, hx)[0]
    for lengths in (LENGTHS, LENGTHS.flip(0), torch.tensor([1, 0, 5, 5])):
        past = torch.arange(STEPS)[:, None] >= lengths
        output = draw(layer, input, hx, lengths=lengths)[0]
        torch.testing.assert_close(output, dense.masked_fill(past.unsqueeze(-1), 0))


def run_training(layer_class: Any, compiled: bool, seed: int, **options: Any) -> list[Tensor]:
    """Losses and final parameters of three training steps."""
    torch.manual_seed(0)
    layer = layer_class(3, 8, 2, **options)
    input = torch.randn(STEPS, BATCH, 3)
    run: Callable[..., Any] = layer
    if compiled:
        torch._dynamo.reset()
        run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    torch.manual_seed(seed)
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        loss = run(input)[0].square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return [*losses, *(parameter.detach() for parameter in layer.parameters())]


@pytest.mark.compiler
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LSTM", {"zoneout": (0.1, 0.4), "dropout": 0.3, "recompute": True}),
        ("LSTM", {"peephole": True, "dropout": 0.3, "weight_drop": 0.3}),
        ("LSTM", {"weight_drop": 0.3}),
        ("GRU", {"reset_after": False, "zoneout": 0.3}),
    ],
    ids=str,
)
def test_one_seed_gives_one_training_run_bit_for_bit(
    name: str, options: dict[str, Any], compiled: bool
) -> None:
    layer_class = CLASSES[name][0]
    options = {"bidirectional": not compiled} | options  # a graph of one way is traced sooner
    first = run_training(layer_class, compiled, 7, **options)
    assert_equal(run_training(layer_class, compiled, 7, **options), first)
    other = run_training(layer_class, compiled, 8, **options)
    assert not any(torch.equal(a, b) for a, b in zip(other[:3], first, strict=False))


@pytest.mark.compiler
@pytest.mark.parametrize("name", ["LSTM", "RNN"])
def test_compiled_training_draws_what_eager_training_draws(name: str) -> None:
    options = {"zoneout": 0.3, "dropout": 0.3, "bidirectional": True}
    results = [run_training(CLASSES[name][0], compiled, 7, **options) for compiled in (False, True)]
    assert_close(*results)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "LSTM normalised"])
def test_the_gradient_with_a_drawn_mask(kind: str, recompute: bool) -> None:
    layer = build(kind, 2, 3, bidirectional=True, zoneout=0.4, recompute=recompute)
    names = [name for name, _ in layer.named_parameters()]
    hx = random_state(layer, 3)
    states = tensors_of(hx)

    def run(input: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        given: Any = rest[: len(states)] if isinstance(hx, tuple) else rest[0]
        parameters = dict(zip(names, rest[len(states) :], strict=True))
        torch.manual_seed(5)
        lengths = {"lengths": torch.tensor([2, 0, 3])}
        return tuple(tensors_of(functional_call(layer, parameters, (input, given), lengths)))

    input = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    leaves = [*tensors_of(leaf(hx)), *[leaf(p) for p in layer.parameters()]]
    assert gradcheck(run, (input, *leaves), fast_mode=True)


def test_samples_under_vmap_draw_one_mask_or_their_own() -> None:
    layer = build("GRU", 3, UNITS, zoneout=0.5)
    sample = torch.randn(STEPS, BATCH, 3, dtype=torch.float64)
    samples = torch.stack([sample] * 3)
    for randomness, alike in (("same", True), ("different", False)):
        torch.manual_seed(5)
        found = vmap(lambda x: layer(x)[0], randomness=randomness)(samples)
        assert torch.equal(found[0], found[1]) == alike
    torch.manual_seed(5)
    one = vmap(lambda x: layer(x)[0], randomness="same")(samples)[0]
    torch.testing.assert_close(one, draw(layer, sample)[0])


@pytest.mark.parametrize("name", CLASSES)
def test_gradients_under_autocast_are_finite(name: str) -> None:
    layer = CLASSES[name][0](3, 5, 2, bidirectional=True, zoneout=0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(torch.randn(STEPS, BATCH, 3))[0]
    assert output.dtype == torch.bfloat16
    for gradient in gradients(output, list(layer.parameters())):
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_a_projection_excludes_zoneout() -> None:
    with pytest.raises(ValueError, match=r"zoneout and proj_size .*zoneout=0\.1 and proj_size=2"):
        rnnkit.LSTM(3, 4, proj_size=2, zoneout=0.1)
    assert rnnkit.LSTM(3, 4, proj_size=2, zoneout=0.0).zoneout == 0
