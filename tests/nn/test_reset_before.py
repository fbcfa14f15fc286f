"""The GRU that resets before the recurrent product: known answers and a loop written apart."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnkit
from tests.nn.layers import assert_close, gradients, leaf

Weights = dict[str, Tensor]


def step(x: Tensor, h: Tensor, weights: Weights) -> Tensor:
    """One step gate by gate, from arXiv 1406.1078v3 with torch's z; biases on both sides."""
    w = {
        f"{side}{gate}": part
        for side in ("i", "h")
        for gate, part in zip("rzn", weights[f"weight_{side}h"].chunk(3), strict=True)
    }
    b = {
        f"{side}{gate}": part
        for side in ("i", "h")
        for gate, part in zip("rzn", weights[f"bias_{side}h"].chunk(3), strict=True)
    }
    r = torch.sigmoid(w["ir"] @ x + b["ir"] + w["hr"] @ h + b["hr"])
    z = torch.sigmoid(w["iz"] @ x + b["iz"] + w["hz"] @ h + b["hz"])
    n = torch.tanh(w["in"] @ x + b["in"] + w["hn"] @ (r * h) + b["hn"])
    return z * h + (1 - z) * n


def loop(layer: rnnkit.GRU, input: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
    """The whole layer, sequence by sequence: (T, B, D), (layers·directions, B, H)."""
    last: list[Tensor] = []
    for i in range(layer.num_layers):
        directions = []
        for reverse in range(2 if layer.bidirectional else 1):
            suffix = f"_l{i}" + "_reverse" * reverse
            weights = {
                name: getattr(layer, name + suffix)
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            }
            columns, ends = [], []
            for b in range(input.shape[1]):
                h, outputs = hx[len(last), b], []
                for x in input[:, b].flip(0) if reverse else input[:, b]:
                    h = step(x, h, weights)
                    outputs.append(h)
                columns.append(torch.stack(outputs[::-1] if reverse else outputs))
                ends.append(h)
            directions.append(torch.stack(columns, 1))
            last.append(torch.stack(ends))
        input = torch.cat(directions, -1)
    return input, torch.stack(last)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_it_computes_the_equations(layers: int, both: bool) -> None:
    torch.manual_seed(0)
    layer = rnnkit.GRU(3, 4, layers, bidirectional=both, reset_after=False, dtype=torch.float64)
    x = leaf(torch.randn(5, 2, 3, dtype=torch.float64))
    h = leaf(torch.randn(layers * (1 + both), 2, 4, dtype=torch.float64))
    leaves = [x, h, *layer.parameters()]
    result, expected = layer(x, h), loop(layer, x, h)
    assert_close(result, expected, rtol=1e-12, atol=1e-13)
    assert_close(gradients(result, leaves), gradients(expected, leaves), rtol=1e-11, atol=1e-12)


def test_the_place_of_the_reset_matters() -> None:
    before, after = (rnnkit.GRU(3, 4, reset_after=place) for place in (False, True))
    before.load_state_dict(after.state_dict())
    input, hx = torch.randn(5, 2, 3), torch.randn(1, 2, 4)
    assert (before(input, hx)[0] - after(input, hx)[0]).abs().max() > 1e-3


def test_it_has_the_parameters_of_torchs_gru() -> None:
    torch.manual_seed(0)
    layer = rnnkit.GRU(3, 4, 2, bidirectional=True, reset_after=False)
    torch.manual_seed(0)
    other = nn.GRU(3, 4, 2, bidirectional=True)
    state, expected = layer.state_dict(), other.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in state)
    layer.load_state_dict(expected, strict=True)
    other.load_state_dict(state, strict=True)


def test_forms_of_input_agree() -> None:
    layer = rnnkit.GRU(3, 4, 2, bidirectional=True, reset_after=False, dtype=torch.float64)
    input = torch.randn(5, 3, 3, dtype=torch.float64)
    hx = torch.randn(4, 3, 4, dtype=torch.float64)
    output, h_n = layer(input, hx)
    alone, h_alone = layer(input[:, 1], hx[:, 1])
    assert_close((alone, h_alone), (output[:, 1], h_n[:, 1]), rtol=1e-12, atol=1e-13)

    layer.batch_first = True
    swapped, h_swapped = layer(input.transpose(0, 1), hx)
    assert torch.equal(swapped.transpose(0, 1), output)
    assert torch.equal(h_swapped, h_n)
    layer.batch_first = False

    lengths = torch.tensor([2, 5, 3])
    by_lengths = layer(input, hx, lengths=lengths)
    packed, h_packed = layer(pack_padded_sequence(input, lengths, enforce_sorted=False), hx)
    padded, _ = pad_packed_sequence(packed)
    assert_close((padded, h_packed), by_lengths, rtol=1e-12, atol=1e-13)


