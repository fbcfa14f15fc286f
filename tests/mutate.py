"""Break the kernels in one place at a time and see that a test notices: `python -m tests.mutate`.

Every mutation replaces one piece of source text in a copy of the package, in a temporary folder,
and runs there the few tests that are to fail. What survives shows that a test is missing. The
chosen tests run unbroken first. Needs no GPU.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[1]
KERNELS = "kernels/rnnkit_kernels"
COPIED = ("kernels", "tests", "pyproject.toml")
ENGINE = "cpu/engine/"  # what lies there has to be built again
LIMIT = 120.0  # seconds for the tests of one mutation
# In the copies programs that wait for ever are given up sooner.
SOONER = ("tests/kernels/concurrent.py", "timeout: float = 60.0", "timeout: float = 20.0")
# A mutant that raises one of these is no mutant but a mistake in the list below.
MISTAKES = ("NameError", "SyntaxError", "UnboundLocalError", "AttributeError", "ImportError")


@dataclass(frozen=True)
class Mutation:
    """One way to break the kernels.

    Attributes:
        name: what it does.
        file: below kernels/rnnkit_kernels.
        tests: those that are to fail, "module::rest" for test_rest of the test_module.py that
            lies below tests/kernels.
        old, new: what is replaced, and by what.
        which: occurrence of `old` to replace, and how often it occurs.
    """

    name: str
    file: str
    tests: tuple[str, ...]
    old: str
    new: str
    which: tuple[int, int] = (1, 1)

    def broken(self, root: Path) -> str:
        """The broken source, from the file in the package at `root`."""
        parts = (root / KERNELS / self.file).read_text().split(self.old)
        at, times = self.which
        if len(parts) - 1 != times:
            raise SystemExit(
                f"{self.name}: the text to replace occurs {len(parts) - 1} times in {self.file}, "
                f"expected {times}; adapt tests/mutate.py:\n{self.old}"
            )
        return self.old.join(parts[:at]) + self.new + self.old.join(parts[at:])


STEPPING, STEPPING_BACK = (f"recurrence/stepping_{way}.py" for way in ("forward", "backward"))
RESIDENT, RESIDENT_BACK = (f"recurrence/resident_{way}.py" for way in ("forward", "backward"))
TILES = "recurrence/tiles.py"
EXCHANGE, LAYOUT = (f"recurrence/{name}.py" for name in ("exchange", "layout"))
PRODUCTS, ARGUMENTS, BACKWARD = (
    f"recurrence/{name}.py" for name in ("products", "arguments", "backward")
)

CRF_LOOPS, CRF_KERNELS = "crf/loops.py", "crf/kernels.py"
WORDS, WORD_TILES = "vocabulary/linear_cross_entropy.py", "vocabulary/tiles.py"

LATE = ("meeting::a_late_program_is_waited_for[lstm-counter-0-18]",)
LATE_DATA = ("meeting::a_late_program_is_waited_for[lstm-data-1-3]",)
LATE_TILES = ("meeting::every_tile_of_a_row_is_waited_for[data]",)
LATE_STAGE = ("meeting::a_late_program_is_waited_for[gru_reset_before-counter-1-3]",)
LOWER_LATE = ("meeting::a_late_layer_of_a_wavefront_is_waited_for[counter-0]",)
UPPER_LATE = ("meeting::a_late_layer_of_a_wavefront_is_waited_for[counter-1]",)
NEVER = "meeting::a_program_that_never_comes_ends_the_wait_with_an_error"
IN_VAIN = ("meeting::each_pass_reports_its_own_wait_in_vain[counter]",)
AT_ONCE = ("meeting::directions_run_at_once_where_they_fit[counter]",)
WAVEFRONT = ("meeting::layers_as_a_wavefront[gru-padded-3-0.5-data]",)
MASKS = ("meeting::stacked_layers_run_as_a_wavefront_and_draw_the_masks_of_single_layers",)
BY_COUNTER = ("meeting::compiled_programs_keep_the_rules[counter-2]",)
BY_DATA = ("meeting::compiled_programs_keep_the_rules[data-1]",)
NO_VALUE = ("meeting::no_value_stops_a_step[lstm-data]",)
INFINITY = ("recurrence::infinity_of_one_unit_stays_infinity[resident]",)

CRF = ("crf::the_kernels_are_as_exact_as_a_plain_loop[9-dtype0]",)
CRF_MEMORY = ("crf::memory_is_written_whole",)
CRF_FORBIDDEN = ("crf::what_is_forbidden_gets_zeros_and_no_nan[triton]",)
CRF_FORBIDDEN_TORCH = ("crf::what_is_forbidden_gets_zeros_and_no_nan[torch]",)
CRF_SCALED = ("crf::the_scaled_loop_runs_only_where_no_term_can_vanish",)
CRF_TORCH = ("crf::the_sum_is_that_over_all_paths[1.0-torch]",)

BY_ROWS = ("linear_cross_entropy::by_rows_in_either_library[none-True-False]",)
BY_ONEDNN = ("linear_cross_entropy::by_rows_in_either_library[none-True-True]",)
BY_ROWS_SUMMED = ("linear_cross_entropy::by_rows_equals_pytorchs_own[dtype1-sum-True]",)
STRIDES = ("linear_cross_entropy::matrices_that_do_not_lie_in_one_piece[True]",)
HALF_ROWS = ("linear_cross_entropy::small_gradients_of_float16_survive_a_scaled_loss",)
IGNORED_ROWS = ("linear_cross_entropy::what_ignored_rows_hold_changes_nothing[sum-torch]",)
OF_TILES = ("linear_cross_entropy::the_kernels_equal_pytorchs_own[dtype0-none-True]",)
TILE_EDGES = ("linear_cross_entropy::the_kernels_at_the_edges_of_tiles[shape4]",)
FORBIDDEN_WORDS = ("linear_cross_entropy::large_logits_and_forbidden_words[triton]",)

UNITS = ("native::edges[0]",)  # many threads, few sequences
NATIVE = ("native::edges[1]", "native::edges[0]")
NATIVE_ZONEOUT = ("native::edges[10]",)


def matches(cell: str, storage: str, mode: str, reverse: bool = False) -> tuple[str, ...]:
    """The parity test of a layer."""
    case = f"[{cell}-{reverse}-{storage}-{mode}]"
    return (f"recurrence::results_and_gradients_match_the_definition{case}",)


def alone(cell: str, storage: str, mode: str = "counter") -> tuple[str, ...]:
    """The parity test of one program in a mode whose programs meet; packed rows run backwards."""
    return (f"recurrence::one_program_that_meets_nobody[{cell}-{storage}-{mode}]",)


def both(mode: str) -> tuple[str, ...]:
    """The parity test of two directions."""
    return (f"recurrence::both_directions_in_one_call[lstm-{mode}]",)


def zoned(cell: str, mode: str) -> tuple[str, ...]:
    """The parity test of zoneout."""
    return (f"recurrence::zoneout_keeps_its_share_of_every_state[{cell}-{mode}]",)


def anew(way: str, cell: str = "lstm", case: str = "2-ragged") -> tuple[str, ...]:
    """The parity test of resets."""
    return (f"resets::resets_equal_calls_of_one_step[{way}-{cell}-{case}]",)


def derived(cell: str) -> tuple[str, ...]:
    """The test of a cell's own backward."""
    return (f"cells::backward_is_the_derivative_of_forward[{cell}]",)


