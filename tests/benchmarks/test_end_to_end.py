"""Whole trainings beside what one would write with PyTorch alone."""

import json

import pytest
import torch

import rnnkit
from benchmarks import decoding, turns
from benchmarks.end_to_end import main
from rnnkit.nn.crf import CRF


def test_a_tagger_is_the_same_model_on_both_sides(tmp_path, capsys):
    out = tmp_path / "figures.json"
    arguments = ["tagger", "--steps", "2", "--repeats", "1", "--out", str(out)]
    assert main(arguments) == 0  # 1 where the losses of the two sides disagree
    parts = json.loads(out.read_text())["parts"]
    assert [part["what"].partition("CRF, ")[2] for part in parts] == [
        "characters by an LSTM",
        "characters by a CNN",
        "words alone",
    ]
    for part in parts:
        assert part["mean_loss"]["rnnkit"] == pytest.approx(part["mean_loss"]["plain"], rel=1e-4)
        assert part["median"]["ratio"] > 0
    assert capsys.readouterr().out.count("median") == 3


def test_more_steps_than_an_epoch_has_are_an_error(capsys):
    assert main(["tagger", "--steps", "100000"]) == 1
    assert "has 125 steps, 100000 were asked for" in capsys.readouterr().err


def test_a_twin_differs_in_the_backend_of_its_layers_alone():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.crf = rnnkit.GRU(3, 4), CRF(5)

    model = Model()
    other = turns.twin(model, "torch")
    assert (model.rnn.backend, other.rnn.backend, other.crf.backend) == ("auto", "torch", "auto")
    x = torch.randn(6, 2, 3)
    assert rnnkit.explain(other.rnn, x).decision.engine == "torch"
    torch.testing.assert_close(other.rnn(x)[0], model.rnn(x)[0])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_language_model_against_torchs_layers(cell, corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.end_to_end.keep_freed_memory", lambda: None)
    out = tmp_path / "figures.json"
    options = ["--corpus", corpus, "--steps", "2", "--repeats", "3", "--out", str(out)]
    assert main(["small", "--against", "torch", "--cell", cell, *options]) == 0
    found = json.loads(out.read_text())
    assert len(found["pairs"]) == 3
    assert found["mean_loss"]["rnnkit"] == pytest.approx(found["mean_loss"]["plain"], rel=1e-3)
    assert f"{cell}: auto, then backend torch" in found["what"]
    assert capsys.readouterr().out.count("tokens/s   torch ") == 4


def test_a_tagger_and_decoding_against_torchs_layers(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(decoding, "VOCABULARIES", (40, 50))
    monkeypatch.setattr(decoding, "SENTENCES", 4)
    for what in ("tagger", "decoding"):
        out = tmp_path / f"{what}.json"
        options = ["--steps", "1", "--repeats", "2", "--out", str(out)]
        assert main([what, "--against", "torch", *options]) == 0
        parts = json.loads(out.read_text())["parts"]
        assert all('against backend="torch"' in part["what"] for part in parts)
        assert all(len(part["pairs"]) == 2 for part in parts)
    assert "greedy, batches of 4" in parts[0]["what"]


def test_a_cell_needs_the_side_that_has_it(capsys):
    assert main(["small", "--cell", "gru"]) == 1
    assert "--cell gru is for language models --against torch" in capsys.readouterr().err
