r"""The partition function of a linear-chain CRF, with a handwritten backward pass.

    Z = Σ_y exp(start[y_1] + Σ_t emissions[t, y_t] + Σ_t transitions[y_t, y_t+1] + end[y_n])

over all paths y of a sentence's n tags (Lafferty et al. 2001). The sums of the forward recursion

    Σ_1 = start    Σ_t[j] = log Σ_i exp(α_t−1[i] + transitions[i, j])    α_t = Σ_t + emissions[t]
    log Z = log Σ_j exp(α_n[j] + end[j])

are kept; backward the shares of the incoming gradient go down the same paths,

    δ_n[j] = exp(α_n[j] + end[j] − log Z)
    pair_t[i, j] = exp(α_t−1[i] + transitions[i, j] − Σ_t[j]) δ_t[j]
    δ_t−1[i] = Σ_j pair_t[i, j]

so δ_t is the distribution of tag t and pair_t that of tags t − 1 and t: the gradients of the
emissions and, summed, of the transitions.
"""

import importlib.util
import math
from typing import Any

import torch
from torch import Tensor

from rnnkit_kernels.crf import loops
from rnnkit_kernels.ops import interpreter
from rnnkit_kernels.ops.context import on_device
from rnnkit_kernels.ops.flops import tell_counters
from rnnkit_kernels.ops.twice import differentiate_twice

MAX_TAGS = 64  # the kernels' registers hold all moves twice; between 128 tags they spill
_HAS_TRITON = importlib.util.find_spec("triton") is not None  # found, not imported


def definition(
    emissions: Tensor, transitions: Tensor, start: Tensor, end: Tensor, lengths: Tensor
) -> Tensor:
    """Log Z by the equations, differentiable as often as one likes.

    Args:
        emissions: (T, B, K); what lies beyond a length is never used.
        transitions: (K, K), [from, to].
        start, end: (K,).
        lengths: int64 (B,), between 1 and T.

    Returns:
        (B,); −∞ where no path is allowed, and no gradient there.
    """
    emissions, inside = _without_padding(emissions, lengths)
    alpha = start + emissions[0]  # (B, K)
    for t in range(1, emissions.shape[0]):
        following = _logsumexp(alpha.unsqueeze(2) + transitions, 1) + emissions[t]
        alpha = torch.where(inside[t].unsqueeze(1), following, alpha)
    return _logsumexp(alpha + end, 1)


def _logsumexp(scores: Tensor, dim: int) -> Tensor:
    """As torch's, but with a gradient of zero, not NaN, where all scores are −∞."""
    largest = scores.detach().amax(dim, keepdim=True)
    largest = largest.masked_fill(largest.isinf(), 0.0)
    total = (scores - largest).exp().sum(dim)
    empty = total == 0
    return (total.masked_fill(empty, 1.0).log() + largest.squeeze(dim)).masked_fill(
        empty, -math.inf
    )


