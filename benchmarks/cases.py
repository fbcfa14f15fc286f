"""What is measured: layers of published models and shapes that are hard for someone, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch

from rnnkit_kernels.cells import CELLS

# torch's dtype, and how float32 products are made.
DTYPES = {
    "tf32": (torch.float32, "tf32"),
    "fp32": (torch.float32, "ieee"),
    "bf16": (torch.bfloat16, "ieee"),
    "fp16": (torch.float16, "ieee"),
}
# Cells that torch.nn has too.
NAMES = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN (tanh)", "rnn_relu": "RNN (ReLU)"}
MODES = {
    "inference": "forward without gradients",
    "forward": "forward, keeping what the backward pass needs",
    "train": "forward and backward, all gradients",
}


@dataclass(frozen=True)
class Case:
    """The shape of a layer, or of a stack of them.

    Attributes:
        name: what to call it.
        source: where the shape comes from.
        steps: T, the longest sequence.
        batch: B.
        features: D.
        hidden: H.
        layers: L.
        directions: 1 or 2.
        ragged: whether lengths differ: evenly spread between T / 4 and T.
        reset_every: the mean number of steps after which a sequence begins anew; 0: never does.
    """

    name: str
    source: str
    steps: int
    batch: int
    features: int
    hidden: int
    layers: int = 1
    directions: int = 1
    ragged: bool = False
    reset_every: int = 0

    def lengths(self) -> list[int]:
        """B lengths, shuffled by a fixed stride; all T where the case is not ragged."""
        if not self.ragged:
            return [self.steps] * self.batch
        shortest = max(1, self.steps // 4)
        spread = self.steps - shortest + 1
        # 7919 is a prime beyond every spread here: the lengths visit the range evenly.
        lengths = [shortest + (i * 7919) % spread for i in range(self.batch)]
        lengths[self.batch // 2] = self.steps
        return lengths

    def products(self, cell: str) -> tuple[int, int]:
        """Multiplications and additions of the forward pass: of the input, of the recurrence."""
        gates, width = CELLS[cell].gates_at[-1], self.directions * self.hidden
        rows = sum(self.lengths())
        depth = self.features + (self.layers - 1) * width
        return (
            2 * rows * gates * width * depth,
            2 * rows * gates * width * self.hidden * self.layers,
        )

    def operations(self, cell: str, mode: str) -> int:
        """Multiplications and additions of a whole call; a backward pass has twice the forward."""
        return sum(self.products(cell)) * (3 if mode == "train" else 1)

    def __str__(self) -> str:
        sizes = f"T {self.steps}, B {self.batch}, D {self.features}, H {self.hidden}"
        layers = f", {self.layers} layers" * (self.layers > 1)
        return f"{sizes}{layers}{', both directions' * (self.directions > 1)}" + (
            ", lengths differ" * self.ragged
            + f", resets every {self.reset_every} steps" * (self.reset_every > 0)
        )


_PERSISTENT = Case("persistent-1024", "cuDNN's best regime", 512, 32, 1024, 1024)
_MANY = (1, 64, 128, 256)
_ROLLOUT = Case("rl", "recurrent PPO", 128, 64, 256, 256)
_SWEPT = Case("sweep", "cost against one size", 64, 32, 256, 512)

# In order of importance: a run that has to stop has measured the first.
CASES = {
    case.name: case
    for case in (
        Case("ptb-medium", "Zaremba 2014", 35, 20, 650, 650, layers=2),
        Case("flashrnn-768", "FlashRNN's plot", 1024, 16, 768, 768),
        _PERSISTENT,
        Case("translation-encoder", "Multi30k", 25, 128, 256, 512, directions=2, ragged=True),
        Case("tagger", "BiLSTM-CRF", 32, 32, 100, 200, directions=2, ragged=True),
        Case("awd", "AWD-LSTM", 70, 80, 400, 1150, layers=3),
        Case("ptb-small", "Zaremba 2014", 20, 20, 200, 200, layers=2),
        Case("ptb-large", "Zaremba 2014", 35, 20, 1500, 1500, layers=2),
        Case("odd", "outside cuDNN's rules", 200, 12, 300, 300),
        Case("odd-many", "outside cuDNN's rules", 200, 130, 500, 500),
        Case("small-h-trap", "PyTorch's SMALL_H rule", 500, 62, 168, 168),
        Case(
            "characters", "characters of a tagger's words", 10, 480, 30, 50,
            directions=2, ragged=True,
        ),
        Case("many-rows", "time series, reinforcement learning", 128, 4096, 64, 64),
        Case("long", "audio, logs", 8192, 4, 512, 512),
        *(replace(_ROLLOUT, name=f"rl-{n}", reset_every=n) for n in (10, 100)),
        *(replace(_PERSISTENT, name=f"persistent-1024-b{b}", batch=b) for b in _MANY),
        *(replace(_SWEPT, name=f"sweep-h-{h}", hidden=h) for h in (2**k for k in range(5, 12))),
        *(replace(_SWEPT, name=f"sweep-b-{b}", batch=b) for b in (2**k for k in range(13))),
        *(replace(_SWEPT, name=f"sweep-t-{t}", steps=t) for t in (2**k for k in range(4, 13))),
    )
}  # fmt: skip
SWEEPS = {"h": "hidden", "b": "batch", "t": "steps"}

# Six cases that take a GPU less than three minutes, and four that take two cores as long.
QUICK = {
    "cuda": (
        "ptb-medium", "flashrnn-768", "persistent-1024", "translation-encoder", "tagger", "awd",
    ),
    "cpu": ("ptb-small", "tagger", "characters", "odd"),
}  # fmt: skip


def select(patterns: list[str]) -> list[Case]:
    """The cases whose names match any of the patterns, such as `ptb-*`, in their order.

    Raises:
        ValueError: a pattern matches none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in CASES):
            raise ValueError(f"no case is called {pattern!r}: choose from {', '.join(CASES)}")
    return [
        case
        for name, case in CASES.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    ]
