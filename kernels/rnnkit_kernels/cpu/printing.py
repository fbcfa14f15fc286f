"""Cells as C++: their functions are called with symbols, and what they return is printed.

The functions of `cells/` are arithmetic on what they are handed, so a number that writes down what
is done to it leaves a program behind. `python -m rnnkit_kernels.cpu.build` builds the engine with
the committed header of all cells, `engine/cells.h`, or with one that was printed for cells that are
registered at run time. Nothing here needs torch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from rnnkit_kernels.cells import Cell
from rnnkit_kernels.cpu.sources import ENGINE

MOST_GATES = 8  # MOST_VECTORS of engine/product.h


class NotPrintable(ValueError):
    """A cell that the CPU engine can't run, with the reason."""


class Program:
    """The statements that a function's arithmetic comes to, each value once."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def value(self, expression: str) -> Symbol:
        """The symbol of an expression over names."""
        if expression not in self._names:
            self._names[expression] = f"t{len(self._names)}"
        return Symbol(self, self._names[expression])

    @property
    def statements(self) -> list[str]:
        """One for each value, in the order in which they were made."""
        return [f"const V {name} = {text};" for text, name in self._names.items()]


class Symbol:
    """A vector whose value is known later."""

    def __init__(self, program: Program, name: str) -> None:
        self.program = program
        self.name = name

    def __bool__(self) -> bool:
        raise NotPrintable("it branches on the value of a unit")

    def _with(self, other: Any, form: str) -> Symbol:
        return self.program.value(form.format(self.name, _text(other)))

    def __add__(self, other: Any) -> Symbol:
        return self._with(other, "{0} + {1}")

    def __radd__(self, other: Any) -> Symbol:
        return self._with(other, "{1} + {0}")

    def __sub__(self, other: Any) -> Symbol:
        return self._with(other, "{0} - {1}")

    def __rsub__(self, other: Any) -> Symbol:
        return self._with(other, "{1} - {0}")

    def __mul__(self, other: Any) -> Symbol:
        return self._with(other, "{0} * {1}")

    def __rmul__(self, other: Any) -> Symbol:
        return self._with(other, "{1} * {0}")

    def __truediv__(self, other: Any) -> Symbol:
        return self._with(other, "{0} / {1}")

    def __rtruediv__(self, other: Any) -> Symbol:
        return self._with(other, "{1} / {0}")

    def __neg__(self) -> Symbol:
        return self.program.value(f"-{self.name}")

    def __eq__(self, other: Any) -> Symbol:  # type: ignore[override]
        return self._with(other, "equal({0}, {1})")

    def __ne__(self, other: Any) -> Symbol:  # type: ignore[override]
        return self._with(other, "unequal({0}, {1})")

    def __gt__(self, other: Any) -> Symbol:
        return self._with(other, "greater({0}, {1})")

    def __ge__(self, other: Any) -> Symbol:
        return self._with(other, "greater_equal({0}, {1})")

    def __lt__(self, other: Any) -> Symbol:
        return self._with(other, "less({0}, {1})")

    def __le__(self, other: Any) -> Symbol:
        return self._with(other, "less_equal({0}, {1})")


def _text(value: Any) -> str:
    if isinstance(value, Symbol):
        return value.name
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise NotPrintable(f"it computes with {value}")
        return f"number<V>({float(value)!r})"
    raise NotPrintable(f"it computes with a {type(value).__name__}")


def _activation(name: str) -> Callable[[Symbol], Symbol]:
    return lambda x: x.program.value(f"{name}({x.name})")


SIGMOID, TANH, RELU = (_activation(name) for name in ("sigmoid", "tanh", "relu"))


def header(cells: Iterable[Cell]) -> str:
    """The C++ header of these cells.

    Raises:
        NotPrintable: a cell does what the engine can't.
    """
    cells = list(cells)
    each = " ".join(f"F({cell.name})" for cell in cells)
    end = "}  // namespace RNNKIT_ISA\n#endif\n"
    return "\n".join([_HEAD, *map(printed, cells), end, f"#define RNNKIT_EACH_CELL(F) {each}\n"])


def printed(cell: Cell) -> str:
    """The part of the header that is this cell's.

    Raises:
        NotPrintable: it does what the engine can't.
    """
    try:
        return _struct(cell)
    except NotPrintable as error:
        raise NotPrintable(f"{cell.name} has no CPU engine: {error}") from error
    except Exception as error:
        raise NotPrintable(
            f"{cell.name} has no CPU engine: its functions can't be called with symbols: {error}"
        ) from error


def in_package(cell: Cell) -> bool:
    """Whether the package's engine has this cell, and not another of its name.

    Raises:
        NotPrintable: no engine can have it.
    """
    return printed(cell) in _package_header()


@functools.cache
def _package_header() -> str:
    return (ENGINE / "cells.h").read_text()


_HEAD = """\
// The cells, printed from cells/*.py by `python -m rnnkit_kernels.cpu.build --header`. Not to be
// changed by hand: tests/kernels/cpu/test_printing.py compares it with what would be printed now.
#pragma once
#if defined(RNNKIT_ISA)
#include "two.h"

