"""Checkpoints whose class had another name when they were written, or whose weights are broken."""

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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_used(old, value, capsys):
    checkpoint = torch.load(old, weights_only=True)
    name = next(iter(checkpoint["state_dict"]))
    checkpoint["state_dict"][name][0, 0] = value
    torch.save(checkpoint, old)
    for command in (["generate", "--prompt", "the"], ["score", __file__]):
        assert main([*command, "--ckpt", old]) != 0
        printed = capsys.readouterr()
        assert printed.err.strip().splitlines()[-1] == (
            f"rnnkit {command[0]}: {old} cannot be used: {name} is NaN or infinite somewhere; name "
            "another checkpoint"
        )
        assert not printed.out
