"""BLEU and chrF of translations, by sacrebleu, over all processes.

BLEU: Papineni et al. 2002; chrF: Popović 2015; Post 2018 (arXiv 1804.08771) for what has to be said
with a figure, the signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sacrebleu
import torch
from torch import Tensor
from torchmetrics import Metric


class CorpusScore(Metric):
    """A score of sacrebleu, 0 to 100, from sums over sentences.

    Kept are the counts that sacrebleu itself adds up over a corpus, so the score does not depend
    on how the sentences are cut into batches or shared by processes.

    Args:
        metric: sacrebleu's.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    statistics: Tensor

    def __init__(self, metric: Any) -> None:
        super().__init__()
        self.metric = metric
        # sacrebleu offers its counts under these names alone; a test compares with its own scores.
        self._count = metric._extract_corpus_statistics
        zeros = torch.zeros(len(self._count(["a"], [["a"]])[0]), dtype=torch.int64)
        metric.num_refs = 1  # it stands in the signature, which may be asked for first
        self.add_state("statistics", zeros, dist_reduce_fx="sum")

    def update(self, hypotheses: Sequence[str], references: Sequence[str]) -> None:
        """Add some sentences.

        Args:
            hypotheses: Translations.
            references: One of each.

        Raises:
            ValueError: Not as many of one as of the other.
        """
        if len(hypotheses) != len(references):
            raise ValueError(
                f"expected one reference a translation, got {len(hypotheses)} translations and "
                f"{len(references)} references"
            )
        if hypotheses:
            counts = torch.tensor(self._count(list(hypotheses), [list(references)]))
            self.statistics += counts.sum(0).to(self.statistics.device)

    def compute(self) -> Tensor:
        """The score, float64 scalar; 0 where nothing agrees."""
        score = self.metric._compute_score_from_stats(self.statistics.tolist())
        return torch.tensor(score.score, dtype=torch.float64)

    @property
    def signature(self) -> str:
        """sacrebleu's, to be said with the figure."""
        return str(self.metric.get_signature())


class BLEU(CorpusScore):
    """Corpus BLEU.

    Args:
        lowercase: Compare in lower case.
        tokenize: How sacrebleu cuts text into tokens: 13a for text as it is printed, none for
            tokens with blanks between them.

    Example:
        >>> bleu = BLEU()
        >>> bleu.update(["a man is riding a horse."], ["A man is riding a horse."])
        >>> round(float(bleu.compute()), 3)
        100.0
    """

    def __init__(self, lowercase: bool = True, tokenize: str = "13a") -> None:
        # force: without it sacrebleu warns of text that looks tokenised.
        super().__init__(sacrebleu.BLEU(lowercase=lowercase, tokenize=tokenize, force=True))


class ChrF(CorpusScore):
    """Corpus chrF, on characters.

    Args:
        lowercase: Compare in lower case.
    """

    def __init__(self, lowercase: bool = True) -> None:
        super().__init__(sacrebleu.CHRF(lowercase=lowercase))
