"""torch.nn layers into rnnkit's and back, sharing the parameters."""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from rnnkit.nn import compat
from rnnkit.nn.base import Recurrent
from rnnkit.nn.cell import GRUCell, LSTMCell, RNNCell
from rnnkit.nn.plain import attributes_put_on, options_of, why_not_plain
from rnnkit.nn.recurrent import GRU, LSTM, RNN
from rnnkit_kernels.functional import BACKENDS, Backend

_LAYERS: dict[Any, Any] = {nn.LSTM: LSTM, nn.GRU: GRU, nn.RNN: RNN}
_CELLS: dict[Any, Any] = {nn.LSTMCell: LSTMCell, nn.GRUCell: GRUCell, nn.RNNCell: RNNCell}
_FROM_TORCH = _LAYERS | _CELLS
_TO_COMPAT = {nn.LSTM: compat.LSTM, nn.GRU: compat.GRU, nn.RNN: compat.RNN, **_CELLS}
_TO_TORCH: dict[Any, Any] = {
    ours: theirs for classes in (_FROM_TORCH, _TO_COMPAT) for theirs, ours in classes.items()
}
_THEIRS: tuple[Any, ...] = tuple(_FROM_TORCH)
_OURS: tuple[Any, ...] = (Recurrent, *_CELLS.values())


@dataclass(frozen=True, eq=False)
class Replacement(int):
    """What `replace_rnns` did: the number of layers that it replaced; `print` it.

    Attributes:
        replaced: the paths of the layers that are rnnkit's now.
        left: the paths of torch's recurrent layers that stay as they are, and why.
    """

    replaced: tuple[str, ...]
    left: dict[str, str]

    def __new__(cls, replaced: tuple[str, ...], left: dict[str, str]) -> "Replacement":
        """An int: the number of paths in `replaced`."""
        return super().__new__(cls, len(replaced))

    def __getnewargs__(self) -> Any:  # of copies and pickles
        return self.replaced, self.left

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} replaced", *(f"  {path}" for path in self.replaced)]
        if self.left:
            lines.append(f"{len(self.left)} left as they are")
            lines += (f"  {path or 'the module itself'}: {self.left[path]}" for path in self.left)
        return "\n".join(lines)


def replace_rnns(
    module: nn.Module, *, backend: Backend = "auto", subclass: bool = False
) -> Replacement:
    """Replace every nn.LSTM, nn.GRU, nn.RNN and their cells below `module`, in place.

    Results agree with the old layers' to rounding; by `backend="torch"` they have their bits. The
    new layers hold the same Parameter objects, so optimisers, tied weights and checkpoints go on as
    before. A layer used in several places stays one layer. Hooks, buffers and data move with their
    layer. What is more than a layer of torch's stays as it is, and the result says why: a subclass
    or a parametrised layer, one whose forward or another method was replaced, which was compiled by
    itself, on which modules or functions were put, or whose options, `mode` or `_flat_weights` were
    changed so that they contradict each other.

    Args:
        module: any module that contains recurrent layers; not itself one.
        backend: of the new layers. Cells have none, so only "auto" replaces them.
        subclass: whether the new layers are instances of torch.nn's classes, for programs that ask
            isinstance(layer, torch.nn.LSTM); `torch.compile` then leaves the forward that calls
            one as it is (`rnnkit.compat`). Cells are instances in any case.

    Returns:
        How many layers were replaced, an int that also tells which, and which were left and why.

    Raises:
        TypeError: `module` is itself a recurrent layer, which can't be replaced in place.
        ValueError: `backend` is none.

    Example:
        >>> model = nn.ModuleDict({"encoder": nn.GRU(4, 5), "decoder": nn.LSTMCell(5, 5)})
        >>> model["decoder"].forward = print
        >>> print(replace_rnns(model))
        1 replaced
          encoder
        1 left as they are
          decoder: its forward was replaced
    """
    if type(module) in _FROM_TORCH:
        raise TypeError(
            f"replace_rnns replaces layers inside a module; {type(module).__name__} is the layer "
            "itself: wrap it in a module or build the rnnkit layer"
        )
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    layers, left = {}, {}
    for path, layer in torchs_layers(module):
        reason = why_left(layer, backend)
        if reason is None:
            layers[path] = layer
        else:
            left[path] = reason
    classes = _TO_COMPAT if subclass else _FROM_TORCH
    options = {} if backend == "auto" else {"backend": backend}
    _put(module, {layer: _convert(layer, classes, options) for layer in layers.values()})
    return Replacement(tuple(layers), left)


