"""Programs that meet at every step, run at once: one process a program, see concurrent.py."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

from rnnkit_kernels import functional, wavefront
from rnnkit_kernels.cells import CELLS, LSTM
from rnnkit_kernels.ops import planned, stack, stack_backward
from rnnkit_kernels.ops.recurrence import recurrence
from rnnkit_kernels.recurrence import exchange
from rnnkit_kernels.recurrence.plan import H200, Plan, Tiles, plan, together_tiles
from rnnkit_kernels.recurrence.wavefront import wavefront_plan
from tests.kernels.concurrent import exact_bfloat16_dot, run_programs_concurrently
from tests.kernels.layers import (
    Layer,
    assert_as_exact,
    assert_as_exact_as_a_plain_loop,
    random_layer,
)

pytestmark = [pytest.mark.process, pytest.mark.slow]

MEETINGS = ("counter", "data")
STORAGES = ("dense", "packed", "padded")


@pytest.fixture(autouse=True)
def grids(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Run cooperative launches with all programs at once; the grids that were launched."""
    found: list[tuple[int, int, int]] = []

    def cooperate(
        kernel: Any, grid: tuple[int, int, int], arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        found.append(grid)
        run_programs_concurrently(kernel, grid, arguments, options)

    monkeypatch.setattr(exchange, "cooperate", cooperate)
    return found


def plan_as(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Let the operators use plans that differ from the rule's."""

    def changed(*arguments: Any) -> Any:
        found = plan(*arguments)
        return replace(found, **changes) if isinstance(found, Plan) else found

    monkeypatch.setattr(planned, "plan", changed)


@pytest.mark.parametrize(
    ("cell", "storage", "reverse"),
    [
        # Every storage in both directions, for cells of one product and of two.
        *((cell, STORAGES[i % 3], i % 2 == 1) for i, cell in enumerate(CELLS)),
        ("gru_reset_before", "packed", False),
        ("lstm", "padded", True),
    ],
)
def test_programs_that_meet_give_the_bits_of_one_launch_a_step(
    cell: str,
    storage: str,
    reverse: bool,
    monkeypatch: pytest.MonkeyPatch,
    grids: list[tuple[int, int, int]],
) -> None:
    """With tiles of the same shapes every sum has the same order, whichever way they meet."""
    kind = CELLS[cell]
    units = (((0, 16), (16, 16)),) * len(kind.gates)
    columns = tuple(
        tuple((start, 16) for start in range(0, gates * 21, 16)) for gates in kind.gates
    )
    together = {"forward": Tiles(16, 16, units, 1), "backward": Tiles(16, 16, columns, 1)}
    step = Tiles(16, 16, (((0, 16),),) * len(kind.gates), 1)
    layer = random_layer(cell, storage, reverse, hidden=21)
    low = layer.to(torch.float32)
    plan_as(monkeypatch, **together)
    met = [low.run(meeting) for meeting in MEETINGS]
    assert grids == [(2, 1, 1)] * 4
    plan_as(monkeypatch, forward=step, backward=step)
    launched = low.run("launch")
    for one in met:
        for a, b in zip(one, launched, strict=True):
            assert torch.equal(a, b)
    assert_as_exact(launched, low.run("reference"), layer.run("reference"), torch.float32)


@pytest.mark.parametrize("meeting", MEETINGS)
@pytest.mark.parametrize(("cell", "hidden"), [("lstm", 20), ("lstm", 35), ("gru_reset_before", 20)])
def test_tiles_that_the_rule_plans_give_exact_results(cell: str, hidden: int, meeting: str) -> None:
    """Two programs, and three, with the plans that users get."""
    assert_as_exact_as_a_plain_loop(
        random_layer(cell, "packed", hidden=hidden), meeting, torch.float32
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("cell", "meeting"),
    # Words of data are polled, and a counter is the same for every dtype.
    [("lstm", "data"), ("gru", "data"), ("gru_reset_before", "data"), ("lstm", "counter")],
)
def test_sixteen_bits(cell: str, dtype: torch.dtype, meeting: str) -> None:
    with exact_bfloat16_dot():
        assert_as_exact_as_a_plain_loop(random_layer(cell, "packed", hidden=24), meeting, dtype)


@pytest.mark.parametrize("meeting", MEETINGS)
@pytest.mark.parametrize("mode", ["launch", "resident"])
def test_bfloat16_in_the_other_modes(mode: str, meeting: str) -> None:
    with exact_bfloat16_dot():
        layer = random_layer("lstm", "packed", reverse=meeting == "data", hidden=24)
        assert_as_exact_as_a_plain_loop(layer, mode, torch.bfloat16)


@pytest.mark.parametrize(
    ("cell", "meeting"),
    [("lstm", "data"), ("gru_reset_before", "data"), ("gru_reset_before", "counter")],
)
def test_tiles_of_sequences_in_turn(
    cell: str, meeting: str, monkeypatch: pytest.MonkeyPatch, grids: list[tuple[int, int, int]]
) -> None:
    """Two programs, three tiles of sequences: one group takes all, two groups share them."""
    layer = random_layer(cell, "packed", hidden=20, batch=35).to(torch.float32)
    results = []
    for programs, groups in ((2, 1), (4, 2)):
        plan_as(monkeypatch, multiprocessors=programs)
        results.append(layer.run(meeting))
        assert grids[-1] == (2, groups, 1)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)
    exact = layer.to(torch.float64).run("reference")
    assert_as_exact(results[0], layer.run("reference"), exact, torch.float32)


@pytest.mark.parametrize("meeting", MEETINGS)
def test_directions_run_at_once_where_they_fit(
    meeting: str, monkeypatch: pytest.MonkeyPatch, grids: list[tuple[int, int, int]]
) -> None:
    layer = torch.nn.GRU(3, 20, bidirectional=True)
    x, h0 = torch.randn(4, 3, 3), torch.randn(2, 3, 20)
    weights = list(layer.parameters())
    parts = [torch.stack((a, b)) for a, b in zip(weights[:4], weights[4:], strict=True)]
    results = []
    for programs, expected in ((4, [(2, 1, 2)]), (3, [(2, 1, 1)] * 2)):
        plan_as(monkeypatch, multiprocessors=programs)
        grids.clear()
        inputs = (x, *parts, None, None, h0, None, None, None, None)
        results.append(recurrence(*inputs, "gru", False, meeting, False, False)[:2])
        assert grids == expected
    for found in results:
        for a, b in zip(found, layer(x, h0), strict=True):
            torch.testing.assert_close(a, b)


def all_ones(*shape: int) -> Tensor:
    """NaN whose bits are the pattern that data as flag waits out."""
    return torch.full(shape, -1, dtype=torch.int32).view(torch.float32)


@pytest.mark.parametrize("meeting", MEETINGS)
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "rnn_relu"])
def test_no_value_stops_a_step(cell: str, meeting: str) -> None:
    """NaN, infinity and all-ones bits in inputs, initial states and gradients."""
    layer = random_layer(cell, "packed", hidden=20, zoneout=True).to(torch.float32)
    clean = layer.run(meeting)
    with torch.no_grad():
        x, h0, zoneout = (layer.inputs[i] for i in (0, 7, 9))
        assert x is not None
        assert h0 is not None
        assert zoneout is not None
        x[3] = all_ones(7)  # step 1 of the first sequence
        h0[1] = all_ones(20)
        zoneout[1, 0] = 1.0  # which hands the bits of h0 on as they are
        layer.gradients[0][2] = all_ones(20)
    found = layer.run(meeting)
    y = found[0]
    assert y[3].isnan().any()
    assert y[1].isnan().all()
    # The third sequence meets none of it forwards.
    for row in (2, 5):
        if row < len(y):
            assert torch.equal(y[2], clean[0][2])
    with torch.no_grad():
        x[0] = float("inf")
    layer.run(meeting)


