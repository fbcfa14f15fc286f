"""`rnnkit translate`: one line out for every line in, whatever comes in."""

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from rnnkit.cli import main
from rnnkit.language_modeling import LanguageModel
from rnnkit.translation import Translation
from rnnkit.translation.data import END, UNKNOWN, TranslationData, source_batch
from tests.forks import Process


class Input:
    """Standard input of these bytes."""

    def __init__(self, text):
        self.buffer = io.BytesIO(text)


def save(path, data, **changes):
    """An untrained model with all that a checkpoint of `rnnkit fit` holds; returns the model."""
    torch.manual_seed(0)
    arguments = {
        "source_vocabulary_size": data.source_vocabulary_size,
        "target_vocabulary_size": data.target_vocabulary_size,
        "embedding_size": 8, "encoder_size": 8, "hidden_size": 8, "max_length": 12, **changes,
    }  # fmt: skip
    model = Translation(**arguments)
    with torch.no_grad():  # it writes words before it ends
        model.softmax.bias[:4] = -4.0
    torch.save(
        {
            "state_dict": model.state_dict(),
            "hyper_parameters": arguments,
            "TranslationData": data.state_dict(),
            "pytorch-lightning_version": "2.6.0",
        },
        path,
    )
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model for dates."""
    path = tmp_path_factory.mktemp("checkpoint") / "m.ckpt"
    save(path, TranslationData("dates", batch_tokens=1000))
    return str(path)


def translate(monkeypatch, capsys, text, *arguments):
    monkeypatch.setattr(sys, "stdin", Input(text))
    status = main(["translate", *arguments])
    said = capsys.readouterr()
    return status, said.out.split("\n")[:-1], said.err


LINES = [
    b"may 3, 1983",
    b"",
    b"   ",
    b"qwertz uiop",
    b"3 \xff\xfe may",
    b"may " * 300,
    b"may 4, 1984",
]


@pytest.mark.parametrize("batch_size", ["1", "2", "64"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_every_line_has_its_line(checkpoint, monkeypatch, capsys, batch_size, end):
    text = end.join(LINES) + end
    status, lines, said = translate(
        monkeypatch, capsys, text, "--ckpt", checkpoint, "--batch-size", batch_size
    )
    assert status == 0
    assert len(lines) == len(LINES)
    assert lines[1] == lines[2] == ""
    assert all(line for i, line in enumerate(lines) if i not in (1, 2))
    assert "line 4 has no word that the model knows" in said
    assert "line 5 is no UTF-8" in said
    assert "line 6 has 300 tokens, only 200 are translated" in said
    alone = [
        translate(monkeypatch, capsys, line + end, "--ckpt", checkpoint)[1][0] for line in LINES
    ]
    assert lines == alone


def test_no_input_gives_no_output_and_a_last_line_needs_no_end(checkpoint, monkeypatch, capsys):
    assert translate(monkeypatch, capsys, b"", "--ckpt", checkpoint)[:2] == (0, [])
    with_end = translate(monkeypatch, capsys, b"may 3\n", "--ckpt", checkpoint)[1]
    assert translate(monkeypatch, capsys, b"may 3", "--ckpt", checkpoint)[1] == with_end


def test_a_byte_order_mark_is_no_part_of_the_text(checkpoint, monkeypatch, capsys):
    marked = translate(monkeypatch, capsys, b"\xef\xbb\xbfmay 3\n", "--ckpt", checkpoint)
    assert marked[1] == translate(monkeypatch, capsys, b"may 3\n", "--ckpt", checkpoint)[1]
    assert marked[2] == ""


def test_the_best_are_printed_as_json_with_their_scores(checkpoint, monkeypatch, capsys):
    status, lines, _ = translate(
        monkeypatch, capsys, b"may 3, 1983\n\n", "--ckpt", checkpoint, "--n-best", "3"
    )
    assert status == 0
    first, second = (json.loads(line) for line in lines)
    assert (first["line"], second) == (1, {"line": 2, "translations": []})
    assert len(first["translations"]) == 3
    scores = [each["score"] for each in first["translations"]]
    assert scores == sorted(scores, reverse=True)
    keys = {"text", "tokens", "score", "log_probability", "finished"}
    assert keys == set(first["translations"][0])
    plain = translate(monkeypatch, capsys, b"may 3, 1983\n", "--ckpt", checkpoint)[1]
    assert first["translations"][0]["text"] == plain[0]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_and_json_get_nothing_that_acts(checkpoint, monkeypatch, capsys):
    nasty = "a\u202eb\x1b[2J"
    monkeypatch.setattr("rnnkit.translation.words.WordTokenizer.decode", lambda *_: nasty)
    arguments = (monkeypatch, capsys, b"may 3\n", "--ckpt", checkpoint)
    assert translate(*arguments)[1] == [nasty]  # a pipe gets what the model wrote
    (line,) = translate(*arguments, "--n-best", "1")[1]
    assert r"a\u202eb\u001b[2J" in line
    assert json.loads(line)["translations"][0]["text"] == nasty
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stdin", Input(b"may 3\n"))
    assert main(["translate", "--ckpt", checkpoint]) == 0
    assert terminal.getvalue() == "a\\u202eb\\x1b[2J\n"


def test_attention_is_drawn_for_the_first_line(checkpoint, monkeypatch, capsys, tmp_path):
    picture = tmp_path / "attention.png"
    arguments = ["--ckpt", checkpoint, "--attention", str(picture)]
    assert translate(monkeypatch, capsys, b"may 3, 1983\n", *arguments)[0] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()
    status, lines, said = translate(monkeypatch, capsys, b"\nmay 3\n\n", *arguments)
    assert (status, len(lines), said) == (0, 3, "")
    assert picture.read_bytes().startswith(b"\x89PNG")
    status, lines, said = translate(monkeypatch, capsys, b"\n\n", *arguments)
    assert (status, len(lines)) == (0, 2)
    assert "no line has text, nothing was drawn" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--beam", "0"], "expected beam_size of 1 or more, got 0"),
        (["--batch-size", "0"], "expected batch_size of 1 or more, got 0"),
        (["--length-penalty", "-1"], "expected a length_penalty of 0 or more, got -1.0"),
        (["--n-best", "0"], "expected n_best of 1 or more, got 0"),
        (["--n-best", "2", "--beam", "1"], "--n-best 2 needs a beam of 2 or more, got --beam 1"),
        (["--attention", "a.xyz"], "--attention: a picture ends in .png, .pdf, .svg, got a.xyz"),
    ],
)
def test_an_argument_out_of_range_is_one_sentence(
    checkpoint, monkeypatch, capsys, arguments, sentence
):
    status, lines, said = translate(monkeypatch, capsys, b"may\n", "--ckpt", checkpoint, *arguments)
    assert (status, lines) == (1, [])
    assert said == f"rnnkit translate: {sentence}\n"


def test_a_checkpoint_of_another_task_is_refused(tmp_path, monkeypatch, capsys):
    model = LanguageModel(5, embedding_size=4, hidden_size=4)
    path = tmp_path / "lm.ckpt"
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": {}}, path)
    status, _, said = translate(monkeypatch, capsys, b"may\n", "--ckpt", str(path))
    assert status == 1
    assert "is no checkpoint of a translation model: no TranslationData" in said
    status, _, said = translate(monkeypatch, capsys, b"", "--ckpt", str(tmp_path / "none.ckpt"))
    assert status == 1
    assert "none.ckpt" in said


def test_many_notes_are_counted(checkpoint, monkeypatch, capsys):
    status, lines, said = translate(monkeypatch, capsys, b"\xff may\n" * 20, "--ckpt", checkpoint)
    assert (status, len(lines)) == (0, 20)
    assert said.count("is no UTF-8") == 5
    assert said.endswith("rnnkit translate: 15 more notes\n")


@pytest.mark.process
def test_one_line_at_a_time_answers_before_the_next_is_read(checkpoint):
    command = [sys.executable, "-m", "rnnkit.cli", "translate", "--ckpt", checkpoint]
    process = Process(
        [*command, "--batch-size", "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        for line in (b"may 3, 1983\n", b"may 4, 1984\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline().strip()
        process.stdin.close()
        assert process.wait(30) == 0
    finally:
        process.kill()


@pytest.mark.process
def test_output_is_utf8_whatever_the_locale_and_head_is_no_error(checkpoint, tmp_path):
    command = f"{sys.executable} -m rnnkit.cli translate --ckpt {checkpoint} --n-best 1"
    text = tmp_path / "in.txt"
    text.write_text("may 3, 1983\n" * 1000)  # ten times what a pipe holds
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} < {text} | head -1"],
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.stderr == b""
    assert done.returncode in (0, 128 + 13)
    assert json.loads(done.stdout)["line"] == 1


def test_a_blank_line_stays_blank_with_byte_pairs_too(tmp_path, monkeypatch, capsys):
    path = tmp_path / "m.ckpt"
    save(path, TranslationData("dates", level="bpe", bpe_size=300, batch_tokens=1000))
    text = b"may 3\n   \n\t\n\n"
    status, lines, _ = translate(monkeypatch, capsys, text, "--ckpt", str(path))
    assert status == 0
    assert lines[1:] == ["", "", ""]


# What the model does not know -----------------------------------------------------------------


def unknowing(folder, level="word", **changes):
    """Path of a model that writes many unknown tokens, the model and its data."""
    for split in ("train", "valid", "test"):
        (folder / f"{split}.de").write_text("der Hund bellt.\ndie Katze bellt.\n")
        (folder / f"{split}.en").write_text("the dog barks.\nthe cat barks.\n")
    data = TranslationData(
        str(folder), "de", "en", level=level, min_count=2, bpe_size=300, lowercase=True
    )
    model = save(folder / "m.ckpt", data, **changes)
    with torch.no_grad():
        model.softmax.bias[UNKNOWN], model.softmax.bias[END] = 1.5, -9.0
    checkpoint = torch.load(folder / "m.ckpt", weights_only=True)
    torch.save({**checkpoint, "state_dict": model.state_dict()}, folder / "m.ckpt")
    return str(folder / "m.ckpt"), model, data


@pytest.mark.parametrize("level", ["word", "character", "bpe"])
def test_unknown_tokens_stand_in_all_that_is_printed(tmp_path, monkeypatch, capsys, level):
    path, *_ = unknowing(tmp_path, level)
    text = b"der Hund bellt.\n"
    (line,) = translate(monkeypatch, capsys, text, "--ckpt", path)[1]
    assert "<unk>" in line
    (best,) = translate(monkeypatch, capsys, text, "--ckpt", path, "--n-best", "4")[1]
    best = json.loads(best)["translations"]
    assert [each["text"].count("<unk>") for each in best] == [
        each["tokens"].count("<unk>") for each in best
    ]
    assert "<eos>" not in best[0]["tokens"]
    assert level == "bpe" or len({each["text"] for each in best}) == 4  # else broken characters
    greedy = ("--ckpt", path, "--beam", "1")
    assert "<unk>" in translate(monkeypatch, capsys, text, *greedy)[1][0]
    (without,) = translate(monkeypatch, capsys, text, *greedy, "--no-unknown")[1]
    assert "<unk>" not in without
    assert without


@pytest.mark.parametrize("level", ["word", "character"])
def test_an_unknown_token_is_replaced_by_the_source_word_that_was_looked_at(
    tmp_path, monkeypatch, capsys, level
):
    path, model, data = unknowing(tmp_path, level)
    line = "Der Vogel singt, Otto!"
    ids = data.source_tokenizer.encode(line)
    words = ["Der", "Vogel", "singt", ",", "Otto", "!"] if level == "word" else list(line)
    search = replace(model.beam, n_best=3)
    (found,) = model.translate(source_batch([ids]), search)
    expected = []
    for hypothesis in found:
        positions = [
            max(range(len(ids)), key=lambda i: float(row[i]))
            for token, row in zip(hypothesis.tokens, hypothesis.attention, strict=True)
            if token == UNKNOWN
        ]
        chosen = [words[position] for position in positions]
        expected.append(data.target_tokenizer.decode(hypothesis.tokens, chosen))
    arguments = ("--ckpt", path, "--replace-unk")
    text = f"{line}\n\n{line}, {line} {line}\n".encode()  # the batch pads the first
    status, lines, said = translate(monkeypatch, capsys, text, *arguments, "--n-best", "3")
    assert (status, len(lines), "<unk>" in said) == (0, 3, False)
    best = json.loads(lines[0])["translations"]
    assert [each["text"] for each in best] == expected
    assert any("<unk>" in each["tokens"] for each in best)
    assert not any("<unk>" in each["text"] for each in best)
    plain = translate(monkeypatch, capsys, text, *arguments)[1]
    assert (plain[0], plain[1]) == (expected[0], "")
    if level == "character":
        return
    dictionary = tmp_path / "words.tsv"
    dictionary.write_text("".join(f"{word.lower()}\tX\n" for word in words) + "der Vogel\tbird\n")
    status, lines, said = translate(
        monkeypatch, capsys, text, *arguments, "--dictionary", str(dictionary)
    )
    unknown = found[0].tokens.count(UNKNOWN)
    assert lines[0] == data.target_tokenizer.decode(found[0].tokens, ["X"] * unknown)
    assert "1 of 7 source words are several tokens and never found" in said


def test_replacing_asks_for_what_it_needs(tmp_path, monkeypatch, capsys):
    path, *_ = unknowing(tmp_path, attention="none")

    def said(*arguments):
        status, lines, said = translate(monkeypatch, capsys, b"der\n", "--ckpt", path, *arguments)
        assert (status, lines) == (1, [])
        return said

    assert said("--replace-unk") == "rnnkit translate: --replace-unk: this model has no attention\n"
    assert "--dictionary goes with --replace-unk" in said("--dictionary", "words.tsv")
    both = ("--ckpt", path, "--replace-unk", "--no-unknown")
    status, _, note = translate(monkeypatch, capsys, b"der\n", *both)
    assert status == 2
    assert "not allowed with argument" in note
    folder = tmp_path / "bpe"
    folder.mkdir()
    path, *_ = unknowing(folder, "bpe")
    status, lines, note = translate(monkeypatch, capsys, b"der\n", "--ckpt", path, "--replace-unk")
    assert (status, len(lines)) == (0, 1)
    assert "byte-pair encodings know every word, there is nothing to replace" in note


def test_byte_pairs_are_named_as_text(tmp_path, monkeypatch, capsys):
    path, *_ = unknowing(tmp_path, "bpe")
    (line,) = translate(monkeypatch, capsys, b"der\n", "--ckpt", path, "--n-best", "1")[1]
    (best,) = json.loads(line)["translations"]
    assert "\u0120" not in line  # the letter that stands for a blank
    assert all(
        re.fullmatch(r"<unk>|(\u2581|[\x21-\x7e]|<0x[0-9A-F]{2}>)+", t) for t in best["tokens"]
    )
