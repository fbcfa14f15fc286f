"""Drop-in recurrent layers: torch.nn's constructors, calls and state_dict on rnnkit's kernels."""

from rnnkit.nn.cell import GRUCell, LSTMCell, RNNCell
from rnnkit.nn.convert import Replacement, replace_rnns, to_torch
from rnnkit.nn.crf import CRF, Constraints
from rnnkit.nn.explain import Explanation, ModelExplanation, explain
from rnnkit.nn.recurrent import GRU, LSTM, RNN
from rnnkit.nn.stack import Stack

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
    "Stack",
    "explain",
    "replace_rnns",
    "to_torch",
]
