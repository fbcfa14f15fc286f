"""`rnnkit score` on small models of words and of characters."""

import io
import math
import re
import sys

import pytest
import torch
from torch.nn import functional as F

from rnnkit.cli import main
from rnnkit.language_modeling.corpora import Tokenizer
from rnnkit.language_modeling.generate import Writer
from rnnkit.language_modeling.score import Score, line_scores, split_lines, token_losses
from tests.small_checkpoints import make_checkpoint

pytestmark = pytest.mark.training

TEXT = "the cat sees\nthe dog\n\nhears the cat\n"
TRAIN = "the dog sees the cat\nthe cat hears the dog\n\nthe tree sees the dog hears\n" * 8


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score")
    return folder, {
        level: make_checkpoint(folder, level, TRAIN, TEXT) for level in ("word", "character")
    }


def plain_losses(model, tokens, start):
    """Nats of every token, the state carried by hand from one to the next."""
    losses, state, previous = [], None, start
    for token in tokens.tolist():
        with torch.no_grad():
            logits, state = model(torch.tensor([[previous]]), state)
        losses.append(-float(logits[0, 0].double().log_softmax(-1)[token]))
        previous = token
    return losses


def loaded(checkpoint, text=TEXT):
    writer = Writer.from_checkpoint(checkpoint)
    tokens = writer.vocabulary.encode(writer.tokenizer.tokenize(text))
    return writer.model, tokens, writer.vocabulary.index(writer.tokenizer.start)


@pytest.mark.parametrize("level", ["word", "character"])
@pytest.mark.parametrize("segment", [1, 4, 1000])
def test_the_losses_are_those_of_a_loop_whatever_the_segment(level, segment, checkpoints):
    model, tokens, start = loaded(checkpoints[1][level])
    parts = list(token_losses(model, tokens, start, segment))
    assert [len(part) for part in parts[:-1]] == [segment] * (len(parts) - 1)
    losses = torch.cat(parts)
    assert losses.dtype == torch.float64
    assert losses.tolist() == pytest.approx(plain_losses(model, tokens, start), rel=1e-5)


def test_dynamic_evaluation_scores_first_and_learns_then(checkpoints):
    model, tokens, start = loaded(checkpoints[1]["character"])
    before = [weight.clone() for weight in model.parameters()]
    found = torch.cat(list(token_losses(model, tokens, start, 6, rate=0.5)))
    assert all(map(torch.equal, before, model.parameters()))
    # Equation by equation, on a model of its own.
    other, _, _ = loaded(checkpoints[1]["character"])
    state, expected = None, []
    inputs = torch.cat([torch.tensor([start]), tokens[:-1]])
    for begin in range(0, len(tokens), 6):
        logits, state = other(inputs[begin : begin + 6, None], state)
        losses = F.cross_entropy(logits[:, 0], tokens[begin : begin + 6], reduction="none")
        expected += losses.tolist()
        other.zero_grad()
        (losses.sum() / len(losses)).backward()
        for weight in other.parameters():
            weight.data -= 0.5 * weight.grad
        state = tuple(part.detach() for part in state)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    plain = torch.cat(list(token_losses(model, tokens, start, 6)))
    assert found[:6].tolist() == pytest.approx(plain[:6].tolist(), rel=1e-6)
    assert found[6:].mean() < plain[6:].mean()  # it has learned


@pytest.mark.parametrize("rate", [-0.1, math.nan, math.inf])
def test_a_rate_that_is_none_is_refused(rate, checkpoints):
    model, tokens, start = loaded(checkpoints[1]["word"])
    with pytest.raises(ValueError, match=f"rate of 0 or more, got {rate}"):
        next(token_losses(model, tokens, start, 5, rate))
    with pytest.raises(ValueError, match="segment of 1 token or more, got 0"):
        next(token_losses(model, tokens, start, 0))


def test_a_rate_that_is_too_high_is_told(checkpoints):
    model, tokens, start = loaded(checkpoints[1]["word"])
    with pytest.raises(FloatingPointError, match=r"after \d+ tokens .* rate 1e\+38: lower it"):
        list(token_losses(model, tokens.repeat(10), start, 2, 1e38))


def test_a_loss_that_is_not_finite_is_told(checkpoints):
    model, tokens, start = loaded(checkpoints[1]["word"])
    model.decoder.bias.data[0] = math.nan
    with pytest.raises(FloatingPointError, match="not finite after 0 tokens: look for NaN and inf"):
        list(token_losses(model, tokens, start, 5))


