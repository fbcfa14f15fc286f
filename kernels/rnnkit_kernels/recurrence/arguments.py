"""What the kernels take, bundled by what belongs together.

A bundle is one argument of a kernel, and of the functions inside it: tensors on the host, pointers
in the kernel. Triton looks at every tensor in it as if it stood alone; what is absent is None.
Numbers that change from call to call stay outside, for Triton compiles anew for what it finds in a
bundle: for 1, for multiples of 16, for more than 32 bits.

`Layer` and `Tiling` are what is known when a kernel is compiled. Triton knows a compiled kernel
again by the text of its constants. So they hold values and compute none, and the functions of a
cell stay outside: one that is a constant of its own is known by its source.
"""

from typing import Any, Literal, NamedTuple

from rnnkit_kernels.cells import Cell
from rnnkit_kernels.recurrence.layout import padded_width
from rnnkit_kernels.recurrence.plan import Plan

Pointer = Any  # a tensor on the host


class Weights(NamedTuple):
    """Weights of M members.

    Attributes:
        weight_hh: (M, G·H, H), rows padded to `Layer.weight_stride`.
        bias_hh: (M, G·H); None backward.
        cell_weights: (M, P, H); anything where P = 0.
    """

    weight_hh: Pointer
    bias_hh: Pointer
    cell_weights: Pointer


class State(NamedTuple):
    """The state that sequences start from.

    Attributes:
        h: (M, B, H).
        c: (M, B, H) float32. Forward it is updated in place; backward None for cells without.
    """

    h: Pointer
    c: Pointer


class Storage(NamedTuple):
    """What the forward pass leaves of every row.

    Attributes:
        y: (N, M, H), each step's h.
        saved: (N, M, S, H), values of the gate maths that the backward pass needs.
        states: (N, M, slots, H) float32: c, then with zoneout the states before it.
    """

    y: Pointer
    saved: Pointer
    states: Pointer


class StepRows(NamedTuple):
    """Which rows of the storage belong to each step; both None where all steps have B.

    Attributes:
        batch_sizes: int64 (T,), how many.
        offsets: int64 (T,), the first.
    """

    batch_sizes: Pointer
    offsets: Pointer


class Stack(NamedTuple):
    """What the layers of a wavefront above the first take; all None for other grids.

    Attributes:
        weight_ih: (M − 1, G·H, H), padded as `Weights.weight_hh`.
        bias_ih: (M − 1, G·H); None backward.
        dropped: (N, M − 1, H), what dropout left of each y below; None backward.
    """

    weight_ih: Pointer
    bias_ih: Pointer
    dropped: Pointer


class Dropout(NamedTuple):
    """Which random words a mask is made of.

    Attributes:
        seed: int64, one element; None without dropout.
        order: int64 (B,), the original index of each sequence; None for the identity.
    """

    seed: Pointer
    order: Pointer


class Meeting(NamedTuple):
    """Where programs that run at once meet; both None in launch mode.

    Attributes:
        counters: int32, `COUNTER_STRIDE` apart, one a member and tile of sequences.
        error: int32, one element: whether a program waited in vain.
    """

    counters: Pointer
    error: Pointer


class Gradients(NamedTuple):
    """What the backward pass takes and gives.

    Attributes:
        y: (N, M, H), ∂L/∂y; in a wavefront of the last layer only, (N, H).
        h_n: (M, B, H), ∂L/∂h_n.
        carry: (carries, M, B, H) float32, what reaches the step before without passing through
            `weight_hh`; updated in place.
        columns: (N, M, R, H), gradients of the pre-activations: the result.
    """

    y: Pointer
    h_n: Pointer
    carry: Pointer
    columns: Pointer


