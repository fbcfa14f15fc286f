"""The time loop in plain PyTorch, with the handwritten backward of the cells.

It runs where Triton can't: on CPU inside the opaque operator that `torch.compile` and
`torch.export` see, in float64, and with a projection. Step maths is in float32 for 16-bit inputs.

With zoneout a step ends in (h', c') = z ⊙ (h, c) + (1 − z) ⊙ (h̃, c̃), with (h̃, c̃) what the cell
gave. Going back, 1 − z of each gradient enters the cell and z of it passes to the step before.
"""

from itertools import zip_longest

import torch
from torch import Tensor
from torch.nn.functional import linear

from rnnkit_kernels.cells import Cell
from rnnkit_kernels.recurrence.rows import Rows


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of cell states, state gradients and accumulators: never below float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _vectors(cell_weights: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(W, H) or None as the cells take it: W tensors (H,)."""
    return () if cell_weights is None else cell_weights.to(dtype).unbind(0)


def _split(
    names: tuple[str, ...], gradient: Tensor, carried: tuple[Tensor, ...], zoneout: Tensor
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Share the gradients of h' and c' between the cell, 1 − z, and the step before, z.

    Args:
        names: which state each of `carried` belongs to; "hidden" is among them.
        gradient: (n, H), of h' without what was carried.
        carried: (n, H) each.
        zoneout: (n, Z, H).

    Returns:
        ∂L/∂h̃ with its carried part; what the cell takes as its carry, zero where "hidden"; and
        what passes the cell by, both in the order of `names`.
    """
    at = names.index("hidden")
    whole = [*carried[:at], carried[at] + gradient, *carried[at + 1 :]]
    shares = [zoneout[:, ("hidden", "cell").index(name)] for name in names]
    inward = [(1 - z) * value for z, value in zip(shares, whole, strict=True)]
    gradient, inward[at] = inward[at], torch.zeros_like(gradient)
    return gradient, tuple(inward), tuple(z * v for z, v in zip(shares, whole, strict=True))


def forward(
    cell: Cell,
    x_gates: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    weight_hr: Tensor | None,
    cell_weights: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    zoneout: Tensor | None,
    rows: Rows,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the recurrence over all steps.

    Args:
        cell: the cell.
        x_gates: (N, G, H), W_ih x + b_ih.
        weight_hh: (G·H, P), P = H without projection.
        bias_hh: (G·H,).
        weight_hr: (P, H) or None, the projection of LSTMP.
        cell_weights: (W, H) or None, the cell's own vectors.
        h0: (B, P).
        c0: (B, H) in `state_dtype`, or None.
        zoneout: (N, Z, H) or None, the shares of h and, in cells with one, of c that stay.
        rows: which rows belong to a step.
        reverse: whether t falls.

    Returns:
        y (N, P), zero in rows that belong to no step; saved (N, S, H); states (N, C, H) in
        `state_dtype`: c', then with zoneout h̃ and c̃, then h before projection, each where there
        is one.

    Raises:
        ValueError: for zoneout with a projection.
    """
    if zoneout is not None and weight_hr is not None:
        raise ValueError(
            "zoneout with a projection (weight_hr) is not defined: zoneout keeps units of the "
            "cell's h, a projection hands on another vector"
        )
    hidden = x_gates.shape[2]
    exact = state_dtype(x_gates.dtype)
    vectors = _vectors(cell_weights, exact)
    y = x_gates.new_zeros(x_gates.shape[0], h0.shape[1])
    saved = x_gates.new_zeros(x_gates.shape[0], cell.saved_at[-1], hidden)
    own = int(cell.has_cell_state)
    extra = own + (0 if zoneout is None else 1 + own) + int(weight_hr is not None)
    states = x_gates.new_zeros(x_gates.shape[0], extra, hidden, dtype=exact)
    h = h0.clone()
    c = None if c0 is None else c0.clone()
    steps = [(first, count) for first, count in rows.to_host() if count > 0]
    for first, count in reversed(steps) if reverse else steps:
        now = slice(first, first + count)
        before = (h[:count].to(exact), *([c[:count]] if c is not None else []))
        kept: tuple[Tensor, ...] = ()
        operand = h[:count]
        for stage, function in enumerate(cell.forward):
            gates = slice(cell.gates_at[stage], cell.gates_at[stage + 1])
            rows_hh = slice(gates.start * hidden, gates.stop * hidden)
            h_gates = linear(operand, weight_hh[rows_hh], bias_hh[rows_hh])
            new, result = function(
                x_gates[now, gates].to(exact).unbind(1),
                h_gates.view(count, -1, hidden).to(exact).unbind(1),
                kept,
                before,
                vectors,
                torch.sigmoid,
                torch.tanh,
                torch.relu,
            )
            kept += new
            operand = result[0].to(h.dtype)
        if cell.saved_at[-1]:
            saved[now] = torch.stack(kept, 1)
        if zoneout is not None:
            states[now, own:] = torch.stack(result, 1)
            shares = zoneout[now].to(exact).unbind(1)
            result = tuple(
                z * a + (1 - z) * b for z, a, b in zip(shares, before, result, strict=True)
            )
            operand = result[0].to(h.dtype)
        if c is not None:
            states[now, 0] = c[:count] = result[1]
        if weight_hr is not None:
            states[now, -1] = result[0]
            operand = linear(operand, weight_hr)
        y[now] = h[:count] = operand
    return y, saved, states


def states_around(
    cell: Cell,
    h0: Tensor,
    c0: Tensor | None,
    zoneout: Tensor | None,
    rows: Rows,
    reverse: bool,
    y: Tensor,
    states: Tensor,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(h,) or (h, c) that the cell took, and that it gave before zoneout, (N, ·) each, of all rows.

    The sums after the loop take them too: weight gradients, and those of the cell's own vectors.
    Arguments are those of `backward`.
    """
    before: tuple[Tensor, ...] = (rows.before(y, h0, reverse),)
    after: tuple[Tensor, ...] = (y,)
    if c0 is not None:
        c = states[:, 0]
        before, after = (*before, rows.before(c, c0, reverse)), (y, c)
    if zoneout is not None:
        after = states[:, int(cell.has_cell_state) :].unbind(1)
    return before, after


def step_back(
    cell: Cell,
    weight_hh: Tensor,
    vectors: tuple[Tensor, ...],
    kept: tuple[Tensor, ...],
    before: tuple[Tensor, ...],
    after: tuple[Tensor, ...],
    gradient: Tensor,
    carried: tuple[Tensor, ...],
    zoneout: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """One step backwards, of n rows; nothing is written in place, so autograd may follow.

    Args:
        weight_hh: (G·H, P). vectors: the cell's own, (H,) each.
        kept, before, after: what the step saved, read and gave, (n, H) each.
        gradient: (n, H), of h without what is carried.
        carried: (n, H) each, in the order of `cell.carried`.
        zoneout: (n, Z, H), the shares that stay, or None.
        dtype: of the columns and of what is multiplied with `weight_hh`.

    Returns:
        What h before the step gets through `weight_hh`, (n, P); columns (n, R, H); the new carry.
    """
    count, hidden, exact = len(gradient), gradient.shape[1], state_dtype(dtype)
    passed: tuple[Tensor, ...] = ()
    if zoneout is not None:
        gradient, carried, passed = _split(cell.carried(True), gradient, carried, zoneout)
    columns = [gradient] * cell.columns_at[-1]  # each is replaced by its stage
    for stage in reversed(range(len(cell.backward))):
        new, carried = cell.backward[stage](
            kept, before, after, gradient, carried, vectors, torch.tanh
        )
        at = cell.columns_at[stage]
        columns[at : at + len(new)] = [column.to(dtype) for column in new]
        gates = slice(cell.gates_at[stage], cell.gates_at[stage + 1])
        read = slice(gates.start + cell.hidden_columns, gates.stop + cell.hidden_columns)
        d_gates = torch.stack(columns[read], 1).reshape(count, -1)
        gradient = (d_gates @ weight_hh[gates.start * hidden : gates.stop * hidden]).to(exact)
    if zoneout is not None:
        # A cell without a hidden carry has only what passed it in that place, the last.
        nothing = gradient.new_zeros(())
        carried = tuple(a + b for a, b in zip_longest(carried, passed, fillvalue=nothing))
    return gradient, torch.stack(columns, 1), carried


def backward(
    cell: Cell,
    dy: Tensor,
    dh_n: Tensor,
    dc_n: Tensor | None,
    weight_hh: Tensor,
    weight_hr: Tensor | None,
    cell_weights: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    zoneout: Tensor | None,
    rows: Rows,
    reverse: bool,
    y: Tensor,
    saved: Tensor,
    states: Tensor,
    of_states: tuple[Tensor, Tensor | None] | None = None,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
    """Run the recurrence backwards; the last step processed by `forward` comes first.

    Args:
        dy: (N, P). dh_n: (B, P). dc_n: (B, H) in `state_dtype`, or None.
        y: (N, P), saved, states: as `forward` returned them; the rest as `forward` took it.
        of_states: room for ∂L/∂h_t (N, P) and ∂L/∂c_t (N, H) after every step, or None.

    Returns:
        columns (N, R, H), gradients of the pre-activations, zero in rows of no step; the carry at
        the start of each sequence, (B, H) each, in the order of `cell.carried`: as `cell.carry`
        and, with zoneout in a cell whose carry has no "hidden", that one last; and the gradient of
        the projected h (N, P) or None.
    """
    hidden, exact = weight_hh.shape[0] // cell.gates_at[-1], state_dtype(dy.dtype)
    columns = dy.new_zeros(dy.shape[0], cell.columns_at[-1], hidden)
    projected = torch.zeros_like(dy) if weight_hr is not None else None
    all_before, all_after = states_around(cell, h0, c0, zoneout, rows, reverse, y, states)
    vectors = _vectors(cell_weights, exact)
    d_h = dh_n.to(exact, copy=True)
    names = cell.carried(zoneout is not None)
    carry = [
        dc_n.clone() if name == "cell" and dc_n is not None else d_h.new_zeros(len(h0), hidden)
        for name in names
    ]
    steps = [(first, count) for first, count in rows.to_host() if count > 0]
    for first, count in steps if reverse else reversed(steps):
        now = slice(first, first + count)
        gradient = d_h[:count] + dy[now]
        if of_states is not None:
            past = {name: value[:count] for name, value in zip(names, carry, strict=True)}
            of_states[0][now] = gradient + past["hidden"] if "hidden" in past else gradient
            if of_states[1] is not None:
                of_states[1][now] = past["cell"]
        if projected is not None and weight_hr is not None:
            projected[now] = gradient
            gradient = (projected[now] @ weight_hr).to(exact)
        before = tuple(value[now].to(exact) for value in all_before)
        after = tuple(value[now].to(exact) for value in all_after)
        kept = saved[now].to(exact).unbind(1)
        carried = tuple(value[:count] for value in carry)
        shares = None if zoneout is None else zoneout[now].to(exact)
        of_step = (kept, before, after, gradient, carried, shares)
        d_h[:count], columns[now], carried = step_back(cell, weight_hh, vectors, *of_step, dy.dtype)
        for value, new_value in zip(carry, carried, strict=True):
            value[:count] = new_value
    return columns, tuple(carry), projected
