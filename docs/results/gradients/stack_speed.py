"""What a plain Stack costs beside the layer that it wraps: forward and backward pass, in pairs.

    python docs/results/gradients/stack_speed.py

CPU seconds of a process with one thread; a pair is the two after one another, in changing order.
"""

import statistics
import time

import torch

import rnnkit
from rnnkit.nn import Stack

torch.set_num_threads(1)
print(f"torch {torch.__version__}, 1 thread; ratio of CPU times Stack ÷ layer, over 60 pairs")
print("| layer | T | B | H | layers | median ms | ratio | quartiles |")
print("|---|---|---|---|---|---|---|---|")
for kind, steps, batch, hidden in ((rnnkit.LSTM, 35, 20, 200), (rnnkit.GRU, 100, 8, 64)):
    layer = kind(hidden, hidden, 2)
    stack = Stack(kind, hidden, [hidden] * 2)
    x = torch.randn(steps, batch, hidden, requires_grad=True)

    def seconds(module: torch.nn.Module, x: torch.Tensor = x) -> float:
        """CPU time of one forward and backward pass."""
        begin = time.process_time()
        module(x)[0].sum().backward()
        return time.process_time() - begin

    pairs = []
    for number in range(65):
        order = (layer, stack) if number % 2 else (stack, layer)
        taken = {module: seconds(module) for module in order}
        if number >= 5:
            pairs.append((taken[layer], taken[stack]))
    ratios = [theirs / ours for ours, theirs in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    median = statistics.median(ours for ours, _ in pairs) * 1e3
    print(
        f"| {kind.__name__} | {steps} | {batch} | {hidden} | 2 | {median:.1f} | {middle:.3f} | "
        f"{low:.3f} to {high:.3f} |"
    )
