r"""A deep recurrent network: layers on top of each other, with paths around them and norms.

    y_0 = x,  f_l the recurrent layer l over all steps, l = 1..L

    plain       y_l = f_l(y_{l-1})
    residual    y_l = f_l(y_{l-1}) + y_{l-1}
    highway     y_l = T_l ⊙ f_l(y_{l-1}) + (1 − T_l) ⊙ y_{l-1}
    dense       y_l = f_l([y_0; y_1; ...; y_{l-1}])

The output is y_L. With a norm N and dropout d, f_l reads d(N_l(·)) in place of ·, the first layer
N_1(x); what goes around a layer is neither normalised nor dropped, so that it reaches every depth
as it is (as in Xiong et al. 2020, arXiv 2002.04745, norms inside of the residual path).

Residual: Wu et al. 2016 (arXiv 1609.08144), He et al. 2016 (arXiv 1512.03385). Highway: Srivastava
et al. 2015 (arXiv 1505.00387). Dense: Huang et al. 2017 (arXiv 1608.06993), Ding et al. 2018 (arXiv
1802.00889).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnkit.nn.base import Recurrent
from rnnkit.nn.connections import ConnectionName, Highway, NormName, Residual, StepBatchNorm
from rnnkit.nn.dropout import LockedDropout
from rnnkit.nn.inputs import is_tensor
from rnnkit.nn.layer_states import apart, together
from rnnkit.nn.options import check_dropout, check_flag, check_size
from rnnkit.nn.tag_paths import real_steps
from rnnkit.nn.tracing import recorded_call
from rnnkit.nn.truncation import State, Truncation

CONNECTIONS = {"residual": Residual, "highway": Highway}
NORMS = {"layer": nn.LayerNorm, "batch": StepBatchNorm}


class Stack(nn.Module):
    """Recurrent layers on top of each other, called as one of them is.

    With `connection="plain"`, no norm, layers of one width and no locked dropout it holds one
    layer of rnnkit's with `num_layers`, and calls that. Else it has one for every layer.

    Args:
        cell: `rnnkit.LSTM`, `GRU` or `RNN`.
        input_size: D.
        hidden_sizes: H of every layer, the first one's first.
        connection: How a layer's output goes on: plain, residual, highway or dense. Residual: where
            a layer gives another width than it reads, as the first one with D ≠ H or with both
            directions, a learned matrix without a bias is between. Highway: such a layer is
            refused. Dense: layer l reads D + (l − 1) H, and the output is the last layer's alone.
        norm: Of what each layer reads, the first one included: layer (`nn.LayerNorm`), batch
            (`rnnkit.nn.connections.StepBatchNorm`, which says what it costs) or None.
        dropout: Probability to drop an element of what every layer but the first reads, while
            training.
        locked_dropout: Whether the same elements are dropped at all steps of a sequence.
        batch_first: Whether input and output are (B, T, ·) instead of (T, B, ·).
        bidirectional: Whether each layer also runs backwards in time.
        device: Where the parameters lie.
        dtype: Of the parameters.
        options: More of `cell`, for every layer: `weight_drop`, `zoneout`, `backend`, ...

    Raises:
        TypeError, ValueError: An argument is none of those, or a highway has layers that give
            another width than they read.

    Example:
        >>> stack = Stack(rnnkit.LSTM, 10, [20, 20, 20], connection="residual", norm="layer")
        >>> output, (h_n, c_n) = stack(torch.randn(5, 3, 10), lengths=torch.tensor([5, 0, 2]))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([3, 3, 20]))
    """

    def __init__(
        self,
        cell: Callable[..., Recurrent],
        input_size: int,
        hidden_sizes: Sequence[int],
        connection: ConnectionName = "plain",
        norm: NormName | None = None,
        *,
        dropout: float = 0.0,
        locked_dropout: bool = False,
        batch_first: bool = False,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not isinstance(hidden_sizes, Sequence) or not hidden_sizes:
            raise ValueError(
                f"expected hidden_sizes with one size for every layer, got {hidden_sizes!r}"
            )
        check_size("input_size", input_size)
        for size in hidden_sizes:
            check_size("hidden_sizes", size)
        if connection not in get_args(ConnectionName):
            raise ValueError(
                f"expected connection plain, residual, highway or dense, got {connection!r}"
            )
        if norm is not None and norm not in get_args(NormName):
            raise ValueError(f"expected norm layer, batch or None, got {norm!r}")
        check_flag("locked_dropout", locked_dropout)
        check_flag("batch_first", batch_first)
        self.input_size = input_size
        self.hidden_sizes = tuple(hidden_sizes)
        self.num_layers = len(hidden_sizes)
        self.connection = connection
        self.norm = norm
        self.batch_first = batch_first
        self.directions = 2 if bidirectional else 1
        self.equal_sizes = len(set(hidden_sizes)) == 1
        placed: dict[str, Any] = {"device": device, "dtype": dtype}
        options = {"bidirectional": bidirectional, **placed, **options}
        projected = options.get("proj_size", 0)
        widths = [(projected or size) * self.directions for size in hidden_sizes]
        self.output_size = widths[-1]
        dropout = check_dropout(dropout)
        self.layers = nn.ModuleList()
        self.fused = connection == "plain" and norm is None and self.equal_sizes
        self.fused = self.fused and (self.num_layers == 1 or not locked_dropout)
        if self.fused:
            between = dropout if self.num_layers > 1 else 0.0  # of one layer torch.nn warns
            options |= {"batch_first": batch_first, "dropout": between}
            self.layers.append(cell(input_size, hidden_sizes[0], self.num_layers, **options))
            return
        self.dropout = LockedDropout(dropout) if locked_dropout else nn.Dropout(dropout)
        self.norms, self.connections = nn.ModuleList(), nn.ModuleList()
        read = input_size
        for size, width in zip(hidden_sizes, widths, strict=True):
            if norm is not None:
                self.norms.append(NORMS[norm](read, **placed))
            layer = cell(read, size, **options)
            self.layers.append(layer)
            if connection in CONNECTIONS:
                self.connections.append(CONNECTIONS[connection](read, width, **placed))
            read = read + width if connection == "dense" else width
        self._is_pair: bool = layer._states == 2

    def simplified(self) -> Recurrent | Stack:
        """The one layer that a stack holds which is nothing else, or the stack itself.

        Its parameters then have the names that they have in that layer.
        """
        return cast(Recurrent, self.layers[0]) if self.fused else self

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        hx_reset: State | None = None,
        truncation: Truncation | None = None,
    ) -> tuple[Any, State]:
        """Run all layers.

        Args:
            input: (T, B, D), (B, T, D) with `batch_first`, (T, D) unbatched, or a PackedSequence.
            hx: The layers' states, shaped as `rnnkit.LSTM` has them with `num_layers`:
                h0 (L·directions, B, H), and for an LSTM a pair of it and c0; where the layers have
                several sizes, a tuple with a state for each, (directions, B, H), which may be given
                in any case. Zeros if left out.
            lengths: Integers (B,): steps of each sequence that are real.
            resets: Booleans (T, B), or (B, T) with `batch_first`: where a sequence begins anew.
            hx_reset: The state after a reset, as `hx` without the batch.
            truncation: Where to cut gradients, of all layers alike, for an input (T, B, D) without
                the three above; None: nowhere.

        Returns:
            Output of the last layer (T, B, directions·H), zero past each length, shaped and packed
            as the input; and the states after the last step, as `hx`. They are the layers' own:
            what goes around a layer is in no state.

        Raises:
            TypeError, ValueError, RuntimeError: As the layers raise them; or a truncation goes with
                what it has no part in, or norm batch has fewer than two real steps in training.
        """
        options = {"lengths": lengths, "resets": resets, "hx_reset": hx_reset}
        given: dict[str, Any] = {name: each for name, each in options.items() if each is not None}
        packed = input if isinstance(input, PackedSequence) else None
        if truncation is not None and (given or packed is not None or self.batch_first):
            raise ValueError(
                "truncation cuts windows (T, B, D), whose steps are all real: it takes no "
                "batch_first, no PackedSequence, no lengths and no resets"
            )
        if self.fused:
            layer = next(iter(self.layers))
            if truncation is None:
                return layer(input, hx, **given)  # type: ignore[no-any-return]
            return truncation.run(layer, cast(Tensor, input), hx)
        node = recorded_call(self, input, hx, **options)
        if node is not None:
            return node  # type: ignore[no-any-return]
        data = self._checked(input if packed is None else packed.data)
        flipped = self.batch_first and packed is None and data.dim() == 3
        if flipped:
            data = data.transpose(0, 1)
            if isinstance(resets, Tensor) and resets.dim() == 2:
                given["resets"] = resets.transpose(0, 1)
        rows = None
        # What are no lengths for this input, the first layer refuses.
        if isinstance(lengths, Tensor) and data.dim() == 3 and lengths.shape == data.shape[1:2]:
            real = real_steps(lengths, data.shape[0])  # (T, B)
            # So that padding stays zero on the way around the layers.
            data = data.masked_fill(~real.to(data.device, non_blocking=True).unsqueeze(2), 0)
            if self.norm == "batch":
                # Where the lengths are: on the CPU, nobody has to wait for a device.
                rows = real.flatten().nonzero().squeeze(1).to(data.device, non_blocking=True)
        shape = (self.hidden_sizes, self.directions, self._is_pair)
        first, anew = apart(hx, *shape), apart(hx_reset, *shape)
        earlier, states = [data], []
        for index, layer in enumerate(self.layers):
            if anew[index] is not None:
                given["hx_reset"] = anew[index]
            below = torch.cat(earlier, -1) if self.connection == "dense" else earlier[-1]
            read: Any = self._read(index, below, rows, packed)
            if packed is not None:
                # Not `_replace`: Dynamo forgets what else a PackedSequence holds.
                read = PackedSequence(read, *packed[1:])
            if truncation is None:
                output, state = layer(read, first[index], **given)
            else:
                output, state = truncation.run(layer, read, first[index])
            output = output if packed is None else output.data
            if self.connections:
                output = self.connections[index](output, below)
            earlier.append(output)
            states.append(state)
        output, last = earlier[-1], together(states) if self.equal_sizes else tuple(states)
        if packed is not None:
            return PackedSequence(output, *packed[1:]), last
        return output.transpose(0, 1) if flipped else output, last

    def _checked(self, data: Any) -> Tensor:
        """Refuse what the first layer refuses, before anything else reads it."""
        if not is_tensor(data):
            raise TypeError(
                f"Stack: expected a tensor or a PackedSequence, got {type(data).__name__}"
            )
        if data.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got "
                f"{data.shape[-1]}"
            )
        return data

    def _read(
        self, index: int, below: Tensor, rows: Tensor | None, packed: PackedSequence | None
    ) -> Tensor:
        """What a layer reads: what is below it, normalised and dropped."""
        if self.norm == "batch":
            below = self.norms[index](below, rows)
        elif self.norm == "layer":
            below = self.norms[index](below)
        if index == 0:
            return below
        if packed is None or isinstance(self.dropout, nn.Dropout):
            return self.dropout(below)  # type: ignore[no-any-return]
        # A row is a step of one sequence, and every sequence has one mask.
        sizes = packed.batch_sizes.tolist()
        masks: Tensor = self.dropout(below.new_ones(1, sizes[0], below.shape[-1])).squeeze(0)
        sequences = torch.cat([torch.arange(size) for size in sizes])
        return below * masks.index_select(0, sequences.to(below.device))

    def extra_repr(self) -> str:
        """What is between the layers."""
        norm = "" if self.norm is None else f", norm={self.norm!r}"
        return f"connection={self.connection!r}{norm}" + ", batch_first=True" * self.batch_first
