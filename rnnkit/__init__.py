"""Fused recurrent layers for PyTorch: drop-in `LSTM`, `GRU` and `RNN` on Triton kernels."""

from rnnkit.nn import (
    GRU,
    LSTM,
    RNN,
    Explanation,
    GRUCell,
    LSTMCell,
    RNNCell,
    explain,
    replace_rnns,
    to_torch,
)

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Explanation",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "explain",
    "replace_rnns",
    "to_torch",
]
