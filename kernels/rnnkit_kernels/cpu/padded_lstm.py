"""LSTM layers over sequences of different lengths on a CPU, by dense calls of torch's own layer.

torch runs packed sequences step by step; dense ones it hands to oneDNN, which is faster by more
than the padding costs, and takes more memory. So the padding runs along, and must change nothing:
one more input feature is 1 on padding, and its weights shut the input gate and open the forget gate
there.

    i = σ(−10⁴ + …) = 0        f = σ(10⁴ + …) = 1        c_t = f ⊙ c_{t−1} + i ⊙ g = c_{t−1}

c_n is then that of the last step of all, h_n the output of the last real one. For the direction
that runs backwards in time every sequence is turned round, and its output turned back.

Sequences of which some are less than half as long as others run in groups, the longest first: of no
group is more than half padding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout as _dropout
from torch.nn.functional import pad

# Far beyond any sum of gates, and far from overflow.
PUSH = 1e4
# A group ends before the first sequence that is shorter than this share of its longest. On the
# words of CoNLL-2003 (25 features and units, 130 to 830 words of 1 to 15 characters) groups took
# 0.9 of the time of packing, with one half or two thirds alike; in one group all took as long.
SHORTEST = 0.5
_VF: Any = torch._VF


def suits(input: Tensor, lengths: Tensor) -> bool:
    """Whether this is the faster way: on a CPU with oneDNN, in float32.

    Args:
        input: (T, B, D).
        lengths: int64 (B,) on the CPU.
    """
    if input.device.type != "cpu" or input.dtype != torch.float32 or input.shape[1] == 0:
        return False
    mkldnn: Any = torch.backends.mkldnn
    if not (mkldnn.is_available() and mkldnn.enabled) or torch.is_autocast_enabled("cpu"):
        return False
    return bool(lengths.any())


def padded_lstm(
    input: Tensor,
    hx: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    lengths: Tensor,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A stack of layers; arguments and results are those of `functional.lstm` with `lengths`."""
    order, sizes = _groups(lengths)
    options = (weights, has_biases, num_layers, dropout, training, bidirectional)
    if len(sizes) == 1:
        return _group(input, hx, *options, lengths)
    found = []
    for rows in torch.split(order, sizes):
        own = tuple(state.index_select(1, rows) for state in hx)
        longest = int(lengths[rows[0]])
        output, states = _group(input[:longest].index_select(1, rows), own, *options, lengths[rows])
        found.append((pad(output, (0, 0, 0, 0, 0, len(input) - longest)), *states))
    back = torch.argsort(order)
    output, h_n, c_n = (
        torch.cat(part, 1).index_select(1, back) for part in zip(*found, strict=True)
    )
    return output, (h_n, c_n)


def _groups(lengths: Tensor) -> tuple[Tensor, list[int]]:
    """Sequences in falling order of their lengths, and the sizes of the groups in that order."""
    falling, order = lengths.sort(descending=True, stable=True)
    sizes: list[int] = []
    longest = 0
    for length in falling.tolist():
        if not sizes or 0 < length < SHORTEST * longest:
            sizes.append(0)
            longest = length
        sizes[-1] += 1
    return order, sizes


def _group(
    input: Tensor,
    hx: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    lengths: Tensor,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The stack over sequences that are padded to the longest of them."""
    steps, longest = input.shape[0], int(lengths.max())
    step = torch.arange(longest).unsqueeze(1)
    inside = (step < lengths).unsqueeze(-1)  # (T, B, 1)
    turned = torch.where(inside[..., 0], lengths - 1 - step, step).unsqueeze(-1)
    outside = (~inside).to(input.dtype)
    # What lies past a length may be anything, also NaN.
    data = input[:longest].masked_fill(~inside, 0)
    directions, size = (2 if bidirectional else 1), (4 if has_biases else 2)
    last: list[tuple[Tensor, Tensor]] = []
    for layer in range(num_layers):
        if layer > 0:
            data = _dropout(data, dropout, training)
        outputs = []
        for direction in range(directions):
            member = layer * directions + direction
            weight_ih, *others = weights[member * size : (member + 1) * size]
            hidden = weight_ih.shape[0] // 4
            push = weight_ih.new_zeros(4, hidden)
            push[0], push[1] = -PUSH, PUSH  # torch's order is i, f, g, o
            own = [torch.cat([weight_ih, push.view(-1, 1)], 1), *others]
            rows = data if direction == 0 else _turn(data, turned)
            h0, c0 = (state[member : member + 1] for state in hx)
            y, _, c_n = _VF.lstm(
                torch.cat([rows, outside], 2), (h0, c0), own, has_biases, 1, 0.0, training, False,
                False,
            )  # fmt: skip
            at = (lengths - 1).clamp(min=0).view(1, -1, 1).expand(1, -1, hidden)
            h_n = torch.where((lengths > 0).view(1, -1, 1), y.gather(0, at), h0)
            y = y.masked_fill(~inside, 0)
            outputs.append(y if direction == 0 else _turn(y, turned))
            last.append((h_n, c_n))
        data = torch.cat(outputs, 2)
    h_n, c_n = (torch.cat(states) for states in zip(*last, strict=True))
    return pad(data, (0, 0, 0, 0, 0, steps - longest)), (h_n, c_n)


def _turn(rows: Tensor, order: Tensor) -> Tensor:
    """Every sequence of (T, B, ·) the other way round, its padding where it was."""
    return rows.gather(0, order.expand(rows.shape))
