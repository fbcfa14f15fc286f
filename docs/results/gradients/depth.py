"""The gradient of the input through stacks of 2 to 16 LSTM layers, as they begin.

    python docs/results/gradients/depth.py

‖∂L/∂x‖ / ‖u‖ for L = Σ u ⊙ y with u from N(0, 1), mean over five seeds: 128 units, 35 steps, 8
sequences from N(0, 1).
"""

import torch

import rnnkit
from rnnkit.nn import Stack


def share(connection: str, norm: str | None, depth: int, seed: int) -> float:
    """What of a gradient gets from the output of the last layer to the input of the first."""
    torch.manual_seed(seed)
    stack = Stack(rnnkit.LSTM, 128, [128] * depth, connection, norm).double()
    x = torch.randn(35, 8, 128, dtype=torch.float64, requires_grad=True)
    output, _ = stack(x)
    u = torch.randn_like(output)
    (gradient,) = torch.autograd.grad((u * output).sum(), x)
    return float(gradient.norm() / u.norm())


DEPTHS = (2, 4, 8, 16)
print("| connection | norm |", " | ".join(str(depth) for depth in DEPTHS), "|")
print("|---|---|" + "---|" * len(DEPTHS))
for norm in (None, "layer"):
    for connection in ("plain", "residual", "highway", "dense"):
        found = [
            sum(share(connection, norm, depth, seed) for seed in range(5)) / 5 for depth in DEPTHS
        ]
        print(f"| {connection} | {norm or '–'} |", " | ".join(f"{each:.2g}" for each in found), "|")
