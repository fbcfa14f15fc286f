"""σ, tanh and ReLU of the kernels over the whole line, against torch in float64."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from rnnkit_kernels.cells import activations
from tests.kernels.layers import BAND


def apply(function: tl.constexpr, x, y, n: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, n)
    tl.store(y + at, function(tl.load(x + at)))


def run(function: object, x: torch.Tensor) -> torch.Tensor:
    y = torch.empty_like(x)
    triton.jit(apply)[(1,)](function, x, y, x.numel())
    return y


def line() -> torch.Tensor:
    small = torch.logspace(-8, 2, 4096)
    return torch.cat([-small.flip(0), small])


def test_tanh_keeps_its_digits_near_zero_and_far_out() -> None:
    x = line()
    error = (run(activations.tanh, x) / x.double().tanh() - 1).abs().max()
    ulp = torch.finfo(torch.float32).eps
    assert error <= BAND * ulp


def test_sigmoid_is_exact_relative_to_its_value() -> None:
    x = line().clamp(-80, 80)
    error = (run(activations.sigmoid, x) / x.double().sigmoid() - 1).abs().max()
    assert error <= BAND * torch.finfo(torch.float32).eps * 4  # exp's own error grows with |x|


@pytest.mark.parametrize(
    ("function", "at_infinity", "at_minus_infinity"),
    [("tanh", 1.0, -1.0), ("sigmoid", 1.0, 0.0), ("relu", np.inf, 0.0)],
)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_limits_and_nan(function: str, at_infinity: float, at_minus_infinity: float) -> None:
    x = torch.tensor([np.inf, -np.inf, np.nan, 0.0, 200.0, -200.0, 1e-30, -0.0])
    y = run(getattr(activations, function), x)
    assert y[0] == at_infinity
    assert y[1] == at_minus_infinity
    assert y[2].isnan()
    assert y[3] == (0.5 if function == "sigmoid" else 0.0)
    if function != "sigmoid":
        assert y[6] == x[6]
