"""BLEU and chrF in parts against sacrebleu at once."""

import random

import pytest
import sacrebleu

from rnnkit.metrics.bleu import BLEU, ChrF

WORDS = "a man is riding the big Brown horse , near two houses .".split()  # noqa: SIM905


def corpus(lines: int, seed: int) -> tuple[list[str], list[str]]:
    draw = random.Random(seed)
    references, hypotheses = [], []
    for _ in range(lines):
        words = draw.choices(WORDS, k=draw.randint(1, 12))
        references.append(" ".join(words))
        kept = [word if draw.random() < 0.8 else draw.choice(WORDS) for word in words]
        hypotheses.append(" ".join(kept[: draw.randint(1, len(kept))]))
    return hypotheses, references


@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("name", ["13a", "none", "chrf"])
@pytest.mark.parametrize("seed", range(3))
def test_parts_add_up_to_sacrebleus_score(seed: int, name: str, lowercase: bool) -> None:
    hypotheses, references = corpus(30, seed)
    if name == "chrf":
        expected = sacrebleu.CHRF(lowercase=lowercase).corpus_score(hypotheses, [references])
        metric: BLEU | ChrF = ChrF(lowercase)
    else:
        bleu = sacrebleu.BLEU(lowercase=lowercase, tokenize=name)
        expected = bleu.corpus_score(hypotheses, [references])
        metric = BLEU(lowercase, name)
    for start in range(0, 30, 7):
        metric.update(hypotheses[start : start + 7], references[start : start + 7])
    assert float(metric.compute()) == pytest.approx(expected.score, abs=1e-9)
    metric.reset()
    metric.update(references, references)
    assert float(metric.compute()) == pytest.approx(100.0)


def test_two_processes_add_up() -> None:
    hypotheses, references = corpus(20, 0)
    both, one, two = BLEU(), BLEU(), BLEU()
    both.update(hypotheses, references)
    one.update(hypotheses[:9], references[:9])
    two.update(hypotheses[9:], references[9:])
    one.statistics += two.statistics  # as torchmetrics does between processes
    assert float(one.compute()) == float(both.compute())


def test_the_signature_says_how_it_was_counted() -> None:
    assert "tok:13a" in BLEU().signature
    assert "tok:none" in BLEU(tokenize="none").signature
    assert "nc:6|nw:0" in ChrF().signature
    assert "case:lc" in BLEU().signature
    assert "case:mixed" in BLEU(lowercase=False).signature


def test_unequal_numbers_of_lines_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2 translations and 1 references"):
        BLEU().update(["a", "b"], ["a"])


def test_nothing_agrees_is_zero() -> None:
    metric = BLEU()
    metric.update([], [])
    assert float(metric.compute()) == 0
    metric.update(["x y z w"], ["a b c d"])
    assert float(metric.compute()) < 20
