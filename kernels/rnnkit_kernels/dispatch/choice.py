"""Who runs a layer, and why: `backend="auto" | "triton" | "native" | "torch"` into an engine.

The engines are torch's own implementation (MKL-DNN or cuDNN behind `torch._VF`), the native CPU
engine, the Triton kernels in the mode of their plan, and the loop in PyTorch with the handwritten
backward ("eager"), which runs whatever torch lacks. "auto" takes the native engine on a CPU where
it was measured to be faster, on a GPU what was fastest in its table (`dispatch/`); where there is
neither, torch's own wherever that can do the call as it is. What it can't (a reset-before GRU,
lengths that stay on the GPU, one operator in a trace) goes to an engine of ours or to the loop.
So results of "auto" follow the tolerance rule; those of "torch" are torch.nn's bit for bit.
Measurements may name an engine themselves.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.cpu import native, rule
from rnnkit_kernels.dispatch import tables
from rnnkit_kernels.dispatch.autocast import autocasts, compute_dtype, onednn_refuses
from rnnkit_kernels.ops import interpreter
from rnnkit_kernels.ops.context import recurrent_precision, traces
from rnnkit_kernels.recurrence.plan import Device, Fallback, Mode, Plan, plan

Backend = Literal[
    "auto", "triton", "native", "torch", "resident", "data", "counter", "launch", "eager"
]  # fmt: skip
BACKENDS: tuple[str, ...] = get_args(Backend)
_TRACED = "traced: one opaque operator a layer"
_HAS_TRITON = importlib.util.find_spec("triton") is not None  # found, not imported


@dataclass(frozen=True)
class Extras:
    """What a layer may have beyond its cell and torch's options.

    Attributes:
        zoneout: probabilities with which h, and c where there is one, stay as they were while
            training, and their shares that stay otherwise (Krueger et al. 2017); () for none.
        layer_norm: whether the products are normalised over their units (Ba et al. 2016).
        recompute: whether the backward pass computes the gates again instead of keeping them.
    """

    zoneout: tuple[float, ...] = ()
    layer_norm: bool = False
    recompute: bool = False

    def missing_in_torch(self, cell: str) -> str | None:
        """What of this torch's own layers don't have, or None if they have it all."""
        if cell not in rule.IN_TORCH:
            return cell
        if self.layer_norm:
            return "layer normalisation"
        if any(self.zoneout):
            return "zoneout"
        return "recomputation of gates" if self.recompute else None


PLAIN = Extras()


@dataclass(frozen=True)
class Decision:
    """What runs a layer.

    Attributes:
        engine: "torch", "native", "eager", "reference" or, for the Triton kernels, the plan's mode;
            while tracing "rule" or "alone", which leaves the mode to the operator, see
            `ops.planned`.
        reason: why, in one sentence.
        plan: the kernel's tiles, for the Triton kernels.
    """

    engine: Literal["torch", "native", "eager", "reference", "rule", "alone"] | Mode
    reason: str
    plan: Plan | None = None


def choose(
    cell: str,
    input: Tensor,
    weights: Sequence[Tensor],
    has_projections: bool,
    lengths: Tensor | None,
    backend: Backend,
    extras: Extras = PLAIN,
    sequences: int | None = None,
    layers: int = 1,
    directions: int = 1,
) -> Decision:
    """Choose the engine for one call.

    Args:
        cell: a key of `CELLS`.
        input: the layer's input; its device and the transforms around it matter.
        weights: flat; the dtype and the hidden size are read off the second. The initial states may
            follow: what they are matters as what the weights are.
        has_projections: whether h is projected.
        lengths: of a padded input, or None.
        backend: what the user asked for.
        extras: what the layer has beyond its cell.
        sequences: B where the input is packed.
        layers: L.
        directions: 1 or 2.

    Returns:
        The engine and the reason.

    Raises:
        ValueError: an unknown backend.
        RuntimeError: a kernel was asked for that can't run.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if extras.layer_norm:
        why = "layer normalisation sums over all units inside a step, and no kernel does"
        if backend not in ("auto", "torch"):
            raise RuntimeError(f'backend="{backend}" can\'t run this layer: {why}')
        return Decision("reference", why)
    if backend == "eager":
        return _transformed() or Decision("eager", 'backend="eager" was asked for')
    if backend == "native":
        why_not = native.refuses(cell, input, weights, autocasts(input.device))
        if input.numel() == 0 and not torch.compiler.is_compiling():
            return Decision("torch" if extras.missing_in_torch(cell) is None else "eager", why_not)
        if why_not:
            raise RuntimeError(f'backend="native" can\'t run this layer: {why_not}')
        return _transformed() or Decision("native", 'backend="native" was asked for')
    if backend not in ("auto", "torch"):
        return _triton(cell, input, weights, has_projections, sequences, backend)
    missing = extras.missing_in_torch(cell)
    # torch.jit traces torch's own layers, but what reads lengths on the host becomes a constant.
    by_jit = traces()
    traced = torch.compiler.is_compiling() or (by_jit and lengths is not None)
    transformed = _transformed()
    if lengths is not None and transformed is not None:
        return transformed  # packing looks into tensors, which a transform forbids
    if transformed is not None and not traced and _under_vmap():
        return transformed  # torch's own layers have no batching rule
    if missing is None and backend == "torch" and not traced:
        ragged = lengths is not None or sequences is not None
        why_not = onednn_refuses(cell, input, ragged, has_projections)
        if why_not:
            raise RuntimeError(
                f'backend="torch" can\'t run this layer: {why_not}: use backend="auto", or float32'
            )
        return Decision("torch", 'backend="torch" was asked for')
    if missing is None and by_jit and not traced:
        return Decision("torch", "torch.jit traces, whose programs run without rnnkit so")
    beyond_torch = missing is not None or _on_device(lengths) or traced
    if input.is_cuda and backend == "auto" and not traced:
        shape = (layers, directions)
        measured = _measured(cell, input, weights, has_projections, sequences, shape, beyond_torch)
        if measured is not None:
            return transformed or measured
    if input.is_cuda and backend == "auto" and beyond_torch:
        # Nobody asked for programs that wait for each other, nor has this GPU been measured.
        found = _plan(cell, input, weights, has_projections, sequences, together=False)
        if isinstance(found, Plan):
            why = f"has no {missing}" if missing else "reads lengths on the host"
            why = "unrolls when traced" if traced else why
            engine = "alone" if traced else found.mode
            return transformed or Decision(engine, f"torch {why}", found)
    if backend == "auto" and input.device.type == "cpu":
        chosen = _on_cpu(cell, input, weights, has_projections, lengths, sequences, missing, traced)
        if chosen is not None and chosen.engine == "native" and transformed is not None:
            # torch's own layers have derivatives in reverse under transforms, and none forward.
            forward_ad = torch.autograd.forward_ad._current_level >= 0
            if missing is None and not traced and not forward_ad:
                return Decision("torch", transformed.reason)
            return transformed
        if chosen is not None:
            return chosen
    if missing is None and not traced:
        where = "GPU at this shape" if input.is_cuda else "kind of device"
        return Decision("torch", f"no kernel was measured to be faster on this {where}")
    why = f"torch has no {missing}" if missing else _TRACED
    return transformed or Decision("eager", why)


