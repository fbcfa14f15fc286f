"""torch.nn layers into rnnkit's and back, sharing the parameters."""

import weakref
from typing import Any

from torch import nn

from rnnkit.nn.base import Recurrent
from rnnkit.nn.recurrent import GRU, LSTM, RNN

_FROM_TORCH: dict[type, type[Recurrent]] = {nn.LSTM: LSTM, nn.GRU: GRU, nn.RNN: RNN}
_TO_TORCH: dict[type, type] = {ours: theirs for theirs, ours in _FROM_TORCH.items()}
_ARGUMENTS = (
    "input_size",
    "hidden_size",
    "num_layers",
    "bias",
    "batch_first",
    "dropout",
    "bidirectional",
)


def replace_rnns(module: nn.Module) -> int:
    """Replace every nn.LSTM, nn.GRU and nn.RNN below `module`, in place.

    Results agree with the old layers' to rounding; a new layer whose attribute `backend` is set to
    "torch" gives their bits. The new layers hold the same Parameter objects, so optimisers, tied
    weights and checkpoints go on as before. A layer used in several places stays one layer.
    Subclasses are left alone: they may do anything. Hooks move with their layer.

    Args:
        module: any module that contains recurrent layers; not itself one.

    Returns:
        How many layers were replaced.

    Raises:
        TypeError: `module` is itself a recurrent layer, which can't be replaced in place.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 5))
        >>> replace_rnns(model)
        1
    """
    if type(module) in _FROM_TORCH:
        raise TypeError(
            f"replace_rnns replaces layers inside a module; {type(module).__name__} is the layer "
            "itself: wrap it in a module or build the rnnkit layer"
        )
    return len(_replace(module, _FROM_TORCH))


def to_torch(module: nn.Module) -> nn.Module:
    """Replace every rnnkit layer below `module` by torch's, for ONNX and for leaving rnnkit.

    Args:
        module: changed in place, unless it is itself an rnnkit layer.

    Returns:
        `module`, or the torch.nn layer that replaces it.

    Raises:
        ValueError: a layer that torch lacks, named; nothing is changed then.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, Recurrent):
            _check_torch_has_it(name, layer)
    if type(module) in _TO_TORCH:
        return _convert(module, _TO_TORCH[type(module)])
    _replace(module, _TO_TORCH)
    return module


def _check_torch_has_it(name: str, layer: Recurrent) -> None:
    for option, default in layer._extra_defaults().items():
        value = getattr(layer, option)
        if value != default and option != "recompute":  # which changes no result
            where = f"layer {name!r}" if name else "the layer"
            raise ValueError(
                f"torch.nn has no {option}: {where} has {option}={value} and can't be converted"
            )


def _replace(module: nn.Module, classes: dict[Any, Any]) -> dict[nn.Module, nn.Module]:
    converted: dict[nn.Module, nn.Module] = {}
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and type(child) in classes:
                if child not in converted:
                    converted[child] = _convert(child, classes[type(child)])
                parent._modules[name] = converted[child]
    return converted


def _convert(layer: Any, target: type[nn.Module]) -> nn.Module:
    options = {name: getattr(layer, name) for name in _ARGUMENTS}
    if isinstance(layer, nn.LSTM | LSTM):
        options["proj_size"] = layer.proj_size
    if isinstance(layer, nn.RNN | RNN):
        options["nonlinearity"] = layer.nonlinearity
    dropout = options.pop("dropout")
    new: Any = target(**options, device="meta")
    new.dropout = dropout  # set late: a one-layer model has warned of it already
    for name in list(new._parameters):
        if name not in layer._parameters:  # weight_norm and pruning compute it in a hook
            del new._parameters[name]
            setattr(new, name, getattr(layer, name))
    for name, parameter in layer.named_parameters(recurse=False):
        setattr(new, name, parameter)
    new._buffers.update(layer._buffers)
    for name, hooks in list(vars(layer).items()):
        if "_hook" in name:
            setattr(new, name, hooks)  # the very dictionary: handles remove hooks from it
    for hook in new._load_state_dict_pre_hooks.values():
        if getattr(hook, "with_module", False):
            hook.module = weakref.ref(new)
    new.train(layer.training)
    new.flatten_parameters()
    return new  # type: ignore[no-any-return]
