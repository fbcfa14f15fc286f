"""Every cell in plain PyTorch: the definition that all else is tested against.

Any dtype, differentiable twice, valid under torch.func: nothing is written in place, and autograd
derives what `cells/` derives by hand. Weights lie as in torch.nn: `weight_ih` (G·H, D) and
`weight_hh` (G·H, P), gates in torch's order.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from rnnkit_kernels.recurrence.rows import Rows

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State, Tensor, Tensor | None], State]


def lstm(x_gates: Tensor, state: State, weight_hh: Tensor, bias_hh: Tensor | None) -> State:
    """c' = σ(f) ⊙ c + σ(i) ⊙ tanh(g), h' = σ(o) ⊙ tanh(c'), for all gates a = W x + R h + b."""
    h, c = state
    i, f, g, o = (x_gates + linear(h, weight_hh, bias_hh)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru(x_gates: Tensor, state: State, weight_hh: Tensor, bias_hh: Tensor | None) -> State:
    """h' = z ⊙ h + (1 − z) ⊙ n with n = tanh(W_n x + b_n + r ⊙ (R_n h + b_hn))."""
    (h,) = state
    x_r, x_z, x_n = x_gates.chunk(3, -1)
    h_r, h_z, h_n = linear(h, weight_hh, bias_hh).chunk(3, -1)
    z = (x_z + h_z).sigmoid()
    n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
    return (z * h + (1 - z) * n,)


def gru_reset_before(
    x_gates: Tensor, state: State, weight_hh: Tensor, bias_hh: Tensor | None
) -> State:
    """As `gru` with n = tanh(W_n x + b_n + R_n (r ⊙ h) + b_hn)."""
    (h,) = state
    hidden = h.shape[-1]
    x_r, x_z, x_n = x_gates.chunk(3, -1)
    bias_rz, bias_n = (
        (None, None) if bias_hh is None else (bias_hh[: 2 * hidden], bias_hh[2 * hidden :])
    )
    h_r, h_z = linear(h, weight_hh[: 2 * hidden], bias_rz).chunk(2, -1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    n = (x_n + linear(r * h, weight_hh[2 * hidden :], bias_n)).tanh()
    return (z * h + (1 - z) * n,)


def rnn_tanh(x_gates: Tensor, state: State, weight_hh: Tensor, bias_hh: Tensor | None) -> State:
    """h' = tanh(W x + b + R h + b_h)."""
    return ((x_gates + linear(state[0], weight_hh, bias_hh)).tanh(),)


def rnn_relu(x_gates: Tensor, state: State, weight_hh: Tensor, bias_hh: Tensor | None) -> State:
    """h' = max(0, W x + b + R h + b_h)."""
    return ((x_gates + linear(state[0], weight_hh, bias_hh)).relu(),)


STEPS: dict[str, Step] = {
    "lstm": lstm,
    "gru": gru,
    "gru_reset_before": gru_reset_before,
    "rnn_tanh": rnn_tanh,
    "rnn_relu": rnn_relu,
}


def layer(
    cell: str,
    inputs: Sequence[Any],
    rows: Rows,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One layer in one direction, step by step.

    Args:
        cell: a key of `STEPS`.
        inputs: eight tensors, in this order:
            x: (T, B, D) when `rows` is dense, else (N, D).
            weight_ih: (G·H, D).
            weight_hh: (G·H, P), P = H without projection.
            bias_ih, bias_hh: (G·H,) or None.
            weight_hr: (P, H) or None.
            h0: (B, P).
            c0: (B, H), or None for cells without.
        rows: which rows belong to a step.
        reverse: whether t falls.

    Returns:
        y as `x` with P for D, zero in rows that belong to no step; h_n (B, P); c_n (B, H) or None.
    """
    x, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, h0, c0 = inputs
    x_gates = linear(x, weight_ih, bias_ih).flatten(0, -2)
    if rows.batch_sizes is not None and x_gates.shape[0] == rows.steps * rows.batch:
        # Lengths may be on a device: run every row, keep what is inside.
        sequence = torch.arange(rows.batch, device=x.device)
        inside = (sequence < rows.batch_sizes[:, None]).unsqueeze(-1)
        steps = [(t * rows.batch, rows.batch) for t in range(rows.steps)]
    else:
        inside, steps = None, rows.to_host()
    state: State = (h0,) if c0 is None else (h0, c0)
    outputs = []
    order = range(rows.steps)
    for t in reversed(order) if reverse else order:
        first, count = steps[t]
        before = tuple(value[:count] for value in state)
        new = STEPS[cell](x_gates[first : first + count], before, weight_hh, bias_hh)
        if weight_hr is not None:
            new = (linear(new[0], weight_hr), *new[1:])
        output = new[0]
        if inside is not None:
            output = torch.where(inside[t], output, 0)
            new = tuple(torch.where(inside[t], a, b) for a, b in zip(new, before, strict=True))
        outputs.append(output)
        state = tuple(
            torch.cat([a, value[count:]]) if count < rows.batch else a
            for a, value in zip(new, state, strict=True)
        )
    y = torch.cat(outputs[::-1] if reverse else outputs)
    return y.view(*x.shape[:-1], h0.shape[-1]), state[0], state[1] if len(state) > 1 else None
