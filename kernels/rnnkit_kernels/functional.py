"""The only door to the kernels: stacked, bidirectional, packed and padded recurrent layers; a CRF.

`lstm`, `gru` and `rnn` take tensors and weights as `torch.nn` lays them out and choose how to run;
`crf` sums over all paths of tags, `linear_cross_entropy` over all words. Time comes first
everywhere: (T, B, D).
"""

from __future__ import annotations  # Dynamo can't evaluate those of the inner function

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from typing_extensions import Unpack  # torch brings it; typing has it from Python 3.11

from rnnkit_kernels import reference
from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.cpu.padded_lstm import padded_lstm, suits
from rnnkit_kernels.crf.log_partition import log_partition
from rnnkit_kernels.dispatch.choice import (
    BACKENDS,
    PLAIN,
    Backend,
    Decision,
    Extras,
    autocasts,
    choose,
    compute_dtype,
)
from rnnkit_kernels.ops.recurrence import recurrence
from rnnkit_kernels.ops.shortage import is_shortage
from rnnkit_kernels.ops.stack import stack, wavefront_plan
from rnnkit_kernels.random.dropout import STREAMS
from rnnkit_kernels.random.dropout import dropout as _dropout
from rnnkit_kernels.recurrence.plan import Device, Plan
from rnnkit_kernels.recurrence.rows import Rows
from rnnkit_kernels.reference import gru_reset_before
from rnnkit_kernels.vocabulary.linear_cross_entropy import loss as _loss_of_logits

__all__ = [
    "BACKENDS",
    "Backend",
    "Decision",
    "Extras",
    "autocasts",
    "choose",
    "crf",
    "gru",
    "gru_reset_before",
    "is_shortage",
    "linear_cross_entropy",
    "lstm",
    "recurrent",
    "rnn",
]

States = tuple[Tensor, ...]
Run = Callable[[Tensor, States, Rows, Tensor | None], tuple[Tensor, States]]
_VF: Any = torch._VF


