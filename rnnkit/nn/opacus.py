"""Opacus, which clips the gradient of every sample, refuses rnnkit's layers as it does nn.LSTM.

It reads a layer's per-sample gradients off its first argument and its first result. What the loss
takes from h_n or c_n would be missing in them, and with it the privacy that they are clipped for.
"""

import sys
from importlib import import_module
from typing import Any

import torch


def let_opacus_refuse(layer: type) -> None:
    """Tell Opacus of a class of layers, where Opacus has been imported; Dynamo can't follow."""
    if "opacus" not in sys.modules or torch.compiler.is_compiling():
        return
    validators: Any = import_module("opacus.validators")
    errors: Any = import_module("opacus.validators.errors")
    if layer not in validators.ModuleValidator.VALIDATORS:
        name = next(base.__name__ for base in layer.__mro__ if base.__name__ in _OPACUS)
        message = (
            f"rnnkit's {name} gives no per-sample gradients: use opacus.layers.{_OPACUS[name]}, "
            "which takes its state_dict"
        )
        refuse = validators.register_module_validator(layer)
        refuse(lambda _: [errors.ShouldReplaceModuleError(message)])


_OPACUS = {"LSTM": "DPLSTM", "GRU": "DPGRU", "RNN": "DPRNN"}
