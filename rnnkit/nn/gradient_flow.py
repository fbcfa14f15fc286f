r"""How gradients fade, or grow, on their way back through the steps of a recurrent layer.

With the state s_t = h_t, or the pair (h_t, c_t), and a loss L, what reaches step t is

    L = u^T s_T           ‖∂L/∂s_t‖ = ‖u^T ∂s_T/∂s_t‖ = ‖u^T ∂s_T/∂s_{T-1} ··· ∂s_{t+1}/∂s_t‖

for a unit vector u, drawn once for each sequence. It is at most the 2-norm of that Jacobian, and
one backward pass tells it for all t, where the Jacobians themselves take as many as s has units. Of
an Elman network a Jacobian is diag(φ'(a)) R, so that (Pascanu et al. 2013, arXiv 1211.5063)

    ‖∂h_T/∂h_t‖ ≤ (σ_max(R) · max φ')^{T-t}

with the largest singular value of R: it is no bound with the largest eigenvalue. Of an LSTM

    ∂c_T/∂c_t = diag(f_T ⊙ ··· ⊙ f_{t+1}) + what flows through the gates, which read h
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rnnkit.nn.base import Recurrent
from rnnkit.nn.recurrent import RNN
from rnnkit.nn.states import watch_states
from rnnkit_kernels.functional import LayerStates

Loss = Literal["last", "sum", "cell"]

_FORGET_GATE = {"lstm": 1, "lstm_peephole": 1, "lstm_coupled": 0, "lstm_coupled_peephole": 0}


@dataclass(frozen=True)
class Flow:
    """The norms of what reaches the states of one layer in one direction.

    Attributes:
        layer: Its number, 0 for the first.
        direction: 0 for the one that runs forward in time, 1 for the other. Steps are in the order
            in which the direction takes them, so the last one comes last.
        hidden: ‖∂L/∂h_t‖ of every sequence, (T, B).
        cell: ‖∂L/∂c_t‖, (T, B); None for cells without c.
        real: Whether a sequence has the step, bool (T, B).
    """

    layer: int
    direction: int
    hidden: Tensor
    cell: Tensor | None
    real: Tensor

    @property
    def both(self) -> Tensor:
        """‖∂L/∂(h_t, c_t)‖, (T, B)."""
        return self.hidden if self.cell is None else self.hidden.hypot(self.cell)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the sequences that have a step, (T,), NaN where none has.

        The last step of every sequence comes last, so that what is as far from a loss at the end
        stands side by side.
        """
        steps = len(values)
        lengths = self.real.sum(0)
        back = torch.arange(steps - 1, -1, -1, device=values.device)[:, None]
        found = values.gather(0, (lengths - 1 - back).clamp(min=0))
        return torch.where(back < lengths, found, torch.nan).nanmean(1)


def flows(states: LayerStates) -> list[Flow]:
    """The norms of the gradients of a layer that was watched, one entry a direction."""
    steps, batch = states.hidden_gradient.shape[:2]
    step = torch.arange(steps, device=states.hidden_gradient.device)[:, None]
    real = torch.ones(steps, batch, dtype=torch.bool, device=step.device)
    if states.lengths is not None:
        real = step < states.lengths.to(step.device)
    hidden = torch.linalg.vector_norm(states.hidden_gradient, dim=-1)  # (T, B, M)
    cell = states.cell_gradient
    cell = None if cell is None else torch.linalg.vector_norm(cell, dim=-1)
    found = []
    for m in range(states.directions):
        turned = torch.where(real, real.sum(0) - 1 - step, step)  # the last real step comes first
        norms, of_cell = hidden[..., m], None if cell is None else cell[..., m]
        if m == 1:
            norms = norms.gather(0, turned)
            of_cell = None if of_cell is None else of_cell.gather(0, turned)
        found.append(Flow(states.layer, m, norms, of_cell, real))
    return found


def unit_vectors(
    sizes: Sequence[int], batch: int, like: Tensor, generator: torch.Generator | None = None
) -> list[Tensor]:
    """Vectors of length 1 in the space of all parts of a state together, (B, size) each."""
    drawn = torch.randn(batch, sum(sizes), generator=generator, dtype=torch.float64)
    drawn = drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)
    return list(drawn.to(like).split(list(sizes), dim=1))