class Options(TypedDict, total=False):
    """What `gru` and `rnn` take as `lstm` does; the defaults are its own."""

    has_biases: bool
    num_layers: int
    dropout: float
    training: bool
    bidirectional: bool
    batch_sizes: Tensor | None
    lengths: Tensor | None
    backend: Backend
    extras: Extras
    seed: Tensor | None
    order: Tensor | None


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
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
    peephole: bool = False,
    coupled: bool = False,
    extras: Extras = PLAIN,
    seed: Tensor | None = None,
    order: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A stack of LSTM layers.

    Args:
        input: (T, B, D), or the packed rows (N, D) with `batch_sizes`.
        hx: h0 (L·directions, B, P) and c0 (L·directions, B, H); P = H without projection.
        weights: flat, layer by layer, direction by direction: `weight_ih` (4H, D), `weight_hh`
            (4H, P), with biases `bias_ih` and `bias_hh` (4H,), with projections `weight_hr` (P, H),
            with peepholes `weight_c` (3, H), with layer normalisation gain and shift of W_ih x and
            of W_hh h, (4H,) each, and of c, (H,) each. Coupled gates leave 3H rows of 4H, and two
            peepholes of three.
        has_biases: whether `weights` holds biases.
        has_projections: whether `weights` holds projections.
        num_layers: L.
        dropout: probability of dropping an output of every layer but the last, while training.
        training: whether dropout acts.
        bidirectional: whether each layer also runs backwards in time.
        batch_sizes: int64 (T,) on the CPU, of a PackedSequence.
        lengths: integers (B,), unsorted, in [0, T]; not together with `batch_sizes`. On a GPU the
            host never reads them, unless torch's own layers or float64 have to run.
        backend: "auto", "triton", "torch", or an engine's name, for measurements.
        peephole: whether the gates see c (Gers & Schmidhuber 2000).
        coupled: whether the input gate is one minus the forget gate (Greff et al. 2017).
        extras: zoneout, layer normalisation and recomputation.
        seed: int64, one element, of dropout and zoneout; drawn from torch's generator if None.
            torch's own layers draw from that themselves.
        order: int64 (B,), the original index of each packed sequence, on which the masks depend.

    Returns:
        output (T, B, directions·P) or (N, directions·P), zero past each length; h_n and c_n shaped
        as `hx`.

    Raises:
        ValueError: lengths of the wrong shape, dtype or value.
        RuntimeError: `backend="triton"` where the kernels can't run.

    Example:
        >>> weights = [torch.randn(8, 3), torch.randn(8, 2), torch.zeros(8), torch.zeros(8)]
        >>> state = (torch.zeros(1, 4, 2), torch.zeros(1, 4, 2))
        >>> output, h_n, c_n = lstm(torch.randn(5, 4, 3), state, weights)
    """
    output, (h_n, c_n) = recurrent(
        "lstm" + "_coupled" * coupled + "_peephole" * peephole,
        input,
        hx,
        weights,
        has_biases=has_biases,
        has_projections=has_projections,
        num_layers=num_layers,
        dropout=dropout,
        training=training,
        bidirectional=bidirectional,
        batch_sizes=batch_sizes,
        lengths=lengths,
        backend=backend,
        extras=extras,
        seed=seed,
        order=order,
    )
    return output, h_n, c_n


def gru(
    input: Tensor,
    hx: Tensor,
    weights: Sequence[Tensor],
    *,
    reset_after: bool = True,
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor]:
    """A stack of GRU layers.

    Args:
        input: as for `lstm`.
        hx: h0 (L·directions, B, H).
        weights: as for `lstm`, with 3H rows.
        reset_after: False applies the reset gate before the recurrent product.
        options: as for `lstm`.

    Returns:
        output and h_n, as for `lstm`.
    """
    cell = "gru" if reset_after else "gru_reset_before"
    output, (h_n,) = recurrent(cell, input, (hx,), weights, **options)
    return output, h_n


def rnn(
    input: Tensor,
    hx: Tensor,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor]:
    """A stack of Elman layers; `nonlinearity` is "tanh" or "relu", the rest as for `gru`."""
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f'nonlinearity must be "tanh" or "relu", got {nonlinearity!r}')
    output, (h_n,) = recurrent(f"rnn_{nonlinearity}", input, (hx,), weights, **options)
    return output, h_n


def crf(
    emissions: Tensor,
    transitions: Tensor,
    start: Tensor,
    end: Tensor,
    lengths: Tensor,
    *,
    backend: Literal["auto", "triton", "torch"] = "auto",
) -> Tensor:
    """The log partition functions of a linear-chain CRF.

    The gradient of their sum by the emissions is the distribution of every tag.

    Args:
        emissions: scores of the tags at each step, floating point (T, B, K).
        transitions: scores of the moves from one tag to the next, [from, to] (K, K).
        start, end: scores of the first and the last tag, (K,). A score of −∞ forbids a tag or move.
        lengths: integers (B,), unsorted, in [1, T]; on a GPU the host never reads them. What lies
            past a length changes nothing and gets a gradient of zero.
        backend: "auto", "triton" or "torch".

    Returns:
        (B,), float64 where an input is, else float32 also for half precision; −∞ where no path is
        allowed.

    Raises:
        ValueError: lengths of the wrong shape, dtype or value; an unknown backend.
        RuntimeError: scores of shapes that do not fit; `backend="triton"` where the kernels can't
            run.

    Example:
        >>> weights = torch.randn(4, 4), torch.randn(4), torch.randn(4)
        >>> log_z = crf(torch.randn(7, 2, 4), *weights, torch.tensor([7, 3]))
    """
    if emissions.dim() != 3 or emissions.shape[0] == 0 or emissions.shape[2] == 0:
        raise RuntimeError(
            "expected emissions (T, B, K) of one step and one tag or more, got "
            f"{tuple(emissions.shape)}"
        )
    tags = emissions.shape[2]
    # The kernels take their steps from K: other sizes would be read past their ends.
    if transitions.shape != (tags, tags) or not start.shape == end.shape == (tags,):
        raise RuntimeError(
            f"expected transitions ({tags}, {tags}), start ({tags},) and end ({tags},) for "
            f"emissions of {tags} tags, got {tuple(transitions.shape)}, {tuple(start.shape)} and "
            f"{tuple(end.shape)}"
        )
    lengths = _checked_lengths(lengths, emissions, 1).to(emissions.device)
    return log_partition(emissions, transitions, start, end, lengths, backend)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    ignore_index: int = -100,
    reduction: Literal["sum", "none"] = "sum",
    backend: Backend = "auto",
) -> Tensor:
    """`cross_entropy(linear(hidden, weight, bias), target)` without room for all the logits.

    Args:
        hidden: floating point (N, H).
        weight: (V, H).
        bias: (V,) or None.
        target: words, int64 (N,).
        ignore_index: the target of rows that count for nothing, whatever they hold.
        reduction: "sum" or "none". The sum costs less: no logits are made twice.
        backend: "auto", "triton" or "torch".

    Returns:
        () or (N,), float64 for float64, else float32 also for half precision; 0 for ignored rows.

    Raises:
        RuntimeError: shapes or dtypes that do not fit; `backend="triton"` where the kernels can't
            run.
        ValueError: another number of targets than of rows; an unknown reduction or backend.
        IndexError: a target that is neither a word nor `ignore_index`; on a GPU a device assertion.

    Example:
        >>> hidden, weight = torch.randn(70, 8), torch.randn(1000, 8)
        >>> loss = linear_cross_entropy(hidden, weight, None, torch.randint(1000, (70,)))
    """
    if reduction not in ("sum", "none"):
        raise ValueError(f'reduction must be "sum" or "none", got {reduction!r}')
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise RuntimeError(
            "expected hidden (N, H) and weight (V, H) of one H, got "
            f"{tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise RuntimeError(
            f"expected a bias of shape ({weight.shape[0]},), one a row of weight, got "
            f"{tuple(bias.shape)}"
        )
    if target.shape != hidden.shape[:1]:
        raise ValueError(
            f"expected one target a row of hidden, shape ({hidden.shape[0]},), got "
            f"{tuple(target.shape)}"
        )
    if target.dtype != torch.int64:
        raise RuntimeError(f"expected targets of dtype torch.int64, got {target.dtype}")
    dtype = compute_dtype(weight)
    if autocasts(hidden.device):
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if hidden.dtype != dtype or (bias is not None and bias.dtype != dtype):
        raise RuntimeError(
            f"expected hidden, weight and bias of one dtype, got {hidden.dtype}, {dtype} and "
            f"{None if bias is None else bias.dtype}"
        )
    return _loss_of_logits(hidden, weight, bias, target, ignore_index, reduction == "sum", backend)


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
) -> tuple[Tensor, States]:
    """`lstm`, `gru` and `rnn` by the cell's name, a key of `CELLS`."""
    if batch_sizes is None and input.shape[0] == 0:
        raise RuntimeError(
            "Expected sequence length to be larger than 0 in RNN, got an input of 0 steps for "
            f"a batch of {input.shape[1]}"
        )
    if lengths is not None:
        lengths = _checked_lengths(lengths, input)
    sequences = None if batch_sizes is None else int(batch_sizes[0])
    directions = 2 if bidirectional else 1
    decision = choose(
        cell, input, weights, has_projections, lengths, backend, extras, sequences, num_layers,
        directions,
    )  # fmt: skip
    hidden = weights[1].shape[0] // CELLS[cell].gates_at[-1]
    together = num_layers > 1 and directions == 1 and not has_projections and extras == PLAIN
    together = together and _flows(cell, hidden, num_layers, decision, weights[1])
    draws = training and decision.engine != "torch" and (dropout > 0 or any(extras.zoneout))
    if seed is None and draws:
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), device=input.device)

    def run(data: Tensor, state: States, rows: Rows, order: Tensor | None) -> tuple[Tensor, States]:
        if decision.engine == "torch":
            options = (has_biases, num_layers, dropout, training, bidirectional)
            return _torch_stack(cell, data, state, weights, options, rows)
        rows = rows.to(data.device)
        data, state, cast = _autocast(data, state, weights)
        size = len(weights) // num_layers
        if together:
            rate = dropout if training else 0.0
            return _wavefront(
                cell, decision, data, cast, size, has_biases, state, rows, order, seed, rate
            )
        last: list[States] = []
        for i in range(num_layers):
            if i > 0 and training and dropout > 0 and seed is not None:
                data = _dropout(data, dropout, seed, STREAMS * (i - 1), rows, order)
            parts = _stacked(cell, cast[i * size : (i + 1) * size], directions, has_biases,
                             has_projections)  # fmt: skip
            span = slice(i * directions, (i + 1) * directions)
            own = tuple(value[span] for value in state)
            shares = _shares(extras.zoneout, own, data, rows, order, seed if training else None, i)
            data, final = _layer(cell, decision, data, *parts, own, shares, rows, extras)
            last.append(final)
        return data, tuple(torch.cat(values) for values in zip(*last, strict=True))

    if lengths is not None:
        # torch's own layers take packed rows, for which the lengths must be on the host.
        if decision.engine == "torch" or _on_host(lengths, decision):
            lengths = lengths.cpu()
            if decision.engine == "torch" and cell == "lstm" and not has_projections:
                options = (has_biases, num_layers, dropout, training, bidirectional)
                if suits(input, lengths):
                    return padded_lstm(input, hx, weights, *options, lengths)
            return _only_real_rows(run, input, hx, lengths)
        return _all_rows(run, input, hx, lengths)
    if batch_sizes is None:
        return run(input, hx, Rows(input.shape[0], input.shape[1]), None)
    return run(input, hx, _packed_rows(batch_sizes), order)