def log_partition(
    emissions: Tensor,
    transitions: Tensor,
    start: Tensor,
    end: Tensor,
    lengths: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Log Z by the operator, or by `definition` where a transform would lose its way in that.

    Args:
        emissions: floating point (T, B, K).
        transitions, start, end, lengths: as `definition` takes them.
        backend: "auto", "triton" or "torch".

    Returns:
        (B,), float64 where an input is, else float32.

    Raises:
        ValueError: an unknown backend.
        RuntimeError: "triton" where the kernels can't run.
    """
    tell_counters()
    weights = (transitions, start, end)
    wide = any(tensor.dtype == torch.float64 for tensor in (emissions, *weights))
    exact = torch.float64 if wide else torch.float32
    transitions, start, end = (weight.to(exact) for weight in weights)
    engine = _engine(emissions, exact, backend)
    if engine == "torch":
        emissions = emissions.to(exact)
    transformed = torch._C._are_functorch_transforms_active()
    if transformed or torch.autograd.forward_ad._current_level >= 0:
        return definition(emissions, transitions, start, end, lengths)
    log_z: Tensor = partition(emissions, transitions, start, end, lengths, engine)[0]
    return log_z


def _engine(emissions: Tensor, exact: torch.dtype, backend: str) -> str:
    """What runs the recursions, "triton" or "torch"."""
    if backend not in ("auto", "triton", "torch"):
        raise ValueError(f"backend must be one of auto, triton, torch, got {backend!r}")
    tags = emissions.shape[2]
    obstacle = interpreter.refuses(emissions.device, exact, "the emissions are")
    if not _HAS_TRITON:
        obstacle = "needs triton, which is not installed"
    elif exact != torch.float32:
        obstacle = f"computes in float32, and an input is {exact}"
    elif tags > MAX_TAGS:
        obstacle = f"holds moves between {MAX_TAGS} tags in registers, not between {tags}"
    if backend == "triton" and obstacle:
        raise RuntimeError(f'backend="triton" {obstacle}')
    wanted = emissions.is_cuda if backend == "auto" else backend == "triton"
    return "triton" if wanted and not obstacle else "torch"


@torch.library.custom_op("rnnkit::crf", mutates_args=())
def partition(
    emissions: Tensor,
    transitions: Tensor,
    start: Tensor,
    end: Tensor,
    lengths: Tensor,
    engine: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log Z, and what the backward pass needs.

    Args:
        emissions, transitions, start, end, lengths: as `definition` takes them, the weights float32
            or float64 and the emissions, but for the kernels, too.
        engine: "triton" for the kernels, "torch" for the loops below.

    Returns:
        log Z (B,); Σ_t (T, B, K), or exp(α_t) over its sum; of the latter the factor (T, B) from
        the sum of a step to that of the next, else zeros, and nothing from the kernels.
    """
    if engine == "triton":
        from rnnkit_kernels.crf import kernels

        with on_device(emissions):
            log_z, kept = kernels.forward(emissions, transitions, start, end, lengths)
        return log_z, kept, kept.new_empty(0)
    scores, _ = _without_padding(emissions, lengths)
    if loops.close(scores, transitions, start, end):
        return loops.scaled_forward(scores, transitions, start, end, lengths)
    return loops.forward(scores, transitions, start, end, lengths)


@partition.register_fake
def _(emissions: Tensor, transitions: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    steps, batch, tags = emissions.shape
    scales = (0,) if others[-1] == "triton" else (steps, batch)
    return (
        transitions.new_empty(batch),
        transitions.new_empty(steps, batch, tags),
        transitions.new_empty(scales),
    )


@torch.library.custom_op("rnnkit::crf_backward", mutates_args=())
def partition_backward(
    gradient: Tensor,
    emissions: Tensor,
    transitions: Tensor,
    start: Tensor,
    end: Tensor,
    lengths: Tensor,
    log_z: Tensor,
    kept: Tensor,
    scales: Tensor,
    engine: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of emissions, transitions, start and end.

    Args:
        gradient: (B,), of log Z.
        log_z, kept, scales: as `partition` returned them, the others as it took them.
    """
    if engine == "triton":
        from rnnkit_kernels.crf import kernels

        with on_device(emissions):
            return kernels.backward(gradient, emissions, transitions, end, lengths, log_z, kept)
    scores, _ = _without_padding(emissions, lengths)
    given = (gradient, scores, transitions, end, lengths)
    if scores.device.type == "cpu" and scales.all():
        shares, d_transitions = loops.scaled_backward(*given, kept, scales)
    else:
        shares, d_transitions = loops.backward(*given, log_z, kept)
    last = (lengths - 1).view(1, -1, 1).expand(1, -1, shares.shape[2])
    return shares, d_transitions, shares[0].sum(0), shares.gather(0, last)[0].sum(0)


@partition_backward.register_fake
def _(gradient: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in inputs[:4])


def _without_padding(emissions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Emissions with zeros past each length, and which steps are real: bool (T, B)."""
    inside = torch.arange(emissions.shape[0], device=emissions.device)[:, None] < lengths
    return emissions.masked_fill(~inside.unsqueeze(2), 0.0), inside


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5], *output)
    ctx.engine = inputs[5]
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, gradient: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
    tell_counters()
    if gradient is None:
        return (None,) * 6
    return (*partition_backward(gradient, *ctx.saved_tensors, ctx.engine), None, None)


partition.register_autograd(_differentiate, setup_context=_save)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.set_materialize_grads(False)


def _differentiate_again(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, lengths = ctx.saved_tensors

    def run(e: Tensor, m: Tensor, s: Tensor, n: Tensor) -> tuple[Tensor]:
        return (definition(e, m, s, n, lengths),)

    found = differentiate_twice(run, inputs[:1], inputs[1:], list(outer))
    return (*found, *[None] * 5)


partition_backward.register_autograd(_differentiate_again, setup_context=_save_backward)

# Autocast would reach into the operators, and round what their products take.
for _operator in (partition, partition_backward):
    for _kind in ("cpu", "cuda"):
        _operator.register_autocast(_kind, torch.float32)
