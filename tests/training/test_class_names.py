"""The short names of rnnkit's classes, in configurations and on the command line."""

from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule

from rnnkit.cli import main
from rnnkit.training.class_names import ROOMS, import_named
from tests.small_tasks import TASKS, language_model, tagging, translation
from tests.training.test_runs import FAST

NAMES = {
    language_model: ("LanguageModel", "LanguageModelingData", "rnnkit.language_modeling"),
    translation: ("Translation", "TranslationData", "rnnkit.translation"),
    tagging: ("Tagger", "TaggingData", "rnnkit.tagging"),
}


def test_every_class_that_a_configuration_may_name_has_its_short_name():
    found = {}
    for module in set(ROOMS.values()):
        room = import_module(module)
        for name in dir(room):
            value = getattr(room, name)
            kinds = (LightningModule, LightningDataModule, Callback)
            if isinstance(value, type) and issubclass(value, kinds):
                found[name] = module
    assert found == ROOMS
    assert import_named("Tagger").__name__ == "Tagger"
    assert import_named("Painter") is None


def shortened(configuration, folder):
    """A configuration that names our classes by their short names."""
    loaded = yaml.safe_load(Path(configuration).read_text())
    for part in [loaded["model"], loaded["data"], *loaded["trainer"]["callbacks"]]:
        if part["class_path"].startswith("rnnkit."):
            part["class_path"] = part["class_path"].rpartition(".")[2]
    path = folder / "short.yaml"
    path.write_text(yaml.safe_dump(loaded))
    return path


@pytest.mark.training
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("task", TASKS)
def test_a_configuration_of_short_names_runs_and_is_saved_with_whole_ones(
    task, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    _, configuration, *arguments = task(tmp_path)
    short = shortened(configuration, tmp_path)
    model, data, module = NAMES[task]
    assert f"class_path: {model}\n" in short.read_text()
    assert main(["fit", "-c", str(short), *arguments, *FAST]) == 0
    saved = yaml.safe_load(Path("runs/short/version_0/config.yaml").read_text())
    assert saved["model"]["class_path"] == f"{module}.{model}"
    assert saved["data"]["class_path"] == f"{module}.{data}"
    checkpoint = torch.load("runs/short/version_0/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["_class_path"] == f"{module}.{model}"
    whole = {each["class_path"] for each in saved["trainer"]["callbacks"]}
    assert ("rnnkit.translation.SampleTranslations" in whole) == (task is translation)


@pytest.mark.training
@pytest.mark.usefixtures("no_pictures")
def test_the_command_line_takes_short_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tagging(tmp_path)
    named = ("--model=Tagger", "--model.hidden_size", "8", "--data", "TaggingData")
    assert main(["fit", *named, "--data.corpus", "tagged", *FAST]) == 0
    assert Path("runs/Tagger/version_0/config.yaml").is_file()


@pytest.mark.training
@pytest.mark.usefixtures("no_pictures")
def test_a_short_name_on_the_command_line_keeps_the_options_of_the_configuration(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    arguments = tagging(tmp_path)
    assert main(["fit", *arguments, "--model", "Tagger", *FAST]) == 0
    saved = yaml.safe_load(Path("runs/announcements/version_0/config.yaml").read_text())
    assert saved["model"]["init_args"]["hidden_size"] == 8


LATE = """
from lightning.pytorch import {kind}
from lightning.pytorch.cli import OptimizerCallable

class {name}({kind}):
    def __init__(self, optimizer: OptimizerCallable = None):
        super().__init__()
"""


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("LateModel1", ["-c", "mine.yaml", "--print_config"], "late_model1.LateModel1"),
        ("LateModel2", ["--model", "LateModel2", "--print_config"], "late_model2.LateModel2"),
        ("LateData3", ["--data=LateData3", "--print_config"], "late_data3.LateData3"),
        ("LateModel4", ["--model.help", "LateModel4"], "model LateModel4:"),
        ("LateData5", ["--data.help=LateData5"], "data LateData5:"),
        ("LateModel6", ["--model.help", "LateModel6", "--model.optimizer.help", "SGD"], "momentum"),
    ],
)
def test_a_class_is_imported_where_its_name_stands(
    name, arguments, expected, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    kind = "LightningDataModule" if "Data" in name else "LightningModule"
    module = name.replace("Late", "late_").lower()
    Path(f"{module}.py").write_text(LATE.format(name=name, kind=kind))
    Path("mine.yaml").write_text(f"model: {{class_path: {name}}}\n")
    monkeypatch.setitem(ROOMS, name, module)
    assert main(["fit", *arguments]) == 0, capsys.readouterr().err
    assert expected in capsys.readouterr().out


def test_more_arguments_are_refused_by_the_short_name_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("model: {class_path: Tagger, dict_kwargs: {size: 3}}\n")
    assert main(["fit", "-c", "mine.yaml"]) == 1
    assert "Tagger takes no size: it stands in dict_kwargs" in capsys.readouterr().err
