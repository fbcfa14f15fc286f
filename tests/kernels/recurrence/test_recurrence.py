"""The time loops against the definition in float64, every result and every gradient."""

import itertools

import pytest
import torch
import triton
import triton.language as tl

from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.ops.recurrence import recurrence
from rnnkit_kernels.recurrence.layout import step_rows
from tests.kernels.layers import Layer, assert_as_exact_as_a_plain_loop, random_layer

MODES = ("launch", "resident", "eager", "native")
STORAGES = ("dense", "packed", "padded")
# A carry of c, one of h, and two stages a step: they run in every storage. Cells that differ from
# these in their gates alone take turns.
KINDS = ("lstm", "gru", "gru_reset_before")
# Modes whose programs meet run here too where one program holds all units; test_meeting.py runs
# several at once.
ALONE = ("counter", "data")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("cell", "reverse", "storage"),
    [
        (cell, reverse, storage)
        for i, cell in enumerate(CELLS)
        for (j, storage), reverse in itertools.product(enumerate(STORAGES), (False, True))
        if cell in KINDS or (i + j) % 2 == reverse
    ],
)
def test_results_and_gradients_match_the_definition(
    cell: str, reverse: bool, storage: str, mode: str
) -> None:
    layer = random_layer(cell, storage, reverse)
    assert_as_exact_as_a_plain_loop(layer, mode, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ALONE)
@pytest.mark.parametrize(
    ("cell", "storage"),
    [
        (cell, storage)
        for i, cell in enumerate(CELLS)
        for j, storage in enumerate(STORAGES)
        if cell in KINDS or i % 3 == j
    ],
)
def test_one_program_that_meets_nobody(cell: str, storage: str, mode: str) -> None:
    layer = random_layer(cell, storage, reverse=storage == "packed", hidden=13, batch=18)
    assert_as_exact_as_a_plain_loop(layer, mode, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [*MODES, *ALONE])