@pytest.mark.parametrize("meeting", MEETINGS)
def test_a_program_that_never_comes_ends_the_wait_with_an_error(
    meeting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_missing(
        kernel: Any, grid: tuple[int, int, int], arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        run_programs_concurrently(kernel, grid, arguments, options, missing=(1, 0, 0))

    monkeypatch.setattr(exchange, "cooperate", one_missing)
    monkeypatch.setattr(exchange, "MAX_POLLS", 20)
    with pytest.raises(RuntimeError, match=r"2 programs of a group waited .* in vain \(20 polls\)"):
        random_layer("lstm", hidden=20).to(torch.float32).run(meeting)
    monkeypatch.setenv("RNNKIT_CHECK", "1")
    with pytest.raises(RuntimeError, match="in vain"):
        random_layer("lstm", hidden=20).to(torch.float32).run(meeting)


def test_a_refused_cooperative_grid_falls_back_to_one_launch_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*arguments: Any) -> None:
        raise RuntimeError("Triton Error [CUDA]: too many blocks in cooperative launch")

    monkeypatch.setattr(exchange, "cooperate", refuse)
    layer = random_layer("lstm", hidden=20).to(torch.float32)
    with pytest.warns(planned.LaunchRefusedWarning, match="in the place of mode data"):
        found = layer.run("data")
    for a, b in zip(found, layer.run("launch"), strict=True):
        assert torch.equal(a, b)


def test_the_plain_interpreter_refuses_programs_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match=r"of \(2, 1, 1\) programs some wait for others"):
        random_layer("lstm", hidden=20).to(torch.float32).run("counter")


