"""FlashRNN (Pöppel et al. 2024): `pip install flashrnn`, which compiles CUDA when it first runs.

It computes the recurrence alone: the input's product is ours and in the clock. It takes the gates'
inputs, the recurrent weights and one bias; each of its backends likes another order of dimensions,
in which weights and inputs are laid out beforehand. Letters: T steps, B sequences, G gates, H heads
(one here), D units, P units of the step before, S states.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..work import Prepared, Work

# Of each backend: gate inputs, recurrent weights, bias, states.
LAYOUTS = {
    "cuda_fused": ("TBHDG", "HDGP", "HDG", "STBHD"),
    "cuda": ("TBHGD", "HPGD", "HGD", "STBHD"),
    "triton_fused": ("BTGHD", "GHDP", "GHD", "TSBHD"),
    "vanilla": ("TBGHD", "HPGD", "GHD", "TBSHD"),
}
# FlashRNN's gates by torch's: those that h feeds, then those of the bias. Its GRU has n of h apart
# from n of x, and a bias for each.
H_GATES = {"lstm": (0, 1, 2, 3), "gru": (2, 0, 1), "rnn_tanh": (0,)}
FUNCTIONS = {"lstm": "lstm", "gru": "gru", "rnn_tanh": "elman"}
DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def _laid(tensor: Tensor, given: str, wanted: str) -> Tensor:
    """A copy whose dimensions, named by letters, are in another order; H is added where missing."""
    for letter in wanted:
        if letter not in given:
            tensor, given = tensor.unsqueeze(0), letter + given
    return tensor.permute([given.index(letter) for letter in wanted]).contiguous()


def _back(tensor: Tensor, given: str, wanted: str) -> Tensor:
    """The reverse of `_laid`: drops H."""
    for letter in given:
        if letter not in wanted:
            tensor, given = tensor.squeeze(given.index(letter)), given.replace(letter, "")
    return tensor.permute([given.index(letter) for letter in wanted])


class FlashRNN:
    """One of FlashRNN's backends.

    Args:
        backend: a key of `LAYOUTS`.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.name = f"flashrnn {backend}"

    def absent(self, work: Work) -> str | None:
        """What it lacks."""
        if importlib.util.find_spec("flashrnn") is None:
            return "flashrnn is not installed"
        if work.device.type != "cuda" and self.backend != "vanilla":
            return "FlashRNN's kernels are for GPUs"
        if work.cell not in FUNCTIONS:
            return f"FlashRNN has no {work.cell}"
        if work.cell != "lstm" and self.backend == "triton_fused":
            return "FlashRNN's Triton backend has no other cell than the LSTM"
        if work.cell == "gru" and self.backend == "cuda_fused":
            return "FlashRNN runs its GRU in the backend cuda"
        if work.case.directions > 1 or work.lengths is not None:
            return "FlashRNN runs one direction, all sequences of one length"
        return None

    def prepare(self, work: Work, mode: str) -> Prepared:
        """Weights and input in the backend's order of dimensions."""
        from flashrnn import FlashRNNConfig, flashrnn

        case, layout = work.case, LAYOUTS[self.backend]
        of_x, of_weight, of_bias, of_states = layout
        gates, hidden = len(H_GATES[work.cell]), case.hidden
        config = FlashRNNConfig(
            backend=self.backend,
            function=FUNCTIONS[work.cell],
            num_heads=1,
            head_dim=hidden,
            batch_size=case.batch,
            dtype=DTYPES[work.x.dtype],
            input_shape=of_x,
            recurrent_shape=of_weight,
            bias_shape=of_bias,
            output_shape=of_states,
        )
        inner = of_x[2:].replace("H", "")
        batch_first = of_x[0] == "B"
        order = list(H_GATES[work.cell])

        def laid_out(named: dict[str, Tensor], layer: int) -> list[Tensor]:
            at = f"_l{layer}"
            weight_ih = named["weight_ih" + at].view(gates, hidden, -1)
            weight_hh = named["weight_hh" + at].view(gates, hidden, hidden)[order]
            bias_hh = named["bias_hh" + at].view(gates, hidden)[order]
            if work.cell == "gru":
                # n of x has its bias in the product already.
                bias_hh = torch.cat([bias_hh, torch.zeros_like(bias_hh[:1])])
            bias_ih = named["bias_ih" + at].view(gates, hidden)
            return [
                _laid(weight_ih, "GDP", inner + "P").flatten(0, 1),
                _laid(weight_hh, "GDP", of_weight),
                _laid(bias_ih, "GD", inner).flatten(),
                _laid(bias_hh, "GD", of_bias),
            ]

        weights = [t for i in range(case.layers) for t in laid_out(work.weights, i)]
        x = work.x.transpose(0, 1).contiguous() if batch_first else work.x.clone()
        states = [state.clone() for state in work.states]
        leaves = [tensor.requires_grad_() for tensor in (x, *states, *weights)]
        sizes = {"H": 1, "D": hidden, "G": gates}

        def run() -> Sequence[Tensor]:
            data = x
            last: list[list[Tensor]] = []
            for layer in range(case.layers):
                weight_ih, weight_hh, bias_ih, bias_hh = weights[4 * layer : 4 * layer + 4]
                x_gates = linear(data, weight_ih, bias_ih)
                x_gates = x_gates.view(*x_gates.shape[:2], *(sizes[letter] for letter in of_x[2:]))
                start: Any = torch.stack([state[layer] for state in states])  # (S, B, D)
                start = start[:, None, :, None].permute(["STBHD".index(a) for a in of_states])
                found, final = flashrnn(x_gates, weight_hh, bias_hh, start, config=config)
                found, final = (_states(values, of_states) for values in (found, final))
                data = found[0].transpose(0, 1) if batch_first else found[0]
                last.append([final[i, 0] for i in range(len(states))])
            y = data.transpose(0, 1) if batch_first else data
            return (y, *(torch.stack(parts) for parts in zip(*last, strict=True)))

        def gradients_as_torch(found: Sequence[Tensor]) -> list[Tensor]:
            dx, rest = found[0], list(found[1:])
            result = [dx.transpose(0, 1) if batch_first else dx, *rest[: len(states)]]
            parts = rest[len(states) :]
            back = [order.index(gate) for gate in range(gates)]
            for layer in range(case.layers):
                d_ih, d_hh, d_bias_ih, d_bias_hh = parts[4 * layer : 4 * layer + 4]
                d_ih = d_ih.reshape(*(sizes[letter] for letter in inner), -1)
                d_bias = _back(d_bias_hh, of_bias, "GD")[back]
                d_bias_x = d_bias_ih.view([sizes[letter] for letter in inner])
                result += [
                    _back(d_ih, inner + "P", "GDP").flatten(0, 1),
                    _back(d_hh, of_weight, "GDP")[back].flatten(0, 1),
                    _back(d_bias_x, inner, "GD").flatten(),
                    d_bias.flatten(),
                ]
            return result

        return Prepared(
            run, leaves, work.arriving, self.backend, gradients_as_torch=gradients_as_torch
        )


def _states(values: Tensor, layout: str) -> Tensor:
    """(S, T, B, D)."""
    return _back(values, layout, "STBD")


PEERS = tuple(FlashRNN(backend) for backend in ("cuda_fused", "cuda", "triton_fused"))
