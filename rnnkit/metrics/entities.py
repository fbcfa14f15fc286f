"""Precision, recall and F1 of entities, as conlleval and seqeval count them.

    P = correct / found      R = correct / in the text      F1 = 2 P R / (P + R)

An entity is correct if an entity of the text has the same first token, last token and type; 0 / 0
is 0. Tjong Kim Sang and De Meulder 2003 (cs/0306050), whose conlleval also says what the tags
mean; `rnnkit.data.schemes.entities` reads them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from rnnkit.metrics.confusion import NONE, ConfusionMetric, check_lengths, ratio
from rnnkit.metrics.tags import SCHEMES, Scheme, entities


class EntityF1(ConfusionMetric):
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

    def __init__(self, scheme: Scheme = "BIO") -> None:
        if scheme not in SCHEMES:
            raise ValueError(f"expected a scheme of {', '.join(SCHEMES)}, got {scheme!r}")
        super().__init__(scheme)
        self.scheme = scheme

    def update(self, preds: Sequence[Sequence[str]], target: Sequence[Sequence[str]]) -> None:
        """Count some sentences.

        Args:
            preds: Predicted tags of each.
            target: Tags of each in the text.

        Raises:
            ValueError: Not as many sentences or tags of one as of the other, or a tag that is not
                of the scheme's form. Nothing is counted then.
        """
        check_lengths(preds, target)
        pairs: Counter[tuple[str, str]] = Counter()
        tokens = right = 0
        for number, (guessed, correct) in enumerate(zip(preds, target, strict=True)):
            try:
                found = {(e.start, e.end): e.type for e in entities(guessed, self.scheme)}
                there = {(e.start, e.end): e.type for e in entities(correct, self.scheme)}
            except ValueError as error:
                raise ValueError(f"sentence {number}, {error}") from error
            # Entities of a sentence share no token, so boundaries belong to one on either side.
            for place in found.keys() | there.keys():
                pairs[there.get(place, NONE), found.get(place, NONE)] += 1
            tokens += len(correct)
            right += sum(a == b for a, b in zip(guessed, correct, strict=True))
        self.add(tokens, right, pairs)

    def compute(self) -> dict[str, Tensor]:
        """Scores, float64 scalars from 0 to 1.

        Returns:
            `f1`, `precision` and `recall` over the entities of all types, and the same with `_TYPE`
            of each type that was met, the types in string order.
        """
        counts = self.counts()
        scores = {}
        for type_ in [None, *counts.classes()]:
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
        counts = self.counts_of_all()
        types = counts.classes()
        return [*types, "O"], counts.table([*types, NONE])

    def table(self) -> str:
        """The scores in percent as conlleval prints them.

        The last number of a type's line is how many entities of it were predicted. Accuracy is
        that of tags. In a run of several processes each has to call it.
        """
        counts = self.counts_of_all()
        there, found, correct = counts.totals(None)
        accuracy = 100 * ratio(counts.right, counts.tokens)
        lines = [
            f"processed {counts.tokens} tokens with {there} phrases; found: {found} phrases; "
            f"correct: {correct}.",
            f"accuracy: {accuracy:6.2f}%; {_percentages(*counts.scores(None))}",
        ]
        for type_ in counts.classes():
            found = counts.totals(type_)[1]
            lines.append(f"{type_:>17}: {_percentages(*counts.scores(type_))}  {found}")
        return "\n".join(lines)


def _percentages(precision: float, recall: float, f1: float) -> str:
    return f"precision: {100 * precision:6.2f}%; recall: {100 * recall:6.2f}%; FB1: {100 * f1:6.2f}"