def random_stack(cell: str, storage: str, layers: int, dropout: float) -> tuple[Layer, list[Any]]:
    """A layer for its rows, states of `layers` layers, and the inputs of `stack.stack`."""
    parts = [random_layer(cell, storage, hidden=20, seed=seed) for seed in range(layers)]
    above = [random_layer(cell, storage, hidden=20, features=20, seed=9 + i) for i in range(layers)]
    rows = parts[0].rows

    def stacked(i: int) -> Tensor | None:
        tensors = [part.inputs[i] for part in parts]
        return None if tensors[0] is None else torch.stack(tensors)  # type: ignore[arg-type]

    upper = torch.stack([part.inputs[1] for part in above[1:]])  # type: ignore[misc]
    inputs = [*parts[0].inputs[:2], upper, *(stacked(i) for i in (2, 3, 4, 6, 7, 8))]
    seed, order = torch.tensor([2**40 + 5]), torch.randperm(rows.batch)
    fixed = [rows.batch_sizes, rows.offsets, order, seed if dropout else None, dropout, cell]
    return parts[0], [inputs, fixed]


def leaves(inputs: list[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    return [None if t is None else t.detach().to(dtype).requires_grad_() for t in inputs]


@pytest.mark.parametrize("meeting", MEETINGS)
@pytest.mark.parametrize(
    ("cell", "storage", "layers", "dropout"),
    [
        ("lstm", "packed", 2, 0.3),
        ("gru", "padded", 3, 0.5),
        ("rnn_tanh", "dense", 2, 0.0),
        ("lstm_peephole", "dense", 2, 0.2),
    ],
)
def test_layers_as_a_wavefront(
    cell: str, storage: str, layers: int, dropout: float, meeting: str, grids: list[Any]
) -> None:
    layer, (inputs, fixed) = random_stack(cell, storage, layers, dropout)
    has_cell = CELLS[cell].has_cell_state
    generator = torch.Generator().manual_seed(1)

    def run(dtype: torch.dtype, by_definition: bool) -> list[Tensor]:
        given = leaves([t if t is None else t.float() for t in inputs], dtype)
        if by_definition:
            order, seed, rate, name = fixed[2:]
            results = stack_backward.by_definition(
                tuple(given), layer.rows, order, seed, rate, name
            )
        else:
            results = stack.stack(*given, *fixed, meeting, True)
        kept = list(results[: 2 + has_cell])
        kept[0] = kept[0] * 3 if by_definition else kept[0].mul_(3)  # the operator gives no view
        generator.manual_seed(1)
        arriving = [torch.randn(t.shape, generator=generator).to(dtype) for t in kept]
        return [
            *kept,
            *torch.autograd.grad(kept, [t for t in given if t is not None], arriving),
        ]

    found = run(torch.float32, by_definition=False)
    assert_as_exact(found, run(torch.float32, True), run(torch.float64, True), torch.float32)
    assert grids == [(2, 1, layers)] * 2


def test_second_derivative_of_a_wavefront() -> None:
    layer, (inputs, fixed) = random_stack("gru", "dense", 2, 0.3)
    results = []
    for dtype, meeting in ((torch.float32, "data"), (torch.float64, None)):
        given = [t for t in leaves(inputs, dtype) if t is not None]
        order, seed, rate, name = fixed[2:]
        spread = [*given[:6], None, given[6], None]
        if meeting is None:
            y = stack_backward.by_definition(tuple(spread), layer.rows, order, seed, rate, name)[0]
        else:
            y = stack.stack(*spread, *fixed, meeting, True)[0]
        first = torch.autograd.grad(y.square().sum(), given, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        results.append(torch.autograd.grad(penalty, given))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)


def test_wavefront_operators_pass_opcheck() -> None:
    _, (inputs, fixed) = random_stack("lstm", "packed", 2, 0.3)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    given = leaves(inputs, torch.float32)
    torch.library.opcheck(stack.stack, (*given, *fixed, "data", True), test_utils=tests)
    with torch.no_grad():
        y, h_n, c_n, *kept = stack.stack(*given, *fixed, "data", True)
    arriving = (torch.ones_like(y), torch.ones_like(h_n), torch.ones_like(c_n))
    backward = (*arriving, *given, *fixed[:4], *kept, *fixed[4:], "data", True)
    torch.library.opcheck(stack_backward.stack_backward, backward, test_utils=tests)


def test_stacked_layers_run_as_a_wavefront_and_draw_the_masks_of_single_layers(
    grids: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = torch.nn.LSTM(3, 40, 2)
    x, lengths = torch.randn(4, 5, 3), torch.tensor([2, 4, 0, 1, 4])
    start = (torch.randn(2, 5, 40), torch.randn(2, 5, 40))
    options: dict[str, Any] = {"num_layers": 2, "dropout": 0.4, "training": True}
    options |= {"lengths": lengths, "seed": torch.tensor([7]), "backend": "triton"}
    weights = list(layer.parameters())
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32")
    found = plan(CELLS["lstm"], 40, torch.float32, H200, "tf32", "data")
    assert isinstance(found, Plan)
    from rnnkit_kernels.dispatch import choice

    monkeypatch.setattr(choice, "plan", lambda *args, **kwargs: found)
    together = functional.lstm(x, start, weights, **options)
    assert grids == [(3, 1, 2)]
    monkeypatch.setattr(wavefront, "wavefront_plan", lambda *args: None)
    apart = functional.lstm(x, start, weights, **options)
    assert grids[1:] == [(3, 1, 1)] * 2
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b)


def test_a_wavefront_that_does_not_fit_is_refused_with_both_numbers() -> None:
    def found(cell: str, hidden: int, layers: int, mode: str = "data") -> Any:
        # torch's flag for float32 says nothing about 16 bits.
        given = (CELLS[cell], hidden, layers, torch.bfloat16, H200, "tf32", mode)
        return wavefront_plan(*given)  # type: ignore[arg-type]

    assert isinstance(found("lstm", 650, 2), Plan)
    assert found("lstm", 650, 4).reason == "164 programs exceed 132 multiprocessors"
    assert found("lstm", 1024, 2).reason == "256 programs exceed 132 multiprocessors"
    assert found("lstm", 1664, 2).reason.startswith("with both weights ")
    assert found("lstm", 1664, 2).reason.endswith("exceed 232,448 bytes of shared memory")
    assert found("gru_reset_before", 256, 2).reason == "gru_reset_before takes two products a step"
    assert "needs programs that meet" in found("lstm", 650, 2, "launch").reason


def lag(patch: pytest.MonkeyPatch, axis: int, late: int) -> None:
    """Let the stores of some programs come late, and memory that nobody has written be NaN."""
    builder = interpreter.interpreter_builder
    store, empty = builder.create_masked_store, torch.empty
    pauses = [0.3]  # more than there is between the starts of two programs

    def create_masked_store(*operands: Any) -> Any:
        if builder.grid_idx[axis] == late:
            time.sleep(pauses.pop() if pauses else 0.005)
        return store(*operands)

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    patch.setattr(builder, "create_masked_store", create_masked_store, raising=False)
    patch.setattr(torch, "empty", poisoned)


@pytest.mark.parametrize(
    ("cell", "meeting", "late", "batch"),
    [
        ("lstm", "counter", 0, 18),
        ("lstm", "data", 1, 3),
        ("gru_reset_before", "counter", 1, 3),
        ("gru_reset_before", "data", 0, 3),
    ],
)
def test_a_late_program_is_waited_for(
    cell: str, meeting: str, late: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, for what the call before has left must not pass for this call's."""
    plan_as(monkeypatch, multiprocessors=2)  # of two tiles of sequences each takes both in turn
    lag(monkeypatch, 0, late)
    for seed in range(2):
        layer = random_layer(cell, "packed", late == 1, hidden=20, batch=batch, seed=seed)
        assert_as_exact_as_a_plain_loop(layer, meeting, torch.float32)


@pytest.mark.parametrize("meeting", ["data", "counter"])
def test_every_tile_of_a_row_is_waited_for(meeting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward two tiles are fetched together, of which the late program writes the second."""
    tiles = together_tiles(LSTM, 40, torch.float32, "tf32", H200, False, False)
    assert isinstance(tiles, Tiles)
    assert tiles.polled == len(tiles.chunks[0]) == 2
    lag(monkeypatch, 0, 2)
    layer = random_layer("lstm", "packed", hidden=40)
    assert_as_exact_as_a_plain_loop(layer, meeting, torch.float32)


@pytest.mark.parametrize(("meeting", "late"), [("counter", 0), ("counter", 1), ("data", 0)])
def test_a_late_layer_of_a_wavefront_is_waited_for(
    meeting: str, late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, (inputs, fixed) = random_stack("gru", "packed", 2, 0.3)

    def run() -> list[Tensor]:
        given = leaves(inputs, torch.float32)
        y = stack.stack(*given, *fixed, meeting, True)[0]
        wanted = [tensor for tensor in given if tensor is not None]
        return [y, *torch.autograd.grad(y.square().sum(), wanted)]

    with monkeypatch.context() as patch:
        lag(patch, 2, late)
        found = run()
    for a, b in zip(found, run(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("meeting", MEETINGS)
def test_each_pass_reports_its_own_wait_in_vain(
    meeting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = random_layer("lstm", hidden=20).to(torch.float32)
    given = (*layer.operator_inputs(), "lstm", False, meeting, True, False)
    y = recurrence(*given)[0]

    def one_missing(
        kernel: Any, grid: tuple[int, int, int], arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        run_programs_concurrently(kernel, grid, arguments, options, missing=(1, 0, 0))

    monkeypatch.setattr(exchange, "cooperate", one_missing)
    monkeypatch.setattr(exchange, "MAX_POLLS", 20)
    with pytest.raises(RuntimeError, match="in vain"):
        recurrence(*given)
    with pytest.raises(RuntimeError, match="in vain"):
        torch.autograd.grad(y.sum(), layer.leaves())


# In a process of its own, since here Triton interprets.
RULES = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from rnnkit_kernels.audit import assembly
from rnnkit_kernels.audit.cases import DTYPES, Case
from rnnkit_kernels.audit.compilation import argument_names, kernels_of, source_of
from rnnkit_kernels.cells import CELLS

case = Case("gru_reset_before", 32, mode=sys.argv[1])
cell, dtype = CELLS[case.cell], DTYPES[case.dtype][0]
for name, function, constants, options, (polled, held) in kernels_of(
    cell, case.plan(), case.hidden, dtype, ragged=True, members=1
):
    source, target = source_of(function, constants, dtype), GPUTarget("cuda", 90, 32)
    text = triton.compile(source, target=target, options=options).asm
    faults = assembly.broken_rules(
        case.mode, polled, held, True, text["ttgir"], text["ptx"], argument_names(source)
    )
    barriers = [o for o in assembly.operations(text["ttgir"]) if o.in_loop and "barrier" in o.name]
    print(name, len(barriers), faults)
"""


@pytest.mark.parametrize(("meeting", "barriers"), [("counter", 2), ("data", 1)])
def test_compiled_programs_keep_the_rules(meeting: str, barriers: int) -> None:
    """Those of assembly.py, and the barriers of `arrive` and `wait`, or `settle`, in two stages."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", RULES, meeting], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = [f"{meeting}_{way} {2 * barriers} []" for way in ("forward", "backward")]
    assert done.stdout.splitlines() == expected
