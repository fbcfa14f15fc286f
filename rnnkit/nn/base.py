"""What `LSTM`, `GRU` and `RNN` share: parameters, checks, layouts of input and state."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from rnnkit.nn.inputs import (
    States,
    check_dtype,
    check_reset_state,
    checked_resets,
    checked_state,
    is_tensor,
)
from rnnkit.nn.opacus import let_opacus_refuse
from rnnkit.nn.options import (
    Zoneout,
    check_dropout,
    check_flag,
    check_probability,
    check_projection,
    check_size,
    check_zoneout,
)
from rnnkit.nn.tracing import exports_to_onnx, refuse_onnx, refuse_scripting
from rnnkit.nn.weights import NamedWeights
from rnnkit_kernels.functional import (
    BACKENDS,
    Backend,
    Decision,
    Extras,
    FastPath,
    choose,
    first_states,
    recurrent,
    sequences,
    watched,
)


class Recurrent(NamedWeights):
    """What the three layers share; the subclasses name a cell and document their equations.

    No abstract base class: a user's subclass may have a metaclass of its own.
    """

    dropout: float
    zoneout: Zoneout
    weight_drop: float
    layer_norm: bool
    recompute: bool
    backend: Backend
    _states = 1

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
        zoneout: Zoneout = 0.0,
        weight_drop: float = 0.0,
        layer_norm: bool = False,
        recompute: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        flags = {"bias": bias, "batch_first": batch_first}
        flags |= {"layer_norm": layer_norm, "recompute": recompute}
        for name, flag in flags.items():
            check_flag(name, flag)
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        for name, size in sizes.items():
            check_size(name, size)
        dropout = check_dropout(dropout)
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout acts between layers, so a non-zero dropout expects num_layers greater "
                f"than 1, but got dropout={dropout} and num_layers={num_layers}",
                stacklevel=3,  # every subclass has its own __init__
            )
        check_projection(proj_size, hidden_size)
        if layer_norm and recompute:
            raise ValueError(
                "layer_norm=True and recompute=True exclude each other: layer normalisation runs "
                "by its definition, where autograd keeps what it needs"
            )
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = dropout
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.zoneout = check_zoneout(zoneout, self._states, proj_size)
        self.weight_drop = check_probability(
            "weight_drop", weight_drop, "an element of weight_hh being zeroed"
        )
        self.layer_norm = layer_norm
        self.recompute = recompute
        self.backend = backend
        self._weight_names = []
        for layer in range(num_layers):
            for suffix in ("", "_reverse")[: self._directions]:
                width = input_size if layer == 0 else self._output_size * self._directions
                for kind, shape in self._shapes(width).items():
                    name = f"{kind}_l{layer}{suffix}"
                    value = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(name, value)
                    self._weight_names.append(name)
        self._fast_path = FastPath()
        self.reset_parameters()
        self.flatten_parameters()

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """One direction's parameters for an input of `width` features, in the kernels' order."""
        hidden, rows = self.hidden_size, self._gates * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, width),
            "weight_hh": (rows, self._output_size),
        }
        if self.bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, hidden)
        if self._peepholes:
            shapes["weight_c"] = (self._peepholes, hidden)
        if self.layer_norm:
            for product in ("ih", "hh"):
                shapes |= {f"gain_{product}": (rows,), f"shift_{product}": (rows,)}
            if self._states == 2:
                shapes |= {"gain_c": (hidden,), "shift_c": (hidden,)}
        return shapes

    @property
    def _output_size(self) -> int:
        return self.proj_size or self.hidden_size

    @property
    def _extras(self) -> Extras:
        """What the kernels have to know beyond the cell; read anew, for attributes may change."""
        shares = self.zoneout if isinstance(self.zoneout, tuple) else (self.zoneout,) * self._states
        return Extras(shares if any(shares) else (), self.layer_norm, self.recompute)

    @property
    def _gates(self) -> int:
        """G, rows of weight_hh in units of the hidden size."""
        raise NotImplementedError(f"{type(self).__name__} has no gates: derive from LSTM, GRU, RNN")

    @property
    def _peepholes(self) -> int:
        """Rows of weight_c."""
        return 0

    def _dropped_weights(self) -> list[Tensor]:
        """The weights of one call: while training, `weight_drop` masks every weight_hh anew."""
        if not self.training or self.weight_drop == 0:
            return self._weights
        return [
            functional.dropout(weight, self.weight_drop) if name.startswith("weight_hh") else weight
            for name, weight in zip(self._weight_names, self._weights, strict=True)
        ]

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """torch's; Opacus asks every layer for them just before it asks who refuses its class."""
        let_opacus_refuse(type(self))
        return super().parameters(recurse)

    def reset_parameters(self) -> None:
        """Draw every weight and bias from U(−1/√H, 1/√H), in torch's order; gains 1, shifts 0."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters():
            if name.startswith("gain_"):
                nn.init.ones_(parameter)
            elif name.startswith("shift_"):
                nn.init.zeros_(parameter)
            else:
                nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Lay the parameters out as one buffer where cuDNN may run them: on a GPU.

        cuDNN copies weights that are not one buffer on every call, and torch warns of it; rnnkit's
        kernels don't care. Where a weight is missing or is no parameter, nothing is done.
        """
        if self._extras.missing_in_torch(self._cell) is None:
            nn.RNNBase.flatten_parameters(self)  # type: ignore[arg-type]

    # Where torch collects its second list of the weights anew, there is nothing to collect.
    _init_flat_weights = flatten_parameters
    _update_flat_weights = flatten_parameters

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
        """The options that torch lacks and their defaults, with which the layer is torch's."""
        return {"zoneout": 0.0, "weight_drop": 0.0, "layer_norm": False, "recompute": False}

    def _run_fast_path(self, input: Any, hx: Any) -> tuple[Tensor, ...] | None:
        """Output and states without gradients on a CPU, or None where that takes the general way.

        What makes a layer more than one cell over a dense input is asked first, for it costs least.
        """
        if (
            torch.compiler.is_compiling()
            or not isinstance(input, Tensor)
            or input.dim() != 3
            or self.num_layers != 1
            or self.backend not in ("auto", "native")
            or watched() is not None
            or self.bidirectional
            or self.proj_size
            or self.zoneout
            or self.layer_norm
            or self.weight_drop
            or list(self._parameters) != self._weight_names
        ):
            return None
        weights: Any = tuple(self._parameters.values())
        if not self.batch_first:
            return self._fast_path.layer(self._cell, weights, input, hx, self.backend)
        found = self._fast_path.layer(self._cell, weights, input.transpose(0, 1), hx, self.backend)
        return None if found is None else (found[0].transpose(0, 1), *found[1:])

    def _before_one_step(
        self, input: Any, hx: States | None, resets: Any, hx_reset: States | None
    ) -> States | None:
        """What a single step starts from, or None where that is left to the general way.

        An agent acts by calls of one step, in which nothing has to be cut.
        """
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return None  # a trace of one step may be called with more
        if type(input) is not Tensor or type(resets) is not Tensor or input.dim() != 3:
            return None
        time = 1 if self.batch_first else 0
        if input.shape[time] != 1 or resets.shape != input.shape[:2] or self.bidirectional:
            return None
        if resets.dtype != torch.bool or resets.device != input.device:
            return None
        batch = input.shape[1 - time]
        sizes = (self._output_size, self.hidden_size)[: self._states]
        if hx is None:
            hx = tuple(input.new_zeros(self.num_layers, batch, size) for size in sizes)
        given = (*hx, *(hx_reset or ()))
        shapes: list[tuple[int, ...]] = [(self.num_layers, batch, size) for size in sizes]
        if hx_reset is not None:
            shapes += [(self.num_layers, size) for size in sizes]
        if not all(isinstance(value, Tensor) and value.dtype == input.dtype for value in given):
            return None
        if [value.shape for value in given] != shapes:
            return None
        return first_states(hx, resets.reshape(batch), hx_reset)

    def _decision(self, data: Tensor, lengths: Tensor | None, sequences: int | None) -> Decision:
        """What runs a call: of `data` (T, B, D), or of packed rows of so many sequences."""
        return choose(
            self._cell,
            data,
            self._weights,
            self.proj_size > 0,
            lengths,
            self.backend,
            self._extras,
            sequences,
            self.num_layers,
            self._directions,
        )

    __prepare_scriptable__ = refuse_scripting

    def _run(
        self,
        input: Tensor | PackedSequence,
        hx: States | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        hx_reset: States | None,
    ) -> tuple[Tensor | PackedSequence, States]:
        """Check, bring into (T, B, D), run, and bring back."""
        name = type(self).__name__
        packed = input if isinstance(input, PackedSequence) else None
        data = packed.data if packed is not None else input
        if not is_tensor(data):
            raise TypeError(
                f"{name}: expected a tensor or a PackedSequence, got {type(data).__name__}"
            )
        if lengths is not None and not isinstance(lengths, Tensor):
            raise TypeError(
                f"{name}: expected lengths to be a tensor of integers, got {type(lengths).__name__}"
            )
        # Attributes of a module are slow to look up: once a call.
        weights = self._dropped_weights()
        check_dtype(data, weights[0])
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
        if resets is not None or hx_reset is not None:
            kind = "packed" if packed is not None else "padded" if batched else "unbatched"
            resets = checked_resets(name, resets, hx_reset is not None, kind, data)
        if not batched:
            data = data.unsqueeze(1)
        elif packed is None and self.batch_first:
            data = data.transpose(0, 1)
            resets = None if resets is None else resets.transpose(0, 1)
        batch = sequences(packed.batch_sizes) if packed is not None else data.shape[1]
        if exports_to_onnx():
            number = None if packed is None else batch
            refuse_onnx(self, self._decision(data, lengths, number).engine)
        layers = self.num_layers * self._directions
        sizes = (self._output_size, self.hidden_size)[: self._states]
        shapes = [(layers, batch, size) for size in sizes]
        order = None if packed is None else packed.sorted_indices
        if hx is None:
            hx = tuple(data.new_zeros(shape) for shape in shapes)
        else:
            hx = checked_state(data, hx, shapes, batched, order)
        if hx_reset is not None:
            check_reset_state(data, hx_reset, [(layers, size) for size in sizes])
        output, last = recurrent(
            self._cell,
            data,
            hx,
            weights,
            has_biases=self.bias,
            has_projections=self.proj_size > 0,
            num_layers=self.num_layers,
            dropout=self.dropout,
            training=self.training,
            bidirectional=self.bidirectional,
            batch_sizes=None if packed is None else packed.batch_sizes,
            lengths=lengths,
            backend=self.backend,
            extras=self._extras,
            order=order,
            resets=resets,
            hx_reset=hx_reset,
        )
        if packed is not None:
            if packed.unsorted_indices is not None:
                last = tuple(value.index_select(1, packed.unsorted_indices) for value in last)
            # Not `_replace`: Dynamo forgets what else a PackedSequence holds.
            return PackedSequence(output, *packed[1:]), last
        if not batched:
            return output.squeeze(1), tuple(value.squeeze(1) for value in last)
        return output.transpose(0, 1) if self.batch_first else output, last