@pytest.mark.parametrize("level", ["word", "character"])
@pytest.mark.parametrize("text", ["a b\n\nc\n", "a b\nc", "\n", "", "a\n\n", "x"])
def test_lines_together_are_the_text(level, text):
    tokenizer = Tokenizer(level)
    lines = split_lines(tokenizer, text)
    assert [token for line in lines for token in line] == tokenizer.tokenize(text)
    assert len(lines) == len(text.splitlines())


def test_a_score_beyond_the_largest_number_is_infinite():
    assert Score(8000.0, 10).perplexity == math.inf
    assert Score(10 * math.log(8), 10).perplexity == pytest.approx(8)
    assert Score(10 * math.log(8), 10).bits_per_token == pytest.approx(3)


def test_each_line_gets_the_losses_of_its_tokens():
    losses = torch.arange(6, dtype=torch.float64)
    scores = line_scores(losses, [["a", "\n"], ["\n"], ["b", "c", "d"]])
    assert scores == [Score(1, 2), Score(2, 1), Score(12, 3)]


def run(capsys, *arguments):
    capsys.readouterr()
    status = main(["score", *arguments])
    return status, *capsys.readouterr()


@pytest.mark.parametrize("level", ["word", "character"])
def test_the_table_of_lines_adds_up(level, checkpoints, capsys):
    folder, paths = checkpoints
    (folder / "text.txt").write_text(TEXT)
    status, output, _ = run(
        capsys, str(folder / "text.txt"), "--ckpt", paths[level], "--per-line", "--segment", "3"
    )
    assert status == 0
    header, *rows, total = [line.split("\t") for line in output.splitlines()]
    assert header == ["line", "tokens", "nll", "perplexity", "bits_per_token"]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    losses = iter(plain_losses(*loaded(paths[level])))
    for row, line in zip(rows, TEXT.splitlines(), strict=True):
        tokens = len(line.split() if level == "word" else line) + 1
        likelihood = sum(next(losses) for _ in range(tokens))
        assert int(row[1]) == tokens
        assert float(row[2]) == pytest.approx(likelihood, rel=1e-5)
        assert float(row[3]) == pytest.approx(math.exp(likelihood / tokens), rel=1e-5)
        assert float(row[4]) == pytest.approx(likelihood / tokens / math.log(2), rel=1e-5)
    assert next(losses, None) is None
    assert total[0] == "total"
    assert int(total[1]) == sum(int(row[1]) for row in rows)
    assert float(total[2]) == pytest.approx(sum(float(row[2]) for row in rows), abs=1e-5)


def test_a_corpus_is_scored_beside_models_that_count(checkpoints, capsys):
    folder, paths = checkpoints
    status, output, _ = run(
        capsys, "--corpus", str(folder / "corpus"), "--ckpt", paths["character"]
    )
    assert status == 0
    rows = {line[:20].strip(): line[20:].split() for line in output.splitlines()[2:]}
    assert list(rows) == ["uniform", "unigram", "Kneser-Ney 6-gram", "the model"]
    model, tokens, start = loaded(paths["character"])
    nats = sum(plain_losses(model, tokens, start))
    assert output.startswith(f"{len(TEXT)} characters, {nats:.1f} nats\n")
    assert float(rows["the model"][1]) == pytest.approx(nats / len(TEXT) / math.log(2), abs=6e-4)
    assert float(rows["uniform"][0]) == len(set(TRAIN))
    perplexities = [float(row[0]) for row in rows.values()]
    assert perplexities[0] > perplexities[1] > perplexities[2]  # the text is much like the training


def test_standard_input_is_a_text_and_its_mark_is_none(checkpoints, capsys, monkeypatch):
    outputs = []
    for content in (TEXT.encode(), b"\xef\xbb\xbf" + TEXT.encode()):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        outputs.append(run(capsys, "-", "--ckpt", checkpoints[1]["word"]))
    assert outputs[0] == outputs[1]
    assert outputs[0][0] == 0
    assert re.match(r"12 words, [\d.]+ nats\n", outputs[0][1])
    assert outputs[0][2] == ""
    typed = io.BytesIO(TEXT.encode())
    monkeypatch.setattr(typed, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(typed))
    _, output, said = run(capsys, "-", "--ckpt", checkpoints[1]["word"])
    assert (output, said) == (outputs[0][1], "type the text; Ctrl-D ends it\n")


