"""What programs that record a model meet at a layer: torch.fx, torch.jit.script, torch.onnx.

torch.fx takes a layer as one node, as it takes torch.nn's. The others know torch's own operators
alone: `rnnkit.to_torch` is the way to them, and the errors say so.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy


def recorded_call(
    layer: nn.Module,
    input: Any,
    hx: Any,
    lengths: Any = None,
    resets: Any = None,
    hx_reset: Any = None,
) -> Any:
    """The node of a layer's call while torch.fx records it, or None where nothing is recorded.

    torch.fx takes every module whose class torch.nn defines for one node, and calls the others with
    placeholders.

    Args:
        layer: the layer or cell that is called.
        input: its input.
        hx: its initial state or states, or None.
        lengths, resets, hx_reset: a layer's keyword arguments; those that are None are left out.

    Raises:
        TypeError: the layer itself is recorded, not a module that holds it.
        RuntimeError: it has hooks, which would be recorded beside the node and then run within.
    """
    proxy = _placeholder((input, hx, lengths, resets, hx_reset))
    if proxy is None:
        return None
    tracer: Any = proxy.tracer
    name = type(layer).__name__
    if tracer.root is layer:
        raise TypeError(f"torch.fx takes {name} for one node: trace a module that holds it")
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        raise RuntimeError(
            f"torch.fx would run the hooks of {name} twice: remove them before tracing, or call "
            "rnnkit.to_torch(model) first"
        )
    arguments = (input,) if hx is None else (input, hx)
    options = {"lengths": lengths, "resets": resets, "hx_reset": hx_reset}
    given = {key: value for key, value in options.items() if value is not None}
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), arguments, given)


def _placeholder(values: Iterable[Any]) -> Proxy | None:
    """The first of torch.fx's placeholders, in pairs and lists too; every call asks."""
    for value in values:
        if value is None or type(value) is Tensor:  # the shortest way past them
            continue
        if isinstance(value, Proxy):
            return value
        if isinstance(value, _SEQUENCES):
            found = _placeholder(value)
            if found is not None:
                return found
    return None


_SEQUENCES = (tuple, list)


def refuse_scripting(layer: nn.Module) -> nn.Module:
    """What torch.jit.script asks a module for before it compiles it, or a module that holds it."""
    raise RuntimeError(
        f"torch.jit.script can't compile rnnkit's {type(layer).__name__}: call "
        "rnnkit.to_torch(model) first"
    )


def exports_to_onnx() -> bool:
    """Whether torch.onnx.export records this call, by either of its exporters."""
    traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return traced and _in_onnx_export()


def _in_onnx_export() -> bool:
    return torch.onnx.is_in_onnx_export()


# Dynamo, which the exporter tries second, would take torch's answer for False. This is what
# torch.compiler.assume_constant_result does, which imports Dynamo and takes a second.
_in_onnx_export._dynamo_marked_constant = True  # type: ignore[attr-defined]


def refuse_onnx(layer: nn.Module, engine: str) -> None:
    """Refuse to be exported where rnnkit's own operators would be written into the file."""
    if engine not in ("torch", "reference"):
        raise RuntimeError(
            f"ONNX has none of rnnkit's operators, which run this {type(layer).__name__}: call "
            "rnnkit.to_torch(model) before torch.onnx.export"
        )
