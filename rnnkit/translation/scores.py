"""What translations are scored by."""

from __future__ import annotations

from functools import partial

from torchmetrics import Metric, MetricCollection

from rnnkit.metrics.bleu import BLEU, ChrF
from rnnkit.metrics.exact_match import ExactMatch
from rnnkit.translation.tokenizers import spaced
from rnnkit.translation.words import Level


def make_scores(stage: str, level: Level, tokenize: str, lowercase: bool) -> MetricCollection:
    """The scores of what a model writes against references, as lines of text.

    Args:
        stage: test: with chrF and BLEU on our own tokens, under `test/`; else under `val/`.
        level: Of the target's tokens.
        tokenize: sacrebleu's, for BLEU.
        lowercase: Compare in lower case.

    Raises:
        ValueError: What sacrebleu's tokenizer needs is not there.
    """
    scores: dict[str, Metric | MetricCollection] = {
        "bleu": BLEU(lowercase, tokenize),
        "exact_match": ExactMatch(lowercase),
    }
    if stage == "test":
        cut = partial(spaced, level=level, lowercase=lowercase)
        scores["bleu_tokenized"] = BLEU(lowercase, "none", cut)
        scores["chrf"] = ChrF(lowercase)
    # In groups they would share the counts that have the same name in several.
    prefix = "test/" if stage == "test" else "val/"
    return MetricCollection(scores, prefix=prefix, compute_groups=False)
