"""`rnnkit translate`: one line out for every line in, whatever comes in."""

import io
import json
import sys

import pytest
import torch

from rnnkit.cli import main
from rnnkit.data.translation import TranslationData
from rnnkit.tasks import LanguageModel, Translation


class Input:
    """Standard input of these bytes."""

    def __init__(self, text):
        self.buffer = io.BytesIO(text)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained model for dates, with all that a checkpoint of `rnnkit fit` holds."""
    data = TranslationData("dates", batch_tokens=1000)
    torch.manual_seed(0)
    arguments = {
        "source_vocabulary_size": data.source_vocabulary_size,
        "target_vocabulary_size": data.target_vocabulary_size,
        "embedding_size": 8, "encoder_size": 8, "hidden_size": 8, "max_length": 12,
    }  # fmt: skip
    model = Translation(**arguments)
    with torch.no_grad():  # it writes words before it ends
        model.softmax.bias[:4] = -4.0
    path = tmp_path_factory.mktemp("checkpoint") / "m.ckpt"
    torch.save(
        {
            "state_dict": model.state_dict(),
            "hyper_parameters": arguments,
            "TranslationData": data.state_dict(),
            "pytorch-lightning_version": "2.6.0",
        },
        path,
    )
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
    assert {"text", "score", "log_probability", "finished"} == set(first["translations"][0])
    plain = translate(monkeypatch, capsys, b"may 3, 1983\n", "--ckpt", checkpoint)[1]
    assert first["translations"][0]["text"] == plain[0]


def test_attention_is_drawn_for_the_first_line(checkpoint, monkeypatch, capsys, tmp_path):
    picture = tmp_path / "attention.png"
    arguments = ["--ckpt", checkpoint, "--attention", str(picture)]
    assert translate(monkeypatch, capsys, b"may 3, 1983\n", *arguments)[0] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    status, _, said = translate(monkeypatch, capsys, b"\nmay 3\n", *arguments)
    assert (status, said) == (1, "rnnkit translate: nothing to draw: the first line has no token\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--beam", "0"], "expected beam_size of 1 or more, got 0"),
        (["--batch-size", "0"], "expected batch_size of 1 or more, got 0"),
        (["--length-penalty", "-1"], "expected a length_penalty of 0 or more, got -1.0"),
        (["--n-best", "0"], "expected n_best of 1 or more, got 0"),
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
