"""Layers above each other, in one direction or both: the engine that was chosen runs each.

Dropout lies between them, and one wavefront takes them all where the plan allows it.
"""

from __future__ import annotations  # Dynamo can't evaluate those of the inner function

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnnkit_kernels import reference
from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.cpu.padded_lstm import padded_lstm, suits
from rnnkit_kernels.dispatch.autocast import cast, compute_dtype, result_dtypes
from rnnkit_kernels.dispatch.choice import PLAIN, Backend, Decision, Extras, choose, that_keeps
from rnnkit_kernels.lengths import (
    States,
    all_rows,
    checked_lengths,
    on_host,
    only_real_rows,
    packed_rows,
)
from rnnkit_kernels.ops.context import observed, traces
from rnnkit_kernels.ops.flops import tell_counters
from rnnkit_kernels.ops.native_layer import native_layer
from rnnkit_kernels.ops.placement import Placement
from rnnkit_kernels.ops.recurrence import recurrence
from rnnkit_kernels.ops.states import LayerStates
from rnnkit_kernels.ops.states_by_definition import StatesByDefinition, StatesOnGraph, Steps
from rnnkit_kernels.ops.watching import Watchers, watch, watched
from rnnkit_kernels.random.dropout import dropout as _dropout
from rnnkit_kernels.random.philox import STREAMS
from rnnkit_kernels.recurrence.rows import Rows
from rnnkit_kernels.wavefront import flows, in_one_wavefront

_VF: Any = torch._VF


