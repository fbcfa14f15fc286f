"""How recurrent weights begin: what decides how far back gradients reach before any step.

orthogonal   R^T R = I times a gain: every singular value is the gain
identity     R = I times a gain: IRNN, for Elman networks with ReLU (Le et al. 2015, arXiv
             1504.00941, whose biases begin as zeros)
forget bias  of an LSTM: σ(1) = 0.73, σ(3) = 0.95 of c stay from step to step where 0, torch's
             mean, keeps a half (Gers et al. 2000; Jozefowicz et al. 2015)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from rnnkit.nn.base import Recurrent
from rnnkit.nn.recurrent import LSTM, RNN

RecurrentInit = Literal["uniform", "orthogonal", "identity"]


@torch.no_grad()
def initialise(
    layer: nn.Module,
    recurrent: RecurrentInit = "uniform",
    forget_bias: float | None = None,
    gain: float = 1.0,
) -> None:
    """Set the recurrent weights, or the forget gate's bias, of every recurrent layer in a module.

    Args:
        layer: A layer of rnnkit, or a module that holds some. All else stays as it is.
        recurrent: uniform leaves every weight_hh as it is. orthogonal draws each gate's block by
            itself, by torch's generator; with a projection its columns are orthogonal. identity
            sets it, and the biases to zero, of Elman networks.
        forget_bias: Of LSTMs, the sum of torch's two biases: bias_ih gets it, bias_hh zero; None
            leaves them.
        gain: Factor of an orthogonal or identical weight.

    Raises:
        ValueError: There is no recurrent layer; identity for gates, which have no state to keep; a
            forget bias of a layer that has no forget gate, or no biases; a gain that does nothing.

    Example:
        >>> layer = rnnkit.LSTM(8, 16)
        >>> initialise(layer, "orthogonal", forget_bias=1.0)
    """
    if recurrent not in ("uniform", "orthogonal", "identity"):
        raise ValueError(f"expected uniform, orthogonal or identity, got {recurrent!r}")
    if recurrent == "uniform" and gain != 1:
        raise ValueError(f"a gain of {gain:g} needs orthogonal or identity, got uniform")
    layers = [each for each in layer.modules() if isinstance(each, Recurrent)]
    if not layers:
        raise ValueError(f"{type(layer).__name__} has no recurrent layer of rnnkit to initialise")
    for each in layers:
        name = type(each).__name__
        if recurrent == "identity" and not isinstance(each, RNN):
            raise ValueError(
                f"identity is for Elman networks (RNN), whose h a matrix I hands on; {name} has "
                f"{each._gates} blocks of gates, for which it means nothing"
            )
        if forget_bias is not None and not (isinstance(each, LSTM) and each.bias):
            lacks = "biases" if isinstance(each, LSTM) else "forget gate"
            raise ValueError(
                f"a forget bias of {forget_bias:g} is for LSTMs, {name} has no {lacks}"
            )
        if "parametrizations" in each._modules:
            raise ValueError(
                f"{name} has parametrised weights, which are made anew at every call: initialise "
                "it first, and parametrise it then"
            )
        if recurrent != "uniform":
            _set_weights(each, recurrent, gain)
        if isinstance(each, LSTM) and forget_bias is not None:
            hidden, gate = each.hidden_size, 0 if each.coupled else 1
            block = slice(gate * hidden, (gate + 1) * hidden)
            for key, bias in each.named_parameters(recurse=False):
                if key.startswith("bias_"):
                    bias[block] = forget_bias if key.startswith("bias_ih") else 0.0


def _set_weights(layer: Recurrent, recurrent: RecurrentInit, gain: float) -> None:
    for name, parameter in layer.named_parameters(recurse=False):
        if name.startswith("weight_hh"):
            blocks: tuple[Tensor, ...] = torch.split(parameter, layer.hidden_size)
            for block in blocks:
                if recurrent == "orthogonal":
                    nn.init.orthogonal_(block, gain)
                else:
                    nn.init.eye_(block).mul_(gain)
        elif name.startswith("bias_") and recurrent == "identity":
            nn.init.zeros_(parameter)
