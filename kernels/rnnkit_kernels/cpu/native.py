"""A layer by the native engine: tensors become pointers, and new tensors hold what comes back."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from rnnkit_kernels.cells import CELLS, Cell
from rnnkit_kernels.cpu.library import HEADER, LAYER, Library, library, missing
from rnnkit_kernels.recurrence.rows import Rows

_CALLS = [struct.Struct(f"={HEADER + members * LAYER}q") for members in range(3)]
PLAIN = {Tensor, torch.nn.Parameter}
# Below so many products a second thread costs more than it brings.
FEW = 200_000
# With fewer sequences than this threads share units, and meet at every step.
FEW_ROWS = 8


def _engine(cell: Cell) -> tuple[Library, int]:
    found = library(cell)
    if found is None:
        raise RuntimeError(f"the native engine can't run here: {missing(cell)}")
    return found, found.cells[cell.name]


def runs(cell: Cell, x: Tensor) -> bool:
    """Whether the engine is there for this cell, and takes what x is."""
    return (
        library(cell) is not None
        and x.dtype in (torch.float32, torch.float64)
        and x.device.type == "cpu"
        and x.numel() > 0
    )


def _unavailable(cell: str) -> str:
    return missing(CELLS[cell])


# What torch.compiler.assume_constant_result sets; that would import Dynamo with rnnkit.
_unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]


def refuses(cell: str, input: Tensor, weights: Sequence[Tensor], autocasts: bool) -> str:
    """Why the engine can't run a layer, in one sentence; empty where it can."""
    if input.device.type != "cpu":
        return f"the native engine is for CPUs, and the input is on {input.device}"
    why: str = _unavailable(cell)
    if why:
        return why
    if autocasts:
        return "under autocast torch's own layers choose the dtype"
    dtype = weights[1].dtype
    if dtype not in (torch.float32, torch.float64):
        return f"the native engine computes in float32 and float64, and the layer is {dtype}"
    if input.numel() == 0:
        return "the input is empty"
    if torch.compiler.is_compiling():
        return ""
    kinds = {type(tensor) for tensor in (input, *weights)}
    if not kinds <= PLAIN:
        odd = next(kind.__name__ for kind in kinds if kind not in PLAIN)
        return f"a {odd} is no plain tensor"
    return ""


def threads_for(work: int) -> int:
    """How many threads share so many products."""
    return 1 if work < FEW else torch.get_num_threads()


def split(cell: Cell, batch: int, hidden: int, threads: int, size: int) -> int:
    """1 where threads share units, 0 where they share rows."""
    large = cell.gates_at[-1] * hidden * hidden * size > 1_500_000
    return int(threads > 1 and (batch < FEW_ROWS or (batch < 16 * threads and large)))


def _address(tensor: Tensor | None, member: int = 0) -> int:
    """Of entry `member` of the leading dimension; 0 stands for nothing."""
    if tensor is None:
        return 0
    at = tensor.data_ptr()
    return at + member * tensor.stride(0) * tensor.element_size() if member else at


def _column(tensor: Tensor | None, member: int) -> tuple[int, int]:
    """Address of member's part of (N, M, ...), and the stride of its rows."""
    if tensor is None or tensor.numel() == 0:
        return 0, 0
    return tensor.data_ptr() + member * tensor.stride(1) * tensor.element_size(), tensor.stride(0)


def _call(
    found: Library, backward: bool, header: Sequence[int], layers: Sequence[Sequence[int]]
) -> None:
    call = _CALLS[len(layers)].pack(*header, *(field for layer in layers for field in layer))
    failed = (found.backward if backward else found.forward)(call)
    if failed:
        raise_failure(failed)


def raise_failure(code: int) -> NoReturn:
    """Raise what an engine's answer other than 0 means."""
    if code != 1:
        raise RuntimeError(
            "expected batch sizes that fall from the number of sequences and add up to the rows, "
            f"and lengths between 0 and the number of steps (the native engine answered {code})"
        )
    raise torch.OutOfMemoryError(
        "DefaultCPUAllocator: can't allocate memory: the native engine's room for packed weights "
        "and pre-activations"
    )


def _contiguous(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.contiguous().resolve_neg() for tensor in tensors]