def recurrent(
    cell: str,
    input: Tensor,
    hx: States,
    weights: Sequence[Tensor],
    *,
    has_biases: bool = True,
    has_projections: bool = False,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: Backend = "auto",
    extras: Extras = PLAIN,
    seed: Tensor | None = None,
    order: Tensor | None = None,
    begins: Tensor | None = None,
    resets: Tensor | None = None,
    hx_reset: States | None = None,
) -> tuple[Tensor, States]:
    """`lstm`, `gru` and `rnn` by the cell's name, a key of `CELLS`.

    `begins` goes with `batch_sizes`, see `random.dropout`; `resets` and `hx_reset` are for what
    runs by its definition, step by step: `resets.recurrent` leads all else to `batch_sizes`.
    """
    tell_counters()
    if batch_sizes is None and input.shape[0] == 0:
        raise RuntimeError(
            "Expected sequence length to be larger than 0 in RNN, got an input of 0 steps for "
            f"a batch of {input.shape[1]}"
        )
    if lengths is not None:
        lengths = checked_lengths(lengths, input)
    directions = 2 if bidirectional else 1
    # What is on a device, or under a transform, is not read: neither lengths nor what is like them.
    ragged = resets if lengths is None else lengths
    if batch_sizes is not None and (batch_sizes.is_cuda or (begins is not None and traces())):
        ragged = batch_sizes
    decision = choose(
        cell, input, (*weights, *hx), has_projections, ragged, backend, extras,
        None if batch_sizes is None else hx[0].shape[1], num_layers, directions,
    )  # fmt: skip
    assert resets is None or decision.engine == "reference"
    noted = watched()
    if noted is not None:
        if resets is not None or begins is not None:
            raise ValueError(
                "the states of sequences that begin anew (resets) can't be watched: leave resets "
                "out, or cut the sequences there"
            )
        decision = that_keeps(decision, cell, input, weights, noted.graph)
    steps = input.shape[0] if batch_sizes is None else batch_sizes.shape[0]
    shape = (steps, hx[0].shape[1])
    if decision.engine == "reference" and traces():
        input = _of_fixed_length(input, batch_sizes)
    hidden = weights[1].shape[0] // CELLS[cell].gates_at[-1]
    together = num_layers > 1 and directions == 1 and not has_projections and extras == PLAIN
    together = together and noted is None
    together = together and flows(cell, hidden, num_layers, decision, weights[1])
    together = together and (begins is None or not (training and dropout > 0))
    in_torch = extras.missing_in_torch(cell) is None
    # Rows of segments are copied once more when they go back to their places.
    apart = together or begins is not None or decision.engine in ("torch", "reference")
    draws = training and decision.engine != "torch" and (dropout > 0 or any(extras.zoneout))
    if seed is None and draws:
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), device=input.device)

    def run(
        data: Tensor,
        state: States,
        rows: Rows,
        order: Tensor | None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, States]:
        if decision.engine == "torch":
            options = (has_biases, num_layers, dropout, training, bidirectional)
            return _torch_stack(cell, data, state, weights, options, rows)
        rows = rows.to(data.device)
        ragged = lengths is not None or rows.batch_sizes is not None
        dtypes: tuple[torch.dtype, ...] = ()
        if decision.engine in ("native", "eager", "reference") and in_torch:
            dtypes = result_dtypes(cell, weights[1], state, ragged, has_projections)
        dtype = weights[1].dtype if dtypes else compute_dtype(weights[1])
        data, state, own_weights = cast(data, state, weights, dtype)
        size = len(weights) // num_layers
        if together:
            rate = dropout if training else 0.0
            return in_one_wavefront(
                cell, decision, data, own_weights, size, has_biases, state, rows, order, seed, rate
            )
        last: list[States] = []
        for i in range(num_layers):
            if i > 0 and training and dropout > 0 and seed is not None:
                data = _dropout(data, dropout, seed, STREAMS * (i - 1), rows, order, begins)
            parts = _stacked(cell, own_weights[i * size : (i + 1) * size], directions, has_biases,
                             has_projections)  # fmt: skip
            span = slice(i * directions, (i + 1) * directions)
            own = tuple(value[span] for value in state)
            drawn = (seed if training else None, i, rows, order, begins)
            shares = _shares(extras.zoneout, own, data, *drawn)
            anew = None
            if resets is not None:
                at = resets if order is None else resets.index_select(1, order)
                anew = at, None if hx_reset is None else tuple(value[span] for value in hx_reset)
            inputs = (data, *parts, own, shares, rows, extras, lengths, anew)
            watching = None if noted is None else (noted, i, Placement(shape, rows, order))
            data, final = _layer(cell, decision, *inputs, watching)
            last.append(final)
        states = tuple(torch.cat(values) for values in zip(*last, strict=True))
        if not dtypes:
            return data, states
        handed_on = (value.to(own) for value, own in zip(states, dtypes, strict=True))
        return data.to(dtypes[0]), tuple(handed_on)

    if lengths is not None:
        if noted is None and _takes_lengths(decision, lengths, extras):
            # The engine finds its way through sequences of any order, as they lie.
            rows = Rows(input.shape[0], input.shape[1])
            return _writable(apart, *run(input, hx, rows, None, lengths))
        # torch's own layers take packed rows, for which the lengths must be on the host.
        if decision.engine == "torch" or on_host(lengths, decision):
            lengths = lengths.cpu()
            if decision.engine == "torch" and cell == "lstm" and not has_projections:
                options = (has_biases, num_layers, dropout, training, bidirectional)
                if suits(input, lengths):
                    return padded_lstm(input, hx, weights, *options, lengths)
            return only_real_rows(run, input, hx, lengths)
        return all_rows(run, input, hx, lengths)
    if batch_sizes is None:
        return _writable(apart, *run(input, hx, Rows(input.shape[0], input.shape[1]), None))
    return _writable(apart, *run(input, hx, packed_rows(batch_sizes, hx[0].shape[1]), order))


def _writable(apart: bool, output: Tensor, last: States) -> tuple[Tensor, States]:
    """The same results, which the caller may change in place.

    Args:
        apart: whether no backward pass reads the output; else the caller gets a copy.
    """
    kept = output.requires_grad or traces()  # a trace may be trained later
    return output.clone() if kept and not apart else output, last


def _of_fixed_length(input: Tensor, batch_sizes: Tensor | None) -> Tensor:
    """The same input; a trace of the definition holds its steps one by one, and takes no others."""
    if batch_sizes is not None:
        raise RuntimeError(
            "a layer that runs by its definition can't be traced over packed sequences, whose "
            "numbers of steps the trace would keep: trace it over a padded batch with lengths="
        )
    return input.view(int(input.shape[0]), *input.shape[1:])


def _takes_lengths(decision: Decision, lengths: Tensor, extras: Extras) -> bool:
    """Whether a padded batch runs as it lies, and no row of it is packed."""
    return (
        decision.engine == "native"
        and not observed()
        and not extras.recompute
        and lengths.device.type == "cpu"
        and bool(lengths.any())
    )