# What is passed over by a backward pass in falling time.
FALLING = matches("gru", "packed", "launch", reverse=True)

# fmt: off
MUTATIONS = [Mutation(*entry) for entry in (
    # How programs meet.
    ("forward waits for the meeting before the right one", STEPPING, LATE,
     "meetings = step * (LAST + 1) + stage\n", "meetings = step * (LAST + 1) + stage - 1\n"),
    ("forward waits for one meeting too many", STEPPING, LATE,
     "meetings = step * (LAST + 1) + stage\n", "meetings = step * (LAST + 1) + stage + 1\n"),
    ("forward leaves the stage out of a meeting's number", STEPPING, LATE_STAGE,
     "meetings = step * (LAST + 1) + stage\n", "meetings = step * (LAST + 1)\n"),
    ("forward waits for one arrival too few", STEPPING, LATE,
     "wait(counter, meetings * tl.num_programs(0), budget",
     "wait(counter, meetings * tl.num_programs(0) - 1, budget"),
    ("forward never arrives", STEPPING, LATE,
     "arrive(counter, MEETING)", "pass"),
    ("backward waits for the meeting before the right one", STEPPING_BACK, LATE,
     "meetings = step * (LAST + 1) + LAST - stage\n",
     "meetings = step * (LAST + 1) + LAST - stage - 1\n"),
    ("backward leaves the stage out of a meeting's number", STEPPING_BACK, LATE_STAGE,
     "meetings = step * (LAST + 1) + LAST - stage\n", "meetings = step * (LAST + 1)\n"),
    ("backward waits for one arrival too few", STEPPING_BACK, LATE,
     "wait(counter, meetings * tl.num_programs(0), budget",
     "wait(counter, meetings * tl.num_programs(0) - 1, budget"),
    ("backward never arrives", STEPPING_BACK, LATE,
     "arrive(counter, MEETING)", "pass"),
    ("a wait ends when the counter is one short", EXCHANGE, LATE,
     " < target) & (budget > 0)", " < target - 1) & (budget > 0)"),
    ("counters start at one", EXCHANGE, LATE,
     "    error = counters[-1:]\n", "    error = counters[-1:]\n    counters[:-1] = 1\n"),
    ("the exchange starts as zeros", EXCHANGE, LATE_DATA,
     "blank = torch.full(shape, -1, dtype", "blank = torch.full(shape, 0, dtype"),
    ("the exchange of the call before is used again", EXCHANGE, LATE_DATA,
     "def blank_exchange(", "@__import__('functools').cache\ndef blank_exchange("),
    ("rows of no step are left blank", EXCHANGE, alone("lstm", "padded", "data"),
     "        blank *= inside", "        blank * inside"),
    ("all ones are published as they are", EXCHANGE, NO_VALUE,
     "tl.where(bits == blank, blank >> 1, bits)", "bits"),
    ("sequences that start here poll as well", EXCHANGE, NO_VALUE,
     "tl.where(exempt, 0, largest)", "largest"),
    ("sequences that start here poll the exchange", PRODUCTS, LATE_DATA,
     "tl.where(starting, operand.start + lane * WIDTH, operand.row + lane * operand.stride)",
     "operand.row + lane * operand.stride"),
    ("polls of a counter are not counted", EXCHANGE, (f"{NEVER}[counter]",),
     "budget -= 1", "budget -= 0", (2, 2)),
    ("polls of data are not counted", EXCHANGE, (f"{NEVER}[data]",),
     "budget -= 1", "budget -= 0", (1, 2)),
    ("forward never sets the error word", STEPPING, IN_VAIN,
     "mask=budget <= 0)", "mask=budget < 0)"),
    ("backward never sets the error word", STEPPING_BACK, IN_VAIN,
     "mask=budget <= 0)", "mask=budget < 0)"),
    # What only compiled text shows.
    ("no barrier between stores and the release", EXCHANGE, BY_COUNTER,
     "tl.debug_barrier()", "pass", (1, 3)),
    ("no barrier between the acquire and loads", EXCHANGE, BY_COUNTER,
     "tl.debug_barrier()", "pass", (2, 3)),
    ("no barrier between turns", EXCHANGE, BY_DATA,
     "tl.debug_barrier()", "pass", (3, 3)),
    ("arrivals do not release", EXCHANGE, BY_COUNTER, 'sem="release"', 'sem="relaxed"'),
    ("waits do not acquire", EXCHANGE, BY_COUNTER, 'sem="acquire"', 'sem="relaxed"'),
    ("arrivals reach one multiprocessor", EXCHANGE, BY_COUNTER,
     'sem="release", scope="gpu"', 'sem="release", scope="cta"'),
    ("waits look at one multiprocessor", EXCHANGE, BY_COUNTER,
     'sem="acquire", scope="gpu"', 'sem="acquire", scope="cta"'),
    ("polls are not volatile", EXCHANGE, BY_DATA,
     "other=0, volatile=True)", "other=0)"),
    ("later polls look at the first tile only", EXCHANGE, LATE_TILES,
     "for i in tl.static_range(1, len(bits))", "for i in tl.static_range(1, 1)"),
    ("a part of a sum over warps is lost", PRODUCTS, alone("lstm", "dense"),
     "parts = first + second", "parts = first"),
    ("rows of a tile are counted in 32 bits", STEPPING, BY_DATA,
     "row = (first + tile) * MEMBERS + member",
     "row = ((first + tile) * MEMBERS + member).to(tl.int32)"),
    # Tiles of sequences in turn, directions, layers.
    ("forward counts at the first tile's counter", STEPPING, LATE,
     "(member * batch_tiles + tile_index) * COUNTER_STRIDE",
     "(member * batch_tiles) * COUNTER_STRIDE"),
    ("backward counts at the first tile's counter", STEPPING_BACK, LATE,
     "(member * batch_tiles + tile_index) * COUNTER_STRIDE",
     "(member * batch_tiles) * COUNTER_STRIDE"),
    ("c is that of the first tile", STEPPING, alone("lstm", "packed"),
     "c_tile = initial.c + (member_rows + tile) * HIDDEN",
     "c_tile = initial.c + member_rows * HIDDEN"),
    ("the carry is that of the first tile", STEPPING_BACK, alone("lstm", "packed"),
     "(n * MEMBERS * batch + member_rows + tile) * HIDDEN",
     "(n * MEMBERS * batch + member_rows) * HIDDEN", (1, 2)),
    ("directions that run in turn are all the first", EXCHANGE, AT_ONCE,
     "(*tensors, Meeting(counters, error), first, *integers, MAX_POLLS)",
     "(*tensors, Meeting(counters, error), 0, *integers, MAX_POLLS)"),
    ("the second direction takes the bias of the first", STEPPING, both("launch"),
     "weights.bias_hh + member * (GATES * HIDDEN)", "weights.bias_hh"),
    ("the second direction takes the weights of the first", RESIDENT, both("resident"),
     "weights.weight_hh + member.to(tl.int64) * (GATES * HIDDEN * LAYER.weight_stride)",
     "weights.weight_hh"),
    ("the second direction takes h0 of the first", STEPPING, both("launch"),
     "h_start = initial.h + (member_rows + tile) * HIDDEN",
     "h_start = initial.h + tile * HIDDEN"),
    ("a layer does not wait for the one below", STEPPING, LOWER_LATE,
     "wait(below, (step + 1) * tl.num_programs(0)", "wait(below, step * tl.num_programs(0)"),
    ("a layer waits for a step too many of the one below", STEPPING, LOWER_LATE,
     "wait(below, (step + 1) * tl.num_programs(0)", "wait(below, (step + 2) * tl.num_programs(0)"),
    ("backward a layer does not wait for the one above", STEPPING_BACK, UPPER_LATE,
     "wait(above, (step + 1) * tl.num_programs(0)", "wait(above, step * tl.num_programs(0)"),
    ("dropout in a wavefront draws another layer's words", TILES, MASKS,
     "keep(low, high, STREAMS * member, t,", "keep(low, high, STREAMS + member, t,"),
    ("dropout in a wavefront numbers sequences as sorted", TILES, MASKS,
     "sequence = tl.load(dropout.order + tile + lane, mask=active, other=0)",
     "sequence = tile + lane"),
    ("backward forgets the scale of dropout", STEPPING_BACK, WAVEFRONT,
     "tl.where(keeps, handed * scale, 0.0)", "tl.where(keeps, handed, 0.0)"),
    ("the gradient of the output reaches every layer", STEPPING_BACK, WAVEFRONT,
     "top = live & (member == MEMBERS - 1)", "top = live"),
    ("weights above lie in another order than columns", BACKWARD, WAVEFRONT,
     "sorted(range(len(cell.input_columns)), key=cell.input_columns.__getitem__)",
     "list(cell.input_columns)"),
    # Rows and time.
    ("the first sequence to start at a step does not", STEPPING, FALLING,
     "starting = active & (tile + lane >= count_before)",
     "starting = active & (tile + lane > count_before)"),
    ("sequences that start and that go on are swapped", STEPPING, FALLING,
     "source, running, beginning = h_before, started, starting",
     "source, running, beginning = h_before, starting, started"),
    ("forward in falling time reads the step itself", STEPPING, FALLING,
     "earlier = t - 1 + 2 * backwards", "earlier = t - 1 + backwards"),
    ("backward in falling time reads the step itself", STEPPING_BACK, FALLING,
     "earlier = t - 1 + 2 * backwards", "earlier = t - 1 + backwards"),
    ("backward in falling time takes a step's own columns", STEPPING_BACK, FALLING,
     "later = t + 1 - 2 * backwards", "later = t + 1 - backwards"),
    ("the gradient of h_n enters at the last step only", STEPPING_BACK,
     matches("lstm", "packed", "launch"),
     "ending = active & (tile + lane >= count_after)", "ending = active & (count_after == 0)"),
    ("a sequence that has ended renews its c on chip", RESIDENT,
     matches("lstm", "packed", "resident"),
     "tl.where(active[None, :], result[1], c[i][0])", "result[1]"),
    ("a sequence that has begun renews its carry on chip", RESIDENT_BACK,
     matches("lstm", "packed", "resident", reverse=True),
     "tl.where(active[None, :], new_c[n], carry[i][n])", "new_c[n]"),
    ("first rows of steps are counted in 32 bits", LAYOUT,
     ("recurrence::rows_beyond_two_to_the_31_are_addressed",),
     "tl.where(inside, t, 0).to(tl.int64) * batch",
     "(tl.where(inside, t, 0) * batch).to(tl.int64)"),
    # Weights, gates and products.
    ("padded rows of weights are read as if they lay close", ARGUMENTS, alone("lstm", "dense"),
     "weight_stride=padded_width(hidden, itemsize)", "weight_stride=hidden"),
    ("gates are taken apart in another order", LAYOUT, matches("lstm", "dense", "launch"),
     "return first, second, third, fourth", "return first, third, second, fourth"),
    ("warps take slices of other columns than of weights", PRODUCTS, alone("lstm", "dense"),
     "k = CHUNKS[j][0] + part[:, None] * slice_of(CHUNKS, j, SPLIT) + inner[None, :]",
     "k = CHUNKS[j][0] + part[:, None] + inner[None, :]", (2, 2)),
    ("backward a stage multiplies by its own weights", LAYOUT,
     matches("gru_reset_before", "dense", "launch"),
     "return (stage + 1) % (len(gates_at) - 1)", "return stage"),
    ("backward takes the columns of x for those of h", STEPPING_BACK,
     matches("gru", "dense", "launch"),
     "return columns_at[-1] - gates_at[-1]", "return 0"),
    ("backward takes the columns of x for those of h on chip", RESIDENT_BACK,
     matches("gru", "dense", "resident"),
     "return gates_at[stage] + columns_at[-1] - gates_at[-1] - columns_at[stage]",
     "return gates_at[stage] - columns_at[stage]"),
    # Infinity times zero.
    ("units beyond H are handed on on chip", RESIDENT, INFINITY,
     "new_h + (tl.where(live, rounded, h[i]),)",
     "new_h + (tl.where(active[None, :], rounded, h[i]),)"),
    ("columns of units beyond H are handed on", TILES,
     ("recurrence::infinite_gradients_stay_infinite[resident]",),
     "column = tl.where(live, new[i], 0.0)", "column = new[i]"),
    # Zoneout, recomputation, dropout.
    ("zoneout keeps the share of h of every state", TILES, zoned("lstm", "launch"),
     "tl.load(zone_row + at + i * LAYER.hidden", "tl.load(zone_row + at + 0 * LAYER.hidden"),
    ("backward zoneout takes the share of h for that of c", TILES, zoned("lstm", "launch"),
     "share_c = tl.load(zone_row + HIDDEN + at", "share_c = tl.load(zone_row + at"),
    ("the c that zoneout leaves is not what is kept", TILES, zoned("lstm", "launch"),
     "tl.store(state_row + at, result[1], mask=place.live)",
     "tl.store(state_row + at, computed[1], mask=place.live)"),
    ("gates are computed again from h, not the h before", "ops/recurrence_backward.py",
     ("recurrence::gates_computed_again_give_the_gradients[lstm-launch]",),
     "operand = rows.before(y[:, m], h0[m], reverse)", "operand = y[:, m]"),
    ("a tile takes its random words in another order", "random/kernels.py",
     ("dropout::a_tile_in_triton_equals_the_definition[0.5]",),
     "tl.where(lane == 0, a, b)", "tl.where(lane == 0, b, a)"),
    ("dropout takes its random words in another order", "random/kernels.py",
     ("dropout::the_kernel_equals_the_definition[dense-dtype1]",),
     "tl.join(tl.join(a, c), tl.join(b, d))", "tl.join(tl.join(a, b), tl.join(c, d))"),
    ("dropout forgets where a segment begins", "random/dropout.py",
     ("dropout::every_storage_drops_the_same_elements[segments]",),
     "step = step + begins[sequence]", "step = step + 0"),
    # Resets.
    ("a reset at the first step keeps the state", "resets.py", anew("segments"),
     "(begins == 0) & ~resets[0][sequence]", "(begins == 0)"),
    ("backward in time every segment starts anew", "resets.py", anew("padded"),
     "at_end=last[sequence] == place[: names.shape[0]]", "at_end=begins < 0"),
    ("the states of the two directions trade ends", "resets.py", anew("segments"),
     "torch.stack((self.last, self.first)[:directions])",
     "torch.stack((self.first, self.last)[:directions])"),
    ("an empty sequence forgets its state", "resets.py", anew("segments"),
     "return chosen(tuple(found), ~self.inside[0], hx)", "return tuple(found)"),
    ("what lies past a length joins the last segment", "resets.py", anew("padded"),
     "starts = starts | (step == lengths)", "starts = starts | (step == lengths + 1)"),
    ("the definition resets a step too early, backward in time", "reference.py",
     anew("definition"), "boundary = t + 1 if reverse else t", "boundary = t"),
    # Cells.
    ("lstm swaps the gradients of i and f", "cells/lstm.py", derived("lstm"),
     "return (d_input, d_forget, d_candidate, d_output)",
     "return (d_forget, d_input, d_candidate, d_output)"),
    ("lstm carries c's gradient past the forget gate", "cells/lstm.py", derived("lstm"),
     "(d_cell * forget_gate,)", "(d_cell,)"),
    ("lstm_peephole swaps the gradients of f and g", "cells/lstm_peephole.py",
     derived("lstm_peephole"),
     "return (d_input, d_forget, d_candidate, d_output)",
     "return (d_input, d_candidate, d_forget, d_output)"),
    ("lstm_peephole shows the output gate the c before", "cells/lstm_peephole.py",
     derived("lstm_peephole"),
     "columns[3] * after[1]", "columns[3] * before[1]"),
    ("lstm_coupled swaps the gradients of g and o", "cells/lstm_coupled.py",
     derived("lstm_coupled"),
     "return (d_forget, d_candidate, d_output), (d_cell * forget_gate,)",
     "return (d_forget, d_output, d_candidate), (d_cell * forget_gate,)"),
    ("lstm_coupled_peephole forgets a way back to c", "cells/lstm_coupled.py",
     derived("lstm_coupled_peephole"),
     "d_cell * forget_gate + d_forget * weights[0]", "d_cell * forget_gate"),
    ("gru swaps the gradients of r and z", "cells/gru.py", derived("gru"),
     "columns = (d_candidate, d_reset, d_update, d_candidate * reset_gate)",
     "columns = (d_candidate, d_update, d_reset, d_candidate * reset_gate)"),
    ("gru_reset_before swaps the gradients of z and n", "cells/gru.py",
     derived("gru_reset_before"),
     "return (d_update, d_candidate)", "return (d_candidate, d_update)"),
    ("rnn_tanh derives at the state before", "cells/elman.py", derived("rnn_tanh"),
     "(gradient * (1 - after[0] * after[0]),)", "(gradient * (1 - before[0] * before[0]),)"),
    ("rnn_relu lets gradients through where it is off", "cells/elman.py", derived("rnn_relu"),
     "(gradient * (after[0] > 0),)", "(gradient * (after[0] >= 0),)"),
    ("gru_residual lets the gradient pass by the gates alone", "cells/residual.py",
     derived("gru_residual"), "d_hidden * update_gate + d_hidden,", "d_hidden * update_gate,"),
    ("rnn_tanh_residual forgets what later steps hand back", "cells/residual.py",
     derived("rnn_tanh_residual"),
     "d_hidden = gradient + carry[0]\n    return (d_hidden * (1 - saved[0] * saved[0]),)",
     "d_hidden = gradient\n    return (d_hidden * (1 - saved[0] * saved[0]),)"),
    # The CRF.
    ("crf: a sentence ends a step early", CRF_KERNELS, CRF,
     "for _ in range(1, length):", "for _ in range(1, length - 1):", (1, 2)),
    ("crf: backward a sentence ends a step early", CRF_KERNELS, CRF,
     "for _ in range(1, length):", "for _ in range(2, length):", (2, 2)),
    ("crf: backward leaves emissions out of alpha", CRF_KERNELS, CRF,
     "alpha += tl.load(emissions + row + tag, mask=real, other=0.0).to(tl.float32)",
     "alpha += 0.0"),
    ("crf: of the pairs of tags only the first stay", CRF_KERNELS, CRF,
     "pairs += pair", "pairs = pair"),
    ("crf: shares of pairs go to the later tag", CRF_KERNELS, CRF,
     "share = tl.sum(pair, 1)", "share = tl.sum(pair, 0)"),
    ("crf: the gradient one step past a sentence is not written", CRF_KERNELS, CRF_MEMORY,
     "for _ in range(length, steps):", "for _ in range(length + 1, steps):"),
    ("crf: a tag that nothing reaches divides by zero", CRF_KERNELS, CRF_FORBIDDEN,
     'finite(total, float("inf"))[None, :]', "total[None, :]"),
    ("crf: a largest score of minus infinity is subtracted", CRF_KERNELS, CRF_FORBIDDEN,
     "largest = finite(tl.max(scores, 0), 0.0)", "largest = tl.max(scores, 0)"),
    ("crf: no path at all divides by zero", CRF_KERNELS, CRF_FORBIDDEN,
     "tl.where(terms == 0, 1.0, terms)", "terms"),
    ("crf: scaled probabilities vanish", CRF_LOOPS, CRF_SCALED,
     "torch.float32: 60.0", "torch.float32: 600.0"),
    ("crf: a scaled sentence has a move too many", CRF_LOOPS, CRF_TORCH,
     "(lengths - 1) * highest", "lengths * highest"),
    ("crf: scaled pairs forget the moves", CRF_LOOPS, CRF_TORCH, "moves * pairs", "pairs"),
    ("crf: sums of minus infinity are subtracted", CRF_LOOPS, CRF_FORBIDDEN_TORCH,
     "alphas, totals = sums + scores, total(sums)", "alphas, totals = sums + scores, sums"),
    # Cross-entropy of a linear layer.
    ("words: the loss has the wrong sign of its logarithm", WORDS, BY_ROWS_SUMMED,
     "below - score.amax(1).log()", "below + score.amax(1).log()"),
    ("words: only the last rows count in dW", WORDS, BY_ROWS,
     "d_weight.addmm_(score.t(), x)", "d_weight.addmm_(score.t(), x, beta=0)"),
    ("words: only the last rows count in oneDNN's dW", WORDS, BY_ONEDNN,
     "d_weight += by_onednn(x.t(), score.t())", "d_weight.copy_(by_onednn(x.t(), score.t()))"),
    ("words: oneDNN takes no notice of a bias's strides", "cpu/products.py", STRIDES,
     "bias = None if bias is None else bias.contiguous()", "bias = bias"),
    ("words: only the last rows count in db", WORDS, BY_ROWS,
     "d_bias += score.sum(0)", "d_bias.copy_(score.sum(0))"),
    ("words: a target's gradient is not weighted", WORDS, BY_ROWS,
     "scatter_add_(1, words_of_x, -g)", "scatter_add_(1, words_of_x, -torch.ones_like(g))"),
    ("words: the backward pass forgets what arrives", WORDS, BY_ROWS_SUMMED,
     "d_weight * gradient", "d_weight * 1"),
    ("words: gradients of float16 are made at once", WORDS, HALF_ROWS,
     ' and hidden.dtype != torch.float16', ""),
    ("words: ignored rows keep what they hold", WORDS, IGNORED_ROWS,
     "return kept, hidden.masked_fill(~kept.unsqueeze(1), 0), target",
     "return kept, hidden, target"),
    ("words: a larger logit does not rescale the sum", WORD_TILES, TILE_EDGES,
     "total * tl.exp(largest - peak)", "total"),
    ("words: a tile of forbidden words subtracts infinity", WORD_TILES, FORBIDDEN_WORDS,
     'tl.where(higher == -float("inf"), 0.0, higher)', "higher"),
    ("words: columns beyond the vocabulary are words", WORD_TILES, OF_TILES,
     'tl.where(has_word[None, :], z, -float("inf"))', "z"),
    ("words: the last units of h are left out", WORD_TILES, TILE_EDGES,
     "for start in range(0, HIDDEN, BLOCK_HIDDEN)",
     "for start in range(0, HIDDEN - BLOCK_HIDDEN + 1, BLOCK_HIDDEN)"),
    ("words: stretches are added without their peaks", WORD_TILES,
     ("linear_cross_entropy::stretches_of_the_vocabulary_make_no_difference",),
     "(sums * (peaks - peak).exp()).sum(0)", "sums.sum(0)"),
    ("words: of dh only the last band stays", WORD_TILES, OF_TILES,
     "d_hidden += _product", "d_hidden = _product"),
    ("words: a band's targets are those of the first", WORD_TILES, OF_TILES,
     "first_word = first + tl.program_id(1)", "first_word = tl.program_id(1)"),
    # The native engine.
    ("threads that share units do not wait", ENGINE + "layer.h", UNITS,
     "if (units) meeting->join", "if (!units) meeting->join"),
    ("a direction starts where the other does", ENGINE + "layer.h", NATIVE,
     "const int64_t earlier = reverse ? t + 1 : t - 1;",
     "const int64_t earlier = reverse ? t - 1 : t + 1;"),
    ("a sequence that starts reads the row before", ENGINE + "layer.h", NATIVE,
     "return b < count ? layer.y(offset + at)", "return b <= count ? layer.y(offset + at)"),
    ("the tail of a vector is forgotten", ENGINE + "vector.h", NATIVE,
     "  if (n >= LANES<S>) return store(p, v);", "  if (n >= LANES<S>) store(p, v);\n  return;"),
    ("zoneout forgets the share of the cell", ENGINE + "backward.h", NATIVE_ZONEOUT,
     "carry[cell_carry] = (one - z_cell) * carry[cell_carry];", ""),
)]
# fmt: on


