"""Checkpoints whose class had another name when they were written."""

import logging

import pytest
import torch

from rnnkit.cli import main
from rnnkit.language_modeling import LanguageModel
from tests.small_checkpoints import make_checkpoint

pytestmark = pytest.mark.training

# As Lightning's command line writes it; the class has since moved.
OLD = {
    "_class_path": "rnnkit.tasks.LanguageModel",
    "_instantiator": "lightning.pytorch.cli.instantiate_module",
}


@pytest.fixture
def old(tmp_path):
    path = make_checkpoint(tmp_path, "word", "the cat sees a dog\n" * 40, "the dog\n" * 10)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"] |= OLD
    torch.save(checkpoint, path)
    return path


def test_a_checkpoint_that_names_an_old_class_says_so_in_one_sentence(old, capsys, caplog):
    with caplog.at_level(logging.WARNING, logger="rnnkit"):
        assert main(["generate", "--ckpt", old, "--prompt", "the", "--length", "3"]) == 0
    (told,) = caplog.messages
    assert told == (
        "the checkpoint names the class rnnkit.tasks.LanguageModel, as an earlier version did: "
        "rnnkit.language_modeling.task.LanguageModel reads it"
    )
    assert capsys.readouterr().out.startswith("the")  # what follows is drawn, maybe a line's end


def test_a_checkpoint_that_names_its_class_says_nothing(old, caplog):
    checkpoint = torch.load(old, weights_only=True)
    checkpoint["hyper_parameters"]["_class_path"] = "rnnkit.language_modeling.LanguageModel"
    torch.save(checkpoint, old)
    with caplog.at_level(logging.WARNING, logger="rnnkit"):
        assert main(["generate", "--ckpt", old, "--prompt", "the", "--length", "3"]) == 0
    assert caplog.messages == []


def test_lightnings_own_loading_reads_it_too(old):
    model = LanguageModel.load_from_checkpoint(old, weights_only=True)
    saved = torch.load(old, weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