def _shares(
    probabilities: tuple[float, ...],
    state: States,
    data: Tensor,
    seed: Tensor | None,
    layer: int,
    rows: Rows,
    order: Tensor | None,
    begins: Tensor | None,
) -> Tensor | None:
    """The shares of a layer's states that zoneout keeps: (N, M, Z, H), or None without.

    With a seed each is 0 or 1, without one the probability itself.
    """
    if not any(probabilities):
        return None
    if len(probabilities) != len(state):
        raise ValueError(
            f"expected one zoneout probability a state, {len(state)}, got {len(probabilities)}"
        )
    members, _, hidden = state[0].shape
    ones = data.new_ones(*data.shape[:-1], members * hidden)
    found, places = [], (rows, order, begins)
    for i, probability in enumerate(probabilities):
        if seed is None or probability == 0:
            share = ones * probability
        else:
            kept = _dropout(ones, probability, seed, STREAMS * layer + 1 + i, *places)
            share = (kept == 0).to(data.dtype)
        found.append(share.view(-1, members, hidden))
    return torch.stack(found, 2)


def _stacked(
    cell: str,
    weights: Sequence[Tensor],
    directions: int,
    has_biases: bool,
    has_projections: bool,
) -> tuple[list[Tensor | None], list[tuple[Tensor, ...]]]:
    """A layer's weights in the operator's order, the direction leading; and what normalises."""
    size = len(weights) // directions
    names = ["weight_ih", "weight_hh", *["bias_ih", "bias_hh"] * has_biases]
    names += ["weight_hr"] * has_projections + ["weight_c"] * (CELLS[cell].weights > 0)

    def stacked(name: str) -> Tensor | None:
        if name not in names:
            return None
        parts = tuple(weights[names.index(name) :: size])
        return parts[0].unsqueeze(0) if directions == 1 else torch.stack(parts)

    ordered = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_c")
    norms = [tuple(weights[i * size + len(names) : (i + 1) * size]) for i in range(directions)]
    return [stacked(name) for name in ordered], norms


def _layer(
    cell: str,
    decision: Decision,
    data: Tensor,
    weights: Sequence[Tensor | None],
    norms: Sequence[tuple[Tensor, ...]],
    state: States,
    shares: Tensor | None,
    rows: Rows,
    extras: Extras,
    lengths: Tensor | None,
    anew: tuple[Tensor, States | None] | None,
    watching: tuple[Watchers, int, Placement] | None,
) -> tuple[Tensor, States]:
    h0, c0 = state[0], state[1] if len(state) > 1 else None
    inputs: tuple[Any, ...] = (data, *weights, h0, c0, shares)
    engine, recompute = decision.engine, extras.recompute
    if engine == "reference":
        norm = norms if extras.layer_norm else None
        if watching is None:
            y, h_n, last = reference.directions(cell, inputs, rows, layer_norm=norm, anew=anew)
            return y, (h_n,) if last is None else (h_n, last)
        noted, i, placement = watching
        kind = StatesOnGraph if noted.graph else StatesByDefinition
        followed = kind(cell, i, engine, inputs, placement)
        noted.append(followed)
        steps: Steps = [[] for _ in range(h0.shape[0])]
        y, h_n, last = reference.directions(
            cell, inputs, rows, layer_norm=norm, anew=anew, states=steps
        )
        followed.follow(y, steps, norm)
        return y, (h_n,) if last is None else (h_n, last)
    states: LayerStates | None = None
    if watching is not None:
        noted, i, placement = watching
        states = LayerStates(cell, i, engine, inputs, placement)
        noted.append(states)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    save = save or traces()
    inputs = (*inputs, rows.batch_sizes, rows.offsets)
    if states is not None and save:
        y, h_n, c_n, *kept = recurrence(*inputs, cell, False, engine, True, False)
        states.ran(y, *kept)
        y, *final = watch(states, y, *((h_n,) if c0 is None else (h_n, c_n)))
        return y, tuple(final)
    if engine == "native" and not observed():
        y, h_n, c_n = native_layer((*inputs, lengths), cell, save, recompute)
        return y, (h_n,) if c_n is None else (h_n, c_n)
    y, h_n, c_n, _, _ = recurrence(*inputs, cell, False, engine, save, recompute)
    return y, (h_n,) if c0 is None else (h_n, c_n)


def _torch_stack(
    cell: str,
    data: Tensor,
    state: States,
    weights: Sequence[Tensor],
    options: tuple[bool, int, float, bool, bool],
    rows: Rows,
) -> tuple[Tensor, States]:
    call = getattr(_VF, cell)
    start = state if len(state) > 1 else state[0]
    if rows.batch_sizes is None:
        output, *last = call(data, start, list(weights), *options, False)
    else:
        output, *last = call(data, rows.batch_sizes, start, list(weights), *options)
    return output, tuple(last)