def node(test: str) -> str:
    """What pytest calls a test of `Mutation.tests`."""
    module, rest = test.split("::", 1)
    (file,) = ROOT.glob(f"tests/kernels/**/test_{module}.py")
    return f"{file.relative_to(ROOT).as_posix()}::test_{rest}"


def copy(source: Path, target: Path) -> None:
    """Copy what pytest and the kernels need."""
    for name in COPIED:
        if (source / name).is_dir():
            unwanted = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(source / name, target / name, ignore=unwanted)
        else:
            shutil.copy(source / name, target / name)


class Run:
    """Tests in a copy of the package, in a process group that ends with it."""

    def __init__(
        self, source: Path, tests: Sequence[str], mutation: Mutation | None = None
    ) -> None:
        self.mutation, self.start = mutation, time.monotonic()
        self.limit = LIMIT if mutation else 10 * LIMIT
        self._folder = tempfile.TemporaryDirectory(prefix="rnnkit-mutant-")
        root = Path(self._folder.name)
        try:
            copy(source, root)
            if mutation:
                (root / KERNELS / mutation.file).write_text(mutation.broken(root))
            self._log = root / "log"
            engine = mutation is not None and mutation.file.startswith(ENGINE)
            first = ["sh", "-c", '"$0" -m tests.compilers && exec "$@"', sys.executable] * engine
            with self._log.open("w") as log:
                self._process = subprocess.Popen(
                    [*first, sys.executable, "-m", "pytest", "-x", "-q", "--tb=short",
                     "-p", "no:cacheprovider", "-o", "addopts=", f"--basetemp={root / 'tmp'}",
                     *map(node, tests)],
                    cwd=root,
                    env=environment(root),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
        except BaseException:
            self._folder.cleanup()
            raise

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.start

    def ended(self) -> bool:
        """Whether the tests are through, or have used up their time."""
        # Not reaped yet, so that the group's number stays this one's.
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        done = os.waitid(os.P_PID, self._process.pid, options) is not None
        return done or self.seconds > self.limit

    def stop(self) -> tuple[int | None, str]:
        """End every process and remove the copy: pytest's exit code, None at the limit; its log."""
        try:
            late = self.seconds > self.limit
            os.killpg(self._process.pid, signal.SIGKILL)
            code = self._process.wait()
            return None if late else code, self._log.read_text(errors="replace")
        finally:
            self._folder.cleanup()


def environment(root: Path) -> dict[str, str]:
    """Import the copy at `root`, interpret, and leave nothing elsewhere."""
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "RNNKIT_CHECK")}
    return kept | {
        "PYTHONPATH": f"{root}{os.pathsep}{root / 'kernels'}",
        "TRITON_CACHE_DIR": str(root / "triton"),
        "CUDA_VISIBLE_DEVICES": "",
        "COLUMNS": "300",  # pytest cuts its summary to it
    }


