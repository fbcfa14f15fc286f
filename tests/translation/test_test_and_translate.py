"""What `rnnkit test` scores is what `rnnkit translate` writes, as sacrebleu scores it."""

import io
import sys
from pathlib import Path

import pytest
import sacrebleu
import torch

from rnnkit.cli import main
from rnnkit.translation import Translation, TranslationData
from rnnkit.translation.words import END
from tests.small_runs import make_trainer

NUMBERS = "Null Eins zwei drei vier fünf sechs sieben acht neun".split()  # noqa: SIM905


def lines(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Digits in words, up to eight in a line, and the same in English."""
    english = "zero One two three four five six seven eight nine".split()  # noqa: SIM905
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 8, (count,), generator=generator).tolist()
    ids = [torch.randint(10, (size,), generator=generator).tolist() for size in sizes]
    return tuple([" ".join(names[i] for i in row) for row in ids] for names in (NUMBERS, english))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs whose test has lines that are empty, blank, long and unknown."""
    folder = tmp_path_factory.mktemp("pairs")
    for seed, split in enumerate(("train", "valid", "test")):
        source, target = lines(150 if split == "train" else 15, seed)
        if split == "test":
            source += ["", " \t", "", "eins " * 30, "Otto zwei", "\u2028"]
            target += ["nothing to see here", "nor here", "", "one " * 30, "Otto two", "a"]
        for language, side in (("de", source), ("en", target)):
            text = "".join(f"{line}\n" for line in side)
            (folder / f"{split}.{language}").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.training
@pytest.mark.parametrize(
    ("level", "tokenize", "lowercase"),
    [("word", "13a", True), ("word", "intl", False), ("bpe", "zh", True),
     ("character", "char", False)],
)  # fmt: skip
def test_the_scores_are_sacrebleus_of_what_translate_writes(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    level: str,
    tokenize: str,
    lowercase: bool,
) -> None:
    data = TranslationData(
        str(folder), "de", "en", level=level, bpe_size=420, lowercase=lowercase, batch_tokens=200,
        eval_batch_size=4,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Translation(
        data.source_vocabulary_size, data.target_vocabulary_size, embedding_size=16,
        encoder_size=16, hidden_size=16, max_length=40, max_source=25, beam_size=3,
        tokenize=tokenize, lowercase=lowercase,
        optimizer=lambda parameters: torch.optim.Adam(parameters, 0.02),
    )  # fmt: skip
    trainer = make_trainer(max_epochs=2 if level == "character" else 6, limit_val_batches=0)
    trainer.fit(model, data)
    with torch.no_grad():  # it has not learnt much, and would write nothing
        model.softmax.bias[END] -= 2.0
    checkpoint = tmp_path / "m.ckpt"
    trainer.save_checkpoint(checkpoint)
    (scores,) = trainer.test(model, data, verbose=False)
    signatures = capsys.readouterr().out

    class Input:
        buffer = io.BytesIO((folder / "test.de").read_bytes())

    monkeypatch.setattr(sys, "stdin", Input())
    assert main(["translate", "--ckpt", str(checkpoint), "--batch-size", "5"]) == 0
    said = capsys.readouterr()
    written = said.out.split("\n")[:-1]
    references = (folder / "test.en").read_text(encoding="utf-8").split("\n")[:-1]
    assert written[15:18] == ["", "", ""]
    assert written[20] == ""
    assert "only 25 are translated" in said.err
    bleu = sacrebleu.BLEU(lowercase=lowercase, tokenize=tokenize, force=True)
    expected = bleu.corpus_score(written, [references]).score
    assert expected > 0
    assert scores["test/bleu"] == pytest.approx(expected, abs=1e-3)
    assert f"test/bleu: {bleu.get_signature()}" in signatures
    chrf = sacrebleu.CHRF(lowercase=lowercase).corpus_score(written, [references]).score
    assert scores["test/chrf"] == pytest.approx(chrf, abs=1e-3)
    cased = (lambda line: line.lower()) if lowercase else str
    equal = sum(
        cased(a).split() == cased(b).split() for a, b in zip(written, references, strict=True)
    )
    assert equal >= 1
    assert scores["test/exact_match"] == pytest.approx(100 * equal / len(written), abs=1e-3)
    if level == "character":  # of which bleu_tokenized has one token each
        assert scores["test/bleu_tokenized"] == pytest.approx(scores["test/bleu"], abs=1e-3)
