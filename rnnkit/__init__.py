"""Fused recurrent layers for PyTorch: drop-in `LSTM`, `GRU` and `RNN` on Triton kernels."""

from rnnkit import compat
from rnnkit.nn import (
    CRF,
    GRU,
    LSTM,
    RNN,
    Constraints,
    Explanation,
    GRUCell,
    LSTMCell,
    ModelExplanation,
    Replacement,
    RNNCell,
    explain,
    replace_rnns,
    to_torch,
)

__all__ = [
    "CRF",
    "GRU",
    "LSTM",
    "RNN",
    "Constraints",
    "Explanation",
    "GRUCell",
    "LSTMCell",
    "ModelExplanation",
    "RNNCell",
    "Replacement",
    "compat",
    "explain",
    "replace_rnns",
    "to_torch",
]


def __getattr__(name: str) -> str:
    """`__version__`, read when it is asked for: importing the layers costs nothing more."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("rnnkit")
    except PackageNotFoundError:  # a checkout on PYTHONPATH
        return "0+unknown"