def _shares(
    probabilities: tuple[float, ...],
    state: States,
    data: Tensor,
    rows: Rows,
    order: Tensor | None,
    seed: Tensor | None,
    layer: int,
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
    found = []
    for i, probability in enumerate(probabilities):
        if seed is None or probability == 0:
            share = ones * probability
        else:
            kept = _dropout(ones, probability, seed, STREAMS * layer + 1 + i, rows, order)
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
) -> tuple[Tensor, States]:
    h0, c0 = state[0], state[1] if len(state) > 1 else None
    inputs: tuple[Any, ...] = (data, *weights, h0, c0, shares)
    if decision.engine == "reference":
        norm = norms if extras.layer_norm else None
        y, h_n, last = reference.directions(cell, inputs, rows, layer_norm=norm)
        return y, (h_n,) if last is None else (h_n, last)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    engine, recompute = decision.engine, extras.recompute
    y, h_n, c_n, _, _ = recurrence(
        *inputs, rows.batch_sizes, rows.offsets, cell, False, engine, save, recompute
    )
    return y, (h_n,) if c0 is None else (h_n, c_n)


def _flows(cell: str, hidden: int, layers: int, decision: Decision, weight: Tensor) -> bool:
    """Whether the layers run as one wavefront."""
    chosen = decision.plan
    if chosen is None:
        return False
    device, dtype = Device.of(weight.device), compute_dtype(weight)
    found = wavefront_plan(
        CELLS[cell], hidden, layers, dtype, device, chosen.precision, chosen.mode
    )
    return isinstance(found, Plan)


