"""rnnkit's layers: as "auto" chooses, and by each engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import rnnkit

from ..work import Prepared, Work, layer_of, leaves_of

LAYERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "lstm": (rnnkit.LSTM, {}),
    "gru": (rnnkit.GRU, {}),
    "rnn_tanh": (rnnkit.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (rnnkit.RNN, {"nonlinearity": "relu"}),
}


class Layers:
    """rnnkit's layers.

    Args:
        backend: as the layers take it.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.name = f"rnnkit {backend}"

    def absent(self, work: Work) -> str | None:
        """Why the engine can't run the work."""
        try:
            rnnkit.explain(self._layer(work), work.x)
        except RuntimeError as error:
            return str(error)
        return None

    def prepare(self, work: Work, mode: str) -> Prepared:
        """The layer as a user calls it."""
        layer = self._layer(work).train(mode != "inference")
        leaves = leaves_of(layer, work)
        x, states = leaves[0], leaves[1 : 1 + len(work.states)]
        start: Any = tuple(states) if len(states) > 1 else states[0]

        def run() -> Sequence[Tensor]:
            y, last = layer(x, start, lengths=work.lengths, resets=work.resets)
            if work.resets is not None:
                return (y,)
            return (y, *last) if len(states) > 1 else (y, last)

        with torch.set_grad_enabled(mode != "inference"):
            decision = rnnkit.explain(layer, x, lengths=work.lengths).decision
        return Prepared(run, leaves, work.arriving, decision.engine)

    def _layer(self, work: Work) -> Any:
        kind, options = LAYERS[work.cell]
        return layer_of(kind, work, backend=self.backend, **options)


# The modes of the kernels, and the loop in PyTorch with the handwritten backward.
KERNELS = ("resident", "data", "counter", "launch")
PEERS = tuple(Layers(backend) for backend in ("auto", "native", "triton", *KERNELS, "eager"))
