"""LSTM layers over sequences of different lengths on a CPU, by dense calls of torch's own layer.

torch runs packed sequences step by step; dense ones it hands to oneDNN, which is faster by more
than the padding costs, and takes more memory. So the padding runs along, and must change nothing:
one more input feature is 1 on padding, and its weights shut the input gate and open the forget gate
there. As torch's dense layers on a CPU, this can't be differentiated twice.

    i = σ(−10⁴ + …) = 0        f = σ(10⁴ + …) = 1        c_t = f ⊙ c_{t−1} + i ⊙ g = c_{t−1}

c_n is then that of the last step of all, h_n the output of the last real one. For the direction
that runs backwards in time every sequence is turned round, and its output turned back.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout as _dropout
from torch.nn.functional import pad

# Far beyond any sum of gates, and far from overflow.
PUSH = 1e4
# With 1.6 rows for each real one this took 0.43 to 0.62 of the time of packing (the tagger, the
# translation encoder and the characters of benchmarks/cases.py): more padding leaves no gain.
MOST_ROWS = 2.0
_VF: Any = torch._VF


def suits(input: Tensor, lengths: Tensor) -> bool:
    """Whether this is the faster way: on a CPU with oneDNN, in float32, without much padding.

    Args:
        input: (T, B, D).
        lengths: int64 (B,) on the CPU.
    """
    if input.device.type != "cpu" or input.dtype != torch.float32 or input.shape[1] == 0:
        return False
    mkldnn: Any = torch.backends.mkldnn
    if not (mkldnn.is_available() and mkldnn.enabled) or torch.is_autocast_enabled("cpu"):
        return False
    rows, real = int(lengths.max()) * input.shape[1], int(lengths.sum())
    return 0 < rows <= MOST_ROWS * real


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