def torchs_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every recurrent layer and cell in `module` that is torch's, subclasses included."""
    for path, layer in module.named_modules():
        if isinstance(layer, _THEIRS) and not isinstance(layer, _OURS):
            yield path, layer


def rnnkits_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every recurrent layer and cell in `module` that is rnnkit's, subclasses included."""
    for path, layer in module.named_modules():
        if isinstance(layer, _OURS):
            yield path, layer


def why_left(layer: nn.Module, backend: Backend = "auto") -> str | None:
    """Why `replace_rnns` leaves one of torch's layers as it is, or None where it doesn't."""
    reason = why_not_plain(layer, _FROM_TORCH)
    if reason is None and backend != "auto" and type(layer) in _CELLS:
        return f"a cell has no backend={backend!r}"
    return reason


def to_torch(module: nn.Module) -> nn.Module:
    """Replace every rnnkit layer and cell below `module` by torch's: to export it, to leave rnnkit.

    Args:
        module: changed in place, unless it is itself an rnnkit layer.

    Returns:
        `module`, or the torch.nn layer that replaces it.

    Raises:
        ValueError: a layer that torch lacks or that can't be converted, such as a subclass or a
            parametrised one, named; nothing is changed then.
    """
    layers = list(rnnkits_layers(module))
    for path, layer in layers:
        _check_torch_has_it(path, layer)
    converted = {layer: _convert(layer, _TO_TORCH, {}) for _, layer in layers}
    _put(module, converted)
    return converted.get(module, module)


def _check_torch_has_it(path: str, layer: Any) -> None:
    where = f"layer {path!r}" if path else "the layer"
    own = {"reset_after": True} if isinstance(layer, GRUCell) else {}
    defaults = layer._extra_defaults() if isinstance(layer, Recurrent) else own
    for option, default in defaults.items():
        value = getattr(layer, option)
        if value != default and option != "recompute":  # which changes no result
            raise ValueError(
                f"torch.nn has no {option}: {where} has {option}={value} and can't be converted"
            )
    reason = why_not_plain(layer, _TO_TORCH)
    if reason is not None:
        raise ValueError(f"{where} can't be converted: {reason}")


def _put(module: nn.Module, converted: dict[nn.Module, nn.Module]) -> None:
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child in converted:
                parent._modules[name] = converted[child]


def _convert(layer: Any, classes: dict[Any, Any], options: dict[str, Any]) -> nn.Module:
    is_cell = isinstance(layer, nn.RNNCellBase)
    new: Any = classes[type(layer)](**options_of(layer), **options, device="meta")
    if not is_cell:
        new.dropout = layer.dropout  # set late: a one-layer model has warned of it already
    weights = list(new._parameters)
    new._parameters.clear()
    for name, parameter in layer._parameters.items():  # in the order that optimisers number them
        new.register_parameter(name, None)
        setattr(new, name, parameter)
    new._buffers.update(layer._buffers)
    new._non_persistent_buffers_set.update(layer._non_persistent_buffers_set)
    for name in weights:
        if not hasattr(new, name):  # weight_norm and pruning compute it in a hook
            setattr(new, name, getattr(layer, name))
    for name, hooks in list(vars(layer).items()):
        if "_hook" in name:
            setattr(new, name, hooks)  # the very dictionary: handles remove hooks from it
    for hook in new._load_state_dict_pre_hooks.values():
        if getattr(hook, "with_module", False):
            hook.module = weakref.ref(new)
    for name, value in attributes_put_on(layer).items():
        setattr(new, name, value)
    new.train(layer.training)
    if not is_cell:
        new.flatten_parameters()
    return new  # type: ignore[no-any-return]
