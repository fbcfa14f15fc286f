"""Random layers, in the order of the operator's inputs, and the rule for errors."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rnnkit_kernels import reference
from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.ops.recurrence import recurrence
from rnnkit_kernels.recurrence.rows import Rows

BAND = 8  # units in the last place of the largest value, beside twice the plain loop's own error


@dataclass
class Layer:
    """One layer's inputs, the zoneout mask last, and what arrives at its results."""

    cell: str
    inputs: list[Tensor | None]
    rows: Rows
    reverse: bool
    gradients: list[Tensor]

    def to(self, dtype: torch.dtype) -> "Layer":
        """A copy in another dtype, its inputs leaves, but for the mask, which has no gradient."""
        inputs = [None if t is None else t.detach().to(dtype) for t in self.inputs]
        for tensor in inputs[:-1]:
            if tensor is not None:
                tensor.requires_grad_()
        gradients = [t.to(dtype) for t in self.gradients]
        return Layer(self.cell, inputs, self.rows, self.reverse, gradients)

    def run(self, mode: str, recompute: bool = False) -> list[Tensor]:
        """Results and all gradients, by an engine of the operator or by the definition."""
        if mode == "reference":
            y, h_n, c_n = reference.layer(self.cell, self.inputs, self.rows, self.reverse)
            results = [y, h_n] if c_n is None else [y, h_n, c_n]
        else:
            y, h_n, c_n, _, _ = recurrence(
                *self.operator_inputs(), self.cell, self.reverse, mode, True, recompute
            )
            results = [y, h_n[0], c_n[0]] if CELLS[self.cell].has_cell_state else [y, h_n[0]]
        return [*results, *torch.autograd.grad(results, self.leaves(), self.gradients)]

    def operator_inputs(self) -> list[Tensor | None]:
        """The tensors that `recurrence` takes: with a leading dimension of one direction."""
        x, *others, zoneout = self.inputs
        led = [None if tensor is None else tensor[None] for tensor in others]
        mask = None if zoneout is None else zoneout[:, None]
        return [x, *led, mask, self.rows.batch_sizes, self.rows.offsets]

    def leaves(self) -> list[Tensor]:
        """The inputs that have a gradient, in their order."""
        return [tensor for tensor in self.inputs[:-1] if tensor is not None]


def random_layer(
    cell: str,
    storage: str = "dense",
    reverse: bool = False,
    hidden: int = 20,
    features: int = 7,
    batch: int = 3,
    projection: int = 0,
    bias: bool = True,
    seed: int = 0,
    zoneout: bool = False,
    lengths: list[int] | None = None,
    steps: int = 5,
) -> Layer:
    """A layer in float64 with weights of the usual scale and five steps.

    Args:
        cell: a key of `CELLS`.
        storage: "dense", "packed" (lengths 5, 3, 2, ...) or "padded" (with an empty sequence).
        zoneout: whether some states are kept, some renewed and some mixed.
        lengths: others than these, falling, none above `steps`, and with zeros if padded.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    kind = CELLS[cell]
    gates, states = kind.gates_at[-1], 1 + kind.has_cell_state
    out = projection or hidden
    rows = Rows(steps, batch)
    shape: tuple[int, ...] = (steps, batch)
    if storage != "dense":
        if lengths is None:
            lengths = [5, 3, 2, *[1] * batch][:batch]
            lengths[-1] = 0 if storage == "padded" else lengths[-1]
        sizes = (torch.tensor(lengths) > torch.arange(steps)[:, None]).sum(1)
        offsets = sizes.cumsum(0) - sizes
        shape = (int(sizes.sum()),)
        if storage == "padded":
            offsets, shape = torch.arange(steps) * batch, (steps * batch,)
        rows = Rows(steps, batch, sizes, offsets)
    scale = hidden**-0.5
    inputs = [
        draw(*shape, features),
        draw(gates * hidden, features) * scale,
        draw(gates * hidden, out) * scale,
        draw(gates * hidden) * scale if bias else None,
        draw(gates * hidden) * scale if bias else None,
        draw(projection, hidden) * scale if projection else None,
        draw(kind.weights, hidden) if kind.weights else None,
        draw(batch, out),
        draw(batch, hidden) if kind.has_cell_state else None,
        draw(math.prod(shape), states, hidden).clamp(0, 1) if zoneout else None,
    ]
    gradients = [draw(*shape, out), draw(batch, out)]
    if kind.has_cell_state:
        gradients.append(draw(batch, hidden))
    return Layer(cell, inputs, rows, reverse, gradients).to(torch.float64)


def assert_as_exact_as_a_plain_loop(layer: Layer, mode: str, dtype: torch.dtype) -> None:
    """Error against float64 ≤ 2 × that of the plain loop in the same dtype, plus a small band."""
    low = layer.to(dtype)
    exact = low.to(torch.float64).run("reference")
    plain = low.run("reference")
    assert_as_exact(low.run(mode), plain, exact, dtype)


def assert_as_exact(
    ours: list[Tensor], plain: list[Tensor], exact: list[Tensor], dtype: torch.dtype
) -> None:
    """The rule itself, on results in `dtype` twice and in float64."""
    assert len(ours) == len(exact)
    for i, (a, b, c) in enumerate(zip(ours, plain, exact, strict=True)):
        assert a.dtype == dtype
        assert a.shape == c.shape
        error, allowed = (a - c).abs().max(), 2 * (b - c).abs().max()
        band = BAND * torch.finfo(dtype).eps * c.abs().max()
        assert error <= allowed + band, f"result {i}: {error:.2e} > {allowed:.2e} + {band:.2e}"
