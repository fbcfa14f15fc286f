"""Plans: pure decisions, with their reasons."""

import itertools

import pytest
import torch

from rnnkit_kernels.cells import CELLS, GRU, GRU_RESET_BEFORE, LSTM, RNN_TANH, Cell
from rnnkit_kernels.recurrence.plan import (
    A100,
    B200,
    H200,
    MAX_HIDDEN,
    Device,
    Fallback,
    Mode,
    Plan,
    Precision,
    plan,
    resident_bytes,
    together_bytes,
    unit_chunks,
)

DEVICES = (A100, H200, B200)
PRECISIONS: tuple[tuple[torch.dtype, Precision], ...] = (
    (torch.bfloat16, "ieee"),
    (torch.float32, "tf32"),
    (torch.float32, "tf32x3"),
    (torch.float32, "ieee"),
)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_resident_chunks_cover_every_unit_once_with_powers_of_two(device: Device) -> None:
    for hidden, chunks in ((h, c) for h in range(1, 4097) for c in unit_chunks(h, device)):
        end = 0
        for start, size in chunks:
            assert start == end
            assert size >= 16
            assert size & (size - 1) == 0
            end = start + size
        assert chunks[-1][0] < hidden <= end


@pytest.mark.parametrize("cell", CELLS)
def test_every_layer_has_a_plan_that_fits(cell: str) -> None:
    kind = CELLS[cell]
    for hidden, (dtype, precision), device in itertools.product(
        (*range(1, 1200, 7), 1500, 2000, 5000), PRECISIONS, DEVICES
    ):
        for batch in (1, 4096):
            found = plan(kind, hidden, dtype, device, precision, None, batch)
            assert isinstance(found, Plan)
            assert found.reason
            if found.mode == "resident":
                chunks = found.forward.chunks[0]
                needed = resident_bytes(kind, chunks, dtype.itemsize, found.forward.block_b)
                assert needed <= device.shared_memory


