"""`LSTM`, `GRU` and `RNN` that are instances of torch's classes too, for programs that ask.

They are rnnkit's layers, line for line, and `isinstance(layer, torch.nn.LSTM)` is True. It costs
`torch.compile`: Dynamo refuses every instance of torch's classes. As with torch's own layers the
forward that calls one stays as it is, the layer alone compiles, and `fullgraph=True` is an error.
"""

from typing import Any

from torch import nn

from rnnkit.nn import recurrent


class _OwnWeights(nn.Module):
    """Stands before `nn.RNNBase`, which keeps a second list of the weights beside the module's own.

    rnnkit's layers have no use for it: what RNNBase does for its sake is nn.Module's again.
    """

    __init__ = nn.Module.__init__
    __setattr__ = nn.Module.__setattr__
    __setstate__ = nn.Module.__setstate__
    _apply = nn.Module._apply
    _replicate_for_data_parallel = nn.Module._replicate_for_data_parallel

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()


class LSTM(recurrent.LSTM, _OwnWeights, nn.LSTM):  # type: ignore[misc, override]
    """`rnnkit.LSTM`, and an instance of `torch.nn.LSTM`.

    Example:
        >>> isinstance(LSTM(3, 4), nn.LSTM)
        True
    """


class GRU(recurrent.GRU, _OwnWeights, nn.GRU):  # type: ignore[misc, override]
    """`rnnkit.GRU`, and an instance of `torch.nn.GRU`."""


class RNN(recurrent.RNN, _OwnWeights, nn.RNN):  # type: ignore[misc, override]
    """`rnnkit.RNN`, and an instance of `torch.nn.RNN`."""
