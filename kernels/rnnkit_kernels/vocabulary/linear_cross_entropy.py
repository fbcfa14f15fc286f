r"""Cross-entropy of a linear layer, whose logits are never held in full.

    z_n = W h_n + b        loss_n = log Σ_v exp(z_nv) − z_n,target
    ∂loss_n/∂z_n = softmax(z_n) − onehot(target_n) = d_n
    dh_n = g_n Wᵀ d_n      dW = Σ_n g_n d_n h_nᵀ      db = Σ_n g_n d_n

for the gradients g of the losses. With N tokens and V words the logits are N × V, far more than all
else in a language model. In PyTorch some rows are taken at a time. Of summed losses g is one number
for all rows: their gradients are made in the forward pass while the logits are there, as Liger
does (Hsu et al. 2024, arXiv 2410.10989), and the backward pass multiplies. Otherwise it makes the
logits again. `tiles.py` makes them in Triton, a tile at a time.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from rnnkit_kernels.cpu.products import by_onednn, onednn_suits
from rnnkit_kernels.ops import interpreter
from rnnkit_kernels.ops.context import on_device, traces
from rnnkit_kernels.ops.flops import tell_counters
from rnnkit_kernels.ops.twice import differentiate_twice
from rnnkit_kernels.recurrence.eager import state_dtype

_HAS_TRITON = importlib.util.find_spec("triton") is not None  # found, not imported
# Rows at a time. Each time all of W is read again and all of dW added to: fewer rows cost a CPU
# more where W is large or oneDNN multiplies, and gained nothing elsewhere.
_FEWEST_ROWS = 512


def definition(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignore_index: int,
    summed: bool,
) -> Tensor:
    """The loss by PyTorch's own functions, differentiable as often as one likes.

    Args:
        hidden: h (N, H).
        weight: W (V, H).
        bias: b (V,) or None.
        target: int64 (N,).
        ignore_index: the target of rows that do not count.
        summed: whether the losses are added.

    Returns:
        () or (N,), float64 for float64, else float32.
    """
    # Nothing that an ignored row holds may reach a gradient, NaN neither.
    hidden = hidden.masked_fill((target == ignore_index).unsqueeze(1), 0)
    logits = linear(hidden, weight, bias).to(state_dtype(hidden.dtype))
    reduction = "sum" if summed else "none"
    return cross_entropy(logits, target, ignore_index=ignore_index, reduction=reduction)


def loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignore_index: int,
    summed: bool,
    backend: str,
) -> Tensor:
    """The loss by the operator, or by `definition` where a transform would lose its way in that.

    Args:
        hidden, weight, bias, target, ignore_index, summed: as for `definition`, of one dtype.
        backend: "auto", "triton" or "torch".

    Returns:
        As from `definition`.

    Raises:
        ValueError: an unknown backend.
        RuntimeError: "triton" where the kernels can't run.
        IndexError: a target that is no word.
    """
    tell_counters()
    engine = _engine(hidden, backend)
    transformed = torch._C._are_functorch_transforms_active()
    if transformed or torch.autograd.forward_ad._current_level >= 0:
        return definition(hidden, weight, bias, target, ignore_index, summed)
    inputs = (hidden, weight, bias)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    save = save or traces()  # a trace may be trained later
    found: Tensor = operator(*inputs, target, ignore_index, summed, engine, save)[0]
    return found


def _engine(hidden: Tensor, backend: str) -> str:
    """Whether "triton" or "torch" runs, for a backend."""
    if backend not in ("auto", "triton", "torch"):
        raise ValueError(f'backend must be "auto", "triton" or "torch", got {backend!r}')
    if backend != "triton":
        # On no GPU were the kernels measured to be faster than cuBLAS on some rows at a time.
        return "torch"
    if not _HAS_TRITON:
        raise RuntimeError('backend="triton" can\'t run: triton is not installed')
    if hidden.dtype == torch.float64:
        raise RuntimeError('backend="triton" has no float64: use backend="auto"')
    obstacle = interpreter.refuses(hidden.device, hidden.dtype, "hidden is")
    if obstacle:
        raise RuntimeError(f'backend="triton" {obstacle}')
    if hidden.is_cuda and torch.cuda.get_device_capability(hidden.device) < (8, 0):
        raise RuntimeError(
            'backend="triton" needs a GPU of compute capability 8.0 or later: use backend="auto"'
        )
    return "triton"


@torch.library.custom_op("rnnkit::linear_cross_entropy", mutates_args=())
def operator(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignore_index: int,
    summed: bool,
    engine: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss, and what the backward pass needs.

    Args:
        hidden, weight, bias, target, ignore_index, summed: as for `definition`, of one dtype.
        engine: "triton" for the kernels, "torch" for some rows at a time.
        save: whether a backward pass may follow.

    Returns:
        The loss; with the kernels the largest m of each row's logits and Σ_v exp(z_nv − m), (2, N);
        the gradients of hidden, weight and bias for g = 1 where they are made at once. What is not
        made is empty.
    """
    kept, hidden, target = _checked(hidden, weight, target, ignore_index)
    made: list[Tensor | None] = [None, None, None]
    with torch.autocast(hidden.device.type, enabled=False):
        if engine == "triton":
            from rnnkit_kernels.vocabulary import tiles

            with on_device(hidden):
                losses, sums = tiles.losses(hidden, weight, bias, target)
        else:
            early = _made_at_once(hidden, summed, engine, save)
            ones = kept.to(state_dtype(hidden.dtype)) if early else None
            losses, *made = _by_rows(hidden, weight, bias, target, ones)
            sums = losses.new_empty(2, 0)
    losses = losses.masked_fill(~kept, 0)
    d_hidden, d_weight, d_bias = (hidden.new_empty(0) if g is None else g for g in made)
    return losses.sum() if summed else losses, sums, d_hidden, d_weight, d_bias


