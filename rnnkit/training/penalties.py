"""The penalties of a task's configuration: what is added to the loss of a training batch."""

from __future__ import annotations

import math
import warnings
from contextlib import ExitStack
from typing import Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import Required, TypedDict  # typing's own lacks Required before 3.11

from rnnkit.nn.base import Recurrent
from rnnkit.nn.penalties import (
    Form,
    contraction,
    identity_penalty,
    jacobian_penalty,
    longest_piece,
    omega,
    recurrent_blocks,
    spectral_norm_penalty,
    spectral_radius_penalty,
)
from rnnkit.nn.states import watch_states
from rnnkit_kernels.functional import LayerStates, differentiate

PenaltyName = Literal[
    "identity", "spectral_radius", "spectral_norm", "omega", "jacobian", "contraction"
]

_OF_WEIGHTS = {
    "identity": identity_penalty,
    "spectral_radius": spectral_radius_penalty,
    "spectral_norm": spectral_norm_penalty,
}
_OF_PIECES = {"jacobian": jacobian_penalty, "contraction": contraction}
_NAMES = (*_OF_WEIGHTS, "omega", *_OF_PIECES)
_SQUARE = {"identity": "I", "spectral_radius": "eigenvalues"}


class Penalty(TypedDict, total=False):
    """A penalty and its weight.

    Attributes:
        name: identity, spectral_radius, spectral_norm, omega, jacobian or contraction; see
            `rnnkit.nn.penalties`.
        weight: What it is multiplied with before it is added to the loss.
        form: Of omega: squared (default), as its authors' program has it, or norm, as the paper.
        gradient: Of omega: immediate (default), to weight_hh alone, or full, by a second
            differentiation through the layers' definitions, slowly.
        steps: k of jacobian and contraction (default: 10); of a shorter batch, what it has.
    """

    name: Required[PenaltyName]
    weight: Required[float]
    form: Form
    gradient: Literal["immediate", "full"]
    steps: int


class EndOfWatch(Callback):
    """Ends the watch over states where a step breaks off: else layers would be watched for good."""

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """End it."""
        penalties: Penalties | None = getattr(pl_module, "_penalties", None)
        if penalties is not None:
            penalties.end()