def gradient_flow(
    layer: Recurrent,
    input: Tensor,
    loss: Loss = "last",
    generator: torch.Generator | None = None,
    vectors: Sequence[Tensor] | None = None,
    lengths: Tensor | None = None,
) -> list[Flow]:
    """What reaches the states of every step, from a loss of the topmost layer's last state.

    One forward and one backward pass through the fused layers. Over 100 steps norms may fall below
    what float32 holds: float64 shows them.

    Args:
        layer: Of rnnkit, with any number of layers and directions, in evaluation mode or without
            dropout.
        input: (T, B, D), or (B, T, D) with batch_first.
        loss: last: u^T (h_T, c_T), or u^T h_T without c. sum: Σ_t u^T h_t, at every step. cell:
            u^T c_T.
        generator: Draws u; None: torch's own.
        vectors: u instead of drawn ones, the topmost layer's parts of the state, (B, ·) each; those
            of both directions side by side.
        lengths: Of the sequences, integers (B,), as the layer takes them; None: all have T steps.

    Returns:
        One entry for each layer and direction, the lowest layer first.

    Raises:
        ValueError: loss cell of a layer without c.

    Example:
        >>> layer = rnnkit.LSTM(3, 8).double()
        >>> (flow,) = gradient_flow(layer, torch.randn(100, 4, 3, dtype=torch.float64))
        >>> flow.both.shape
        torch.Size([100, 4])
    """
    has_cell = layer._states == 2
    if loss == "cell" and not has_cell:
        raise ValueError(
            f"loss cell is one of the cell state c, and {type(layer).__name__} has none: use last"
        )
    with torch.enable_grad(), watch_states(layer) as watched:
        output, last = layer(input, lengths=lengths)
        tops = [_topmost(layer, each) for each in (last if has_cell else (last,))]
        over_steps = output.sum(1 if layer.batch_first else 0)  # u is the same at all of them
        parts = {"last": tops, "cell": tops[1:], "sum": [over_steps]}[loss]
        if vectors is None:
            sizes = [part.shape[1] for part in parts]
            vectors = unit_vectors(sizes, tops[0].shape[0], tops[0], generator)
        total = torch.stack(
            [(u * part).sum() for u, part in zip(vectors, parts, strict=True)]
        ).sum()
    torch.autograd.grad(total, list(layer.parameters()), allow_unused=True)
    return [flow for entry in watched[""] for flow in flows(entry)]


def jacobian_norms(layer: Recurrent, input: Tensor) -> Tensor:
    """‖∂s_T/∂s_t‖, the 2-norm of each Jacobian of the topmost layer itself, float (T,).

    One backward pass over as many copies of the sequence as its state has units.

    Args:
        layer: As for `gradient_flow`, in one direction.
        input: A single sequence, (T, 1, D), or (1, T, D) with batch_first.

    Raises:
        ValueError: Another number of sequences than one, or a layer in both directions.
    """
    sequences = input.shape[0 if layer.batch_first else 1]
    if sequences != 1 or layer.bidirectional:
        raise ValueError(
            "expected one sequence and one direction for the norm of a Jacobian, got "
            f"{sequences} sequences and {1 + layer.bidirectional} directions"
        )
    sizes = [layer.proj_size or layer.hidden_size, layer.hidden_size][: layer._states]
    units = sum(sizes)
    unit = torch.eye(units, dtype=input.dtype, device=input.device)
    copies = input.expand(*((units, -1, -1) if layer.batch_first else (-1, units, -1)))
    with torch.enable_grad(), watch_states(layer) as watched:
        _, last = layer(copies)
        tops = [_topmost(layer, each) for each in (last if layer._states == 2 else (last,))]
        total = (unit * torch.cat(tops, 1)).sum()
    torch.autograd.grad(total, list(layer.parameters()), allow_unused=True)
    entry = watched[""][-1]
    parts = [entry.hidden_gradient, entry.cell_gradient]
    jacobians = torch.cat([part[:, :, 0] for part in parts if part is not None], 2)  # (T, out, in)
    norms: Tensor = torch.linalg.matrix_norm(jacobians, 2)
    return norms


def elman_bound(layer: Recurrent, steps: int) -> Tensor:
    """(σ_max(R) · max φ')^{T-t} of the topmost layer for t = 1 ... T, (T,); max φ' is 1.

    With `residual` a Jacobian is that and I, and the factor 1 + σ_max(R).

    Raises:
        ValueError: The layer is no Elman network.
    """
    if not isinstance(layer, RNN):
        raise ValueError(
            f"expected an Elman network (rnnkit.RNN), whose Jacobian is diag(φ'(a)) R, got "
            f"{type(layer).__name__}"
        )
    weight = getattr(layer, f"weight_hh_l{layer.num_layers - 1}").detach()
    largest: Tensor = torch.linalg.matrix_norm(weight, 2)
    return (largest + layer.residual) ** torch.arange(steps - 1, -1, -1, device=weight.device)


def forget_products(states: LayerStates, vectors: Tensor) -> Tensor:
    """‖u ⊙ f_T ⊙ ··· ⊙ f_{t+1}‖, what c_T hands back to c_t through the forget gates alone, (T, B).

    Args:
        states: Of a watched LSTM, with its gates; the direction that runs forward in time.
        vectors: u, (B, H).

    Raises:
        ValueError: The layer has no forget gate, or kept no gates.
    """
    if states.cell not in _FORGET_GATE or states.saved is None:
        raise ValueError(f"expected an LSTM that keeps its gates, got {states.cell}")
    gates = states.saved[:, :, 0, _FORGET_GATE[states.cell]]  # (T, B, H)
    later = torch.cat([gates[1:], torch.ones_like(gates[:1])])
    products = later.flip(0).cumprod(0).flip(0)
    norms: Tensor = torch.linalg.vector_norm(vectors * products, dim=-1)
    return norms


def _topmost(layer: Recurrent, state: Tensor) -> Tensor:
    """(B, directions·H) of the last states (L·directions, B, H)."""
    return state[-(1 + layer.bidirectional) :].transpose(0, 1).flatten(1)
