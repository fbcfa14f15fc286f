"""`explain`: which backend and plan would run, and why; which recurrent layers a model has."""

from dataclasses import dataclass
from typing import Any, overload

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnkit.nn.base import Recurrent
from rnnkit.nn.convert import rnnkits_layers, torchs_layers, why_left
from rnnkit_kernels.functional import Decision


@dataclass(frozen=True)
class Explanation:
    """How a layer would run; `print` it.

    Attributes:
        layer: the layer, as it prints.
        decision: engine, reason and plan.
    """

    layer: str
    decision: Decision

    def __str__(self) -> str:
        together = "Triton: one launch whose programs meet at every step, the weights on chip"
        names = {
            "torch": "torch's own implementation",
            "native": "the native CPU engine",
            "resident": "Triton, resident: one launch, the weights stay on chip",
            "data": together,
            "counter": together,
            "launch": "Triton, one launch a step",
            "eager": "the loop in PyTorch with the handwritten backward",
            "reference": "the definition in PyTorch, differentiated by autograd",
        }
        lines = [self.layer, f"  runs: {names[self.decision.engine]}"]
        lines.append(f"  because: {self.decision.reason}")
        if self.decision.plan is not None:
            plan = self.decision.plan
            for direction, tiles in (("forward", plan.forward), ("backward", plan.backward)):
                size = f"{tiles.block_h} units × {tiles.block_b} sequences"
                lines.append(f"  {direction}: tiles of {size}, {tiles.num_warps} warps")
            lines.append(f"  float32 products: {plan.precision}")
        return "\n".join(lines)


@dataclass(frozen=True)
class ModelExplanation:
    """The recurrent layers and cells of a model; `print` it.

    Attributes:
        rnnkits: of each path to a layer of rnnkit's, the layer, as it prints.
        torchs: of each path to one of torch's, the layer and what `replace_rnns` would do with it.
    """

    rnnkits: dict[str, str]
    torchs: dict[str, str]

    def __str__(self) -> str:
        sections = (("rnnkit's", self.rnnkits), ("torch's", self.torchs))
        lines = []
        for whose, layers in sections:
            if layers:
                lines.append(f"{len(layers)} {whose}")
                lines += (f"  {path or 'the module itself'}: {layers[path]}" for path in layers)
        if self.rnnkits:
            lines.append(
                "quantize_dynamic, thop and ptflops know torch.nn's classes alone: give them "
                "rnnkit.to_torch(model)"
            )
        return "\n".join(lines) or "no recurrent layers"


@overload
def explain(module: nn.Module) -> ModelExplanation: ...


@overload
def explain(
    module: nn.Module, input: Tensor | PackedSequence, *, lengths: Tensor | None = None
) -> Explanation: ...


def explain(
    module: nn.Module, input: Any = None, *, lengths: Tensor | None = None
) -> Explanation | ModelExplanation:
    """Say which backend and plan would run a call of a layer, or which layers a model has.

    Args:
        module: an `rnnkit.LSTM`, `GRU` or `RNN`; without an input any module.
        input: as the layer takes it. None: the recurrent layers in `module` are listed, rnnkit's
            with their backends, torch's with the reason why `replace_rnns` would leave them.
        lengths: as the layer takes them.

    Returns:
        A printable explanation.

    Raises:
        TypeError: there is an input and `module` is another kind of module.
        RuntimeError: what the call itself would raise, such as `backend="triton"` on a CPU.

    Example:
        >>> print(explain(LSTM(3, 4), torch.randn(5, 2, 3)))
        LSTM(3, 4)
          runs: the native CPU engine
          because: measured to be faster on a CPU
        >>> print(explain(nn.Sequential(nn.Linear(3, 4), nn.GRU(4, 5))))
        1 torch's
          1: GRU(4, 5): replace_rnns replaces it
    """
    if input is None:
        return _explain_model(module)
    if not isinstance(module, Recurrent):
        raise TypeError(
            f"explain takes an input for an rnnkit LSTM, GRU or RNN, got {type(module).__name__}; "
            "explain(model) lists the layers in a model"
        )
    sequences = None
    if isinstance(input, PackedSequence):
        data, sequences = input.data, int(input.batch_sizes[0])
    elif input.dim() == 2:
        data = input.unsqueeze(1)
    else:
        data = input.transpose(0, 1) if module.batch_first else input
    return Explanation(repr(module), module._decision(data, lengths, sequences))


def _explain_model(module: nn.Module) -> ModelExplanation:
    rnnkits, torchs = {}, {}
    for path, layer in rnnkits_layers(module):
        is_auto = isinstance(layer, Recurrent) and layer.backend == "auto"  # which it doesn't print
        rnnkits[path] = _shown(layer) + ", backend='auto'" * is_auto
    for path, layer in torchs_layers(module):
        reason = why_left(layer)
        would = "replaces it" if path else "needs a module around it"
        if reason is not None:
            would = f"leaves it: {reason}"
        torchs[path] = f"{_shown(layer)}: replace_rnns {would}"
    return ModelExplanation(rnnkits, torchs)


def _shown(layer: nn.Module) -> str:
    """On one line, also where modules were put on the layer."""
    return f"{type(layer).__name__}({layer.extra_repr()})"
