"""Every cell in plain PyTorch: the definition that all else is tested against.

Any dtype, differentiable twice, valid under torch.func: nothing is written in place, and autograd
derives what `cells/` derives by hand. Weights lie as in torch.nn: `weight_ih` (G·H, D) and
`weight_hh` (G·H, P), gates in torch's order.

Zoneout (Krueger et al. 2017) keeps a share z of each unit's old state, here for any cell:

    h' = z_h ⊙ h + (1 − z_h) ⊙ h̃,    c' = z_c ⊙ c + (1 − z_c) ⊙ c̃

with (h̃, c̃) what the cell gives; h̃ is made from c̃, before c̃ is mixed.

Layer normalisation (Ba, Kiros & Hinton 2016) is defined here alone, for it sums over all units
inside a step, which no kernel does. For LSTM (their eqs. 20–22), LN over the whole vector:

    (i, f, g, o) = LN(W_hh h; α₁, β₁) + LN(W_ih x; α₂, β₂) + b
    c'           = σ(f) ⊙ c + σ(i) ⊙ tanh(g)
    h'           = σ(o) ⊙ tanh(LN(c'; α₃, β₃))

The other cells do the same to their two products, and those with a c to the c that h' sees.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import linear

from rnnkit_kernels.recurrence.rows import Rows

Tensors = tuple[Tensor, ...]
State = Tensors
# Where sequences begin anew, and from which state.
Anew = tuple[Tensor, State | None]
# (x_gates, state, weight_hh, bias_hh, cell_weights, layer_norm) -> the new state. The last argument
# is () or gain and shift of W_hh h, then those of c.
Step = Callable[[Tensor, State, Tensor, Tensor | None, Tensors, Tensors], State]


def normalised(value: Tensor, gain_shift: Tensors) -> Tensor:
    """LN over the last dimension, or `value` itself without (gain, shift)."""
    if not gain_shift:
        return value
    gain, shift = gain_shift
    return functional.layer_norm(value, value.shape[-1:], gain, shift, eps=1e-5)


def product(
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gain_shift: Tensors = (),
    parts: int = 1,
) -> Tensor:
    """W v + b, or LN(W v) + b with (gain, shift); of 3 parts the last is normalised by itself."""
    if not gain_shift:
        return linear(value, weight, bias)
    gates = linear(value, weight)
    together = gates.shape[-1] * (parts - 1) // parts or gates.shape[-1]
    gain, shift = gain_shift
    sections = [slice(0, together), slice(together, None)][: 1 + (parts > 1)]
    found = [normalised(gates[..., at], (gain[at], shift[at])) for at in sections]
    gates = torch.cat(found, -1)
    return gates if bias is None else gates + bias


def lstm(
    x_gates: Tensor,
    state: State,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    cell_weights: Tensors = (),
    layer_norm: Tensors = (),
) -> State:
    """c' = σ(f) ⊙ c + σ(i) ⊙ tanh(g), h' = σ(o) ⊙ tanh(c'), for all gates a = W x + R h + b."""
    h, c = state
    gates = x_gates + product(h, weight_hh, bias_hh, layer_norm[:2])
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * normalised(c, layer_norm[2:]).tanh(), c


def lstm_peephole(
    x_gates: Tensor,
    state: State,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    cell_weights: Tensors = (),
    layer_norm: Tensors = (),
) -> State:
    """As `lstm` with p_i ⊙ c and p_f ⊙ c added to i and f, and p_o ⊙ c' to o."""
    h, c = state
    p_i, p_f, p_o = cell_weights
    gates = x_gates + product(h, weight_hh, bias_hh, layer_norm[:2])
    i, f, g, o = gates.chunk(4, -1)
    c = (f + p_f * c).sigmoid() * c + (i + p_i * c).sigmoid() * g.tanh()
    return (o + p_o * c).sigmoid() * normalised(c, layer_norm[2:]).tanh(), c


def lstm_coupled(
    x_gates: Tensor,
    state: State,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    cell_weights: Tensors = (),
    layer_norm: Tensors = (),
) -> State:
    """c' = σ(f) ⊙ c + (1 − σ(f)) ⊙ tanh(g), h' = σ(o) ⊙ tanh(c'), gates in the order f, g, o."""
    h, c = state
    gates = x_gates + product(h, weight_hh, bias_hh, layer_norm[:2])
    f, g, o = gates.chunk(3, -1)
    c = f.sigmoid() * c + (1 - f.sigmoid()) * g.tanh()
    return o.sigmoid() * normalised(c, layer_norm[2:]).tanh(), c


def lstm_coupled_peephole(
    x_gates: Tensor,
    state: State,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    cell_weights: Tensors = (),
    layer_norm: Tensors = (),
) -> State:
    """As `lstm_coupled` with p_f ⊙ c added to f and p_o ⊙ c' to o."""
    h, c = state
    p_f, p_o = cell_weights
    gates = x_gates + product(h, weight_hh, bias_hh, layer_norm[:2])
    f, g, o = gates.chunk(3, -1)
    f = (f + p_f * c).sigmoid()
    c = f * c + (1 - f) * g.tanh()
    return (o + p_o * c).sigmoid() * normalised(c, layer_norm[2:]).tanh(), c


# Where a GRU is normalised, r and z are so together and n by itself (Ba et al. 2016, eq. 27, 28).
GRU_PARTS = 3


def gru(
    x_gates: Tensor,
    state: State,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    cell_weights: Tensors = (),
    layer_norm: Tensors = (),
) -> State:
    """h' = z ⊙ h + (1 − z) ⊙ n with n = tanh(W_n x + b_n + r ⊙ (R_n h + b_hn))."""
    (h,) = state
    x_r, x_z, x_n = x_gates.chunk(3, -1)
    h_r, h_z, h_n = product(h, weight_hh, bias_hh, layer_norm, GRU_PARTS).chunk(3, -1)
    z = (x_z + h_z).sigmoid()
    n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
    return (z * h + (1 - z) * n,)


def gru_reset_before(
    x_gates: Tensor,
    state: State,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    cell_weights: Tensors = (),
    layer_norm: Tensors = (),
) -> State:
    """As `gru` with n = tanh(W_n x + b_n + R_n (r ⊙ h) + b_hn)."""
    if layer_norm:
        raise ValueError(
            "gru_reset_before has no layer normalisation: it is defined for the GRU whose three "
            "gates all come from W_hh h; use gru, which resets after"
        )
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


def rnn_tanh(
    x_gates: Tensor,
    state: State,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    cell_weights: Tensors = (),
    layer_norm: Tensors = (),
) -> State:
    """h' = tanh(W x + b + R h + b_h)."""
    return ((x_gates + product(state[0], weight_hh, bias_hh, layer_norm)).tanh(),)


def rnn_relu(
    x_gates: Tensor,
    state: State,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    cell_weights: Tensors = (),
    layer_norm: Tensors = (),
) -> State:
    """h' = max(0, W x + b + R h + b_h)."""
    return ((x_gates + product(state[0], weight_hh, bias_hh, layer_norm)).relu(),)


def residual(step: Step) -> Step:
    """The cell whose step is added to the state: h' = f(h, x) + h (He et al. 2016, in time)."""

    def added(
        x_gates: Tensor,
        state: State,
        weight_hh: Tensor,
        bias_hh: Tensor | None,
        cell_weights: Tensors = (),
        layer_norm: Tensors = (),
    ) -> State:
        (h,) = step(x_gates, state, weight_hh, bias_hh, cell_weights, layer_norm)
        return (h + state[0],)

    return added


STEPS: dict[str, Step] = {
    "lstm": lstm,
    "lstm_peephole": lstm_peephole,
    "lstm_coupled": lstm_coupled,
    "lstm_coupled_peephole": lstm_coupled_peephole,
    "gru": gru,
    "gru_reset_before": gru_reset_before,
    "rnn_tanh": rnn_tanh,
    "rnn_relu": rnn_relu,
    "gru_residual": residual(gru),
    "rnn_tanh_residual": residual(rnn_tanh),
    "rnn_relu_residual": residual(rnn_relu),
}


def layer(
    cell: str,
    inputs: Sequence[Any],
    rows: Rows,
    reverse: bool = False,
    *,
    layer_norm: Tensors | None = None,
    anew: Anew | None = None,
    states: list[tuple[slice, State]] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One layer in one direction, step by step.

    Args:
        cell: a key of `STEPS`.
        inputs: ten tensors, in this order:
            x: (T, B, D) when `rows` is dense, else (N, D).
            weight_ih: (G·H, D).
            weight_hh: (G·H, P), P = H without projection.
            bias_ih, bias_hh: (G·H,) or None.
            weight_hr: (P, H) or None.
            cell_weights: (W, H), the cell's own vectors, or None for cells without.
            h0: (B, P).
            c0: (B, H), or None for cells without.
            zoneout: (N, Z, H), the shares of h and, in cells with one, of c that stay, each in
                [0, 1]: a mask of 0 and 1 while training, its mean in evaluation; or None.
        rows: which rows belong to a step.
        reverse: whether t falls.
        layer_norm: gain_ih, shift_ih, gain_hh and shift_hh, (G·H,) each, and for cells with a c
            gain_c and shift_c, (H,) each; or None for no layer normalisation.
        anew: resets, bool (T, B): a boundary before step t of sequence b, which no state crosses;
            and the state that follows it, (P,) and (H,), or None for zeros. For rows that are dense
            or padded; no boundary lies past a length.
        states: the state after every step is added to these, with its rows, as nodes of the graph.

    Returns:
        y as `x` with P for D, zero in rows that belong to no step; h_n (B, P); c_n (B, H) or None.

    Raises:
        ValueError: for zoneout with a projection, and for layer normalisation of a cell that has
            none or with another number of tensors.
    """
    x, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, cell_weights, h0, c0, zoneout = inputs
    if zoneout is not None and weight_hr is not None:
        raise ValueError(
            "zoneout with a projection (weight_hr) is not defined: zoneout keeps units of the "
            "cell's h, a projection hands on another vector"
        )
    expected = 4 if c0 is None else 6
    if layer_norm is not None and len(layer_norm) != expected:
        raise ValueError(
            f"expected {expected} tensors in layer_norm for {cell}, got {len(layer_norm)}: "
            "gain_ih, shift_ih, gain_hh, shift_hh and, where there is a c, gain_c, shift_c"
        )
    norm_ih, norm_hh = (layer_norm[:2], layer_norm[2:]) if layer_norm is not None else ((), ())
    vectors = () if cell_weights is None else cell_weights.unbind(0)
    parts = GRU_PARTS if cell in ("gru", "gru_residual") else 1
    x_gates = product(x, weight_ih, bias_ih, norm_ih, parts).flatten(0, -2)
    if rows.batch_sizes is not None and x_gates.shape[0] == rows.steps * rows.batch:
        # Lengths may be on a device: run every row, keep what is inside.
        sequence = torch.arange(rows.batch, device=x.device)
        inside = (sequence < rows.batch_sizes[:, None]).unsqueeze(-1)
        steps = [(t * rows.batch, rows.batch) for t in range(rows.steps)]
    else:
        inside, steps = None, rows.to_host()
    entering = apart(x_gates, steps)
    state: State = (h0,) if c0 is None else (h0, c0)
    outputs = []
    order = range(rows.steps)
    for t in reversed(order) if reverse else order:
        first, count = steps[t]
        boundary = t + 1 if reverse else t
        if anew is not None and boundary < rows.steps:
            state = chosen(state, anew[0][boundary], anew[1])
        before = tuple(value[:count] for value in state)
        now = slice(first, first + count)
        new = STEPS[cell](entering[t], before, weight_hh, bias_hh, vectors, norm_hh)
        if weight_hr is not None:
            new = (linear(new[0], weight_hr), *new[1:])
        if zoneout is not None:
            shares = zoneout[now].unbind(1)
            new = tuple(
                share * a + (1 - share) * b for share, a, b in zip(shares, before, new, strict=True)
            )
        if states is not None:
            new = tuple(value.view_as(value) for value in new)
            states.append((now, new))
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


def apart(rows: Tensor, steps: Sequence[tuple[int, int]]) -> Sequence[Tensor]:
    """The rows of every step: views whose derivatives write each row once, where that can be.

    A slice's derivative is as many zeros as there are rows, for every step.

    Args:
        rows: (N, ·).
        steps: (first row, number of rows) of each.
    """
    if any(first + count != after for (first, count), (after, _) in pairwise(steps)):
        return [rows[first : first + count] for first, count in steps]
    counts = [count for _, count in steps]
    return torch.split(rows[: sum(counts)], counts)


def chosen(state: State, where: Tensor, other: State | None) -> State:
    """The other state, or zeros, for some sequences; what is not chosen may be NaN.

    Args:
        state: (..., B, ·) each.
        where: bool (..., B).
        other: broadcast against `state`.
    """
    mask = where.unsqueeze(-1)
    if other is None:
        return tuple(value.masked_fill(mask, 0) for value in state)
    return tuple(torch.where(mask, a.to(b.dtype), b) for a, b in zip(other, state, strict=True))


def directions(
    cell: str,
    inputs: Sequence[Any],
    rows: Rows,
    reverse: bool = False,
    *,
    layer_norm: Sequence[Tensors] | None = None,
    anew: Anew | None = None,
    states: list[list[tuple[slice, State]]] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One layer in one direction or both, as `ops.recurrence` runs it.

    Args:
        cell, rows: as for `layer`.
        inputs: as for `layer`; all but x lead with the direction, M = 1 or 2, and zoneout is
            (N, M, Z, H).
        reverse: whether t falls for the first direction; a second goes the other way.
        layer_norm: as for `layer`, one entry a direction.
        anew: as for `layer`, the state leading with the direction.
        states: as for `layer`, one list a direction.

    Returns:
        y as `x` with M·P for D; h_n (M, B, P); c_n (M, B, H) or None.
    """
    x, *weights, h0, c0, zoneout = inputs
    found = []
    for m in range(h0.shape[0]):
        own = [None if tensor is None else tensor[m] for tensor in (*weights, h0, c0)]
        shares = None if zoneout is None else zoneout[:, m]
        norm = None if layer_norm is None else layer_norm[m]
        after = None
        if anew is not None:
            after = anew[0], None if anew[1] is None else tuple(value[m] for value in anew[1])
        inputs_of = (x, *own, shares)
        backwards = reverse != (m == 1)
        own_states = None if states is None else states[m]
        found.append(
            layer(cell, inputs_of, rows, backwards, layer_norm=norm, anew=after, states=own_states)
        )
    y, h_n, c_n = zip(*found, strict=True)
    last = None if c0 is None else torch.stack(c_n)
    return torch.cat(y, -1), torch.stack(h_n), last
