"""What the operators take, told to `torch.utils.flop_counter`: 2 FLOP a multiply and add.

As torch counts, products of matrices count and what is done element by element does not. Every
weight is multiplied with once a row forwards, and twice backwards: for the gradient of its operand,
that of the initial state included, and for its own.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


def tell_counters() -> None:
    """Register the formulas with torch's counter and with those that are counting already.

    torch's module of counters imports Triton, so it is left alone until somebody else has imported
    it; a counter that was made before has a copy of its table.
    """
    if torch.compiler.is_compiling():
        return
    counters = sys.modules.get("torch.utils.flop_counter")
    if counters is None:
        return
    known = torch.ops.rnnkit.recurrence in counters.flop_registry
    if known and torch._C._len_torch_dispatch_stack() == 0:
        return
    counting = [
        mode.counter.flop_registry
        for mode in _get_current_dispatch_mode_stack()
        if isinstance(mode, counters._FlopCounterMode)
    ]
    for table in (counters.flop_registry, *counting):
        for name, formula in _FORMULAS.items():
            if operator := getattr(torch.ops.rnnkit, name, None):
                table.setdefault(operator, formula)


def _products(rows: int, *weights: Tensor | None) -> int:
    """FLOP of so many rows times each of the weights."""
    return 2 * rows * sum(weight.numel() for weight in weights if weight is not None)


def _rows(x: Tensor) -> int:
    return x.numel() // max(1, x.shape[-1])


def _recurrence(*args: Any, out_val: Any = None) -> int:
    x, weight_ih, weight_hh, _, _, weight_hr, *_ = args
    return _products(_rows(x), weight_ih, weight_hh, weight_hr)


def _recurrence_backward(*args: Any, out_val: Any = None) -> int:
    x, weight_ih, weight_hh, _, _, weight_hr, *_, recompute, needs_dx = args[3:]
    weights = [weight_ih, weight_hh, weight_hr] * 2
    if recompute:
        weights += [weight_ih, weight_hh]
    return _products(_rows(x), *(weights if needs_dx else weights[1:]))


def _stack(*args: Any, out_val: Any = None) -> int:
    x, *weights = args[:4]
    return _products(_rows(x), *weights)


def _stack_backward(*args: Any, out_val: Any = None) -> int:
    x, *weights = args[3:7]
    needs_dx = args[-1]
    return _products(_rows(x), *weights, *(weights if needs_dx else weights[1:]))


def _crf(emissions: Tensor, *args: Any, out_val: Any = None) -> int:
    """Sums over the tags before are products with exp(transitions), however they are taken."""
    steps, batch, tags = emissions.shape
    return 2 * (steps - 1) * batch * tags * tags


def _crf_backward(gradient: Tensor, emissions: Tensor, *args: Any, out_val: Any = None) -> int:
    return 2 * _crf(emissions)


def _linear_cross_entropy(hidden: Tensor, weight: Tensor, *args: Any, out_val: Any) -> int:
    made = out_val[2].numel() > 0  # gradients of hidden and weight
    return _products(len(hidden) * (3 if made else 1), weight)


def _linear_cross_entropy_backward(
    gradient: Tensor, hidden: Tensor, weight: Tensor, *args: Any, out_val: Any
) -> int:
    made = args[3].numel() > 0  # by the forward pass; else the logits are made again
    return 0 if made else _products(len(hidden) * 3, weight)


_FORMULAS = {
    "recurrence": _recurrence,
    "recurrence_backward": _recurrence_backward,
    "stack": _stack,
    "stack_backward": _stack_backward,
    "crf": _crf,
    "crf_backward": _crf_backward,
    "linear_cross_entropy": _linear_cross_entropy,
    "linear_cross_entropy_backward": _linear_cross_entropy_backward,
}