def run_all(
    source: Path,
    mutations: Sequence[Mutation],
    jobs: int,
    done: Callable[[Run, int | None, str], None],
) -> None:
    """Run the tests of every mutation, `jobs` at a time, and hand each result to `done`."""
    waiting, running = list(mutations), list[Run]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                mutation = waiting.pop(0)
                running.append(Run(source, mutation.tests, mutation))
            for run in [run for run in running if run.ended()]:
                running.remove(run)
                done(run, *run.stop())
            show_progress(running, len(waiting))
            time.sleep(0.1)
    finally:
        for run in running:
            run.stop()


def show_progress(running: Sequence[Run], waiting: int) -> None:
    """What is under way, on a line that the next one overwrites."""
    if sys.stderr.isatty():
        names = "; ".join(
            f"{run.mutation.name} {run.seconds:.0f} s" for run in running if run.mutation
        )
        sys.stderr.write(f"\r\033[K{waiting + len(running)} to go: {names}"[:120] + "\r")
        sys.stderr.flush()


def run_unbroken(source: Path, mutations: Sequence[Mutation], jobs: int) -> int:
    """Run all chosen tests on the package as it is; their number."""
    tests = sorted({test for mutation in mutations for test in mutation.tests})
    shares = [tests[i::jobs] for i in range(jobs) if tests[i::jobs]]
    running = [Run(source, share) for share in shares]
    problem = ""
    try:
        while not problem and running:
            for run in [run for run in running if run.ended()]:
                running.remove(run)
                code, log = run.stop()
                if code != 0:
                    problem = log
            time.sleep(0.1)
    finally:
        for run in running:
            run.stop()
    if problem:
        raise SystemExit(f"{problem}\nthe chosen tests do not pass on the package as it is")
    return len(tests)


