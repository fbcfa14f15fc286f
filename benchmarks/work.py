"""The tensors of one case, the same for every peer, and what a peer makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rnnkit_kernels.cells import CELLS

from .cases import DTYPES, Case


@dataclass
class Work:
    """A case in one cell and dtype on one device, filled with random numbers.

    Attributes:
        case: the shape.
        cell: "lstm", "gru", "rnn_tanh" or "rnn_relu".
        dtype: a key of `DTYPES`.
        x: (T, B, D); what lies past a length is zero.
        states: h0, and c0 for the LSTM: (L·directions, B, H).
        weights: as torch.nn names and orders them.
        lengths: int64 (B,) on the CPU, or None where all are T.
        resets: bool (T, B), where sequences begin anew with a state of zeros, or None.
        arriving: gradients of the output (T, B, directions·H), of h_n, and of c_n; of the output
            alone where there are resets, for it is all that a policy learns from.
    """

    case: Case
    cell: str
    dtype: str
    x: Tensor
    states: list[Tensor]
    weights: dict[str, Tensor]
    lengths: Tensor | None
    resets: Tensor | None
    arriving: list[Tensor]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.x.device

    @classmethod
    def of(cls, case: Case, cell: str, dtype: str, device: torch.device, seed: int = 0) -> Work:
        """Draw the tensors; every dtype and device gets the same numbers, rounded."""
        generator = torch.Generator().manual_seed(seed)
        kind, _ = DTYPES[dtype]

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        lengths = torch.tensor(case.lengths()) if case.ragged else None
        members = case.layers * case.directions
        state = (members, case.batch, case.hidden)
        count = 1 + CELLS[cell].has_cell_state
        weights = {
            name: (torch.rand(shape, generator=generator) * 2 - 1) * case.hidden**-0.5
            for name, shape in _shapes(case, CELLS[cell].gates_at[-1]).items()
        }
        x = draw(case.steps, case.batch, case.features)
        states = [draw(*state) for _ in range(count)]
        arriving = [draw(case.steps, case.batch, case.directions * case.hidden)]
        arriving += [draw(*state) for _ in range(count)]
        resets = None
        if case.reset_every:
            shape = (case.steps, case.batch)
            resets = torch.rand(shape, generator=generator) < 1 / case.reset_every
            arriving = arriving[:1]
        if lengths is not None:
            beyond = torch.arange(case.steps)[:, None] >= lengths
            for padded in (x, arriving[0]):
                padded[beyond] = 0
        tensors = (x, states, weights, lengths, resets, arriving)
        return cls(case, cell, dtype, *tensors).to(device, kind)

    def to(self, device: torch.device, dtype: torch.dtype) -> Work:
        """The same work elsewhere, or in another dtype; the tensors are copies."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype, copy=True)

        return Work(
            self.case,
            self.cell,
            self.dtype,
            moved(self.x),
            [moved(state) for state in self.states],
            {name: moved(weight) for name, weight in self.weights.items()},
            self.lengths,
            None if self.resets is None else self.resets.to(device),
            [moved(gradient) for gradient in self.arriving],
        )


def _shapes(case: Case, gates: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    rows = gates * case.hidden
    for layer in range(case.layers):
        width = case.features if layer == 0 else case.directions * case.hidden
        for suffix in ("", "_reverse")[: case.directions]:
            at = f"_l{layer}{suffix}"
            shapes |= {f"weight_ih{at}": (rows, width), f"weight_hh{at}": (rows, case.hidden)}
            shapes |= {f"bias_ih{at}": (rows,), f"bias_hh{at}": (rows,)}
    return shapes


Convert = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass
class Prepared:
    """A peer with the work laid out as it likes it: what is in `run` is in the clock.

    Attributes:
        run: computes the results: output and final states, in the peer's own layout.
        leaves: what gets a gradient: input, initial states and weights, in the peer's own layout.
        arriving: gradients of the results.
        engine: what runs underneath.
        results_as_torch: turns the results into torch.nn's: output, h_n, c_n.
        gradients_as_torch: turns the leaves' gradients into those of x, h0, c0 and the weights in
            torch.nn's order.
    """

    run: Callable[[], Sequence[Tensor]]
    leaves: list[Tensor]
    arriving: list[Tensor]
    engine: str = ""
    results_as_torch: Convert = field(default=list)
    gradients_as_torch: Convert = field(default=list)

    def call(self, mode: str) -> None:
        """One call of what is timed."""
        if mode == "inference":
            with torch.no_grad():
                self.run()
            return
        results = self.run()
        if mode == "train":
            torch.autograd.grad(list(results), self.leaves, self.arriving)

    def everything(self, mode: str) -> list[Tensor]:
        """The results, and in mode "train" all gradients, as torch.nn has them."""
        if mode == "inference":
            with torch.no_grad():
                return self.results_as_torch(self.run())
        results = self.run()
        found = self.results_as_torch([tensor.detach() for tensor in results])
        if mode == "train":
            gradients = torch.autograd.grad(list(results), self.leaves, self.arriving)
            found += self.gradients_as_torch(gradients)
        return found


def layer_of(kind: type[Any], work: Work, **options: Any) -> Any:
    """A layer with torch.nn's constructor and parameters, in the work's shape, with its weights."""
    case = work.case
    layer = kind(
        case.features,
        case.hidden,
        case.layers,
        bidirectional=case.directions == 2,
        device=work.device,
        dtype=work.x.dtype,
        **options,
    )
    layer.load_state_dict(work.weights)
    return layer


def leaves_of(layer: nn.Module, work: Work) -> list[Tensor]:
    """Input and states as leaves of a graph, and the parameters of a layer named as torch's."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (work.x, *work.states)]
    return [*inputs, *layer.parameters()]


@contextmanager
def products_in(dtype: str) -> Iterator[None]:
    """Make float32 products as a key of `DTYPES` says, in layers and in plain products alike."""
    _, precision = DTYPES[dtype]
    flags: list[Any] = [torch.backends.cudnn.rnn, torch.backends.cuda.matmul]
    before = [flag.fp32_precision for flag in flags]
    try:
        for flag in flags:
            flag.fp32_precision = precision
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.fp32_precision = value
