"""TorchRL's layers for rollouts with resets (`pip install torchrl tensordict`).

On a GPU its Triton kernels: they take float32 and multiply in float32, TF32 or bfloat16; batch
first; and an initial state a step, of which only the first counts where nothing is reset. On a CPU
its modules, which cut rollouts into episodes, pad and pack them for torch.nn's layers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..work import Prepared, Work, layer_of, leaves_of

PRECISIONS = {
    "fp32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "bf16": (torch.bfloat16, "ieee"),
}


class TorchRL:
    """The functions beneath TorchRL's GRUModule and LSTMModule."""

    name = "torchrl"

    def absent(self, work: Work) -> str | None:
        """What they lack."""
        if importlib.util.find_spec("torchrl") is None:
            return "torchrl is not installed"
        if work.device.type != "cuda" and work.resets is None:
            return "TorchRL's layers are torch.nn's on a CPU but for resets"
        if work.cell not in ("lstm", "gru"):
            return f"TorchRL has no {work.cell}"
        if work.dtype not in PRECISIONS:
            return f"TorchRL doesn't multiply in {work.dtype}"
        if work.case.directions > 1 or work.lengths is not None:
            return "TorchRL runs one direction, all sequences of one length"
        return None

    def prepare(self, work: Work, mode: str) -> Prepared:
        """Batch first, in float32."""
        if work.device.type != "cuda":
            return _module(work)
        from torchrl.modules.tensordict_module import _rnn_triton

        case = work.case
        compute, precision = PRECISIONS[work.dtype]
        function: Any = _rnn_triton.lstm_triton if work.cell == "lstm" else _rnn_triton.gru_triton
        resets = torch.zeros(case.batch, case.steps, dtype=torch.bool, device=work.device)
        if work.resets is not None:
            resets = work.resets.t().contiguous()
        x = work.x.float().transpose(0, 1).contiguous()
        leaves = [x, *(t.float().clone() for t in (*work.states, *work.weights.values()))]
        leaves = [tensor.requires_grad_() for tensor in leaves]
        count = len(work.states)
        states, weights = leaves[1 : 1 + count], leaves[1 + count :]

        def run() -> Sequence[Tensor]:
            data = leaves[0]
            last: list[Sequence[Tensor]] = []
            for i in range(case.layers):
                first = [pad(s[i].unsqueeze(1), (0, 0, 0, case.steps - 1)) for s in states]
                found = function(
                    data, *first, *weights[4 * i : 4 * i + 4], resets, compute,
                    input_precision=precision,
                )  # fmt: skip
                data, last = found[0], [*last, found[-count:]]
            if work.resets is not None:
                return (data,)
            return (data, *(torch.stack(parts) for parts in zip(*last, strict=True)))

        arriving = [work.arriving[0].float().transpose(0, 1).contiguous()]
        arriving += [gradient.float() for gradient in work.arriving[1:]]

        def time_first(found: Sequence[Tensor]) -> list[Tensor]:
            values = [found[0].transpose(0, 1), *found[1:]]
            return [value.to(work.x.dtype) for value in values]

        engine = "bf16 products, float32 elsewhere" if work.dtype == "bf16" else ""
        return Prepared(run, leaves, arriving, engine, time_first, time_first)


def _module(work: Work) -> Prepared:
    """GRUModule or LSTMModule on a rollout, whose states of all steps but the first count not."""
    from tensordict import TensorDict
    from torchrl.modules import GRUModule, LSTMModule, set_recurrent_mode

    case, resets = work.case, work.resets
    assert resets is not None
    kind: Any = LSTMModule if work.cell == "lstm" else GRUModule
    layer = layer_of({"lstm": nn.LSTM, "gru": nn.GRU}[work.cell], work, batch_first=True)
    hidden = [f"state{i}" for i in range(len(work.states))]
    module = kind(
        in_keys=["x", *hidden],
        out_keys=["y", *(("next", key) for key in hidden)],
        **{work.cell: layer},
    )
    leaves = leaves_of(layer, work)
    first = ~resets[0].unsqueeze(-1)
    is_init = resets.t().unsqueeze(-1).contiguous()

    def run() -> Sequence[Tensor]:
        states = [(s * first).transpose(0, 1) for s in leaves[1 : 1 + len(hidden)]]
        every = [pad(s.unsqueeze(1), (0, 0, 0, 0, 0, case.steps - 1)) for s in states]
        given = {"x": leaves[0].transpose(0, 1), "is_init": is_init}
        given |= dict(zip(hidden, every, strict=True))
        with set_recurrent_mode(True):
            found = module(TensorDict(given, [case.batch, case.steps]))
        return (found["y"].transpose(0, 1),)

    return Prepared(run, leaves, work.arriving, "torch.nn, packed")


PEERS = (TorchRL(),)
