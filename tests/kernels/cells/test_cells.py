"""Each cell's handwritten gate maths against autograd, alone and in the loop, and special cases."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from rnnkit_kernels import reference
from rnnkit_kernels.cells import CELLS, Cell
from rnnkit_kernels.recurrence import eager
from rnnkit_kernels.recurrence.rows import Rows
from tests.kernels.layers import Layer, assert_as_exact, random_layer

STORAGES = ("dense", "packed", "padded")


def activations() -> tuple[object, object, object]:
    return torch.sigmoid, torch.tanh, torch.relu


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("name", CELLS)
def test_backward_is_the_derivative_of_forward(name: str) -> None:
    """Run the stages over random hidden gates; autograd derives every pre-activation."""
    torch.manual_seed(0)
    cell: Cell = CELLS[name]
    gates, shape = cell.gates_at[-1], (6, 5)
    x_gates = [draw(*shape).requires_grad_() for _ in range(gates)]
    h_gates = [draw(*shape).requires_grad_() for _ in range(gates)]
    vectors = tuple(draw(shape[1]).requires_grad_() for _ in range(cell.weights))
    state = tuple(draw(*shape).requires_grad_() for _ in range(1 + cell.has_cell_state))
    kept: tuple[Tensor, ...] = ()
    operands = []
    for stage, function in enumerate(cell.forward):
        span = slice(cell.gates_at[stage], cell.gates_at[stage + 1])
        new, result = function(x_gates[span], h_gates[span], kept, state, vectors, *activations())
        kept += new
        operands.append(result[0])
    assert len(kept) == cell.saved_at[-1]
    d_h, d_c = draw(*shape), draw(*shape)
    # An inner stage's result goes into a product; here its gradient is drawn instead.
    inner = [draw(*shape) for _ in operands[:-1]]
    outputs = [*operands[:-1], *result]
    weights = [*inner, d_h, d_c][: len(outputs)]
    leaves = [*x_gates, *h_gates, *state, *vectors]
    expected = torch.autograd.grad(outputs, leaves, weights, allow_unused=True)
    d_x, d_hidden, d_state, d_vectors = (
        expected[:gates],
        expected[gates : 2 * gates],
        expected[2 * gates : 2 * gates + len(state)],
        expected[2 * gates + len(state) :],
    )

    carried = tuple(d_c if kind == "cell" else torch.zeros(shape) for kind in cell.carry)
    columns: list[Tensor] = []
    before = tuple(value.detach() for value in state)
    after = tuple(value.detach() for value in result)
    values = tuple(value.detach() for value in kept)
    for stage in reversed(range(len(cell.backward))):
        gradient = d_h if stage == len(cell.backward) - 1 else inner[stage]
        new, carried = cell.backward[stage](
            values, before, after, gradient, carried, vectors, torch.tanh
        )
        columns = [*new, *columns]
    assert len(columns) == cell.columns_at[-1]
    for gate in range(gates):
        torch.testing.assert_close(columns[cell.input_columns[gate]], d_x[gate])
        torch.testing.assert_close(columns[cell.hidden_columns + gate], d_hidden[gate])
    direct = dict(zip(cell.carry, carried, strict=True))
    if d_state[0] is not None:
        torch.testing.assert_close(direct["hidden"], d_state[0])
    else:
        assert "hidden" not in direct
    if cell.has_cell_state:
        torch.testing.assert_close(direct["cell"], d_state[1])
    if cell.weight_gradients is None:
        assert cell.weights == 0
    else:
        rows = cell.weight_gradients(tuple(columns), before, after)
        torch.testing.assert_close(tuple(value.sum(0) for value in rows), d_vectors)


def test_reset_before_operand_is_what_its_second_stage_multiplies() -> None:
    cell = CELLS["gru_reset_before"]
    h = draw(3, 4)
    gates = [draw(3, 4), draw(3, 4)]
    saved, (operand,) = cell.forward[0](gates, gates, (), (h,), (), *activations())
    assert torch.equal(cell.operand[0](saved, h), operand)
    assert torch.equal(operand, (2 * gates[0]).sigmoid() * h)


class EagerLoop(torch.autograd.Function):
    """The PyTorch loop with its backward, and the sums after the loop spelt out."""

    @staticmethod
    def forward(ctx: Any, layer: Layer, x_gates: Tensor, *tensors: Any) -> Any:
        h0, c0 = tensors[4:6]
        ctx.layer, cell, (rows, reverse) = layer, CELLS[layer.cell], (layer.rows, layer.reverse)
        exact = eager.state_dtype(h0.dtype)
        ctx.inputs = (*tensors[:5], None if c0 is None else c0.to(exact), tensors[6])
        ctx.results = y, _, states = eager.forward(cell, x_gates, *ctx.inputs, rows, reverse)
        if c0 is None:
            return y.clone(), rows.last(y, h0, reverse)
        c_n = rows.last(states[:, 0], ctx.inputs[5], reverse)
        return y.clone(), rows.last(y, h0, reverse), c_n.to(c0.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dh_n: Tensor, dc_n: Tensor | None = None) -> Any:
        cell, rows, reverse = CELLS[ctx.layer.cell], ctx.layer.rows, ctx.layer.reverse
        weight_hh, _, weight_hr, cell_weights, h0, c0, zoneout = ctx.inputs
        y, saved, states = ctx.results
        exact, hidden = eager.state_dtype(y.dtype), weight_hh.shape[0] // cell.gates_at[-1]
        columns, carry, projected = eager.backward(
            cell, dy, dh_n, None if dc_n is None else dc_n.to(exact), weight_hh, weight_hr,
            cell_weights, h0, c0, zoneout, rows, reverse, y, saved, states,
        )  # fmt: skip
        direct = dict(zip(cell.carried(zoneout is not None), carry, strict=True))
        before, after = eager.states_around(cell, h0, c0, zoneout, rows, reverse, y, states)
        d_gates = columns[:, cell.hidden_columns :].flatten(1)
        kept = saved.unbind(1)
        operands = [before[0], *(operand(kept, before[0]) for operand in cell.operand)]
        spans = d_gates.split([gates * hidden for gates in cell.gates], 1)
        first = rows.first(spans[0], spans[0].new_zeros(rows.batch, spans[0].shape[1]), reverse)
        dh0 = (first @ weight_hh[: spans[0].shape[1]]).to(exact) + direct.get("hidden", 0)
        lengths = rows.lengths()
        if lengths is not None:
            dh0 = torch.where((lengths > 0)[:, None], dh0, dh_n.to(exact))
        d_vectors = None
        if cell.weight_gradients is not None:
            exactly = [tuple(v.to(exact) for v in values) for values in (before, after)]
            found = cell.weight_gradients(columns.to(exact).unbind(1), *exactly)
            d_vectors = torch.stack([value.sum(0) for value in found]).to(y.dtype)
        return (
            None,
            columns[:, list(cell.input_columns)],
            torch.cat([span.t() @ operand for span, operand in zip(spans, operands, strict=True)]),
            d_gates.sum(0, dtype=exact).to(y.dtype),
            None if projected is None else projected.t() @ states[:, -1].to(y.dtype),
            d_vectors,
            dh0.to(h0.dtype),
            direct["cell"].to(h0.dtype) if "cell" in direct else None,
            None,
        )


def run_eager(layer: Layer) -> list[Tensor]:
    """As `Layer.run`, through the loop itself instead of the operator."""
    x, weight_ih, weight_hh, bias_ih, *others = layer.inputs
    assert x is not None
    assert weight_ih is not None
    gates = CELLS[layer.cell].gates_at[-1]
    x_gates = linear(x, weight_ih, bias_ih).view(-1, gates, weight_ih.shape[0] // gates)
    y, *last = EagerLoop.apply(layer, x_gates, weight_hh, *others)  # type: ignore[no-untyped-call]
    results = [y.view(layer.gradients[0].shape), *last]
    return [*results, *torch.autograd.grad(results, layer.leaves(), layer.gradients)]


@pytest.mark.parametrize("zoneout", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("cell", CELLS)
def test_loop_and_its_backward_match_the_definition(
    cell: str, storage: str, reverse: bool, zoneout: bool
) -> None:
    layer = random_layer(cell, storage, reverse, hidden=6, features=4, zoneout=zoneout)
    torch.testing.assert_close(run_eager(layer), layer.run("reference"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cell", CELLS)
def test_loop_with_zoneout_is_as_exact_as_a_plain_one(cell: str, dtype: torch.dtype) -> None:
    layer = random_layer(cell, "padded", zoneout=True).to(dtype)
    exact = layer.to(torch.float64).run("reference")
    assert_as_exact(run_eager(layer), layer.run("reference"), exact, dtype)


@pytest.mark.parametrize("cell", [name for name, cell in CELLS.items() if cell.has_cell_state])
def test_every_cell_with_a_cell_state_projects(cell: str) -> None:
    layer = random_layer(cell, "packed", projection=3)
    torch.testing.assert_close(run_eager(layer), layer.run("reference"))


@pytest.mark.parametrize("cell", CELLS)
def test_zoneout_of_zero_is_off(cell: str) -> None:
    layer = random_layer(cell, "packed", zoneout=True)
    off = Layer(cell, [*layer.inputs[:-1], None], layer.rows, False, layer.gradients)
    assert layer.inputs[-1] is not None
    layer.inputs[-1] = torch.zeros_like(layer.inputs[-1])
    for run in (run_eager, lambda layer: layer.run("reference")):
        torch.testing.assert_close(run(layer), run(off), rtol=0, atol=0)


@pytest.mark.parametrize("cell", CELLS)
def test_zoneout_of_one_freezes_the_state(cell: str) -> None:
    layer = random_layer(cell, zoneout=True)
    *_, h0, c0, mask = layer.inputs
    assert h0 is not None
    assert mask is not None
    layer.inputs[-1] = torch.ones_like(mask)
    for results in (run_eager(layer), layer.run("reference")):
        y, *last = results[: len(layer.gradients)]
        assert torch.equal(y, h0.expand_as(y))
        for value, start in zip(last, (h0, c0), strict=False):
            assert start is not None
            assert torch.equal(value, start)


def test_zoneout_keeps_single_units_and_each_state_apart() -> None:
    layer = random_layer("lstm", zoneout=True)
    mask = torch.zeros(5 * 3, 2, 20, dtype=torch.float64)
    mask[:, 0, 4] = 1  # h of unit 4
    mask[:, 1, 7] = 1  # c of unit 7
    layer.inputs[-1] = mask
    *_, h0, c0, _ = layer.inputs
    _, h_n, c_n = run_eager(layer)[:3]
    assert (h_n == h0).all(0).nonzero().flatten().tolist() == [4]
    assert (c_n == c0).all(0).nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize("run", [run_eager, lambda layer: layer.run("reference")])
def test_zoneout_and_projection_exclude_each_other(run: Any) -> None:
    layer = random_layer("lstm", projection=3)
    layer.inputs[-1] = torch.zeros(5 * 3, 2, 20, dtype=torch.float64)
    with pytest.raises(ValueError, match="zoneout with a projection"):
        run(layer)


@pytest.mark.parametrize("run", [run_eager, lambda layer: layer.run("reference")])
@pytest.mark.parametrize(
    ("with_peepholes", "without"),
    [("lstm_peephole", "lstm"), ("lstm_coupled_peephole", "lstm_coupled")],
)
def test_peepholes_of_zero_change_nothing(with_peepholes: str, without: str, run: Any) -> None:
    layer = random_layer(with_peepholes, "packed")
    plain = Layer(without, list(layer.inputs), layer.rows, False, layer.gradients)
    plain.inputs[6] = None
    assert layer.inputs[6] is not None
    with torch.no_grad():
        layer.inputs[6].zero_()
    found = run(layer)
    del found[3 + 6 - 1]  # the gradient of the peepholes, after three results; no weight_hr
    torch.testing.assert_close(found, run(plain), rtol=0, atol=1e-13)


@pytest.mark.parametrize("run", [run_eager, lambda layer: layer.run("reference")])
@pytest.mark.parametrize(
    ("coupled", "full"),
    [("lstm_coupled", "lstm"), ("lstm_coupled_peephole", "lstm_peephole")],
)
def test_coupled_cell_is_an_lstm_whose_input_gate_has_the_forget_gates_weights_negated(
    coupled: str, full: str, run: Any
) -> None:
    """σ(−a) = 1 − σ(a), so i = 1 − f when every weight of i is minus that of f."""
    layer = random_layer(coupled, "packed")
    twin = Layer(full, list(layer.inputs), layer.rows, False, layer.gradients)
    for i in (1, 2, 3, 4):
        weight = layer.inputs[i]
        assert weight is not None
        twin.inputs[i] = torch.cat([-weight[:20], weight])
    if layer.inputs[6] is not None:
        p_f, p_o = layer.inputs[6]
        twin.inputs[6] = torch.stack([-p_f, p_f, p_o])
    found, expected = run(layer), run(twin)
    torch.testing.assert_close(found[:3], expected[:3])
    torch.testing.assert_close(found[3], expected[3])  # of x
    torch.testing.assert_close(found[-2:], expected[-2:])  # of h0 and c0


def test_peepholes_against_a_loop_over_units_in_python_floats() -> None:
    layer = random_layer("lstm_peephole", hidden=3, features=2, batch=1)
    x, weight_ih, weight_hh, bias_ih, bias_hh, _, vectors, h0, c0, _ = (
        None if tensor is None else tensor.tolist() for tensor in layer.inputs
    )
    h, c, y = h0[0], c0[0], []

    def sigma(a: float) -> float:
        return 1 / (1 + math.exp(-a))

    for t in range(5):
        new_h, new_c = [], []
        for unit in range(3):
            i, f, g, o = (
                bias_ih[gate * 3 + unit]
                + bias_hh[gate * 3 + unit]
                + sum(w * v for w, v in zip(weight_ih[gate * 3 + unit], x[t][0], strict=True))
                + sum(w * v for w, v in zip(weight_hh[gate * 3 + unit], h, strict=True))
                for gate in range(4)
            )
            p_i, p_f, p_o = (vector[unit] for vector in vectors)
            forget, update = sigma(f + p_f * c[unit]), sigma(i + p_i * c[unit])
            new_c.append(forget * c[unit] + update * math.tanh(g))
            new_h.append(sigma(o + p_o * new_c[unit]) * math.tanh(new_c[unit]))
        h, c = new_h, new_c
        y.append([h])
    expected = [torch.tensor(value, dtype=torch.float64) for value in (y, [h], [c])]
    for run in (run_eager, lambda layer: layer.run("reference")):
        torch.testing.assert_close(run(layer)[:3], expected)


def random_norm(layer: Layer) -> tuple[Tensor, ...]:
    """Gains and shifts of both products and, where there is one, of c."""
    weight_ih, h0, c0 = layer.inputs[1], layer.inputs[7], layer.inputs[8]
    assert weight_ih is not None
    assert h0 is not None
    sizes = [len(weight_ih)] * 4 + ([] if c0 is None else [h0.shape[1]] * 2)
    return tuple(draw(size) for size in sizes)


NORMALISED = [name for name in CELLS if name != "gru_reset_before"]


@pytest.mark.parametrize("cell", NORMALISED)
def test_layer_normalisation_against_an_explicit_loop(cell: str) -> None:
    torch.manual_seed(0)
    layer = random_layer(cell)
    x, weight_ih, weight_hh, bias_ih, bias_hh, _, vectors, h, c, _ = layer.inputs
    assert x is not None
    assert weight_ih is not None
    assert weight_hh is not None
    assert bias_ih is not None
    assert bias_hh is not None
    assert h is not None
    norm = random_norm(layer)
    gates = len(weight_ih)
    y = []
    for t in range(5):
        # In a GRU r and z are normalised together and n by itself.
        at = [slice(0, 40), slice(40, 60)] if cell.startswith("gru") else [slice(0, gates)]
        before = h if cell.endswith("_residual") else 0
        a, b = (
            torch.cat([layer_norm(w[:, i], w[:, i].shape[1:], g[i], s[i], 1e-5) for i in at], 1)
            for w, g, s in ((x[t] @ weight_ih.t(), *norm[:2]), (h @ weight_hh.t(), *norm[2:4]))
        )
        a, b = a + bias_ih, b + bias_hh
        if cell.startswith("gru"):
            r, z = (a + b)[:, :40].sigmoid().chunk(2, 1)
            h = before + z * h + (1 - z) * (a[:, 40:] + r * b[:, 40:]).tanh()
        elif c is None:
            h = before + ((a + b).tanh() if cell.startswith("rnn_tanh") else (a + b).relu())
        else:
            *i, f, g, o = (a + b).split(20, 1)
            if vectors is not None:
                f, i = f + vectors[-2] * c, [gate + vectors[0] * c for gate in i]
            f = f.sigmoid()
            c = f * c + (i[0].sigmoid() if i else 1 - f) * g.tanh()
            if vectors is not None:
                o = o + vectors[-1] * c
            h = o.sigmoid() * layer_norm(c, (20,), *norm[4:], 1e-5).tanh()
        y.append(h)
    found, h_n, c_n = reference.layer(cell, layer.inputs, layer.rows, layer_norm=norm)
    torch.testing.assert_close(found, torch.stack(y))
    torch.testing.assert_close(h_n, h)
    assert (c_n is None) == (c is None)
    if c is not None:
        torch.testing.assert_close(c_n, c)


def test_layer_normalisation_says_what_it_cannot_do() -> None:
    layer = random_layer("gru_reset_before")
    with pytest.raises(ValueError, match="gru_reset_before has no layer normalisation"):
        reference.layer(layer.cell, layer.inputs, layer.rows, layer_norm=random_norm(layer))
    layer = random_layer("lstm")
    with pytest.raises(ValueError, match="expected 6 tensors in layer_norm for lstm, got 4"):
        reference.layer("lstm", layer.inputs, layer.rows, layer_norm=random_norm(layer)[:4])


@pytest.mark.parametrize(
    ("cell", "normalised"),
    [*((cell, False) for cell in CELLS), *((cell, True) for cell in NORMALISED)],
)
def test_definition_runs_under_torch_func(cell: str, normalised: bool) -> None:
    """Forward-mode derivatives, and gradients of every sequence at once."""
    layer = random_layer(cell, hidden=4, features=3, zoneout=True)
    x, *weights, h0, c0, zoneout = (None if t is None else t.detach() for t in layer.inputs)
    norm = random_norm(layer) if normalised else None
    assert x is not None
    assert h0 is not None
    assert zoneout is not None
    states = () if c0 is None else (c0,)

    def run(x: Tensor, weight_hh: Tensor, h0: Tensor, zoneout: Tensor, *c0: Tensor) -> Tensor:
        inputs = (x, weights[0], weight_hh, *weights[2:], h0, c0[0] if c0 else None, zoneout)
        rows = Rows(x.shape[0], x.shape[1])
        return reference.layer(cell, inputs, rows, layer_norm=norm)[0]

    primals = (x, weights[1], h0, zoneout, *states)
    tangents = tuple(torch.randn_like(value) for value in primals)
    y, tangent = torch.func.jvp(run, primals, tangents)
    cotangent = torch.randn_like(y)
    leaves = [value.clone().requires_grad_() for value in primals]
    gradients = torch.autograd.grad(run(*leaves), leaves, cotangent)
    inner = sum((a * b).sum() for a, b in zip(gradients, tangents, strict=True))
    torch.testing.assert_close((tangent * cotangent).sum(), inner)

    def loss(weight_hh: Tensor, x: Tensor, h0: Tensor, zoneout: Tensor, *c0: Tensor) -> Tensor:
        alone = (value[None] for value in (h0, *c0))
        h, *c = alone
        return run(x[:, None], weight_hh, h, zoneout, *c).square().sum()

    shares = zoneout.view(5, 3, *zoneout.shape[1:])
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1, 0, 1, *(0 for _ in states)))(
        weights[1], x, h0, shares, *states
    )
    for b in range(3):
        leaf = weights[1].clone().requires_grad_()
        value = loss(leaf, x[:, b], h0[b], shares[:, b], *(c[b] for c in states))
        torch.testing.assert_close(each[b], torch.autograd.grad(value, leaf)[0])