class Penalties:
    """Penalties on the recurrent layers of a module; each is a mean over the layers.

    Args:
        penalties: As a configuration has them.
        module: Holds rnnkit's layers, or is one.

    Attributes:
        values: Of the last batch, by name and without their weights, detached.

    Raises:
        ValueError: A name, weight or option is wrong; there is no recurrent weight; or a block of
            one is not square where it has to be.
    """

    def __init__(self, penalties: list[Penalty], module: nn.Module) -> None:
        self.module = module
        self.penalties = penalties
        self.values: dict[str, Tensor] = {}
        self._layers = [each for each in module.modules() if isinstance(each, Recurrent)]
        self._stack = ExitStack()
        self._watched: dict[str, list[LayerStates]] | None = None
        for penalty in penalties:
            self._check(penalty)
        names = [penalty["name"] for penalty in penalties]
        if len(set(names)) < len(names):
            raise ValueError(f"expected every penalty once, got {', '.join(names)}")
        self._graph = any(penalty.get("gradient") == "full" for penalty in penalties)
        self._of_states = any(name not in _OF_WEIGHTS for name in names)
        if "contraction" in names:
            warnings.warn(
                "penalty contraction makes gradients vanish: what is small is ‖∂h_t/∂h_{t-k}‖, by "
                "which a loss reaches back; for a long memory use jacobian, whose target is 1",
                stacklevel=2,
            )

    def _check(self, penalty: Penalty) -> None:
        name, weight = penalty.get("name"), penalty.get("weight")
        if name not in _NAMES:
            raise ValueError(f"expected a penalty named {', '.join(_NAMES)}, got {name!r}")
        if not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise ValueError(f"expected a weight above 0 for penalty {name}, got {weight!r}")
        if not self._layers:
            raise ValueError(
                f"penalty {name} is on recurrent weights, and {type(self.module).__name__} has "
                "0 recurrent layers of rnnkit"
            )
        own = {"omega": ("form", "gradient"), **dict.fromkeys(_OF_PIECES, ("steps",))}
        for option in ("form", "gradient", "steps"):
            if option in penalty and option not in own.get(name, ()):
                raise ValueError(f"penalty {name} has no {option}")
        for option, known in (("form", ("squared", "norm")), ("gradient", ("immediate", "full"))):
            if (value := penalty.get(option, known[0])) not in known:
                raise ValueError(f"expected {option} {' or '.join(known)}, got {value!r}")
        if (steps := penalty.get("steps", 10)) < 1:
            raise ValueError(f"expected steps of 1 or more for penalty {name}, got {steps}")
        for layer in self._layers:
            if name in _SQUARE:
                recurrent_blocks(layer, _SQUARE[name])
            if name == "omega" and layer.layer_norm and penalty.get("gradient") != "full":
                raise ValueError(
                    "omega of layers with layer_norm, which keep no gates, needs gradient full"
                )

    def begin(self) -> None:
        """Watch the states of the batch that comes, where a penalty is about them."""
        self.end()
        if self._of_states:
            watching = watch_states(self.module, self._graph)
            self._watched = self._stack.enter_context(watching)

    def end(self) -> None:
        """Watch no more."""
        self._stack.close()
        self._watched = None

    def __call__(self, loss: Tensor) -> Tensor:
        """The sum of all penalties by their weights, a scalar; what was watched ends.

        Args:
            loss: Of the batch, without penalties; its graph is kept.

        Raises:
            ValueError: The batch was not watched: an optimizer evaluates the loss again; or the
                full gradient is asked for in float16.
        """
        watched = self._watched
        self.end()
        if self._of_states and watched is None:
            raise ValueError(
                "a penalty on gradients needs an optimizer that evaluates the loss once a step"
            )
        kind = loss.device.type
        half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        if self._graph and half:
            raise ValueError(
                "omega with gradient full overflows in float16: use bf16-mixed, or gradient "
                "immediate"
            )
        with torch.autocast(kind, enabled=False):
            entries = self._entries(watched or {}, loss)
            values = {each["name"]: self._value(each, entries) for each in self.penalties}
            total = torch.stack([each["weight"] * values[each["name"]] for each in self.penalties])
        self.values = {name: value.detach() for name, value in values.items()}
        return total.sum()

    def _entries(
        self, watched: dict[str, list[LayerStates]], loss: Tensor
    ) -> list[tuple[Recurrent, LayerStates]]:
        modules = dict(self.module.named_modules())
        entries = [
            (modules[name], entry)
            for name in watched
            for entry in watched[name]
            # A layer that is frozen, or reads from frozen ones alone, has nothing to be penalised.
            if entry.weight_hh.requires_grad and entry.output is not None
        ]
        outputs = [entry.output for _, entry in entries if entry.output is not None]
        if any(output.dtype == torch.float16 for output in outputs):
            loss = loss * 2**16  # omega has no scale, and small gradients would be zeros
        if self._graph and entries:
            differentiate(loss, [entry for _, entry in entries])
        elif outputs and any(each["name"] == "omega" for each in self.penalties):
            torch.autograd.grad(loss, outputs, retain_graph=True, allow_unused=True)
            entries = [(layer, entry) for layer, entry in entries if entry.differentiated]
        for _, entry in entries:
            if entry.watchers == 1:
                entry.settle()
        return entries

    def _value(self, penalty: Penalty, entries: list[tuple[Recurrent, LayerStates]]) -> Tensor:
        name = penalty["name"]
        if name in _OF_WEIGHTS:
            parts = [_OF_WEIGHTS[name](layer) for layer in self._layers]
        elif name == "omega":
            form = penalty.get("form", "squared")
            parts = [omega(states, form) for _, states in entries]
        else:
            asked = penalty.get("steps", 10)
            parts = [
                _OF_PIECES[name](layer, states, steps)
                for layer, states in entries
                if (steps := min(asked, longest_piece(layer, states)))
            ]
        if not parts:
            return torch.zeros((), device=next(self._layers[0].parameters()).device)
        return torch.stack([part.float() for part in parts]).mean()
