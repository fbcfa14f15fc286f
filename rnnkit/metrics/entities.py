"""Precision, recall and F1 of entities, as conlleval and seqeval count them.

    P = correct / found      R = correct / in the text      F1 = 2 P R / (P + R)

An entity is correct if an entity of the text has the same first token, last token and type; 0 / 0
is 0. Tjong Kim Sang and De Meulder 2003 (cs/0306050), whose conlleval also says what the tags
mean; `rnnkit.data.schemes.entities` reads them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from rnnkit.metrics.tags import SCHEMES, Scheme, entities

_NONE = ""  # in place of a type, which is never empty: no entity with these boundaries


class EntityF1(Metric):
    """F1, precision and recall of entities, over all types and of each type.

    What is kept is how many entities there were of each pair of types, with the tokens and those
    that were tagged right: the figures do not depend on how sentences are cut into batches or
    shared by processes, also where a type, or any sentence at all, was seen by one process alone.

    Args:
        scheme: What the tags mean. IOB1 and BIO are read as conlleval reads them, BILOU and BIOES
            strictly, as seqeval does with mode="strict".

    Raises:
        ValueError: There is no such scheme.

    Example:
        >>> f1 = EntityF1("BIO")
        >>> f1.update([["B-PER", "O", "B-LOC"]], [["B-PER", "I-PER", "B-LOC"]])
        >>> {name: float(value) for name, value in f1.compute().items() if "f1" in name}
        {'f1': 0.5, 'f1_LOC': 1.0, 'f1_PER': 0.0}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    records: list[Tensor]

    def __init__(self, scheme: Scheme = "BIO") -> None:
        super().__init__()
        if scheme not in SCHEMES:
            raise ValueError(f"expected a scheme of {', '.join(SCHEMES)}, got {scheme!r}")
        self.scheme = scheme
        # One record an update: types are met while counting, so no tensor of fixed shape holds
        # them, and text of any length is what processes can exchange.
        self.add_state("records", [], dist_reduce_fx="cat")

    def update(self, preds: Sequence[Sequence[str]], target: Sequence[Sequence[str]]) -> None:
        """Count some sentences.

        Args:
            preds: Predicted tags of each.
            target: Tags of each in the text.

        Raises:
            ValueError: Not as many sentences or tags of one as of the other, or a tag that is not
                of the scheme's form. Nothing is counted then.
        """
        if len(preds) != len(target):
            raise ValueError(
                f"expected the predicted tags of {len(target)} sentences, got those of {len(preds)}"
            )
        pairs: Counter[tuple[str, str]] = Counter()
        tokens = right = 0
        for number, (guessed, correct) in enumerate(zip(preds, target, strict=True)):
            if len(guessed) != len(correct):
                raise ValueError(
                    f"expected a predicted tag for each of the {len(correct)} tokens of sentence "
                    f"{number}, got {len(guessed)}"
                )
            try:
                found = {(e.start, e.end): e.type for e in entities(guessed, self.scheme)}
                there = {(e.start, e.end): e.type for e in entities(correct, self.scheme)}
            except ValueError as error:
                raise ValueError(f"sentence {number}, {error}") from error
            # Entities of a sentence share no token, so boundaries belong to one on either side.
            for place in found.keys() | there.keys():
                pairs[there.get(place, _NONE), found.get(place, _NONE)] += 1
            tokens += len(correct)
            right += sum(a == b for a, b in zip(guessed, correct, strict=True))
        record = _Counts(self.scheme, tokens, right, pairs).encode()
        # The metric's own float type, in which bytes are exact: that is what torchmetrics puts in
        # the place of an empty list when it gathers, and all processes have to send the same.
        self.records.append(torch.tensor(list(record), dtype=self.dtype, device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """Scores, float64 scalars from 0 to 1.

        Returns:
            `f1`, `precision` and `recall` over the entities of all types, and the same with `_TYPE`
            of each type that was met, the types in string order.
        """
        counts = self._counts()
        scores = {}
        for type_ in [None, *counts.types()]:
            suffix = "" if type_ is None else f"_{type_}"
            for name, value in zip(
                ("precision", "recall", "f1"), counts.scores(type_), strict=True
            ):
                scores[name + suffix] = torch.tensor(value, dtype=torch.float64, device=self.device)
        return scores

    def confusion(self) -> tuple[list[str], Tensor]:
        """Which types entities have in the text and in the prediction.

        Entities with the same first and last token are one and the same, and are counted once: in
        the row of the type in the text and the column of the predicted one. An entity of the text
        without a predicted one of its boundaries stands in the last column, a predicted one
        without one of the text in the last row; one found with wrong boundaries is therefore
        counted twice. The rows' sums, the last excluded, are what recall is divided by, the
        columns' what precision is divided by. In a run of several processes each has to call it.

        Returns:
            K types in string order and O, and the counts, int64 (K + 1, K + 1).
        """
        with self.sync_context(should_sync=self.sync_on_compute):
            counts = self._counts()
        types = [*counts.types(), _NONE]
        table = [[counts.pairs[row, column] for column in types] for row in types]
        return [*types[:-1], "O"], torch.tensor(table, dtype=torch.int64)

    def table(self) -> str:
        """The scores in percent as conlleval prints them.

        The last number of a type's line is how many entities of it were predicted. Accuracy is
        that of tags. In a run of several processes each has to call it.
        """
        with self.sync_context(should_sync=self.sync_on_compute):
            counts = self._counts()
        there, found, correct = counts.totals(None)
        accuracy = 100 * _ratio(counts.right, counts.tokens)
        lines = [
            f"processed {counts.tokens} tokens with {there} phrases; found: {found} phrases; "
            f"correct: {correct}.",
            f"accuracy: {accuracy:6.2f}%; {_percentages(*counts.scores(None))}",
        ]
        for type_ in counts.types():
            found = counts.totals(type_)[1]
            lines.append(f"{type_:>17}: {_percentages(*counts.scores(type_))}  {found}")
        return "\n".join(lines)

    def _counts(self) -> _Counts:
        # A list of what the updates left or, gathered from several processes, one tensor.
        parts = self.records if isinstance(self.records, list) else [self.records]
        text = b"".join(bytes(part.to(torch.uint8).tolist()) for part in parts)
        total = _Counts(self.scheme, 0, 0, Counter())
        for record in text.splitlines():
            total = total.plus(record)
        return total


class _Counts(NamedTuple):
    """Counts of some sentences; `pairs` by the type in the text and the predicted one."""

    # It makes the states of metrics that read the same tags otherwise differ from the start, so
    # that a MetricCollection does not take one's counts for the other's.
    scheme: str
    tokens: int
    right: int
    pairs: Counter[tuple[str, str]]

    def encode(self) -> bytes:
        """A line of ASCII."""
        rows = [[*pair, count] for pair, count in sorted(self.pairs.items())]
        return json.dumps([self.scheme, self.tokens, self.right, rows]).encode() + b"\n"

    def plus(self, record: bytes) -> _Counts:
        """The sum with an encoded record."""
        scheme, tokens, right, rows = json.loads(record)
        if scheme != self.scheme:
            raise ValueError(f"entities counted as {scheme} can't be added to {self.scheme}'s")
        pairs = self.pairs + Counter({(row, column): count for row, column, count in rows})
        return _Counts(scheme, self.tokens + tokens, self.right + right, pairs)

    def types(self) -> list[str]:
        return sorted({type_ for pair in self.pairs for type_ in pair} - {_NONE})

    def totals(self, type_: str | None) -> tuple[int, int, int]:
        """Entities in the text, found and correct, of one type or of all."""
        there = found = correct = 0
        for (row, column), count in self.pairs.items():
            there += count * (row == type_ if type_ else row != _NONE)
            found += count * (column == type_ if type_ else column != _NONE)
            correct += count * (row == column and type_ in (None, row))
        return there, found, correct

    def scores(self, type_: str | None) -> tuple[float, float, float]:
        """Precision, recall and F1, of one type or of all."""
        there, found, correct = self.totals(type_)
        # 2 P R / (P + R), without what rounding P and R first would add
        return _ratio(correct, found), _ratio(correct, there), _ratio(2 * correct, found + there)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _percentages(precision: float, recall: float, f1: float) -> str:
    return f"precision: {100 * precision:6.2f}%; recall: {100 * recall:6.2f}%; FB1: {100 * f1:6.2f}"
