"""The equations written as a loop over steps: plain, and compiled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..work import Prepared, Work

# Compiling unrolls the loop: more steps take minutes.
COMPILED_STEPS = 32


def step(
    cell: str, x_gates: Tensor, h: Tensor, c: Tensor | None, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor | None]:
    """One step as torch.nn's documentation has it: x_gates (B, G·H), h and c (B, H)."""
    h_gates = linear(h, weight, bias)
    if cell == "gru":
        (x_r, x_z, x_n), (h_r, h_z, h_n) = x_gates.chunk(3, 1), h_gates.chunk(3, 1)
        reset, keep = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        return (1 - keep) * torch.tanh(x_n + reset * h_n) + keep * h, None
    if c is None:
        return getattr(torch, cell.removeprefix("rnn_"))(x_gates + h_gates), None
    i, f, g, o = (x_gates + h_gates).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def run(
    cell: str,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    layers: int,
    directions: int,
    lengths: Tensor | None,
    resets: Tensor | None = None,
    ahead: bool = True,
) -> list[Tensor]:
    """A stack: output (T, B, directions·H), zero past each length, and the final states.

    With `resets`, one way alone, there are no final states. With `ahead` the input's product is
    made for all steps before the loop.
    """
    steps = x.shape[0]
    inside = None
    if lengths is not None:
        inside = (torch.arange(steps)[:, None] < lengths).to(x.device).unsqueeze(-1)
    last: list[list[Tensor]] = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            member = layer * directions + direction
            weight_ih, weight_hh, bias_ih, bias_hh = weights[4 * member : 4 * member + 4]
            # Unbound: the gradient of each x_gates[t] would be as large as x_gates.
            x_gates = linear(x, weight_ih, bias_ih).unbind(0) if ahead else None
            h = states[0][member]
            c = states[1][member] if len(states) > 1 else None
            found: list[Tensor] = [h] * steps
            for t in reversed(range(steps)) if direction else range(steps):
                if resets is not None:
                    anew = resets[t].unsqueeze(-1)
                    h = h.masked_fill(anew, 0)
                    c = None if c is None else c.masked_fill(anew, 0)
                gates = linear(x[t], weight_ih, bias_ih) if x_gates is None else x_gates[t]
                new_h, new_c = step(cell, gates, h, c, weight_hh, bias_hh)
                if inside is not None:
                    # Past its length a sequence keeps its state; backwards it has not begun.
                    new_h = torch.where(inside[t], new_h, h)
                    new_c = None if new_c is None or c is None else torch.where(inside[t], new_c, c)
                h, c = new_h, new_c
                found[t] = h
            output = torch.stack(found)
            outputs.append(output if inside is None else output * inside)
            last.append([h] if c is None else [h, c])
        x = torch.cat(outputs, 2)
    if resets is not None:
        return [x]
    return [x, *(torch.stack(parts) for parts in zip(*last, strict=True))]


class Loop:
    """The loop as it stands, or under torch.compile.

    Args:
        compiled: whether to compile it.
        ahead: whether the input's product is made for all steps at once.
    """

    def __init__(self, compiled: bool, ahead: bool = True) -> None:
        self.compiled, self.ahead = compiled, ahead
        self.name = "torch.compile of a loop" if compiled else "loop in PyTorch"

    def absent(self, work: Work) -> str | None:
        """Long loops can't be compiled in any time that a user would wait."""
        if self.compiled and work.case.steps > COMPILED_STEPS:
            return f"compiling unrolls the loop: at most {COMPILED_STEPS} steps"
        return None

    def prepare(self, work: Work, mode: str) -> Prepared:
        """The loop over the tensors of the work."""
        tensors = (work.x, *work.states, *work.weights.values())
        leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
        states, weights = leaves[1 : 1 + len(work.states)], leaves[1 + len(work.states) :]
        call = run
        if self.compiled:
            torch.compiler.reset()  # or after eight shapes the next would run uncompiled
            call = torch.compile(run)
        shape = (work.case.layers, work.case.directions, work.lengths, work.resets, self.ahead)
        return Prepared(
            lambda: call(work.cell, leaves[0], states, weights, *shape), leaves, work.arriving
        )


PEERS = (Loop(compiled=False), Loop(compiled=True))