def verdict(code: int | None, log: str) -> tuple[str, str]:
    """("killed", by what), ("survived", "") or ("mistake", why the mutant is none)."""
    if code is None:
        return "killed", "the time limit"
    if code == 0:
        return "survived", ""
    found = re.search(r"^(?:FAILED|ERROR) (\S+::\S+)(?: - (.*))?", log, re.MULTILINE)
    if code != 1 or found is None:
        return "mistake", f"pytest ended with {code}:\n{log[-2000:]}"
    test, reason = found[1].removeprefix("tests/kernels/"), found[2] or ""
    if any(re.search(rf"^E\s+{kind}\b|\b{kind}:", log, re.MULTILINE) for kind in MISTAKES):
        return "mistake", f"{test} raises {reason}"
    return "killed", f"{test}  {reason[:60]}"


@contextmanager
def snapshot() -> Iterator[Path]:
    """The package as it is now, with programs that are given up sooner; others may edit it."""
    with tempfile.TemporaryDirectory(prefix="rnnkit-") as folder:
        root = Path(folder)
        copy(ROOT, root)
        path, old, new = SOONER
        text = (root / path).read_text()
        if text.count(old) != 1:
            raise SystemExit(f"{path} does not say {old!r} once; adapt tests/mutate.py")
        (root / path).write_text(text.replace(old, new))
        imported = subprocess.run(
            [sys.executable, "-c", "import rnnkit_kernels, tests; print(rnnkit_kernels.__file__)"],
            cwd=root,
            env=environment(root),
            capture_output=True,
            text=True,
            check=True,
        )
        if not imported.stdout.startswith(folder):
            raise SystemExit(f"the copy is not what Python imports, but {imported.stdout}")
        yield root


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill mutants; 0 if none survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__)
    parser.add_argument(
        "--only", metavar="NAME", action="append", help="mutations whose name contains NAME"
    )
    parser.add_argument("--list", action="store_true", help="name the mutations and their tests")
    parser.add_argument("--jobs", metavar="N", type=int, default=2, help="at a time (default: 2)")
    options = parser.parse_args(arguments)
    wanted = options.only or [""]
    chosen = [m for m in MUTATIONS if any(part in m.name for part in wanted)]
    if not chosen:
        parser.error(f"no mutation's name contains {' or '.join(wanted)}")
    if options.list:
        for mutation in chosen:
            print(f"{mutation.name}\n    {mutation.file}")
            print("".join(f"    {node(test)}\n" for test in mutation.tests), end="")
        return 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    start, results = time.monotonic(), list[tuple[str, str]]()

    def done(run: Run, code: int | None, log: str) -> None:
        assert run.mutation is not None
        kind, reason = verdict(code, log)
        results.append((kind, run.mutation.name))
        count = f"{len(results):3}/{len(chosen)}"
        print(
            f"{count}  {kind:8}  {run.seconds:5.1f} s  {run.mutation.name:64}  {reason}", flush=True
        )

    try:
        with snapshot() as source:
            for mutation in chosen:
                mutation.broken(source)  # or say so before anything runs
            count = run_unbroken(source, chosen, options.jobs)
            print(f"unbroken: {count} tests pass, {time.monotonic() - start:.1f} s", flush=True)
            run_all(source, chosen, options.jobs, done)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    alive = [name for kind, name in results if kind != "killed"]
    print(f"{len(results) - len(alive)} of {len(results)} killed, {time.monotonic() - start:.0f} s")
    for name in alive:
        print(f"not killed: {name}")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