namespace RNNKIT_ISA {
"""


_STATES: tuple[Literal["hidden", "cell"], ...] = ("hidden", "cell")


def _struct(cell: Cell) -> str:
    if not (cell.name.isascii() and cell.name.isidentifier()):
        raise NotPrintable("its name is none that C++ can have")
    stages, gates = len(cell.forward), cell.gates_at[-1]
    if max(cell.gates) > MOST_GATES:
        raise NotPrintable(f"a stage of it has {max(cell.gates)} gates, and a panel {MOST_GATES}")
    if stages > 2:
        raise NotPrintable(f"it has {stages} stages a step, and the engine knows two")
    if len(cell.operand) != stages - 1 or (cell.weight_gradients is None) != (cell.weights == 0):
        raise NotPrintable("it lacks an operand or the gradients of its weights")
    first = min(cell.input_columns)
    if sorted(cell.input_columns) != list(range(first, first + gates)):
        raise NotPrintable("the gradients of W_ih x do not lie side by side")
    columns = [cell.input_columns.index(first + i) for i in range(gates)]
    fit = all(
        saved <= gates
        for saved, gates in zip(cell.saved_at[1:-1], cell.gates_at[1:-1], strict=True)
    )
    fit = fit and cell.saved_at[-1] >= gates
    arrays = {
        "gates_at": cell.gates_at,
        "saved_at": cell.saved_at,
        "columns_at": cell.columns_at,
        "input_columns": cell.input_columns,
        "gate_of_column": columns,
    }
    lines = [f"struct {cell.name} {{", f"  static constexpr int stages = {stages};"]
    for name, values in arrays.items():
        lines.append(f"  static constexpr int {name}[] = {{{', '.join(map(str, values))}}};")
    lines.append(f"  static constexpr int first_input_column = {first}, weights = {cell.weights};")
    places = [f"carry_{n} = {cell.carry.index(n) if n in cell.carry else -1}" for n in _STATES]
    lines.append(f"  static constexpr int {', '.join(places)};")
    lines.append(f"  static constexpr bool has_cell_state = {_bool(cell.has_cell_state)};")
    lines.append(
        "  // Whether W_ih x may lie where the saved values will: each gate is read before."
    )
    lines.append(f"  static constexpr bool gates_fit_saved = {_bool(fit)};")
    apart = ", ".join(_bool(not _sums(cell, s)) for s in range(stages))
    lines.append("  // Whether a stage needs W_ih x and W_hh h each by itself, and not their sum.")
    lines.append(f"  static constexpr bool apart[] = {{{apart}}};")
    lines += _function(
        "forward",
        "const V* x, const V* h, const V* saved, const V* state, const V* weights, V* kept, "
        "V* result",
        [_forward(cell, s) for s in range(stages)],
    )
    lines += _function(
        "backward",
        "const V* saved, const V* before, const V* after, V gradient, const V* carry, "
        "const V* weights, V* columns, V* carried",
        [_backward(cell, s) for s in range(stages)],
    )
    if cell.weight_gradients is not None:
        program = Program()
        result = cell.weight_gradients(
            _inputs(program, "columns", cell.columns_at[-1]),
            _inputs(program, "before", 1 + cell.has_cell_state),
            _inputs(program, "after", 1 + cell.has_cell_state),
        )
        lines += _function(
            "weight_gradients",
            "const V* columns, const V* before, const V* after, V* values",
            [(program, {"values": _many("weight gradients", result, cell.weights)})],
        )
    if cell.operand:
        program = Program()
        result = cell.operand[0](
            _inputs(program, "saved", cell.saved_at[-1]), program.value("hidden")
        )
        lines += _function(
            "operand", "const V* saved, V hidden", [(program, {"return": (result,)})], "V"
        )
    lines.append("};\n")
    return "\n".join(lines)


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _inputs(program: Program, name: str, count: int) -> tuple[Symbol, ...]:
    return tuple(program.value(f"{name}[{i}]") for i in range(count))


Results = dict[str, Sequence[Any]]


def _many(what: str, values: Sequence[Any], count: int) -> Sequence[Any]:
    """The values: what a stage does not return would be whatever lies in memory."""
    if len(values) != count:
        raise NotPrintable(f"it returns {len(values)} {what}, expected {count}")
    return values


def _forward(cell: Cell, stage: int) -> tuple[Program, Results]:
    program = Program()
    gates = cell.gates[stage]
    kept, result = cell.forward[stage](
        _inputs(program, "x", gates),
        _inputs(program, "h", gates),
        _inputs(program, "saved", cell.saved_at[stage]),
        _inputs(program, "state", 1 + cell.has_cell_state),
        _inputs(program, "weights", cell.weights),
        SIGMOID,
        TANH,
        RELU,
    )
    last = stage + 1 == len(cell.forward)
    return program, {
        "kept": _many("saved values", kept, cell.saved[stage]),
        "result": _many("results", result, 1 + (last and cell.has_cell_state)),
    }


def _backward(cell: Cell, stage: int) -> tuple[Program, Results]:
    program = Program()
    columns, carried = cell.backward[stage](
        _inputs(program, "saved", cell.saved_at[-1]),
        _inputs(program, "before", 1 + cell.has_cell_state),
        _inputs(program, "after", 1 + cell.has_cell_state),
        program.value("gradient"),
        _inputs(program, "carry", len(cell.carry)),
        _inputs(program, "weights", cell.weights),
        TANH,
    )
    return program, {
        "columns": _many("gradient columns", columns, cell.columns[stage]),
        "carried": _many("gradients to carry", carried, len(cell.carry)),
    }


def _sums(cell: Cell, stage: int) -> bool:
    """Whether each gate of W_ih x is met only in its sum with that of W_hh h."""
    program, _ = _forward(cell, stage)
    texts = [statement.split(" = ", 1)[1].rstrip(";") for statement in program.statements]
    names = {text: f"t{i}" for i, text in enumerate(texts)}
    for gate in range(cell.gates[stage]):
        x, h = names[f"x[{gate}]"], names[f"h[{gate}]"]
        both = {f"{x} + {h}", f"{h} + {x}"}
        used = [t for t in texts if x in t.replace("(", " ").replace(")", " ").split()]
        used += [t for t in texts if h in t.replace("(", " ").replace(")", " ").split()]
        if not used or any(text not in both for text in used):
            return False
    return True


def _function(
    name: str, arguments: str, stages: Sequence[tuple[Program, Results]], returns: str = "void"
) -> list[str]:
    staged = name in ("forward", "backward")
    template = "template <int stage, class V>" if staged else "template <class V>"
    lines = [f"  {template} INLINE {returns} {name}({arguments}) {{"]
    for stage, (program, results) in enumerate(stages):
        body = _needed(program, results)
        for target, values in results.items():
            for i, value in enumerate(values):
                to = "return" if target == "return" else f"{target}[{i}] ="
                body.append(f"{to} {_text(value)};")
        if staged:
            lines.append(f"    if constexpr (stage == {stage}) {{")
        lines += [("      " if staged else "    ") + line for line in body]
        if staged:
            lines.append("    }")
    lines.append("  }")
    return lines


def _needed(program: Program, results: Results) -> list[str]:
    """The statements that the results depend on."""
    statements = program.statements
    wanted = {_text(value) for values in results.values() for value in values}
    found = []
    for statement in reversed(statements):
        name = statement.split()[2]
        if name in wanted:
            found.append(statement)
            text = statement.split(" = ", 1)[1].translate(str.maketrans("();,-", "     "))
            wanted |= {word for word in text.split() if word[:1] == "t" and word[1:].isdigit()}
    return found[::-1]