class Layer(NamedTuple):
    """A layer as the compiler sees it.

    Attributes:
        stages: products, each with gate maths, of a step.
        gates_at, saved_at, columns_at: first gate, saved value and gradient column of each stage,
            then their number.
        gates, saved, columns: G, S and R.
        cell_weights: P, vectors of one value a unit.
        has_cell: whether a second state, c, is carried beside h.
        states: how many states are carried.
        slots: of `Storage.states`.
        zoneout: whether states are kept in part.
        carries: state gradients that bypass `weight_hh`; the cell knows the first `own_carries`.
        hidden_carry: which of them is that of h; −1 for none.
        input_column: first gradient column of W_ih x.
        hidden: H.
        members: M, directions or layers.
        weight_stride: elements between two rows of a weight matrix.
        ragged: whether sequences differ in length.
    """

    stages: int
    gates_at: tuple[int, ...]
    saved_at: tuple[int, ...]
    columns_at: tuple[int, ...]
    gates: int
    saved: int
    columns: int
    cell_weights: int
    has_cell: bool
    states: int
    slots: int
    zoneout: bool
    carries: int
    own_carries: int
    hidden_carry: int
    input_column: int
    hidden: int
    members: int
    weight_stride: int
    ragged: bool

    @classmethod
    def of(
        cls, cell: Cell, hidden: int, itemsize: int, members: int, ragged: bool, zoneout: bool
    ) -> "Layer":
        """M members of `hidden` units; `itemsize` bytes an element of the weights."""
        carry = cell.carried(zoneout)
        has_cell = cell.has_cell_state
        return cls(
            stages=len(cell.gates),
            gates_at=cell.gates_at,
            saved_at=cell.saved_at,
            columns_at=cell.columns_at,
            gates=cell.gates_at[-1],
            saved=cell.saved_at[-1],
            columns=cell.columns_at[-1],
            cell_weights=cell.weights,
            has_cell=has_cell,
            states=1 + has_cell,
            slots=has_cell + zoneout * (1 + has_cell),
            zoneout=zoneout,
            carries=len(carry),
            own_carries=len(cell.carry),
            hidden_carry=carry.index("hidden") if "hidden" in carry else -1,
            input_column=min(cell.input_columns, default=0),
            hidden=hidden,
            members=members,
            weight_stride=padded_width(hidden, itemsize),
            ragged=ragged,
        )


class Tiling(NamedTuple):
    """A plan's tiles in one direction of the gradient; see `plan.Tiles`.

    To hand text on to an inner function, make it a constant first: triton 3.6 takes no other.

    Attributes:
        meeting: mode of the plan.
        precision: of float32 products.
        block_h, block_b: units and sequences of a tile.
        chunks: for each stage's product, (start, size) pairs that cover its depth.
        split: warps that share the depth of a product.
        polled: chunks that are fetched at a time.
    """

    meeting: str
    precision: str
    block_h: int
    block_b: int
    chunks: tuple[tuple[tuple[int, int], ...], ...]
    split: int
    polled: int

    @classmethod
    def of(cls, plan: Plan, direction: Literal["forward", "backward"]) -> "Tiling":
        """Those of `plan`."""
        tiles = plan.forward if direction == "forward" else plan.backward
        return cls(
            plan.mode,
            plan.precision,
            tiles.block_h,
            tiles.block_b,
            tiles.chunks,
            tiles.split,
            tiles.polled,
        )


class Place(NamedTuple):
    """Where a tile of units × sequences lies in the storage.

    Attributes:
        row: int64, the tile's first row times M, plus the member.
        unit: (units,), which.
        live: (units, sequences), whether there is such a unit, and the sequence runs.
    """

    row: Any
    unit: Any
    live: Any


class Before(NamedTuple):
    """Where a tile's state before a step lies: in the storage, or where sequences start.

    Attributes:
        row: as `Place.row`, of the step before.
        started: (sequences,), which go on from there.
        starting: (sequences,), which start from their initial state.
    """

    row: Any
    started: Any
    starting: Any


class WeightRows(NamedTuple):
    """Rows of a weight matrix that multiply one operand.

    Attributes:
        at: (rows, 1), pointers to column 0.
        exist: (rows, 1), which there are.
        step: elements from one column to the next.
    """

    at: Any
    exist: Any
    step: Any


class Operand(NamedTuple):
    """What is multiplied: a row of every sequence of a tile, from one of two places.

    Attributes:
        row: pointer to the row of the tile's first sequence, for those that go on.
        stride: elements from one sequence's row to the next.
        start: as `row`, for sequences that start; their rows lie as close as they can.
        started, starting: (sequences,), which go on and which start; no sequence does both.
    """

    row: Any
    stride: Any
    start: Any
    started: Any
    starting: Any