@pytest.mark.parametrize("cell", CELLS)
def test_zoneout_keeps_its_share_of_every_state(cell: str, mode: str) -> None:
    layer = random_layer(cell, "padded", hidden=13, zoneout=True)
    assert_as_exact_as_a_plain_loop(layer, mode, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", CELLS)
def test_gates_computed_again_give_the_gradients(cell: str, mode: str) -> None:
    layer = random_layer(cell, "packed", reverse=True, hidden=13).to(torch.float32)
    for kept, again in zip(layer.run(mode), layer.run(mode, recompute=True), strict=True):
        torch.testing.assert_close(kept, again, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [*MODES, *ALONE])
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_both_directions_in_one_call(cell: str, mode: str) -> None:
    """As the two directions apart: a member sees nothing of the other."""
    layers = [random_layer(cell, "packed", m == 1, hidden=13, seed=m) for m in range(2)]
    layers[1].inputs[0] = layers[0].inputs[0]
    layers = [layer.to(torch.float32) for layer in layers]
    apart = [layer.run(mode) for layer in layers]
    parts = [layer.operator_inputs()[1:-3] for layer in layers]
    both = [None if a is None else torch.cat([a, b]) for a, b in zip(*parts, strict=True)]  # type: ignore[list-item]
    both = [None if t is None else t.detach().requires_grad_() for t in both]
    x = layers[0].inputs[0]
    rows = layers[0].rows
    y, h_n, c_n, _, _ = recurrence(
        x, *both, None, rows.batch_sizes, rows.offsets, cell, False, mode, True, False
    )
    results = [y, h_n, c_n] if c_n.numel() else [y, h_n]
    arriving = [torch.cat([layer.gradients[0] for layer in layers], -1)]
    arriving += [
        torch.stack(pair) for pair in zip(*(layer.gradients[1:] for layer in layers), strict=True)
    ]
    leaves = [t for t in both if t is not None]
    found = torch.autograd.grad(results, leaves, arriving)
    # Close, not equal: products over both directions at once may sum in another order.
    torch.testing.assert_close(y, torch.cat([run[0] for run in apart], -1))
    for i, result in enumerate(results[1:], 1):
        torch.testing.assert_close(result, torch.stack([run[i] for run in apart]))
    start = len(results) + 1  # after the gradient of x, which both directions add to
    for i, gradient in enumerate(found):
        torch.testing.assert_close(gradient, torch.stack([run[start + i] for run in apart]))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", CELLS)
def test_half_precision_is_as_exact_as_a_plain_loop(cell: str, mode: str) -> None:
    layer = random_layer(cell, "packed", hidden=24)
    assert_as_exact_as_a_plain_loop(layer, mode, torch.float16)


@pytest.mark.parametrize("cell", CELLS)
def test_eager_loop_runs_bfloat16(cell: str) -> None:
    assert_as_exact_as_a_plain_loop(random_layer(cell), "eager", torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "cell", "hidden", "batch"),
    [
        # One unit; tiles that do not divide; more than one tile of units and of sequences.
        ("launch", "lstm", 1, 1),
        ("launch", "gru", 70, 35),
        ("launch", "gru_reset_before", 33, 34),
        ("resident", "lstm", 1, 17),
        ("resident", "gru", 63, 1),
        ("resident", "rnn_tanh", 100, 18),
        ("native", "lstm", 1, 1),
        ("native", "gru", 70, 35),
        ("native", "gru_reset_before", 33, 34),
    ],
)
def test_sizes_that_no_tile_divides(mode: str, cell: str, hidden: int, batch: int) -> None:
    layer = random_layer(cell, "packed", hidden=hidden, batch=batch, features=3)
    assert_as_exact_as_a_plain_loop(layer, mode, torch.float32)


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_resident_weights_in_two_tiles(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rnnkit_kernels.recurrence import plan

    monkeypatch.setattr(plan, "unit_chunks", lambda hidden, device: [((0, 32), (32, 16))])
    for reverse in (False, True):
        layer = random_layer(cell, "packed", reverse, hidden=40)
        assert_as_exact_as_a_plain_loop(layer, "resident", torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", KINDS)
def test_layers_without_biases(cell: str, mode: str) -> None:
    layer = random_layer(cell, hidden=13, bias=False)
    assert_as_exact_as_a_plain_loop(layer, mode, torch.float32)


@pytest.mark.parametrize(
    ("storage", "reverse"),
    list(itertools.product(["dense", "packed", "padded"], [False, True])),
)
@pytest.mark.parametrize("mode", ["eager", "native"])
def test_a_loop_projects(storage: str, reverse: bool, mode: str) -> None:
    layer = random_layer("lstm", storage, reverse, projection=5)
    assert_as_exact_as_a_plain_loop(layer, mode, torch.float32)


@pytest.mark.parametrize("mode", MODES)
def test_two_runs_agree_bitwise(mode: str) -> None:
    layer = random_layer("gru", "packed").to(torch.float32)
    for first, second in zip(layer.run(mode), layer.run(mode), strict=True):
        assert torch.equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_in_its_sequence_and_stops_no_step(cell: str, mode: str) -> None:
    layer = random_layer(cell, hidden=13).to(torch.float32)
    clean = layer.run(mode)[0]
    assert layer.inputs[0] is not None
    with torch.no_grad():
        layer.inputs[0][2, 1] = float("nan")
    y = layer.run(mode)[0]
    assert y[2:, 1].isnan().all()
    others = torch.ones(5, 3, dtype=torch.bool)
    others[2:, 1] = False
    assert torch.equal(y[others], clean[others])


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", CELLS)
def test_large_gates_saturate_without_nan(cell: str, mode: str) -> None:
    layer = random_layer(cell, hidden=13).to(torch.float32)
    assert layer.inputs[0] is not None
    with torch.no_grad():
        layer.inputs[0].mul_(1e4 if cell != "rnn_relu" else 1e2)
    for result in layer.run(mode):
        assert result.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_memory_is_written_whole(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever `torch.empty` holds must not show: fill it with NaN."""
    plain = {name: getattr(torch, name) for name in ("empty",)}

    def poisoned(*args: object, **kwargs: object) -> torch.Tensor:
        tensor = plain["empty"](*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    def poisoned_new(self: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        size = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
        return poisoned(size, dtype=kwargs.get("dtype", self.dtype), device=self.device)

    cases = [("lstm", "padded"), ("gru_reset_before", "padded"), ("gru_reset_before", "packed")]
    for cell, storage in cases:
        layer = random_layer(cell, storage).to(torch.float32)
        clean = layer.run(mode)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty", poisoned)
            patch.setattr(torch.Tensor, "new_empty", poisoned_new)
            dirty = layer.run(mode)
        for a, b in zip(clean, dirty, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_rows_past_a_length_are_zero_and_carry_no_gradient(mode: str) -> None:
    layer = random_layer("lstm", "padded").to(torch.float32)
    y, _, _, dx, *_ = layer.run(mode)
    inside = torch.arange(3) < layer.rows.batch_sizes[:, None]  # type: ignore[index]
    assert (y[~inside.flatten()] == 0).all()
    assert (dx[~inside.flatten()] == 0).all()
    assert (dx[inside.flatten()] != 0).any(-1).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reverse", [False, True])
def test_empty_sequence_keeps_its_state_and_hands_its_gradient_on(mode: str, reverse: bool) -> None:
    layer: Layer = random_layer("lstm", "padded", reverse).to(torch.float32)
    _, h_n, c_n, *gradients = layer.run(mode)
    h0, c0 = layer.inputs[7], layer.inputs[8]
    assert h0 is not None
    assert c0 is not None
    assert torch.equal(h_n[-1], h0[-1])
    assert torch.equal(c_n[-1], c0[-1])
    dh0, dc0 = gradients[-2:]
    assert torch.equal(dh0[-1], layer.gradients[1][-1])
    assert torch.equal(dc0[-1], layer.gradients[2][-1])


@pytest.mark.parametrize("mode", MODES)
def test_infinity_of_one_unit_stays_infinity(mode: str) -> None:
    """Units beyond H in a tile must not turn it into NaN by 0 · ∞."""
    layer = random_layer("rnn_relu", hidden=3).to(torch.float32)
    # Powers of two: their sums are exact, in any order.
    for tensor, value in zip(layer.inputs[:5], (2.0**100, 1.0, 2.0**66, 0.0, 0.0), strict=True):
        assert tensor is not None
        with torch.no_grad():
            tensor.fill_(value)
    y = layer.run(mode)[0]
    assert torch.equal(y, layer.run("reference")[0])
    assert y[1:].isposinf().all()


@pytest.mark.parametrize("mode", MODES)
def test_infinite_gradients_stay_infinite(mode: str) -> None:
    """As above, backwards: small states grow by 10¹⁰ a step, and with them gradients of 10³⁰."""
    layer = random_layer("rnn_relu", hidden=3).to(torch.float32)
    values = (1e-20, 1.0, 1e10, 0.0, 0.0, None, None, 1e-20, None, None)
    for tensor, value in zip(layer.inputs, values, strict=True):
        if tensor is not None:
            with torch.no_grad():
                tensor.fill_(value)
    for gradient in layer.gradients:
        gradient.fill_(1e30)
    found = layer.run(mode)
    assert found[2][:3].isposinf().all()  # of x
    for a, b in zip(found, layer.run("reference"), strict=True):
        torch.testing.assert_close(a, b)


def first_row(t, steps, batch, y) -> None:  # type: ignore[no-untyped-def]
    first, count = step_rows(t, steps, batch, None, False)
    tl.store(y, first)
    tl.store(y + 1, count.to(tl.int64))


def test_rows_beyond_two_to_the_31_are_addressed() -> None:
    y = torch.zeros(2, dtype=torch.int64)
    triton.jit(first_row)[(1,)](99_999, 100_000, 65_536, y)
    assert y.tolist() == [99_999 * 65_536, 65_536]
    triton.jit(first_row)[(1,)](100_000, 100_000, 65_536, y)
    assert y.tolist() == [0, 0]
