"""Accuracy and macro F1 of labels, one a word, as parts of speech are.

accuracy = right / words        macro F1 = the mean of F1 over the labels
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from rnnkit.metrics.confusion import ConfusionMetric, check_lengths, ratio


class LabelScores(ConfusionMetric):
    """Accuracy and macro F1 of labels, over all batches and processes.

    Macro F1 is over the labels that the text or the predictions have, each with the same weight
    however rare it is; scikit-learn's `f1_score` with average="macro" has them too.

    Example:
        >>> scores = LabelScores()
        >>> scores.update([["DET", "NOUN"], ["VERB"]], [["DET", "NOUN"], ["NOUN"]])
        >>> {name: round(float(value), 3) for name, value in scores.compute().items()}
        {'accuracy': 0.667, 'f1_macro': 0.556}
    """

    def __init__(self) -> None:
        super().__init__("labels")

    def update(self, preds: Sequence[Sequence[str]], target: Sequence[Sequence[str]]) -> None:
        """Count some sentences.

        Args:
            preds: Predicted labels of each.
            target: Labels of each in the text.

        Raises:
            ValueError: Not as many sentences or labels of one as of the other. Nothing is counted
                then.
        """
        check_lengths(preds, target)
        pairs: Counter[tuple[str, str]] = Counter()
        for guessed, correct in zip(preds, target, strict=True):
            pairs.update(zip(correct, guessed, strict=True))
        right = sum(count for (there, found), count in pairs.items() if there == found)
        self.add(pairs.total(), right, pairs)

    def compute(self) -> dict[str, Tensor]:
        """Scores, float64 scalars from 0 to 1: `accuracy` and `f1_macro`."""
        counts = self.counts()
        f1 = [counts.scores(label)[2] for label in counts.classes()]
        scores = {
            "accuracy": ratio(counts.right, counts.tokens),
            "f1_macro": sum(f1) / len(f1) if f1 else 0.0,
        }
        return {
            name: torch.tensor(value, dtype=torch.float64, device=self.device)
            for name, value in scores.items()
        }

    def confusion(self) -> tuple[list[str], Tensor]:
        """Which labels words have in the text, by row, and in the prediction, by column.

        In a run of several processes each has to call it.

        Returns:
            K labels in string order, and the counts, int64 (K, K).
        """
        counts = self.counts_of_all()
        labels = counts.classes()
        return labels, counts.table(labels)

    def table(self) -> str:
        """Accuracy and macro F1 in percent, and the scores of each label.

        The last number of a label's line is how many words of the text have it. In a run of
        several processes each has to call it.
        """
        counts = self.counts_of_all()
        scores = {label: counts.scores(label) for label in counts.classes()}
        macro = sum(f1 for _, _, f1 in scores.values()) / max(1, len(scores))
        lines = [
            f"processed {counts.tokens} tokens; right: {counts.right}.",
            f"accuracy: {100 * ratio(counts.right, counts.tokens):6.2f}%; "
            f"macro F1: {100 * macro:6.2f}",
            f"{'':>17}  precision  recall      F1  in the text",
        ]
        for label, (precision, recall, f1) in scores.items():
            lines.append(
                f"{label:>17}  {100 * precision:9.2f}  {100 * recall:6.2f}  {100 * f1:6.2f}  "
                f"{counts.totals(label)[0]:11}"
            )
        return "\n".join(lines)