def _on_cpu(
    cell: str,
    input: Tensor,
    weights: Sequence[Tensor],
    has_projections: bool,
    lengths: Tensor | None,
    sequences: int | None,
    missing: str | None,
    traced: bool,
) -> Decision | None:
    """The native engine, or torch's own layers by what was measured; None where neither can."""
    ragged = lengths is not None or sequences is not None
    autocast = autocasts(input.device)
    if missing is None and autocast:
        # The results have the dtypes of torch's own layers, whoever runs; see `autocast.py`.
        why = _TRACED if traced else onednn_refuses(cell, input, ragged, has_projections)
        if why:
            why_not = native.refuses(cell, input, weights, autocasts=False)
            return Decision("eager" if why_not else "native", why)
    why_not = native.refuses(cell, input, weights, autocast)
    if missing is None and not traced:
        if why_not:
            return Decision("torch", why_not)
        if torch._C._len_torch_dispatch_stack() > 0:
            # Of torch's own layers a mode may see nothing it knows, such as oneDNN's LSTM.
            return Decision("native", "a TorchDispatchMode is active: it sees an operator a layer")
        trains = torch.is_grad_enabled() and any(t.requires_grad for t in (input, *weights))
        hidden = int(weights[1].shape[0]) // CELLS[cell].gates_at[-1]
        steps = input.shape[0] if sequences is None else -(-input.shape[0] // max(1, sequences))
        faster, why = rule.faster(
            cell, steps, _batch(input, sequences), hidden, trains, ragged, has_projections
        )
        return Decision("native" if faster else "torch", why)
    if why_not:
        return None
    return Decision("native", f"torch has no {missing}" if missing else _TRACED)


def _on_device(lengths: Tensor | None) -> bool:
    return lengths is not None and lengths.device.type != "cpu"


def _plan(
    cell: str,
    input: Tensor,
    weights: Sequence[Tensor],
    has_projections: bool,
    sequences: int | None,
    together: bool = True,
    mode: Mode | None = None,
) -> Plan | Fallback:
    if has_projections:
        return Fallback("the kernels have no projection")
    if not _HAS_TRITON:
        return Fallback("triton is not installed")
    hidden = int(weights[1].shape[0]) // CELLS[cell].gates_at[-1]
    device = Device.of(weights[1].device)
    # A traced batch size may be a symbol, which must not be compared with a number.
    batch = 1 if torch.compiler.is_compiling() else _batch(input, sequences)
    return plan(
        CELLS[cell],
        hidden,
        compute_dtype(weights[1]),
        device,
        recurrent_precision(),
        mode=mode,
        batch=batch,
        together=together,
    )


def _batch(input: Tensor, sequences: int | None) -> int:
    return input.shape[1] if sequences is None else sequences


def _measured(
    cell: str,
    input: Tensor,
    weights: Sequence[Tensor],
    has_projections: bool,
    sequences: int | None,
    shape: tuple[int, int],
    beyond_torch: bool,
) -> Decision | None:
    """The kernel that was fastest at the nearest measured shape, if it was; None for torch's own.

    Args:
        shape: layers and directions.
        beyond_torch: whether torch's own layers can't do the call.
    """
    dtype = tables.dtype_name(compute_dtype(weights[1]), recurrent_precision())
    hidden = int(weights[1].shape[0]) // CELLS[cell].gates_at[-1]
    wanted = tables.Shape(cell, dtype, hidden, max(1, _batch(input, sequences)), *shape)
    found = tables.lookup(Device.of(input.device).capability, wanted)
    if found is None:
        return None
    gpu, entry = found
    short = sequences is None and input.shape[0] < entry.steps * tables.FEWEST_STEPS
    if short and not beyond_torch:
        return None
    trains = torch.is_grad_enabled() and any(t.requires_grad for t in (input, *weights))
    times = dict(entry.train if trains else entry.inference)
    own = times.pop("torch", None)
    for engine, seconds in sorted(times.items(), key=lambda item: item[1]):
        if own is not None and not beyond_torch and seconds * tables.MARGIN > own:
            return None
        mode: Mode = engine  # type: ignore[assignment]
        tiles = _plan(cell, input, weights, has_projections, sequences, mode=mode)
        if isinstance(tiles, Plan):
            step = 1e6 / entry.steps
            against = "" if own is None else f", torch's own took {own * step:.2f}"
            return Decision(
                mode,
                f"measured on {gpu} at H {entry.shape.hidden}, B {entry.shape.batch}: "
                f"{seconds * step:.2f} µs a step{against}",
                tiles,
            )
    return None


def _triton(
    cell: str,
    input: Tensor,
    weights: Sequence[Tensor],
    has_projections: bool,
    sequences: int | None,
    backend: Backend,
) -> Decision:
    """The kernels by their rule, or one mode of them."""
    obstacle = interpreter.refuses(input.device, compute_dtype(weights[1]), "the input is")
    if obstacle:
        raise RuntimeError(f'backend="{backend}" {obstacle}')
    mode: Mode | None = None if backend == "triton" else backend  # type: ignore[assignment]
    found = _plan(cell, input, weights, has_projections, sequences, mode=mode)
    if isinstance(found, Fallback):
        raise RuntimeError(f'backend="{backend}" can\'t run this layer: {found.reason}')
    engine = "rule" if torch.compiler.is_compiling() and mode is None else found.mode
    return _transformed() or Decision(engine, found.reason, found)


def that_keeps(
    decision: Decision, cell: str, input: Tensor, weights: Sequence[Tensor], graph: bool
) -> Decision:
    """The engine chosen, or one in the place of torch's own layers, which keep no states."""
    if graph:
        return Decision("reference", "the states of every step are watched with their graph")
    if decision.engine != "torch":
        return decision
    why = "the states of every step are watched, and torch's own layers keep none"
    if native.refuses(cell, input, weights, autocasts(input.device)):
        return Decision("eager", why)
    return Decision("native", why)


def by_definition(extras: Extras) -> bool:
    """Whether a call with lengths or resets runs by the definition, which reads neither."""
    return extras.layer_norm or _transformed() is not None


def _transformed() -> Decision | None:
    """Under functorch transforms and forward-mode AD operators would lose tangents silently."""
    if torch._C._are_functorch_transforms_active():
        return Decision("reference", "a torch.func transform is active")
    if torch.autograd.forward_ad._current_level >= 0:
        return Decision("reference", "forward-mode AD is active")
    return None


def _under_vmap() -> bool:
    """Whether the innermost torch.func transform is vmap; wrong while Dynamo traces."""
    innermost = torch._C._functorch.peek_interpreter_stack()
    return innermost is not None and innermost.key() == torch._C._functorch.TransformType.Vmap
