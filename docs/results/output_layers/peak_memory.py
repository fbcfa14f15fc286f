"""Peak memory of the full softmax's loss and gradients, as JSON; see docs/results.md."""

import json

import torch
from rnnkit_benchmarks import clock, machine
from torch.nn.functional import cross_entropy, linear

from rnnkit_kernels.functional import linear_cross_entropy

CPU = torch.device("cpu")


def peaks(rows: int, vocabulary: int) -> dict[str, int]:
    """Bytes for `rows` tokens of 200 units, by one operator and by torch's two."""
    torch.manual_seed(0)
    shapes = ((rows, 200), (vocabulary, 200), (vocabulary,))
    leaves = [torch.randn(shape, requires_grad=True) for shape in shapes]
    target = torch.randint(vocabulary, (rows,))

    def fused() -> None:
        torch.autograd.grad(linear_cross_entropy(*leaves, target), leaves)

    def plain() -> None:
        loss = cross_entropy(linear(*leaves), target, reduction="sum")
        torch.autograd.grad(loss, leaves)

    return {"fused": clock.peak_bytes(fused, CPU), "plain": clock.peak_bytes(plain, CPU)}


sizes = ((400, 10_000), (700, 10_000), (4096, 33_278))
found = {f"{rows} x {vocabulary}": peaks(rows, vocabulary) for rows, vocabulary in sizes}
print(json.dumps({"bytes": found, "machine": machine.describe(CPU)}, indent=1))
