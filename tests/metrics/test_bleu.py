"""BLEU and chrF in parts against sacrebleu at once."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sacrebleu
import torch

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


SHORT = ["forty two", "seven", "one hundred six", "Nine"]
CHINESE = ["我们今天去公园。", "他喜欢吃苹果。", "她在看书。"]


@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("tokenize", ["13a", "zh", "char", "intl", "none"])
@pytest.mark.parametrize("lines", [SHORT, CHINESE, corpus(30, 0)[1]], ids=["short", "zh", "long"])
def test_perfect_lines_have_the_full_score_as_sacrebleu_has_it_under_the_signature(
    lines: list[str], tokenize: str, lowercase: bool
) -> None:
    metric = BLEU(lowercase, tokenize)
    for written, score in ((lines, 100.0), ([*lines[1:], lines[0]], None)):
        metric.reset()
        metric.update(written, lines)
        found = float(metric.compute())
        effective = "eff:yes" in metric.signature
        cut = metric.metric.tokenizer
        assert effective == all(len(cut(line).split()) < 4 for line in lines)
        theirs = sacrebleu.BLEU(
            lowercase=lowercase, tokenize=tokenize, effective_order=effective, force=True
        )
        assert found == pytest.approx(theirs.corpus_score(written, [lines]).score, abs=1e-9)
        assert metric.signature == str(theirs.get_signature())
        if score is not None:
            assert found == pytest.approx(score)


@pytest.mark.process
@pytest.mark.parametrize("tokenize", ["13a", "zh", "char", "intl", "none"])
@pytest.mark.parametrize("lowercase", [False, True])
def test_the_command_of_sacrebleu_prints_the_same(
    tokenize: str, lowercase: bool, tmp_path: Path
) -> None:
    hypotheses, references = corpus(30, 1)
    hypotheses, references = [*hypotheses, *CHINESE[:2], ""], [*references, *CHINESE[1:], "a b"]
    metric = BLEU(lowercase, tokenize)
    metric.update(hypotheses, references)
    for name, lines in (("hypotheses", hypotheses), ("references", references)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", str(tmp_path / "references")]
    command += ["-i", str(tmp_path / "hypotheses"), "-tok", tokenize, "-b", "-w", "9", "--force"]
    command += ["-lc"] if lowercase else []
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == f"{float(metric.compute()):.9f}"
    assert "eff:no" in metric.signature


def test_two_processes_agree_on_the_effective_order() -> None:
    whole, one, two = BLEU(), BLEU(), BLEU()
    for metric, lines in ((whole, [*SHORT, "a b c d e"]), (one, SHORT), (two, ["a b c d e"])):
        metric.update(lines, lines)
    assert torch.maximum(one.longest, two.longest).tolist() == whole.longest.tolist() == [5, 5]
    whole.compute()
    assert "eff:no" in whole.signature


@pytest.mark.parametrize(
    ("tokenize", "written", "references", "caution"),
    [
        ("13a", SHORT, SHORT, r"no reference has 4 tokens as tokenize 13a .* longest has 3\), so"),
        ("13a", CHINESE, CHINESE, r"\(eff:yes\); .* without blanks .* zh for Chinese, ja"),
        (
            "13a",
            ["x"],
            ["他说: 好, 3.5 元, 我们今天去公园。"],
            "^the references are written without",
        ),
        (
            "13a",
            ["a b", "c"],
            ["a b", "a b c d"],
            r"BLEU is 0 although 3 tokens .* longest has 2\)",
        ),
        ("13a", ["a b c"], ["a b c d"], r"BLEU is 0 although 3 tokens .* longest has 3\)"),
        ("13a", ["a x y z"], ["a b c d"], None),
        ("13a", ["a b c d"], ["a b c d"], None),
        ("13a", ["x"], ["a b c d"], None),
        ("zh", CHINESE, CHINESE, None),
        ("char", SHORT, SHORT, None),
    ],
)
def test_what_a_figure_does_not_say_is_told(
    tokenize: str, written: list[str], references: list[str], caution: str | None
) -> None:
    metric = BLEU(tokenize=tokenize)
    metric.update(written, references)
    metric.compute()
    assert (metric.caution is None) == (caution is None)
    if caution is not None:
        assert re.search(caution, str(metric.caution))


@pytest.mark.parametrize("line", ["หมาเห็นแมวตัวใหญ่", "ខ្ញុំស្រលាញ់អ្នក", "ကျွန်တော်ချစ်တယ်"])
def test_the_advice_helps_scripts_that_zh_does_not_cut(line: str) -> None:
    assert sacrebleu.BLEU(tokenize="zh").tokenizer(line) == line
    metric = BLEU()
    metric.update([line], [line])
    metric.compute()
    assert metric.caution is not None
    assert metric.caution.endswith("zh for Chinese, ja-mecab for Japanese, or char for any")


def test_a_tokenizer_that_is_not_there_is_told_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match=r"one of none, zh, 13a, .*flores200.*, got 'ja'$"):
        BLEU(tokenize="ja")

    def fail(error: BaseException) -> None:
        def made(**_: object) -> None:
            raise error

        monkeypatch.setattr(sacrebleu, "BLEU", made)

    for name, package in (("ja-mecab", "sacrebleu[ja]"), ("flores200", "sentencepiece")):
        fail(RuntimeError("\nlong") if name == "ja-mecab" else ImportError("\nlong"))
        with pytest.raises(ValueError, match=rf"tokenize {name} needs .*'{re.escape(package)}'$"):
            BLEU(tokenize=name)
    for error in (OSError("no route to host"), SystemExit(1)):
        fail(error)
        with pytest.raises(ValueError, match=r"flores101 needs a file .* not download \("):
            BLEU(tokenize="flores101")


def test_lines_can_be_cut_before_they_are_compared() -> None:
    metric = BLEU(tokenize="none", cut=lambda line: " ".join(line))
    metric.update(["abcd"], ["ABCD"])
    assert float(metric.compute()) == pytest.approx(100.0)
