"""What `LSTM`, `GRU` and `RNN` share: parameters, checks, layouts of input and state."""

import math
import numbers
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnkit_kernels.functional import Backend, recurrent

States = tuple[Tensor, ...]


class Recurrent(nn.Module):
    """What the three layers share; the subclasses name a cell and document their equations."""

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    backend: Backend
    _states = 1
    _gates: int

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        for name, value in (("bias", bias), ("batch_first", batch_first)):
            if not isinstance(value, bool):
                raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")
        for name, size in (
            ("input_size", input_size),
            ("hidden_size", hidden_size),
            ("num_layers", num_layers),
        ):
            if not isinstance(size, int):
                raise TypeError(f"{name} should be of type int, got: {type(size).__name__}")
            if size <= 0:
                raise ValueError(f"{name} must be greater than zero, got {size}")
        if not isinstance(dropout, numbers.Real | str):  # torch refuses a string by its value
            raise TypeError(f"dropout should be a number, got: {type(dropout).__name__}")
        if isinstance(dropout, bool | str) or not 0 <= dropout <= 1:
            raise ValueError(
                "dropout should be a number in range [0, 1] representing the probability of an "
                f"element being zeroed, got {dropout!r}"
            )
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout acts between layers, so a non-zero dropout expects num_layers greater "
                f"than 1, but got dropout={dropout} and num_layers={num_layers}",
                stacklevel=2 if type(self).__init__ is Recurrent.__init__ else 3,
            )
        if proj_size < 0:
            raise ValueError(
                "proj_size should be a positive integer or zero to disable projections, "
                f"got {proj_size}"
            )
        if proj_size >= hidden_size:
            raise ValueError(
                f"proj_size has to be smaller than hidden_size, got {proj_size} and {hidden_size}"
            )
        if backend not in ("auto", "triton", "torch"):
            raise ValueError(f'backend must be "auto", "triton" or "torch", got {backend!r}')
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.backend = backend
        self._weight_names: list[str] = []
        rows = self._gates * hidden_size
        for layer in range(num_layers):
            for suffix in ("", "_reverse")[: self._directions]:
                width = input_size if layer == 0 else self._output_size * self._directions
                shapes = {"weight_ih": (rows, width), "weight_hh": (rows, self._output_size)}
                if bias:
                    shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
                if proj_size:
                    shapes["weight_hr"] = (proj_size, hidden_size)
                for kind, shape in shapes.items():
                    name = f"{kind}_l{layer}{suffix}"
                    value = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(name, value)
                    self._weight_names.append(name)
        self.reset_parameters()
        self.flatten_parameters()

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _output_size(self) -> int:
        return self.proj_size or self.hidden_size

    @property
    def _cell(self) -> str:
        """The key of `rnnkit_kernels.cells.CELLS`."""
        raise NotImplementedError

    @property
    def _weights(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._weight_names]

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters, one list a layer and direction."""
        weights = self._weights
        size = len(weights) // (self.num_layers * self._directions)
        return [weights[i : i + size] for i in range(0, len(weights), size)]

    def reset_parameters(self) -> None:
        """Draw every parameter from U(−1/√H, 1/√H), in torch's order."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def flatten_parameters(self) -> None:
        """Lay the parameters out as one buffer where cuDNN may run them: on a GPU.

        cuDNN copies weights that are not one buffer on every call, and torch warns of it; rnnkit's
        kernels don't care.
        """
        if self._weights[0].is_cuda and self._cell != "gru_reset_before":
            self.mode = self._cell.upper()
            self._flat_weights = self._weights
            self._flat_weights_names = self._weight_names
            nn.RNNBase.flatten_parameters(self)  # type: ignore[arg-type]
            del self.mode, self._flat_weights, self._flat_weights_names

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.flatten_parameters()
        return result

    def extra_repr(self) -> str:
        """torch's, plus what differs from torch's defaults."""
        text = f"{self.input_size}, {self.hidden_size}"
        defaults = {
            "proj_size": 0,
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0,
            "bidirectional": False,
            **self._extra_defaults(),
        }
        for name, default in defaults.items():
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        return text if self.backend == "auto" else f"{text}, backend={self.backend!r}"

    def _extra_defaults(self) -> dict[str, Any]:
        return {}

    def _run(
        self, input: Tensor | PackedSequence, hx: States | None, lengths: Tensor | None
    ) -> tuple[Tensor | PackedSequence, States]:
        """Check, bring into (T, B, D), run, and bring back."""
        name = type(self).__name__
        packed = input if isinstance(input, PackedSequence) else None
        data = packed.data if packed is not None else input
        if not isinstance(data, Tensor):
            raise TypeError(
                f"{name}: expected a tensor or a PackedSequence, got {type(data).__name__}"
            )
        if lengths is not None and not isinstance(lengths, Tensor):
            raise TypeError(
                f"{name}: expected lengths to be a tensor of integers, got {type(lengths).__name__}"
            )
        self._check_dtype(data)
        batched = packed is not None or data.dim() == 3
        if packed is not None and data.dim() != 2:
            raise RuntimeError(
                f"{name}: packed rows must have 2 dimensions, (rows, input_size), "
                f"got {data.dim()}: pack a 3-D input"
            )
        if packed is None and data.dim() not in (2, 3):
            raise ValueError(f"{name}: Expected input to be 2D or 3D, got {data.dim()}D instead")
        if data.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, "
                f"got {data.shape[-1]}"
            )
        if lengths is not None and packed is not None:
            raise ValueError("lengths go with a padded input; a PackedSequence holds its own")
        if lengths is not None and not batched:
            raise ValueError(
                "lengths need a batched 3-D input, got 2-D: cut the sequence to its length instead"
            )
        if not batched:
            data = data.unsqueeze(1)
        elif packed is None and self.batch_first:
            data = data.transpose(0, 1)
        batch = int(packed.batch_sizes[0]) if packed is not None else data.shape[1]
        state = self._initial_state(data, hx, batch, batched, packed)
        output, last = recurrent(
            self._cell,
            data,
            state,
            self._weights,
            has_biases=self.bias,
            has_projections=self.proj_size > 0,
            num_layers=self.num_layers,
            dropout=self.dropout,
            training=self.training,
            bidirectional=self.bidirectional,
            batch_sizes=None if packed is None else packed.batch_sizes,
            lengths=lengths,
            backend=self.backend,
        )
        if packed is not None:
            if packed.unsorted_indices is not None:
                last = tuple(value.index_select(1, packed.unsorted_indices) for value in last)
            return packed._replace(data=output), last
        if not batched:
            return output.squeeze(1), tuple(value.squeeze(1) for value in last)
        return output.transpose(0, 1) if self.batch_first else output, last

    def _check_dtype(self, data: Tensor) -> None:
        weight = self._weights[0]
        if data.dtype != weight.dtype and not _autocasts(data.device):
            raise ValueError(
                f"RNN input dtype ({data.dtype}) does not match weight dtype ({weight.dtype}). "
                f"Convert input: input.to({weight.dtype}), or convert model: model.to({data.dtype})"
            )
        if data.device != weight.device:
            raise RuntimeError(
                "Input and parameter tensors are not at the same device, found input tensor at "
                f"{data.device} and parameter tensor at {weight.device}"
            )

    def _initial_state(
        self,
        data: Tensor,
        hx: States | None,
        batch: int,
        batched: bool,
        packed: PackedSequence | None,
    ) -> States:
        layers = self.num_layers * self._directions
        sizes = (self._output_size, self.hidden_size)[: self._states]
        if hx is None:
            return tuple(data.new_zeros(layers, batch, size) for size in sizes)
        dimensions = 3 if batched else 2
        found = [value.dim() for value in hx]
        if found != [dimensions] * len(found):
            kind = "batched 3-D" if batched else "unbatched 2-D"
            names = "hx and cx" if len(hx) > 1 else "hx"
            got = " and ".join(f"{number}-D" for number in found)
            raise RuntimeError(
                f"For {kind} input, {names} should also be {dimensions}-D but got {got} tensors"
            )
        if not batched:
            hx = tuple(value.unsqueeze(1) for value in hx)
        for i, (value, size) in enumerate(zip(hx, sizes, strict=True)):
            expected = (layers, batch, size)
            if tuple(value.shape) != expected:
                which = f"hidden[{i}] size" if len(hx) > 1 else "hidden size"
                raise RuntimeError(
                    f"Expected {which} {expected}, got {list(value.shape)}: initial states are "
                    "(num_layers·directions, batch, hidden), also with batch_first=True"
                )
            if value.device != data.device or value.dtype != data.dtype:
                if _autocasts(data.device) and value.device == data.device:
                    continue
                raise RuntimeError(
                    f"input is {data.dtype} on {data.device}, the initial state {value.dtype} on "
                    f"{value.device}: they must agree"
                )
        if packed is not None and packed.sorted_indices is not None:
            hx = tuple(value.index_select(1, packed.sorted_indices) for value in hx)
        return hx


def check_pair(name: str, hx: Any) -> None:
    """Refuse what is no pair of tensors, with torch's exception types.

    Args:
        name: of the layer or cell, for the message.
        hx: what the caller gave for (h, c).

    Raises:
        TypeError: something in it is no tensor.
        RuntimeError: it is one tensor, or not two.
    """
    several = isinstance(hx, tuple | list)
    kinds = [type(h).__name__ for h in hx] if several else [type(hx).__name__]
    got = f"{', '.join(kinds)} ({len(kinds)} of 2)" if several else kinds[0]
    message = f"{name}: expected hx to be a pair (h, c) of tensors, got {got}"
    if not isinstance(hx, Tensor) and not (several and all(isinstance(h, Tensor) for h in hx)):
        raise TypeError(message)
    if not several or len(hx) != 2:
        raise RuntimeError(message)


def _autocasts(device: torch.device) -> bool:
    """Whether autocast is on; asking that of a device without it (meta) raises."""
    kind = device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
