"""What a penalty costs: CPU time of a training step on the adding problem, beside one without.

    python docs/results/gradients/penalty_cost.py

tanh network of 100 units, T = 100, 50 sequences, one thread; medians of 40 rounds in which all take
turns, and the median of the ratios to the plain step of the same round.
"""

import statistics
import time
import warnings
from typing import Any

import torch

import rnnkit
from rnnkit.sequences import Adding
from rnnkit.training.penalties import Penalties

torch.set_num_threads(1)
torch.manual_seed(0)
warnings.simplefilter("ignore")  # contraction warns of what it does
layer, answer = rnnkit.RNN(2, 100), torch.nn.Linear(100, 1)
data = Adding().draw(50, 100, torch.Generator().manual_seed(0))
KINDS: dict[str, Any] = {
    "none": None,
    "identity": {"name": "identity"},
    "spectral_radius": {"name": "spectral_radius"},
    "spectral_norm": {"name": "spectral_norm"},
    "omega, immediate": {"name": "omega"},
    "omega, full": {"name": "omega", "gradient": "full"},
    "jacobian, 10 steps": {"name": "jacobian"},
    "contraction, 10 steps": {"name": "contraction"},
}
penalties = {
    name: None if kind is None else Penalties([{"weight": 1.0, **kind}], layer)
    for name, kind in KINDS.items()
}


def seconds(penalty: Penalties | None) -> float:
    """CPU time of forward and backward pass."""
    layer.zero_grad()
    begin = time.process_time()
    if penalty is not None:
        penalty.begin()
    loss = (answer(layer(data.input)[0][-1])[:, 0] - data.target).square().mean()
    if penalty is not None:
        loss = loss + penalty(loss)
    loss.backward()
    return time.process_time() - begin


rounds = []
for _ in range(43):
    rounds.append({name: seconds(penalty) for name, penalty in penalties.items()})
rounds = rounds[3:]
print(f"torch {torch.__version__}, 1 thread")
print("| penalty | ms | beside none |")
print("|---|---|---|")
for name in penalties:
    median = statistics.median(each[name] for each in rounds) * 1e3
    ratio = statistics.median(each[name] / each["none"] for each in rounds)
    print(f"| {name} | {median:.1f} | {ratio:.1f} |")
