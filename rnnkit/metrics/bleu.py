"""BLEU and chrF of translations, by sacrebleu, over all processes.

BLEU: Papineni et al. 2002; chrF: Popović 2015; Post 2018 (arXiv 1804.08771) for what has to be said
with a figure, the signature.

BLEU is a mean over n-grams of 1 to 4 tokens. Where no reference has 4 tokens it has no fourth
member, and sacrebleu says 0 of perfect translations too. Then, and only then, `BLEU` counts the
orders that there are: sacrebleu's effective order, which the signature tells as `eff:yes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sacrebleu
import torch
from sacrebleu.metrics.bleu import MAX_NGRAM_ORDER
from torch import Tensor
from torchmetrics import Metric

from rnnkit.metrics.scripts import count_without_blanks

# spm is the old name of flores101.
TOKENIZERS = tuple(name for name in sacrebleu.BLEU.TOKENIZERS if name != "spm")
"""What sacrebleu can cut text with, by its own names."""

# Of those, the ones that take what stands between two blanks for words and marks.
_AT_BLANKS = ("13a", "intl", "none")


def check_tokenizer(name: str) -> None:
    """Refuse a tokenizer that sacrebleu does not have; whether it is installed shows when used.

    Raises:
        ValueError: There is no such tokenizer; the message lists them.
    """
    if name not in TOKENIZERS:
        raise ValueError(f"expected tokenize to be one of {', '.join(TOKENIZERS)}, got {name!r}")


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
            self._add(torch.tensor(self._count(list(hypotheses), [list(references)])))

    def _add(self, counts: Tensor) -> None:
        """Add sacrebleu's counts of each sentence, int64 (sentences, counts)."""
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
    """Corpus BLEU, with the effective order where the references are too short for four-grams.

    Args:
        lowercase: Compare in lower case.
        tokenize: How sacrebleu cuts text into tokens, one of `TOKENIZERS`: 13a for text as it is
            printed, zh, ja-mecab, ko-mecab or char for languages without blanks between words,
            none for tokens with blanks between them.
        cut: What to do with a line before that, for example cut it into tokens of one's own.

    Raises:
        ValueError: There is no such tokenizer, or what it needs is not there.

    Example:
        >>> bleu = BLEU()
        >>> bleu.update(["a man is riding a horse."], ["A man is riding a horse."])
        >>> round(float(bleu.compute()), 3)
        100.0
    """

    longest: Tensor
    letters: Tensor

    def __init__(
        self,
        lowercase: bool = True,
        tokenize: str = "13a",
        cut: Callable[[str], str] = str,
    ) -> None:
        super().__init__(_sacrebleu(lowercase, tokenize))
        self.tokenize = tokenize
        self.cut = cut
        self.caution: str | None = None
        """After `compute`: why the figure says less than BLEU does elsewhere; None: it does not."""
        self.add_state("longest", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="max")
        self.add_state("letters", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, hypotheses: Sequence[str], references: Sequence[str]) -> None:
        """Add some sentences, as `CorpusScore.update`."""
        super().update([*map(self.cut, hypotheses)], [*map(self.cut, references)])
        if self.tokenize in _AT_BLANKS:
            letters = torch.tensor(count_without_blanks(references))
            self.letters += letters.to(self.letters.device)

    def _add(self, counts: Tensor) -> None:
        super()._add(counts)
        longest = counts[:, :2].amax(0)  # tokens of hypothesis and reference
        self.longest = torch.maximum(self.longest, longest.to(self.longest.device))

    def compute(self) -> Tensor:
        """The score, float64 scalar; 0 where nothing agrees."""
        hypothesis, reference = self.longest.tolist()
        self.metric.effective_order = 0 < reference < MAX_NGRAM_ORDER
        score = super().compute()
        self.caution = self._caution(hypothesis, reference, float(score))
        return score

    def _caution(self, hypothesis: int, reference: int, score: float) -> str | None:
        """What has to be said with the figure.

        Args:
            hypothesis: Tokens of the longest.
            reference: Tokens of the longest.
            score: The figure.
        """
        without_blanks, letters = self.letters.tolist()
        told = []
        if self.metric.effective_order:
            told.append(
                f"no reference has {MAX_NGRAM_ORDER} tokens as tokenize {self.tokenize} cuts them "
                f"(the longest has {reference}), so BLEU counts shorter n-grams alone (eff:yes); "
                "exact match, or tokenize char, says more"
            )
        elif score == 0 and (right := int(self.statistics[2])) > 0:
            told.append(
                f"BLEU is 0 although {right:,} tokens agree with their references, for no "
                f"translation has {MAX_NGRAM_ORDER} tokens as tokenize {self.tokenize} cuts them "
                f"(the longest has {hypothesis}); exact match, or tokenize char, says more"
            )
        if 2 * without_blanks > letters:
            told.append(
                f"the references are written without blanks between words, of which tokenize "
                f"{self.tokenize} makes one token: choose tokenize zh for Chinese, ja-mecab for "
                "Japanese, or char for any"
            )
        return "; ".join(told) or None


def _sacrebleu(lowercase: bool, tokenize: str) -> sacrebleu.BLEU:
    """sacrebleu's metric, or one sentence on what its tokenizer needs."""
    check_tokenizer(tokenize)
    try:
        # force: without it sacrebleu warns of text that looks tokenised.
        return sacrebleu.BLEU(lowercase=lowercase, tokenize=tokenize, force=True)
    except (ImportError, RuntimeError) as error:
        package = {"ja-mecab": "sacrebleu[ja]", "ko-mecab": "sacrebleu[ko]"}.get(
            tokenize, "sentencepiece"
        )
        raise ValueError(
            f"tokenize {tokenize} needs a package that is not installed: pip install '{package}'"
        ) from error
    except (OSError, SystemExit) as error:  # sacrebleu leaves the program where SSL fails
        raise ValueError(
            f"tokenize {tokenize} needs a file that sacrebleu could not download ({error}): "
            "connect once, or choose another tokenizer"
        ) from error


class ChrF(CorpusScore):
    """Corpus chrF, on characters.

    Args:
        lowercase: Compare in lower case.
    """

    def __init__(self, lowercase: bool = True) -> None:
        super().__init__(sacrebleu.CHRF(lowercase=lowercase))