def _made_at_once(hidden: Tensor, summed: bool, engine: str, save: bool) -> bool:
    """Whether the forward pass makes the gradients."""
    # In float16 small ones vanish unless they are scaled before they are rounded.
    return save and summed and engine == "torch" and hidden.dtype != torch.float16


def _checked(
    hidden: Tensor, weight: Tensor, target: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows count, bool (N,), and hidden and target with zeros in the others."""
    kept = target != ignore_index
    target = target.masked_fill(~kept, 0)
    outside = (target < 0) | (target >= len(weight))
    if target.device.type != "cpu":
        torch._assert_async(~outside.any(), "targets must be words, or ignore_index")
    elif outside.any():
        n = int(outside.nonzero()[0])
        raise IndexError(
            f"target {int(target[n])} of row {n} is out of range for {len(weight)} words and is "
            f"not ignore_index, {ignore_index}"
        )
    return kept, hidden.masked_fill(~kept.unsqueeze(1), 0), target


@operator.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignore_index: int,
    summed: bool,
    engine: str,
    save: bool,
) -> tuple[Tensor, ...]:
    exact = state_dtype(hidden.dtype)
    losses = hidden.new_empty(() if summed else (hidden.shape[0],), dtype=exact)
    sums = hidden.new_empty(2, hidden.shape[0] if engine == "triton" else 0, dtype=exact)
    if not _made_at_once(hidden, summed, engine, save):
        return losses, sums, *(hidden.new_empty(0) for _ in range(3))
    return losses, sums, *_like(hidden, weight, bias)


def _like(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the three gradients."""
    return (
        hidden.new_empty(hidden.shape),
        weight.new_empty(weight.shape),
        hidden.new_empty(0) if bias is None else bias.new_empty(bias.shape),
    )


def _by_rows(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, gradient: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Losses (N,) and, for their gradients g (N,), those of hidden, weight and bias.

    The logits of some rows lie in one buffer, their shares of each row and then the gradients in
    another, which on a CPU is the same one if the dtypes are.
    """
    (count, width), words = hidden.shape, len(weight)
    exact = state_dtype(hidden.dtype)
    onednn = onednn_suits(hidden)
    weight = weight.contiguous() if onednn else weight
    # Rows that take as much room as `hidden` cost nothing that matters.
    most = max(_FEWEST_ROWS, count * width // max(words, 1))
    chunks = max(1, -(-count // most))
    rows = max(1, -(-count // chunks))  # all chunks alike
    products = hidden.new_empty(0 if onednn else rows, words)
    in_place = hidden.device.type == "cpu" and exact == hidden.dtype
    scores = products if in_place else hidden.new_empty(rows, words, dtype=exact)
    losses = hidden.new_empty(count, dtype=exact)
    if gradient is not None:
        d_hidden = torch.empty_like(hidden)
        # dWᵀ of oneDNN, which it makes faster; turned once at the end.
        shape = (width, words) if onednn else (words, width)
        d_weight = weight.new_zeros(shape, dtype=exact)
        d_bias = None if bias is None else bias.new_zeros(words, dtype=exact)
    for start in range(0, count, rows):
        part = slice(start, start + rows)
        x, words_of_x = hidden[part], target[part].unsqueeze(1)
        product, score = products[: len(x)], scores[: len(x)]
        if onednn:
            product = score = by_onednn(x, weight, bias)
        elif bias is None:
            torch.mm(x, weight.t(), out=product)
        else:
            torch.addmm(bias, x, weight.t(), out=product)
        if gradient is None:
            torch.log_softmax(product, 1, dtype=exact, out=score)
            losses[part] = -score.gather(1, words_of_x).squeeze(1)
            continue
        below = product.amax(1).to(exact) - product.gather(1, words_of_x).squeeze(1)
        torch.softmax(product, 1, dtype=exact, out=score)  # one exponential for loss and gradient
        # The largest share is one over Σ exp(z − the largest z).
        losses[part] = below - score.amax(1).log()
        g = gradient[part].unsqueeze(1)
        score.mul_(g).scatter_add_(1, words_of_x, -g)
        if d_bias is not None:
            d_bias += score.sum(0)
        if exact != hidden.dtype:
            score = product.copy_(score)
        if onednn:
            d_hidden[part] = by_onednn(score, weight.t())
            d_weight += by_onednn(x.t(), score.t())
            continue
        torch.mm(score, weight, out=d_hidden[part])
        if exact == hidden.dtype:
            d_weight.addmm_(score.t(), x)
        else:
            d_weight += score.t() @ x
    if gradient is None:
        return losses, None, None, None
    d_weight = d_weight.t().contiguous() if onednn else d_weight.to(weight.dtype)
    return losses, d_hidden, d_weight, None if d_bias is None else d_bias.to(weight.dtype)


@torch.library.custom_op("rnnkit::linear_cross_entropy_backward", mutates_args=())
def backward_operator(
    gradient: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    sums: Tensor,
    d_hidden: Tensor,
    d_weight: Tensor,
    d_bias: Tensor,
    ignore_index: int,
    summed: bool,
    engine: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight and bias; the last is empty without a bias.

    Args:
        gradient: of the loss.
        sums, d_hidden, d_weight, d_bias: as `operator` returned them, the others as it took them.
    """
    if _made_at_once(hidden, summed, engine, save=True):
        return d_hidden * gradient, d_weight * gradient, d_bias * gradient
    kept, hidden, target = _checked(hidden, weight, target, ignore_index)
    gradient = gradient.expand(kept.shape).masked_fill(~kept, 0)
    with torch.autocast(hidden.device.type, enabled=False):
        if engine == "triton":
            from rnnkit_kernels.vocabulary import tiles

            with on_device(hidden):
                made = tiles.gradients(hidden, weight, bias, target, sums, gradient)
        else:
            made = _by_rows(hidden, weight, bias, target, gradient)[1:]  # type: ignore[assignment]
    return made[0], made[1], hidden.new_empty(0) if made[2] is None else made[2]


@backward_operator.register_fake
def _(
    gradient: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _like(hidden, weight, bias)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.ignore_index, ctx.summed, ctx.engine, _ = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, gradient: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
    tell_counters()
    if gradient is None:
        return (None,) * 8
    options = (ctx.ignore_index, ctx.summed, ctx.engine)
    d_hidden, d_weight, d_bias = backward_operator(gradient, *ctx.saved_tensors, *options)
    has_bias = ctx.saved_tensors[2] is not None
    return d_hidden, d_weight, d_bias if has_bias else None, *[None] * 5


operator.register_autograd(_differentiate, setup_context=_save)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5])
    _, ctx.ignore_index, ctx.summed, _ = inputs[8:]
    ctx.set_materialize_grads(False)


def _differentiate_again(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
    gradient, hidden, weight, bias, target = ctx.saved_tensors

    def run(h: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor]:
        return (definition(h, w, b, target, ctx.ignore_index, ctx.summed),)

    found = differentiate_twice(run, [gradient], [hidden, weight, bias], list(outer))
    return (*found, *[None] * 8)


backward_operator.register_autograd(_differentiate_again, setup_context=_save_backward)
