"""The only door to the kernels: stacked, bidirectional, packed and padded recurrent layers; a CRF.

`lstm`, `gru` and `rnn` take tensors and weights as `torch.nn` lays them out and choose how to run;
`crf` sums over all paths of tags, `linear_cross_entropy` over all words. Time comes first
everywhere: (T, B, D).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

import torch
from torch import Tensor
from typing_extensions import Unpack  # torch brings it; typing has it from Python 3.11

from rnnkit_kernels.cpu.fast_path import FastPath
from rnnkit_kernels.cpu.library import library
from rnnkit_kernels.cpu.sources import source_hash
from rnnkit_kernels.crf.log_partition import log_partition
from rnnkit_kernels.dispatch.autocast import autocasts, compute_dtype
from rnnkit_kernels.dispatch.choice import BACKENDS, PLAIN, Backend, Decision, Extras, choose
from rnnkit_kernels.lengths import checked_lengths, sequences
from rnnkit_kernels.ops.shortage import is_shortage
from rnnkit_kernels.ops.states import LayerStates
from rnnkit_kernels.ops.states_by_definition import differentiate
from rnnkit_kernels.ops.watching import watched, watched_states
from rnnkit_kernels.reference import gru_reset_before
from rnnkit_kernels.resets import first_states, recurrent
from rnnkit_kernels.vocabulary.linear_cross_entropy import loss as _loss_of_logits

__all__ = [
    "BACKENDS",
    "Backend",
    "Decision",
    "Extras",
    "FastPath",
    "LayerStates",
    "autocasts",
    "choose",
    "cpu_engine",
    "crf",
    "differentiate",
    "first_states",
    "gru",
    "gru_reset_before",
    "is_shortage",
    "linear_cross_entropy",
    "lstm",
    "recurrent",
    "rnn",
    "sequences",
    "watched",
    "watched_states",
]


def cpu_engine() -> str:
    """What runs layers on this CPU, as far as the bits of their results depend on it.

    Returns:
        "native 1a2b3c4d, avx512, 2 threads": the engine by a hash of its sources, the instruction
        set that it chose, torch's number of threads; "torch, 2 threads" where there is no engine.

    Example:
        >>> print(cpu_engine())  # doctest: +SKIP
        native 1a2b3c4d, avx512, 2 threads
    """
    threads = torch.get_num_threads()
    number = f"{threads} thread{'s' * (threads != 1)}"
    found = library()
    return f"native {source_hash()[:8]}, {found.isa}, {number}" if found else f"torch, {number}"


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
    resets: Tensor | None


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
    resets: Tensor | None = None,
    hx_reset: tuple[Tensor, Tensor] | None = None,
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
        backend: "auto", whose results follow the tolerance rule (kernels/README.md); "torch",
            whose results are torch's bit for bit; "native", the CPU engine; "triton", the kernels
            for GPUs; or the name of one of their modes, or "eager", for measurements.
        peephole: whether the gates see c (Gers & Schmidhuber 2000).
        coupled: whether the input gate is one minus the forget gate (Greff et al. 2017).
        extras: zoneout, layer normalisation and recomputation.
        seed: int64, one element, of dropout and zoneout; drawn from torch's generator if None.
            torch's own layers draw from that themselves.
        order: int64 (B,), the original index of each packed sequence, on which the masks depend.
        resets: bool (T, B), not together with `batch_sizes`: where true the state before the step
            is `hx_reset`, and no gradient passes; backward in time so after the step. True past a
            length changes nothing. On a GPU the host reads them, unless a graph is captured.
        hx_reset: the state after a reset, (L·directions, P) and (L·directions, H); None for zeros.

    Returns:
        output (T, B, directions·P) or (N, directions·P), zero past each length; h_n and c_n shaped
        as `hx`.

    Raises:
        ValueError: lengths of the wrong shape, dtype or value.
        RuntimeError: `backend="triton"` or "native" where it can't run.

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
        resets=resets,
        hx_reset=hx_reset,
    )
    return output, h_n, c_n


def gru(
    input: Tensor,
    hx: Tensor,
    weights: Sequence[Tensor],
    *,
    reset_after: bool = True,
    residual: bool = False,
    hx_reset: Tensor | None = None,
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor]:
    """A stack of GRU layers.

    Args:
        input: as for `lstm`.
        hx: h0 (L·directions, B, H).
        weights: as for `lstm`, with 3H rows.
        reset_after: False applies the reset gate before the recurrent product.
        residual: True adds the state before to each new one; not with reset_after=False.
        hx_reset: as for `lstm`, (L·directions, H).
        options: as for `lstm`.

    Returns:
        output and h_n, as for `lstm`.

    Raises:
        ValueError: residual with reset_after=False.
    """
    if residual and not reset_after:
        raise ValueError("residual=True and reset_after=False exclude each other")
    cell = "gru_residual" if residual else "gru" if reset_after else "gru_reset_before"
    anew = None if hx_reset is None else (hx_reset,)
    output, (h_n,) = recurrent(cell, input, (hx,), weights, hx_reset=anew, **options)
    return output, h_n


def rnn(
    input: Tensor,
    hx: Tensor,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    residual: bool = False,
    hx_reset: Tensor | None = None,
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor]:
    """A stack of Elman layers; `nonlinearity` is "tanh" or "relu", the rest as for `gru`."""
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f'nonlinearity must be "tanh" or "relu", got {nonlinearity!r}')
    anew = None if hx_reset is None else (hx_reset,)
    cell = f"rnn_{nonlinearity}" + "_residual" * residual
    output, (h_n,) = recurrent(cell, input, (hx,), weights, hx_reset=anew, **options)
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
    lengths = checked_lengths(lengths, emissions, 1).to(emissions.device)
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