def _check(
    cell: Cell, rows: Rows, inputs: Sequence[Tensor | None], zoneout: Tensor | None
) -> tuple[int, ...]:
    """Refuse what the engine would read beyond its end; N, D, H and P."""
    x, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, cell_weights, h0, c0 = inputs
    assert x is not None
    assert weight_ih is not None
    assert weight_hh is not None
    assert h0 is not None
    members, batch, outputs = h0.shape
    features = x.shape[-1]
    count = x.numel() // features
    all_gates = weight_hh.shape[1]
    hidden = all_gates // cell.gates_at[-1]
    expected = (
        ("x", x, x.shape if rows.batch_sizes is not None else (rows.steps, batch, features)),
        ("weight_ih", weight_ih, (members, all_gates, features)),
        ("weight_hh", weight_hh, (members, hidden * cell.gates_at[-1], outputs)),
        ("bias_ih", bias_ih, (members, all_gates)),
        ("bias_hh", bias_hh, (members, all_gates)),
        ("weight_hr", weight_hr, (members, outputs, hidden)),
        ("cell_weights", cell_weights, (members, cell.weights, hidden)),
        ("c0", c0, (members, batch, hidden)),
        ("zoneout", zoneout, (count, members, 1 + cell.has_cell_state, hidden)),
    )
    for name, tensor, shape in expected:
        if tensor is not None and tensor.shape != shape:
            raise RuntimeError(
                f"expected {name} of shape {tuple(shape)}, got {tuple(tensor.shape)}"
            )
    for tensor in (*inputs, zoneout):
        if tensor is not None and (tensor.dtype != x.dtype or tensor.device.type != "cpu"):
            raise RuntimeError(
                f"expected all tensors of a layer in {x.dtype} on the CPU, got {tensor.dtype} on "
                f"{tensor.device}"
            )
        if tensor is not None and not tensor.data_ptr():
            raise RuntimeError("expected tensors with memory of their own, got one without memory")
    if weight_hr is None and outputs != hidden:
        raise RuntimeError(f"expected h0 of {hidden} units, got {outputs}")
    if (c0 is None) == cell.has_cell_state or (cell_weights is None) == (cell.weights > 0):
        raise RuntimeError(f"expected c0 and weights of its own as {cell.name} has them")
    return count, features, hidden, outputs