def test_unknown_words_are_counted_and_told(checkpoints, capsys, tmp_path):
    (tmp_path / "text.txt").write_text("the zebra sees\na zebra\n")
    status, _, errors = run(capsys, str(tmp_path / "text.txt"), "--ckpt", checkpoints[1]["word"])
    assert status == 0
    assert "3 of 7 tokens (42.9 %) are read as <unk>: 'zebra', 'a'\n" in errors


@pytest.fixture
def with_unknown(tmp_path):
    """A model whose training text has <unk> itself."""
    return make_checkpoint(tmp_path, "word", TRAIN.replace("tree", "<unk>"), TEXT + "<unk> x\n")


def test_words_that_a_text_has_as_unknown_are_counted_too(with_unknown, capsys, tmp_path):
    (tmp_path / "text.txt").write_text("the <unk> sees\na <unk>\n")
    status, _, errors = run(capsys, str(tmp_path / "text.txt"), "--ckpt", with_unknown)
    assert status == 0
    assert "3 of 7 tokens (42.9 %) are read as <unk>: '<unk>', 'a'\n" in errors
    (tmp_path / "text.txt").write_text("the <unk> sees\n")
    _, _, errors = run(capsys, str(tmp_path / "text.txt"), "--ckpt", with_unknown)
    assert "1 of 4 tokens (25.0 %) are read as <unk>: '<unk>'\n" in errors
    _, _, errors = run(capsys, "--corpus", str(tmp_path / "corpus"), "--ckpt", with_unknown)
    assert "2 of 15 tokens (13.3 %) are read as <unk>: '<unk>', 'x'\n" in errors


def test_the_perplexity_without_unknown_words_stands_below(with_unknown, capsys, tmp_path):
    text = "the <unk> sees\na dog\n"
    (tmp_path / "text.txt").write_text(text)
    model, tokens, start = loaded(with_unknown, text)
    losses = [loss for i, loss in enumerate(plain_losses(model, tokens, start)) if i not in (1, 4)]
    _, output, _ = run(capsys, str(tmp_path / "text.txt"), "--ckpt", with_unknown)
    label, perplexity, bits = output.splitlines()[-1].rsplit(None, 2)
    assert label == "without <unk>"
    assert float(perplexity) == pytest.approx(math.exp(sum(losses) / 5), rel=1e-3)
    assert float(bits) == pytest.approx(sum(losses) / 5 / math.log(2), abs=1e-3)
    (tmp_path / "text.txt").write_text("the dog sees\n")
    _, output, errors = run(capsys, str(tmp_path / "text.txt"), "--ckpt", with_unknown)
    assert "<unk>" not in output + errors


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty: there is nothing to score"),
        (b"the caf\xe9", "is no UTF-8: byte 0xe9 in line 1"),
        ("the\ncaf\u00e9\n".encode(), "line 2 of "),
        (None, "No such file"),
    ],
)
def test_a_text_that_cannot_be_scored_is_told(content, expected, checkpoints, capsys, tmp_path):
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    path = str(tmp_path / "text.txt")
    status, output, errors = run(capsys, path, "--ckpt", checkpoints[1]["character"])
    assert (status, output) == (1, "")
    assert "rnnkit score: " in errors
    assert expected in errors
    assert path in errors


def test_a_checkpoint_of_another_task_is_told(checkpoints, capsys, tmp_path):
    checkpoint = torch.load(checkpoints[1]["word"], weights_only=True)
    checkpoint["TranslationData"] = checkpoint.pop("LanguageModelingData")
    torch.save(checkpoint, tmp_path / "other.ckpt")
    status, _, errors = run(capsys, "-", "--ckpt", str(tmp_path / "other.ckpt"))
    assert status == 1
    assert "other.ckpt is no checkpoint of a language model: no LanguageModelingData" in errors


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_sees_how_much_is_left(checkpoints, capsys, monkeypatch, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT * 40)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    arguments = [str(tmp_path / "text.txt"), "--ckpt", checkpoints[1]["word"], "--segment", "2"]
    assert main(["score", *arguments]) == 0
    assert re.search(r"\d+ % .*left", sys.stderr.getvalue())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert main(["score", *arguments]) == 0
    assert sys.stderr.getvalue() == ""