def _wavefront(
    cell: str,
    decision: Decision,
    data: Tensor,
    weights: Sequence[Tensor],
    size: int,
    has_biases: bool,
    state: States,
    rows: Rows,
    order: Tensor | None,
    seed: Tensor | None,
    dropout: float,
) -> tuple[Tensor, States]:
    """All layers as one operator; see `stack.py`."""
    assert decision.plan is not None

    def stacked(i: int) -> Tensor:
        return torch.stack(tuple(weights[i::size]))

    biases = (stacked(2), stacked(3)) if has_biases else (None, None)
    peepholes = stacked(size - 1) if CELLS[cell].weights else None
    above = torch.stack(tuple(weights[size::size]))
    h0, c0 = state[0], state[1] if len(state) > 1 else None
    inputs = (data, weights[0], above, stacked(1), *biases, peepholes, h0, c0)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    y, h_n, c_n, *_ = stack(
        *inputs,
        rows.batch_sizes,
        rows.offsets,
        order,
        seed if dropout > 0 else None,
        dropout,
        cell,
        decision.plan.mode,
        save,
    )
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


def _autocast(
    data: Tensor, state: States, weights: Sequence[Tensor]
) -> tuple[Tensor, States, Sequence[Tensor]]:
    """Cast to autocast's dtype where it is on, as torch does for cuDNN's layers."""
    dtype = compute_dtype(weights[1])
    if all(tensor.dtype == dtype for tensor in (weights[1], data, *state)):
        return data, state, weights
    return data.to(dtype), tuple(v.to(dtype) for v in state), [w.to(dtype) for w in weights]