def programs_that_meet(
    kind: Cell, device: Device
) -> "itertools.chain[tuple[int, torch.dtype, int, Plan]]":
    def found(hidden: int) -> list[tuple[int, torch.dtype, int, Plan]]:
        plans = []
        for (dtype, precision), batch in itertools.product(PRECISIONS, (1, 300)):
            chosen = plan(kind, hidden, dtype, device, precision, "data", batch)
            if isinstance(chosen, Plan):
                itemsize = dtype.itemsize * (2 if precision == "tf32x3" else 1)
                plans.append((hidden, dtype, itemsize, chosen))
        return plans

    return itertools.chain.from_iterable(map(found, range(1, 2200, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
@pytest.mark.parametrize("cell", CELLS)
def test_programs_that_meet_run_at_once_and_poll_no_replica(cell: str, device: Device) -> None:
    kind = CELLS[cell]
    for hidden, _, itemsize, found in programs_that_meet(kind, device):
        for tiles, backward in ((found.forward, False), (found.backward, True)):
            assert -(-hidden // tiles.block_h) <= device.multiprocessors
            assert together_bytes(kind, tiles, itemsize, backward) <= device.shared_memory
            for stage, chunks in enumerate(tiles.chunks):
                depth = kind.gates[stage] * hidden if backward else hidden
                end = 0
                for start, size in chunks:
                    assert start == end
                    assert size & (size - 1) == 0
                    end = start + size
                    # Of fewer elements than threads Triton would poll one replica of several.
                    assert size * tiles.block_b >= 32 * tiles.num_warps
                    assert size // tiles.split >= 16
                assert chunks[-1][0] < depth <= end


@pytest.mark.parametrize(
    ("cell", "hidden", "dtype", "device", "mode"),
    [
        (LSTM, 128, torch.bfloat16, A100, "resident"),
        (LSTM, 129, torch.bfloat16, A100, "data"),
        (LSTM, 144, torch.bfloat16, H200, "resident"),
        (LSTM, 145, torch.bfloat16, H200, "data"),
        (LSTM, 64, torch.float32, H200, "resident"),
        (LSTM, 65, torch.float32, H200, "data"),
        *((LSTM, hidden, torch.float32, H200, "data") for hidden in (200, 300, 650, 1024)),
        *((GRU, hidden, torch.float16, H200, "data") for hidden in (200, 300, 650, 1150, 1500)),
        *((LSTM, hidden, torch.bfloat16, H200, "data") for hidden in (1150, 1500)),
        (LSTM, 1150, torch.float32, H200, "launch"),
        (LSTM, 2000, torch.bfloat16, H200, "launch"),
        (RNN_TANH, 256, torch.bfloat16, H200, "resident"),
        (GRU, 650, torch.bfloat16, H200, "data"),
        (GRU_RESET_BEFORE, 128, torch.float16, B200, "resident"),
    ],
)
def test_weights_that_fit_on_chip_stay_there(
    cell: Cell, hidden: int, dtype: torch.dtype, device: Device, mode: str
) -> None:
    found = plan(cell, hidden, dtype, device, "tf32")
    assert isinstance(found, Plan)
    assert found.mode == mode


def test_ieee_products_stay_on_chip_only_while_registers_hold_them() -> None:
    for hidden, mode in ((32, "resident"), (33, "launch")):
        found = plan(LSTM, hidden, torch.float32, H200, "ieee")
        assert isinstance(found, Plan)
        assert found.mode == mode


def test_one_plan_serves_every_usual_batch_size() -> None:
    """T is no argument, and B changes nothing up to 70: one compilation."""
    for cell, hidden in itertools.product((LSTM, GRU), (64, 200, 1024)):
        plans = {
            plan(cell, hidden, torch.bfloat16, H200, "tf32", None, batch)
            for batch in (1, 16, 35, 64, 70)
        }
        assert len(plans) == 1


def test_many_sequences_take_one_launch_a_step() -> None:
    for batch in (1, 16, 128, 129, 512, 4096, 65_536):
        found = plan(LSTM, 1024, torch.bfloat16, H200, "ieee", None, batch)
        assert isinstance(found, Plan)
        assert found.mode == ("data" if batch <= 200 else "launch")
    assert "sequences take" in found.reason


def test_programs_that_wait_can_be_excluded() -> None:
    found = plan(LSTM, 650, torch.bfloat16, H200, together=False)
    assert isinstance(found, Plan)
    assert found.mode == "launch"
    assert "excluded" in found.reason


def test_small_programs_meet_by_data_alone() -> None:
    """In counter mode their backward kernel spills."""
    found = plan(LSTM, 1024, torch.float32, H200, "tf32", "counter")
    assert isinstance(found, Fallback)
    assert "hidden size 1024 takes programs of 8 units" in found.reason
    assert isinstance(plan(LSTM, 1024, torch.float32, H200, "tf32", "data"), Plan)


@pytest.mark.parametrize("mode", ["resident", "data", "counter"])
def test_reasons_name_both_numbers(mode: Mode) -> None:
    found = plan(LSTM, 1100 + 1100, torch.float32, H200, "tf32", mode)
    assert isinstance(found, Fallback)
    assert "hidden size 2200" in found.reason
    assert "232,448" in found.reason or "132" in found.reason


def test_what_no_kernel_does_is_refused_with_its_reason() -> None:
    double = plan(LSTM, 8, torch.float64, H200)
    assert isinstance(double, Fallback)
    assert "float64" in double.reason
    old = plan(LSTM, 8, torch.float32, Device("V100", 70, 98_304, 80))
    assert isinstance(old, Fallback)
    assert "8.0" in old.reason
    assert "V100 has 7.0" in old.reason
    wide = plan(LSTM, MAX_HIDDEN + 1, torch.float32, H200)
    assert isinstance(wide, Fallback)
    assert "16,384 units, not 16,385" in wide.reason