def forward(
    cell: Cell,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    cell_weights: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    zoneout: Tensor | None,
    rows: Rows,
    reverse: bool,
    save: bool,
    keep: bool,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """One layer in one direction or both; arguments are those of `rnnkit::recurrence`.

    Args:
        save: whether states are wanted.
        keep: whether what the cell saves is wanted too.
        lengths: int64 (B,), of sequences in any order in T·B rows; `rows` is dense then.

    Returns:
        y (N, M, P), h_n (M, B, P), c_n (M, B, H) or None, saved (N, M, S, H), empty unless `keep`,
        and states (N, M, slots, H), empty unless `save`.
    """
    found, index = _engine(cell)
    x, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, cell_weights, h0, c0, zoneout = (
        _contiguous(
            x, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, cell_weights, h0, c0, zoneout
        )
    )
    members, batch, _ = h0.shape
    inputs = (x, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, cell_weights, h0, c0)
    count, features, hidden, outputs = _check(cell, rows, inputs, zoneout)
    gates = cell.gates_at[-1]
    # Rows that belong to no step are zero in y; what is saved there nobody reads.
    y = x.new_empty(count, members, outputs)
    h_n = torch.empty_like(h0)
    c_n = None if c0 is None else torch.empty_like(c0)
    slots = _slots(cell, weight_hr, zoneout)
    saved = x.new_empty(count, members, cell.saved_at[-1], hidden) if keep else x.new_empty(0)
    states = x.new_empty(count, members, slots, hidden) if save else x.new_empty(0)
    sizes, offsets, lengths = _contiguous(rows.batch_sizes, rows.offsets, lengths)
    threads = threads_for(count * members * gates * hidden * (features + outputs))
    layers = []
    for m in range(members):
        (to_y, y_stride), (to_saved, saved_stride) = _column(y, m), _column(saved, m)
        (to_states, states_stride), (to_zoneout, zoneout_stride) = (
            _column(states, m),
            _column(zoneout, m),
        )
        layers.append((
            rows.steps, batch, features, hidden, outputs, count,
            int(reverse != (m == 1)), int(save),
            _address(sizes), _address(offsets), _address(lengths), x.data_ptr(),
            _address(weight_ih, m), _address(weight_hh, m), _address(bias_ih, m),
            _address(bias_hh, m), _address(weight_hr, m), _address(cell_weights, m),
            _address(h0, m), _address(c0, m), to_zoneout,
            to_y, _address(h_n, m), _address(c_n, m), to_saved, to_states,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, features, y_stride, saved_stride, states_stride, zoneout_stride, 0, 0, 0,
        ))  # fmt: skip
    size = x.element_size()
    shared = split(cell, batch, hidden, threads, size)
    _call(found, False, (index, size, threads, members, shared, 0), layers)
    return y, h_n, c_n, saved, states


def _slots(cell: Cell, weight_hr: Tensor | None, zoneout: Tensor | None) -> int:
    own = int(cell.has_cell_state)
    return own + (0 if zoneout is None else 1 + own) + int(weight_hr is not None)


def backward(
    cell: Cell,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
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
    needs_dx: bool,
    lengths: Tensor | None = None,
    of_states: tuple[Tensor | None, Tensor | None] = (None, None),
) -> list[Tensor | None]:
    """Gradients of x, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, cell_weights, h0, c0.

    Arguments are those of `rnnkit::recurrence_backward`, y (N, M, P), and `lengths` as above.
    `of_states` is room for ∂L/∂h_t (N, M, P) and ∂L/∂c_t (N, M, H) after every step.
    """
    found, index = _engine(cell)
    (
        dy, dh_n, dc_n, x, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, cell_weights, h0, c0,
        zoneout, y, saved, states,
    ) = _contiguous(
        dy, dh_n, dc_n, x, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, cell_weights, h0, c0,
        zoneout, y, saved, states,
    )  # fmt: skip
    members, batch, outputs = h0.shape
    features = x.shape[-1]
    gates = cell.gates_at[-1]
    hidden = weight_hh.shape[1] // gates
    count = y.shape[0]
    if dy is not None:
        dy = dy.view(count, members, outputs)
    dx = torch.empty_like(x) if needs_dx else None
    wanted = (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, cell_weights, h0, c0)
    gradients = [None if tensor is None else torch.empty_like(tensor) for tensor in wanted]
    sizes, offsets, lengths = _contiguous(rows.batch_sizes, rows.offsets, lengths)
    threads = threads_for(count * members * gates * hidden * (features + outputs))
    layers = []
    for m in range(members):
        (to_y, y_stride), (to_saved, saved_stride) = _column(y, m), _column(saved, m)
        (to_states, states_stride), (to_zoneout, zoneout_stride) = (
            _column(states, m),
            _column(zoneout, m),
        )
        to_dy, dy_stride = _column(dy, m)
        (to_d_hidden, d_hidden_stride), (to_d_cell, d_cell_stride) = (
            _column(value, m) for value in of_states
        )
        d_weight_ih, d_weight_hh, d_bias_ih, d_bias_hh, d_weight_hr, d_cell, d_h0, d_c0 = (
            _address(tensor, m) for tensor in gradients
        )
        layers.append((
            rows.steps, batch, features, hidden, outputs, count, int(reverse != (m == 1)), 1,
            _address(sizes), _address(offsets), _address(lengths), x.data_ptr(),
            _address(weight_ih, m), _address(weight_hh, m), _address(bias_ih, m),
            _address(bias_hh, m), _address(weight_hr, m), _address(cell_weights, m),
            _address(h0, m), _address(c0, m), to_zoneout,
            to_y, 0, 0, to_saved, to_states,
            to_dy, _address(dh_n, m), _address(dc_n, m),
            d_weight_ih, d_weight_hh, d_bias_ih, d_bias_hh, d_weight_hr, d_cell, d_h0, d_c0,
            to_d_hidden, to_d_cell,
            features, y_stride, saved_stride, states_stride, zoneout_stride, dy_stride,
            d_hidden_stride, d_cell_stride,
        ))  # fmt: skip
    size = x.element_size()
    shared = split(cell, batch, hidden, threads, size)
    _call(found, True, (index, size, threads, members, shared, _address(dx)), layers)
    return [dx, *gradients]
