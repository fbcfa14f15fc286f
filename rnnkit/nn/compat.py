"""`LSTM`, `GRU` and `RNN` that are instances of torch's classes too, for programs that ask.

They are rnnkit's layers, line for line, and `isinstance(layer, torch.nn.LSTM)` is True. It costs
`torch.compile`: Dynamo refuses every instance of torch's classes. As with torch's own layers the
forward that calls one stays as it is, the layer alone compiles, and `fullgraph=True` is an error.
"""

from typing import Any

from torch import nn

from rnnkit.nn import recurrent


class _OwnWeights(nn.RNNBase):
    """Stands before torch's class and passes it by, on to what comes after `nn.RNNBase`.

    RNNBase keeps a second list of the weights beside the module's own, which rnnkit's layers have
    no use for; what it does for the sake of that list is left out.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super(nn.RNNBase, self).__init__(*arguments, **options)

    def __setattr__(self, name: str, value: Any) -> None:
        super(nn.RNNBase, self).__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super(nn.RNNBase, self).__setstate__(state)  # type: ignore[no-untyped-call]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return super(nn.RNNBase, self)._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _replicate_for_data_parallel(self) -> Any:
        return super(nn.RNNBase, self)._replicate_for_data_parallel()  # type: ignore[no-untyped-call]


class LSTM(recurrent.LSTM, _OwnWeights, nn.LSTM):  # type: ignore[misc]
    """`rnnkit.LSTM`, and an instance of `torch.nn.LSTM`.

    Example:
        >>> isinstance(LSTM(3, 4), nn.LSTM)
        True
    """


class GRU(recurrent.GRU, _OwnWeights, nn.GRU):  # type: ignore[misc]
    """`rnnkit.GRU`, and an instance of `torch.nn.GRU`."""


class RNN(recurrent.RNN, _OwnWeights, nn.RNN):  # type: ignore[misc]
    """`rnnkit.RNN`, and an instance of `torch.nn.RNN`."""
