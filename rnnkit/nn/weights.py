"""A recurrent layer's weights by name, with what programs read of torch's layers.

Much of that is private in torch, and read all the same: by recipes that drop weights, by
initialisations, by pruning. The methods that check arguments are torch's own.
"""

from typing import Any, SupportsIndex

from torch import Tensor, nn


class FlatWeights(tuple[Tensor | None, ...]):
    """The weights, read anew on every look; torch's is a list, and what its layers run.

    Recipes write into it what they have set by name. Here that is done already; anything else,
    which would change nothing without a word, is an error.
    """

    def __setitem__(self, index: SupportsIndex, value: Any) -> None:
        if self[index] is not value:
            raise TypeError(_BY_NAME)


_BY_NAME = (
    "rnnkit's layers run the weights that they have by name, not _flat_weights: set each by "
    "setattr(layer, name, weight), a plain tensor after delattr(layer, name)"
)


class NamedWeights(nn.Module):
    """Weights that are looked up when they are asked for: others may replace or remove them."""

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    bidirectional: bool
    proj_size: int
    _weight_names: list[str]  # in the kernels' order: layer by layer, direction by direction

    @property
    def _cell(self) -> str:
        """The key of `rnnkit_kernels.cells.CELLS`."""
        name = type(self).__name__
        raise NotImplementedError(f"{name} names no cell: derive from LSTM, GRU, RNN")

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _weights(self) -> list[Tensor]:
        try:
            return [getattr(self, name) for name in self._weight_names]
        except AttributeError as error:  # which a module takes for a lack of `_weights`
            missing = [name for name in self._weight_names if not hasattr(self, name)]
            message = f"{type(self).__name__} has no {', '.join(missing)}: set it before the call"
            raise RuntimeError(message) from error

    # torch's layers keep what follows as attributes. They may be set here to what they are.

    @property
    def mode(self) -> str:
        """torch's name of the cell."""
        return self._cell.upper()

    @mode.setter
    def mode(self, value: str) -> None:
        self._check_kept("mode", value, "it follows from the class and its options")

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters, one list a layer and direction."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    @property
    def _all_weights(self) -> list[list[str]]:
        names = self._weight_names
        size = len(names) // (self.num_layers * self._directions)
        return [names[i : i + size] for i in range(0, len(names), size)]

    @_all_weights.setter
    def _all_weights(self, value: list[list[str]]) -> None:
        self._check_kept("_all_weights", value, "build a layer of other options")

    @property
    def _flat_weights_names(self) -> list[str]:
        return self._weight_names

    @_flat_weights_names.setter
    def _flat_weights_names(self, value: list[str]) -> None:
        self._check_kept("_flat_weights_names", value, "build a layer of other options")

    def _check_kept(self, name: str, value: Any, advice: str) -> None:
        held = getattr(self, name)
        if value != held:
            kind = type(self).__name__
            raise AttributeError(f"{name} of {kind} is {held!r} and stays so: {advice}")

    @property
    def _flat_weights(self) -> FlatWeights:
        return FlatWeights(getattr(self, name, None) for name in self._weight_names)

    @_flat_weights.setter
    def _flat_weights(self, value: Any) -> None:
        if list(map(id, value)) != list(map(id, self._flat_weights)):
            raise AttributeError(_BY_NAME)

    check_input = nn.RNNBase.check_input
    check_hidden_size = nn.RNNBase.check_hidden_size
    check_forward_args = nn.RNNBase.check_forward_args
    get_expected_hidden_size = nn.RNNBase.get_expected_hidden_size
    permute_hidden = nn.RNNBase.permute_hidden
