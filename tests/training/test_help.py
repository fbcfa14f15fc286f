"""The help of `rnnkit fit`, `validate` and `test`."""

import inspect
import re
import shlex

import pytest
import yaml
from lightning.pytorch import Trainer

from rnnkit.cli import main
from rnnkit.language_modeling import LanguageModel, LanguageModelingData
from rnnkit.tagging import Tagger, TaggingData
from rnnkit.training.command import _FROM_DATA
from rnnkit.training.help import shown
from rnnkit.training.help_texts import TRAINER
from rnnkit.training.shipped import shipped
from rnnkit.translation import Translation, TranslationData

CONFIGURATIONS = {
    "lm/ptb_awd_lstm": (LanguageModel, LanguageModelingData),
    "translation/dates": (Translation, TranslationData),
    "tagging/announcements": (Tagger, TaggingData),
}


@pytest.fixture
def rnnkit(capsys, monkeypatch):
    """Runs a command that ends well; gives what it prints."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments):
        assert main(list(arguments)) == 0, capsys.readouterr().err
        printed = capsys.readouterr().out
        if "--help" in arguments:
            _, _, explained = printed.partition("\n\n")
            assert max(map(len, explained.splitlines())) <= 100
        return printed

    return run


def options(printed):
    """The options of a help, with their values."""
    found = re.findall(r"^  (--(?:model|data|trainer)\.\S+) ('[^']*'|\[.*?\]|\S+)", printed, re.M)
    return dict(found)


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_the_help_is_short_and_begins_with_what_to_type(command, rnnkit):
    printed = rnnkit(command, "--help")
    assert rnnkit(command, "-h") == printed
    assert printed.startswith(f"rnnkit {command} -c tagging/announcements")
    assert len(printed.splitlines()) < 30, "a screen of 30 lines"
    for names in CONFIGURATIONS.values():
        for part, named in zip(("model", "data"), names, strict=True):
            assert f"--{part} {named.__name__} " in printed
    assert ("--trainer.max_epochs" in printed) == (command == "fit")
    assert "--trainer.help" in printed
    assert "--trainer.detect_anomaly" not in printed


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_shows_every_option_with_its_value(name, rnnkit):
    printed = rnnkit("fit", "-c", name, "--help")
    found = options(printed)
    configuration = yaml.safe_load(shipped()[name].read_text())
    for part, named in zip(("model", "data"), CONFIGURATIONS[name], strict=True):
        assert f"\n{part} {named.__name__}:\n" in printed
        given = configuration[part]["init_args"]
        for parameter in inspect.signature(named).parameters.values():
            if part == "model" and parameter.name in _FROM_DATA:
                assert f"--model.{parameter.name} " not in printed
                continue
            value = given.get(parameter.name, parameter.default)
            if not callable(value):
                assert found[f"--{part}.{parameter.name}"] == shown(value)
    rate = configuration["model"]["init_args"]["optimizer"]["init_args"]["lr"]
    assert found["--model.optimizer.lr"] == str(rate)
    assert found["--trainer.max_epochs"] == str(configuration["trainer"]["max_epochs"])
    assert printed.splitlines()[0] == f"rnnkit fit -c {name}"


def test_what_a_help_shows_can_be_typed(rnnkit):
    name = "translation/dates"
    printed = rnnkit("fit", "-c", name, "--help")
    # A list of callbacks is shown by their names; Lightning reads the number of devices as text.
    apart = ("--trainer.callbacks", "--trainer.devices")
    shown_ones = [f"{each} {value}" for each, value in options(printed).items()]
    typed = shlex.split(" ".join(each for each in shown_ones if not each.startswith(apart)))
    whole = rnnkit("fit", "-c", name, "--print_config")
    assert rnnkit("fit", "-c", name, *typed, "--print_config") == whole


def test_the_examples_can_be_typed(rnnkit):
    for asked in (["--help"], ["-c", "translation/dates", "--help"]):
        for example in rnnkit("fit", *asked).partition("\n\n")[0].splitlines():
            _, *typed = shlex.split(example, comments=True)
            assert rnnkit(*typed, *(() if "--help" in typed else ("--print_config",)))


def test_what_the_help_of_a_saved_configuration_shows_can_be_typed(rnnkit, tmp_path):
    saved = tmp_path / "config.yaml"
    saved.write_text(rnnkit("fit", "-c", "tagging/announcements", "--print_config"))
    found = options(rnnkit("fit", "-c", str(saved), "--model.help"))
    assert found["--model.optimizer.betas"] == "'[0.9, 0.999]'"
    typed = shlex.split(" ".join(f"{each} {value}" for each, value in found.items()))
    again = rnnkit("fit", "-c", str(saved), *typed, "--print_config")
    assert yaml.safe_load(again) == yaml.safe_load(saved.read_text())


def test_the_command_line_counts_in_the_help_too(rnnkit):
    changed = ("--model.hidden_size", "7", "--trainer.max_epochs=9", "--data.batch_size", "3")
    printed = rnnkit("fit", "-c", "tagging/announcements", "--help", *changed)
    found = options(printed)
    assert found["--model.hidden_size"] == "7"
    assert found["--trainer.max_epochs"] == "9"
    assert found["--data.batch_size"] == "3"


def test_a_class_has_its_help_by_either_name(rnnkit):
    printed = rnnkit("fit", "--model.help", "Tagger")
    assert printed.startswith("rnnkit fit -c CONFIG --model.embedding_size 200\n\nmodel Tagger:")
    assert options(printed)["--model.optimizer.lr"] == "0.001"
    assert "--data." not in printed
    assert "--trainer." not in printed
    assert rnnkit("fit", "--model.help=rnnkit.tagging.Tagger") == printed
    assert "--data.vectors null" in rnnkit("test", "--data.help", "TaggingData")


def test_a_part_has_its_help_alone(rnnkit):
    name = ("-c", "tagging/announcements")
    assert options(rnnkit("fit", *name, "--data.help"))["--data.corpus"] == "announcements"
    assert "--model LanguageModel " in rnnkit("fit", "--model.help")
    printed = rnnkit("fit", *name, "--trainer.help")
    found = options(printed)
    assert {f"--trainer.{each}" for each in [*inspect.signature(Trainer).parameters]} == {*found}
    assert found["--trainer.gradient_clip_val"] == "5.0"
    assert ":paramref:" not in printed
    assert TRAINER.keys() <= inspect.signature(Trainer).parameters.keys()


def test_a_class_within_a_class_is_explained(rnnkit):
    assert "--model.optimizer.momentum" in rnnkit(
        *("fit", "--model.help", "Tagger", "--model.optimizer.help", "SGD")
    )


def test_a_class_of_the_user_is_explained_without_what_it_needs(rnnkit):
    assert "--model.optimizer" in rnnkit(
        *("fit", "--model.help", "tests.training.callbacks.test_from_the_command_line.Line")
    )


def test_an_argument_is_not_explained_by_the_attribute_of_its_name(rnnkit):
    printed = rnnkit("fit", "--data.help", "TaggingData")
    assert re.search("--data.vectors null +File of word vectors, GloVe", printed)
