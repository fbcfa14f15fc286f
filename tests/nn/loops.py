"""The layers with all their options as plain loops: sequence by sequence, step by step, by gate."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tests.nn.layers import tensors

Weights = dict[str, Tensor]


def normalise(value: Tensor, weights: Weights, name: str, start: int = 0) -> Tensor:
    """Layer normalisation of a vector, where the layer has a gain of this name.

    Its gain and shift begin at `start` of the layer's.
    """
    if f"gain_{name}" not in weights:
        return value
    centred = value - value.mean()
    value = centred / (centred.square().mean() + 1e-5).sqrt()
    at = slice(start, start + len(value))
    return weights[f"gain_{name}"][at] * value + weights[f"shift_{name}"][at]


def product(side: str, value: Tensor, weights: Weights, normalised: list[int]) -> Tensor:
    """W v + b, rows normalised in groups of these sizes."""
    groups, start = [], 0
    for rows in (weights[f"weight_{side}"] @ value).split(normalised):
        groups.append(normalise(rows, weights, side, start))
        start += len(rows)
    bias = weights.get(f"bias_{side}")
    return torch.cat(groups) if bias is None else torch.cat(groups) + bias


def lstm(layer: Any, x: Tensor, h: Tensor, c: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    names = "fgo" if layer.coupled else "ifgo"
    units, rows = len(c), [len(c) * len(names)]
    gates = product("ih", x, weights, rows) + product("hh", h, weights, rows)
    gate = {name: gates[k * units : (k + 1) * units] for k, name in enumerate(names)}
    sight = dict.fromkeys(names, torch.zeros_like(c))
    if layer.peephole:
        sight |= dict(zip(names.replace("g", ""), weights["weight_c"], strict=True))
    f = torch.sigmoid(gate["f"] + sight["f"] * c)
    i = 1 - f if layer.coupled else torch.sigmoid(gate["i"] + sight["i"] * c)
    c = f * c + i * torch.tanh(gate["g"])
    o = torch.sigmoid(gate["o"] + sight["o"] * c)
    h = o * torch.tanh(normalise(c, weights, "c"))
    return (weights["weight_hr"] @ h if layer.proj_size else h), c


def gru(layer: Any, x: Tensor, h: Tensor, weights: Weights) -> Tensor:
    units = len(h)
    rows = [2 * units, units]  # r and z together, as Ba et al. do
    of_x, of_h = product("ih", x, weights, rows), product("hh", h, weights, rows)
    r = torch.sigmoid(of_x[:units] + of_h[:units])
    z = torch.sigmoid(of_x[units : 2 * units] + of_h[units : 2 * units])
    if layer.reset_after:
        of_h = r * of_h[2 * units :]
    else:
        of_h = product("hh", r * h, weights, rows)[2 * units :]
    n = torch.tanh(of_x[2 * units :] + of_h)
    return z * h + (1 - z) * n


def rnn(layer: Any, x: Tensor, h: Tensor, weights: Weights) -> Tensor:
    sums = product("ih", x, weights, [len(h)]) + product("hh", h, weights, [len(h)])
    return getattr(torch, layer.nonlinearity)(sums)  # type: ignore[no-any-return]


def step(layer: Any, x: Tensor, states: list[Tensor], weights: Weights) -> list[Tensor]:
    """One step, and with zoneout the share of the old states that evaluation keeps."""
    if type(layer).__name__ == "LSTM":
        new = list(lstm(layer, x, *states, weights))
    else:
        new = [(gru if type(layer).__name__ == "GRU" else rnn)(layer, x, *states, weights)]
        if layer.residual:
            new = [new[0] + states[0]]
    shares = layer.zoneout if isinstance(layer.zoneout, tuple) else [layer.zoneout] * len(new)
    return [s * a + (1 - s) * b for s, a, b in zip(shares, states, new, strict=True)]


def parameters_of(layer: Any, index: int, reverse: bool) -> Weights:
    """One direction's parameters by their names without layer and direction."""
    suffix = f"_l{index}" + "_reverse" * reverse
    return {
        name.removesuffix(suffix): value
        for name, value in layer.named_parameters()
        if name.endswith(suffix)
    }


def run(
    layer: Any,
    input: Tensor,
    hx: Any,
    lengths: list[int],
    resets: Tensor | None = None,
    hx_reset: Any = None,
) -> tuple[Tensor, Any]:
    """The whole layer in evaluation: (T, B, D), and states as the layer takes them."""
    starts, ends = tensors(hx), []
    anew = tensors(hx_reset) or [torch.zeros_like(value[:, 0]) for value in starts]
    directions = 2 if layer.bidirectional else 1
    for index in range(layer.num_layers):
        parts = []
        for reverse in range(directions):
            weights = parameters_of(layer, index, bool(reverse))
            columns, last = [], []
            for b, length in enumerate(lengths):
                states = [value[directions * index + reverse, b] for value in starts]
                outputs: list[Tensor] = []
                for t in reversed(range(length)) if reverse else range(length):
                    boundary = t + 1 if reverse else t  # that was crossed to come here
                    if resets is not None and boundary < length and resets[boundary, b]:
                        states = [value[directions * index + reverse] for value in anew]
                    states = step(layer, input[t, b], states, weights)
                    outputs.append(states[0])
                width = layer.proj_size or layer.hidden_size
                rows = outputs[::-1] if reverse else outputs
                output = torch.stack(rows) if rows else input.new_zeros(0, width)
                columns.append(pad(output, (0, 0, 0, len(input) - length)))
                last.append(states)
            parts.append(torch.stack(columns, 1))
            ends.append([torch.stack(values) for values in zip(*last, strict=True)])
        input = torch.cat(parts, -1)
    states = [torch.stack(values) for values in zip(*ends, strict=True)]
    return input, tuple(states) if len(states) > 1 else states[0]
