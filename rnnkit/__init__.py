"""Fused recurrent layers for PyTorch: drop-in `LSTM`, `GRU` and `RNN` on Triton kernels."""

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
    "explain",
    "replace_rnns",
    "to_torch",
]