def test_dropout_between_layers_acts_while_training() -> None:
    layer = rnnkit.GRU(3, 64, 2, dropout=0.5, reset_after=False)
    input = torch.randn(4, 16, 3)
    assert not torch.equal(layer(input)[0], layer(input)[0])
    assert torch.equal(layer.eval()(input)[0], layer(input)[0])
    layer.train().dropout = 1.0  # the second layer sees zeros: only its biases and states act
    first, second = layer(input)[0], layer(torch.randn(4, 16, 3))[0]
    assert torch.equal(first, second)


def test_known_gradients_of_a_scalar_cell() -> None:
    """One unit, no biases, h_1 given: each weight's gradient in closed form."""
    values = {"xr": 0.3, "xz": -0.7, "xg": 1.1, "hr": 0.9, "hz": 0.4, "hg": -1.3}
    x, h_1, delta = 0.8, -0.6, 1.7
    layer = rnnkit.GRU(1, 1, bias=False, reset_after=False, dtype=torch.float64)
    with torch.no_grad():
        for side in "xh":
            weight = layer.weight_ih_l0 if side == "x" else layer.weight_hh_l0
            weight[:, 0] = torch.tensor(
                [values[side + gate] for gate in "rzg"], dtype=torch.float64
            )
    state = torch.tensor([[[h_1]]], dtype=torch.float64)
    output, _ = layer(torch.tensor([[[x]]], dtype=torch.float64), state)
    (delta * output).sum().backward()

    def sigmoid(value: float) -> float:
        return float(torch.tensor(value, dtype=torch.float64).sigmoid())

    r = sigmoid(values["xr"] * x + values["hr"] * h_1)
    z = sigmoid(values["xz"] * x + values["hz"] * h_1)
    g = float(torch.tensor(values["xg"] * x + values["hg"] * r * h_1, dtype=torch.float64).tanh())
    assert output.item() == pytest.approx(z * h_1 + (1 - z) * g, rel=1e-14)
    a = delta * (h_1 - g) * z * (1 - z)
    b = delta * (1 - z) * (1 - g**2)
    c = b * values["hg"] * h_1 * r * (1 - r)
    assert layer.weight_ih_l0.grad[:, 0].tolist() == pytest.approx([c * x, a * x, b * x], rel=1e-13)
    assert layer.weight_hh_l0.grad[:, 0].tolist() == pytest.approx(
        [c * h_1, a * h_1, b * r * h_1], rel=1e-13
    )


@pytest.mark.parametrize("reset_after", [False, True])
def test_a_textbook_gru_converts_by_negating_the_update_gate(reset_after: bool) -> None:
    """Texts write h' = (1 − z) ⊙ h + z ⊙ n: negated, their z is our 1 − z."""
    torch.manual_seed(0)
    layer = rnnkit.GRU(3, 4, reset_after=reset_after, dtype=torch.float64)
    input, h = torch.randn(6, 3, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
    w_r, w_z, w_n = layer.weight_ih_l0.detach().clone().chunk(3)
    u_r, u_z, u_n = layer.weight_hh_l0.detach().clone().chunk(3)
    b_r, b_z, b_n = layer.bias_ih_l0.detach().clone().chunk(3)
    c_r, c_z, c_n = layer.bias_hh_l0.detach().clone().chunk(3)
    state, expected = h[0], []
    for x in input:
        r = torch.sigmoid(w_r @ x + b_r + u_r @ state + c_r)
        z = torch.sigmoid(w_z @ x + b_z + u_z @ state + c_z)
        product = r * (u_n @ state + c_n) if reset_after else u_n @ (r * state) + c_n
        state = (1 - z) * state + z * torch.tanh(w_n @ x + b_n + product)
        expected.append(state)

    assert not torch.allclose(layer(input, h)[0], torch.stack(expected))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter[4:8] *= -1
    assert_close(layer(input, h)[0], torch.stack(expected), rtol=1e-12, atol=1e-13)
