"""torch.nn's layers: cuDNN on a GPU, oneDNN or plain loops in C++ on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..cases import Case
from ..results import BASELINE
from ..work import Prepared, Work, layer_of, leaves_of

LAYERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "rnn_tanh": (nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}),
}
WITHOUT_CUDNN = f"{BASELINE} without cuDNN"


def cudnn_algorithm(case: Case, cell: str, dtype: torch.dtype, capability: int) -> str:
    """The algorithm that PyTorch's rule asks cuDNN for (ATen/native/cudnn/RNN.cpp), as predicted.

    Args:
        case: the shape.
        cell: the cell.
        dtype: of inputs and weights.
        capability: compute capability times ten.

    Returns:
        STANDARD, PERSIST_STATIC_SMALL_H or PERSIST_STATIC; two, forward and backward, where the
        rule differs between them.
    """
    if case.ragged:
        return "STANDARD"
    simple = cell.startswith("rnn")
    both = []
    for limit in (384, 256) if simple else (192, 128):
        half = dtype == torch.float16
        aligned = case.hidden % 128 == 0 and case.features % 128 == 0
        alone = case.layers == 1 and case.directions == 1
        small = case.hidden <= 1024 and case.batch % 8 == 0 and case.batch <= 128
        if case.hidden <= limit and dtype != torch.float64:
            both.append("PERSIST_STATIC_SMALL_H")
        elif half and aligned and alone and small and not (cell == "gru" and capability >= 80):
            both.append("PERSIST_STATIC")
        else:
            both.append("STANDARD")
    return both[0] if both[0] == both[1] else f"{both[0]} forward, {both[1]} backward"


class TorchLayers:
    """torch.nn on the device, with cuDNN or without.

    Args:
        cudnn: whether cuDNN may run.
    """

    def __init__(self, cudnn: bool) -> None:
        self.cudnn = cudnn
        self.name = BASELINE if cudnn else WITHOUT_CUDNN

    def absent(self, work: Work) -> str | None:
        """Without cuDNN there is nothing else to run on a CPU."""
        if not self.cudnn and work.device.type != "cuda":
            return "cuDNN is for GPUs"
        return None

    def prepare(self, work: Work, mode: str) -> Prepared:
        """The layer as a user calls it, packing and unpacking in the clock."""
        kind, options = LAYERS[work.cell]
        layer = layer_of(kind, work, **options).train(mode != "inference")
        leaves = leaves_of(layer, work)
        x, states = leaves[0], leaves[1 : 1 + len(work.states)]
        start: Any = tuple(states) if len(states) > 1 else states[0]
        lengths = work.lengths

        def run() -> Sequence[Tensor]:
            # torch.backends.cudnn.flags() would read `allow_tf32`, which raises by now.
            enabled = torch.backends.cudnn.enabled
            torch.backends.cudnn.enabled = enabled and self.cudnn
            try:
                if work.resets is not None:
                    return (_split_and_padded(layer, x, states, work.resets),)
                if lengths is None:
                    y, last = layer(x, start)
                else:
                    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
                    packed, last = layer(packed, start)
                    y, _ = pad_packed_sequence(packed, total_length=work.case.steps)
            finally:
                torch.backends.cudnn.enabled = enabled
            return (y, *last) if len(states) > 1 else (y, last)

        return Prepared(run, leaves, work.arriving, self._engine(work))

    def _engine(self, work: Work) -> str:
        if work.device.type != "cuda":
            return "torch, CPU"
        if not self.cudnn:
            return "torch, CUDA"
        major, minor = torch.cuda.get_device_capability(work.device)
        found = cudnn_algorithm(work.case, work.cell, work.x.dtype, 10 * major + minor)
        # torch lays the weights of these dtypes alone out as cuDNN wants them, once and for all.
        kinds = torch.backends.cudnn.CUDNN_TENSOR_DTYPES
        copies = "" if work.x.dtype in kinds else ", weights copied at every call"
        return f"cuDNN {found}{copies}"


def _split_and_padded(
    layer: nn.Module, x: Tensor, states: Sequence[Tensor], resets: Tensor
) -> Tensor:
    """The output (T, B, H) over episodes: each cut out, padded to the longest, and put back."""
    steps, batch = resets.shape
    begins = resets.t().clone()
    begins[:, 0] = True
    first = begins.flatten().nonzero().squeeze(1)
    lengths = torch.diff(first, append=first.new_tensor([batch * steps]))
    rows = x.transpose(0, 1).reshape(batch * steps, -1)
    # By one mask: pad_sequence would copy all that is padded once for each episode, backwards.
    real = torch.arange(int(lengths.max()), device=x.device) < lengths[:, None]
    padded = x.new_zeros(*real.shape, x.shape[-1])
    padded[real] = rows
    # A sequence's state goes to its first episode, unless that begins with a reset.
    continues = (first % steps == 0) & ~resets[0][first // steps]
    starts = [s.index_select(1, first // steps) * continues.unsqueeze(-1) for s in states]
    y: Tensor
    y, _ = layer(padded.transpose(0, 1), tuple(starts) if len(starts) > 1 else starts[0])
    return y.transpose(0, 1)[real].view(batch, steps, -1).transpose(0, 1)


class TorchSteps:
    """torch.nn's layer called once a step, as Stable-Baselines3 and CleanRL do for episodes."""

    name = f"{BASELINE}, step by step"

    def absent(self, work: Work) -> str | None:
        """Nobody does so without resets."""
        return None if work.resets is not None else "it is for rollouts with resets"

    def prepare(self, work: Work, mode: str) -> Prepared:
        """The layer as a user calls it, from a state of zeros where a step begins anew."""
        kind, options = LAYERS[work.cell]
        layer = layer_of(kind, work, **options).train(mode != "inference")
        leaves = leaves_of(layer, work)
        keep = ~work.resets.unsqueeze(-1) if work.resets is not None else None

        def run() -> Sequence[Tensor]:
            assert keep is not None
            states = leaves[1 : 1 + len(work.states)]
            outputs = []
            for x, kept in zip(torch.split(leaves[0], 1), keep, strict=True):
                states = [state * kept for state in states]
                y, last = layer(x, tuple(states) if len(states) > 1 else states[0])
                states = list(last) if len(states) > 1 else [last]
                outputs.append(y)
            return (torch.cat(outputs),)

        return Prepared(run, leaves, work.arriving, "torch.nn, a call a step")


PEERS = (TorchLayers(cudnn=True), TorchLayers(cudnn=False), TorchSteps())
