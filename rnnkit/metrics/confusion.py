"""How often each class was predicted for each: a confusion whose classes are met while counting.

P = correct / found      R = correct / in the text      F1 = 2 P R / (P + R)      0 / 0 is 0
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

NONE = ""
"""In place of a class, which is never empty: nothing in the text, or nothing predicted."""


class Confusion(NamedTuple):
    """Counts of some sentences.

    Attributes:
        kind: What is counted. It makes the states of metrics that read the same tags otherwise
            differ from the start, so that a MetricCollection does not take one's counts for the
            other's.
        tokens: Number of tokens.
        right: Those with the tag of the text.
        pairs: Counts by the class in the text and the predicted one.
    """

    kind: str
    tokens: int
    right: int
    pairs: Counter[tuple[str, str]]

    def encode(self) -> bytes:
        """A line of ASCII."""
        rows = [[*pair, count] for pair, count in sorted(self.pairs.items())]
        return json.dumps([self.kind, self.tokens, self.right, rows]).encode() + b"\n"

    def plus(self, record: bytes) -> Confusion:
        """The sum with an encoded record."""
        kind, tokens, right, rows = json.loads(record)
        if kind != self.kind:
            raise ValueError(f"what was counted as {kind} can't be added to {self.kind}'s")
        pairs = self.pairs + Counter({(row, column): count for row, column, count in rows})
        return Confusion(kind, self.tokens + tokens, self.right + right, pairs)

    def classes(self) -> list[str]:
        """Those of the text and the predicted ones, in string order."""
        return sorted({one for pair in self.pairs for one in pair} - {NONE})

    def table(self, classes: Sequence[str]) -> Tensor:
        """Counts, int64 (K, K): in the text by row, predicted by column."""
        rows = [[self.pairs[row, column] for column in classes] for row in classes]
        return torch.tensor(rows, dtype=torch.int64)

    def totals(self, class_: str | None) -> tuple[int, int, int]:
        """How often a class, or any, was in the text, predicted and predicted correctly."""
        there = found = correct = 0
        for (row, column), count in self.pairs.items():
            there += count * (row == class_ if class_ else row != NONE)
            found += count * (column == class_ if class_ else column != NONE)
            correct += count * (row == column and class_ in (None, row))
        return there, found, correct

    def scores(self, class_: str | None) -> tuple[float, float, float]:
        """Precision, recall and F1, of one class or of all."""
        there, found, correct = self.totals(class_)
        # 2 P R / (P + R), without what rounding P and R first would add
        return ratio(correct, found), ratio(correct, there), ratio(2 * correct, found + there)


class ConfusionMetric(Metric):
    """Keeps a confusion over batches and processes.

    The figures do not depend on how sentences are cut into batches or shared by processes, also
    where a class, or any sentence at all, was seen by one process alone.

    Args:
        kind: What is counted.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    records: list[Tensor]

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        # One record an update: classes are met while counting, so no tensor of fixed shape holds
        # them, and text of any length is what processes can exchange.
        self.add_state("records", [], dist_reduce_fx="cat")

    def add(self, tokens: int, right: int, pairs: Counter[tuple[str, str]]) -> None:
        """Add the counts of a batch, see `Confusion`."""
        record = Confusion(self.kind, tokens, right, pairs).encode()
        # The metric's own float type, in which bytes are exact: that is what torchmetrics puts in
        # the place of an empty list when it gathers, and all processes have to send the same.
        self.records.append(torch.tensor(list(record), dtype=self.dtype, device=self.device))

    def counts(self) -> Confusion:
        """The sum of what this process has counted; within `compute`, of what all have."""
        # A list of what the updates left or, gathered from several processes, one tensor.
        parts = self.records if isinstance(self.records, list) else [self.records]
        text = b"".join(bytes(part.to(torch.uint8).tolist()) for part in parts)
        total = Confusion(self.kind, 0, 0, Counter())
        for record in text.splitlines():
            total = total.plus(record)
        return total

    def counts_of_all(self) -> Confusion:
        """The sum over all processes, each of which has to call it."""
        with self.sync_context(should_sync=self.sync_on_compute):
            return self.counts()


def check_lengths(preds: Sequence[Sequence[str]], target: Sequence[Sequence[str]]) -> None:
    """Refuse predictions that are not one for each token of the text with a ValueError."""
    if len(preds) != len(target):
        raise ValueError(
            f"expected the predicted tags of {len(target)} sentences, got those of {len(preds)}"
        )
    for number, (guessed, correct) in enumerate(zip(preds, target, strict=True)):
        if len(guessed) != len(correct):
            raise ValueError(
                f"expected a predicted tag for each of the {len(correct)} tokens of sentence "
                f"{number}, got {len(guessed)}"
            )


def ratio(part: int, whole: int) -> float:
    """part / whole, 0 where there is nothing to divide by."""
    return part / whole if whole else 0.0
