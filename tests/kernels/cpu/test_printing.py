"""Cells printed as C++: those of the package, and those that the engine can't run."""

import dataclasses
import re
from typing import Any

import pytest

from rnnkit_kernels.cells import CELLS, GRU, GRU_RESET_BEFORE, LSTM, LSTM_PEEPHOLE, RNN_TANH, Cell
from rnnkit_kernels.cpu import printing
from rnnkit_kernels.cpu.sources import ENGINE


def elman(activation: Any, **fields: Any) -> Cell:
    """A plain recurrent cell with another function for its activation."""

    def forward(x_gates, h_gates, saved, state, weights, sigmoid, tanh, relu):  # type: ignore[no-untyped-def]
        return (), (activation(x_gates[0] + h_gates[0]),)

    return dataclasses.replace(RNN_TANH, name="other", forward=(forward,), **fields)


def test_the_committed_header_is_what_would_be_printed_now() -> None:
    """`python -m rnnkit_kernels.cpu.build --header` prints it anew."""
    assert (ENGINE / "cells.h").read_text() == printing.header(CELLS.values())


def test_the_package_has_its_cells_and_no_others_of_their_names() -> None:
    assert all(map(printing.in_package, CELLS.values()))
    assert not printing.in_package(dataclasses.replace(RNN_TANH, name="other"))
    forward = elman(lambda x: x * 2).forward
    assert not printing.in_package(dataclasses.replace(RNN_TANH, forward=forward))


def test_each_value_is_printed_once_and_only_what_results_need() -> None:
    def activation(x: Any) -> Any:
        _ = x * 5
        return (x * x + 1) * (x * x + 2) + (x == 0) * 10**30

    text = printing.printed(elman(activation))
    forward = text[text.index("void forward") : text.index("void backward")]
    assert len(re.findall(r"(t\d+) \* \1;", forward)) == 1
    assert "number<V>(5.0)" not in forward
    assert "number<V>(1e+30)" in forward
    assert re.search(r"equal\(t\d+, number<V>\(0\.0\)\)", forward)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (elman(lambda x: x if x > 0 else 0 * x), "it branches on the value of a unit"),
        (elman(lambda x: x if x == 0 else 0 * x), "it branches on the value of a unit"),
        (elman(lambda x: x + "1"), "it computes with a str"),
        (elman(lambda x: x + True), "it computes with a bool"),
        (elman(lambda x: x * float("inf")), "it computes with inf"),
        (elman(lambda x: x.sin()), "its functions can't be called with symbols: .* 'sin'"),
        (elman(abs), "its functions can't be called with symbols: .*abs"),
        (dataclasses.replace(elman(lambda x: x), name="my-cell"), "its name is none that C"),
        (elman(lambda x: x, saved=(1,)), "it returns 0 saved values, expected 1"),
        (elman(lambda x: x, carry=("cell",)), "it returns 1 results, expected 2"),
        (elman(lambda x: x, carry=("hidden",)), "it returns 0 gradients to carry, expected 1"),
        (elman(lambda x: x, columns=(2,)), "it returns 1 gradient columns, expected 2"),
        (elman(lambda x: x, weights=1), "it lacks an operand or the gradients of its weights"),
        (dataclasses.replace(GRU_RESET_BEFORE, operand=()), "it lacks an operand"),
        (
            dataclasses.replace(LSTM_PEEPHOLE, weight_gradients=lambda columns, *states: ()),
            "it returns 0 weight gradients, expected 3",
        ),
        (dataclasses.replace(GRU, input_columns=(0, 1, 3)), "do not lie side by side"),
        (dataclasses.replace(LSTM, input_columns=(0, 1)), "do not lie side by side"),
        (
            dataclasses.replace(GRU, gates=(1, 1, 1), forward=GRU.forward * 3),
            "it has 3 stages a step, and the engine knows two",
        ),
    ],
)
def test_a_cell_that_the_engine_cannot_run_is_refused_with_the_reason(
    cell: Cell, reason: str
) -> None:
    with pytest.raises(printing.NotPrintable, match=rf"^{cell.name} has no CPU engine: .*{reason}"):
        printing.header([cell])
