"""What makes a recurrent layer more than its class, its options and its weights.

Such a layer can't become one of another class: what was put on the instance would be lost.
"""

from functools import cache
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from rnnkit.nn.recurrent import LSTM, RNN


def why_not_plain(layer: nn.Module, classes: dict[Any, Any]) -> str | None:
    """Why a layer can't become one of another class, or None where it can.

    Ordinary hooks, parameters, buffers and data can be moved to another layer, functions can't:
    they may know the layer that they were made for.

    Args:
        layer: a recurrent layer or cell.
        classes: the class to be converted to, of each class that can be converted.
    """
    target = classes.get(type(layer))
    if parametrize.is_parametrized(layer):
        names = ", ".join(layer.parametrizations)  # type: ignore[arg-type]
        return f"{names} is parametrised: call torch.nn.utils.parametrize.remove_parametrizations"
    if target is None:
        return f"{type(layer).__name__} is a subclass, which may do anything"
    if layer._compiled_call_impl is not None:
        return "it is compiled by itself: call compile() after the conversion"
    if layer._modules:
        return f"modules were put on it: {', '.join(layer._modules)}"
    put_on = attributes_put_on(layer)
    for name in put_on:
        if hasattr(type(layer), name):
            return f"its {name} was replaced"
    for name, value in put_on.items():
        if callable(value):
            return f"a function was put on it: {name}"
        if hasattr(target, name) or name in _attributes(target):
            return f"an attribute that means something to {target.__name__} was put on it: {name}"
    missing = [name for name in _weight_names(layer) if not hasattr(layer, name)]
    if missing:
        return f"it has no {', '.join(missing)}"
    return _contradiction(layer)


def options_of(layer: Any) -> dict[str, Any]:
    """The options that a recurrent layer or cell was made with, dropout aside, which may change."""
    names = ["input_size", "hidden_size", "bias"]
    if not isinstance(layer, nn.RNNCellBase):
        names += ["num_layers", "batch_first", "bidirectional"]
    if isinstance(layer, nn.LSTM | LSTM):
        names.append("proj_size")
    if isinstance(layer, nn.RNN | RNN | nn.RNNCell):
        names.append("nonlinearity")
    return {name: getattr(layer, name) for name in names}


def attributes_put_on(layer: nn.Module) -> dict[str, Any]:
    """The attributes that a layer has beyond those of its class, plain tensors as weights aside."""
    kind: Any = type(layer)
    known = {*_attributes(kind), *_weight_names(layer)}
    return {name: value for name, value in vars(layer).items() if name not in known}


def _contradiction(layer: Any) -> str | None:
    """What a layer runs beside its options and its weights: torch keeps both a second time."""
    try:
        made: Any = type(layer)(**options_of(layer), device="meta")
    except (TypeError, ValueError) as error:
        return f"there is no layer of its options: {error}"
    for name in ("mode", "_flat_weights_names", "_all_weights"):  # a cell has none of them
        if getattr(layer, name, None) != getattr(made, name, None):
            return f"its {name} contradicts its options: one of them was changed after it was made"
    weights = {name: getattr(layer, name) for name in _weight_names(layer)}
    for name, weight in weights.items():
        if weight is not None and weight.shape != getattr(made, name).shape:
            return f"its {name} has shape {tuple(weight.shape)}, which contradicts its options"
    runs = vars(layer).get("_flat_weights")
    if runs is None or layer._weights_have_changed():  # torch collects them before the next call
        return None
    if list(map(id, runs)) != list(map(id, weights.values())):
        return "its _flat_weights, which torch runs, aren't its weights: set these by name instead"
    return None


def _weight_names(layer: Any) -> list[str]:
    if isinstance(layer, nn.RNNCellBase):
        kinds = ("weight", "bias") if layer.bias else ("weight",)
        return [f"{kind}_{product}" for kind in kinds for product in ("ih", "hh")]
    return list(layer._flat_weights_names)


@cache
def _attributes(kind: Any) -> frozenset[str]:
    """What every instance of a class has in its dictionary; cells make the last when they run."""
    return frozenset({*vars(kind(1, 2, device="meta")), "_fast_path"})
