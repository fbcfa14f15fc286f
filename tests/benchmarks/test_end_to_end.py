"""Whole trainings beside what one would write with PyTorch alone."""

import json

import pytest

from benchmarks.end_to_end import main


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
