"""What is NaN or infinite in a model."""

from __future__ import annotations

import torch
from torch import nn


def weight_not_finite(model: nn.Module) -> str | None:
    """The name of a weight that is NaN or infinite somewhere; None where there is none."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return name
    return None
