"""What a wrong command line of `rnnkit fit` is told: what is wrong, and what to type."""

import pytest

from rnnkit.cli import main

CLASS = "package.module.Class"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "a configuration is missing, as in `rnnkit fit -c tagging/announcements`: "),
        (
            ["--model", "Tagger"],
            "neither a configuration nor --data names a class for data: take one of "
            "LanguageModelingData, TranslationData, TaggingData",
        ),
        (["--model", "Taggr"], "no class Taggr for model: rnnkit's are LanguageModel, Trans"),
        (["--model.help", "Taggr"], "no class Taggr for model: rnnkit's are LanguageModel, Trans"),
        (["--data=Tagger"], "no class Tagger for data: rnnkit's are LanguageModelingData, "),
        (["-c", "typo.yaml"], f"and one of yours is named by its path, as {CLASS}"),
        (["--trainer.callbacks+=EarlyStoping"], "no class EarlyStoping for trainer.callbacks; "),
        (
            ["tagging/announcements"],
            "a configuration follows -c, as in rnnkit fit -c tagging/announcements",
        ),
        (["bogus"], "unrecognized arguments: bogus"),
        (["-c", "tagging/announcments"], "`rnnkit configs` lists the names of those that come"),
        (
            ["-c", "tagging/announcements", "--model.hiden_size", "3"],
            "'hiden_size' is not accepted; `rnnkit fit -c CONFIG --help` shows the options",
        ),
        (
            ["-c", "tagging/announcements", "--model.optimizer.lrr", "3"],
            "'lrr' is not accepted; `rnnkit fit -c CONFIG --help` shows the options",
        ),
    ],
)
def test_a_mistake_is_one_sentence_with_what_to_do(
    arguments, expected, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "typo.yaml").write_text("model: {class_path: Taggr}\n")
    assert main(["fit", *arguments]) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("rnnkit fit: ")
    assert expected in sentence
    assert "Namespace" not in sentence


def test_who_scores_without_anything_is_told_of_the_checkpoint(capsys):
    assert main(["test"]) == 1
    assert "`rnnkit test -c tagging/announcements --ckpt_path runs" in capsys.readouterr().err


def test_a_word_that_yaml_takes_for_a_truth_value_is_to_be_quoted(tmp_path, capsys):
    config = tmp_path / "columns.yaml"
    config.write_text("data: {class_path: TaggingData, init_args: {sentence_column: no}}\n")
    assert main(["fit", "-c", "tagging/announcements", "-c", str(config)]) == 1
    expected = "YAML reads no, off or false as a truth value; write the word in quotes"
    assert expected in capsys.readouterr().err
