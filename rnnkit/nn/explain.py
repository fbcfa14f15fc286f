"""`explain(module, input)`: which backend and plan would run, and why."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnkit.nn.base import Recurrent
from rnnkit_kernels.functional import Decision, choose


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


def explain(
    module: nn.Module, input: Tensor | PackedSequence, *, lengths: Tensor | None = None
) -> Explanation:
    """Say which backend and plan would run `module(input, lengths=lengths)`, and why.

    Args:
        module: an `rnnkit.LSTM`, `GRU` or `RNN`.
        input: as the layer takes it.
        lengths: as the layer takes them.

    Returns:
        A printable explanation.

    Raises:
        TypeError: `module` is another kind of module.
        RuntimeError: what the call itself would raise, such as `backend="triton"` on a CPU.

    Example:
        >>> print(explain(LSTM(3, 4), torch.randn(5, 2, 3)))
        LSTM(3, 4)
          runs: the native CPU engine
          because: measured to be faster on a CPU
    """
    if not isinstance(module, Recurrent):
        raise TypeError(
            f"explain takes an rnnkit LSTM, GRU or RNN, got {type(module).__name__}; "
            "rnnkit.replace_rnns(model) puts them into a model"
        )
    sequences = None
    if isinstance(input, PackedSequence):
        data, sequences = input.data, int(input.batch_sizes[0])
    elif input.dim() == 2:
        data = input.unsqueeze(1)
    else:
        data = input.transpose(0, 1) if module.batch_first else input
    decision = choose(
        module._cell,
        data,
        module._weights,
        module.proj_size > 0,
        lengths,
        module.backend,
        module._extras,
        sequences,
        module.num_layers,
        module._directions,
    )
    return Explanation(repr(module), decision)