def _packed_rows(batch_sizes: Tensor) -> Rows:
    """The rows of a PackedSequence, on the CPU as torch keeps its batch sizes."""
    offsets = batch_sizes.cumsum(0) - batch_sizes
    return Rows(batch_sizes.shape[0], int(batch_sizes[0]), batch_sizes, offsets)


def _on_host(lengths: Tensor, decision: Decision) -> bool:
    """Whether lengths may be read: not on a device, in a trace or under a transform."""
    traced = torch.compiler.is_compiling() or decision.engine == "reference"
    return lengths.device.type == "cpu" and not traced


def _checked_lengths(lengths: Tensor, input: Tensor, least: int = 0) -> Tensor:
    steps, batch = input.shape[:2]
    if lengths.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise ValueError(f"lengths must be integers, got {lengths.dtype}")
    if lengths.shape != (batch,):
        raise ValueError(
            f"expected one length a sequence, shape ({batch},), got {tuple(lengths.shape)}"
        )
    lengths = lengths.to(torch.int64)  # int8 could not be compared with 200 steps
    outside = (lengths < least) | (lengths > steps)
    if lengths.device.type != "cpu" or torch.compiler.is_compiling():
        # Never read on the host: a failed assertion stops the device.
        torch._assert_async(
            ~outside.any(), f"lengths must lie between {least} and the number of steps"
        )
    elif outside.any():
        where = int(outside.nonzero()[0])
        raise ValueError(
            f"lengths must lie between {least} and the input's {steps} steps, "
            f"got {int(lengths[where])} for sequence {where}"
        )
    return lengths


def _only_real_rows(run: Run, input: Tensor, hx: States, lengths: Tensor) -> tuple[Tensor, States]:
    """Lengths on the host: pack, run Σ lengths rows, unpack; empty sequences keep their state."""
    steps, batch = input.shape[:2]
    ordered, order = lengths.sort(descending=True, stable=True)
    running = int((ordered > 0).sum())
    if batch == 0:
        return run(input, hx, Rows(steps, 0), None)
    if running == 0:
        # One step over zeros sets dtype and width; sums over no element keep all on the graph.
        one = tuple(value[:, :1].contiguous() for value in hx)
        output, _ = run(torch.zeros_like(input[:1, :1]), one, Rows(1, 1), None)
        nothing = output[..., :0].sum() + input[:0].sum().to(output.dtype)
        zeros = output.new_zeros(steps, batch, output.shape[-1])
        return zeros + nothing, tuple(value.to(output.dtype) + nothing for value in hx)
    inverse = order.argsort().to(input.device)
    order = order.to(input.device)
    start = tuple(value.index_select(1, order) for value in hx)
    packed = pack_padded_sequence(input.index_select(1, order[:running]), ordered[:running])
    data, last = run(
        packed.data,
        tuple(value[:, :running].contiguous() for value in start),
        _packed_rows(packed.batch_sizes),
        order[:running],
    )
    output, _ = pad_packed_sequence(PackedSequence(data, packed.batch_sizes), total_length=steps)
    if running < batch:
        output = pad(output, (0, 0, 0, batch - running))
        last = tuple(
            torch.cat([ran, kept[:, running:].to(ran.dtype)], 1)
            for ran, kept in zip(last, start, strict=True)
        )
    return output.index_select(1, inverse), tuple(value.index_select(1, inverse) for value in last)


def _all_rows(run: Run, input: Tensor, hx: States, lengths: Tensor) -> tuple[Tensor, States]:
    """Lengths on the device, or traced: T·B rows, order and counts never read by the host."""
    steps, batch = input.shape[:2]
    lengths = lengths.to(input.device)
    ordered, order = lengths.sort(descending=True, stable=True)
    inverse = order.argsort()
    step = torch.arange(steps, device=input.device)
    inside = step[:, None] < ordered
    # What lies past a length may be anything, also NaN; it must not reach a weight's gradient.
    data = input.index_select(1, order).masked_fill(~inside.unsqueeze(-1), 0)
    output, last = run(
        data.flatten(0, 1),
        tuple(value.index_select(1, order) for value in hx),
        Rows(steps, batch, inside.sum(1), step * batch),
        order,
    )
    output = output.view(steps, batch, -1)
    return output.index_select(1, inverse), tuple(value.index_select(1, inverse) for value in last)
