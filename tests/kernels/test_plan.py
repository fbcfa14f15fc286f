"""Plans: pure decisions, with their reasons."""

import itertools

import pytest
import torch

from rnnkit_kernels.cells import CELLS, GRU, GRU_RESET_BEFORE, LSTM, RNN_TANH
from rnnkit_kernels.recurrence.plan import (
    Device,
    Fallback,
    Plan,
    plan,
    resident_bytes,
    unit_chunks,
)

A100 = Device("A100", 80, 166_912)
H100 = Device("H100", 90, 232_448)
B200 = Device("B200", 100, 232_448)


@pytest.mark.parametrize("device", [A100, H100, B200], ids=lambda device: device.name)
def test_chunks_cover_every_unit_once_with_powers_of_two(device: Device) -> None:
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
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    for hidden, dtype, device in itertools.product(range(1, 1025), dtypes, (A100, H100, B200)):
        found = plan(CELLS[cell], hidden, dtype, device, "tf32")
        assert isinstance(found, Plan)
        assert found.reason
        if found.mode == "resident":
            needed = resident_bytes(CELLS[cell], found.chunks, dtype.itemsize, found.block_b)
            assert needed <= device.shared_memory


@pytest.mark.parametrize(
    ("cell", "hidden", "dtype", "device", "mode"),
    [
        (LSTM, 128, torch.bfloat16, A100, "resident"),
        (LSTM, 129, torch.bfloat16, A100, "launch"),
        (LSTM, 144, torch.bfloat16, H100, "resident"),
        (LSTM, 145, torch.bfloat16, H100, "launch"),
        (LSTM, 64, torch.float32, H100, "resident"),
        (LSTM, 65, torch.float32, H100, "launch"),
        (RNN_TANH, 256, torch.bfloat16, H100, "resident"),
        (GRU, 650, torch.bfloat16, H100, "launch"),
        (GRU_RESET_BEFORE, 128, torch.float16, B200, "resident"),
    ],
)
def test_weights_that_fit_on_chip_stay_there(
    cell: object, hidden: int, dtype: torch.dtype, device: Device, mode: str
) -> None:
    found = plan(cell, hidden, dtype, device, "tf32")  # type: ignore[arg-type]
    assert isinstance(found, Plan)
    assert found.mode == mode


def test_ieee_products_stay_on_chip_only_while_registers_hold_them() -> None:
    for hidden, mode in ((32, "resident"), (33, "launch")):
        found = plan(LSTM, hidden, torch.float32, H100, "ieee")
        assert isinstance(found, Plan)
        assert found.mode == mode


def test_reasons_name_both_numbers() -> None:
    found = plan(LSTM, 300, torch.float32, H100, mode="resident")
    assert isinstance(found, Fallback)
    assert "hidden size 300" in found.reason
    assert "232,448" in found.reason
    double = plan(LSTM, 8, torch.float64, H100)
    assert isinstance(double, Fallback)
    assert "float64" in double.reason
    old = plan(LSTM, 8, torch.float32, Device("V100", 70, 98_304))
    assert isinstance(old, Fallback)
    assert "8.0" in old.reason
    assert "V100 has 7.0" in old.reason
