"""Callbacks of Lightning's that copy the model, named on the command line."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.cli import OptimizerCallable

from rnnkit.cli import main
from tests.small_runs import make_data, make_model, make_trainer

pytestmark = [pytest.mark.training, pytest.mark.usefixtures("no_pictures")]

OUTPUTS = ("full", "adaptive", "sampled", "hierarchical")


def fit(folder, monkeypatch, *arguments):
    monkeypatch.chdir(folder)
    common = ("--trainer.accelerator", "cpu", "--trainer.num_sanity_val_steps", "0")
    name = ("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "of")
    assert main(["fit", *arguments, *common, *name]) == 0
    checkpoints = Path("of", "lightning_logs", "version_0", "checkpoints")
    return {path.stem: torch.load(path, weights_only=True) for path in checkpoints.iterdir()}


def language_model(corpus, output="full"):
    return [
        *("--model", "rnnkit.language_modeling.LanguageModel"),
        *("--model.embedding_size", "12", "--model.hidden_size", "12", "--model.output", output),
        *("--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "1.0"),
        *("--data", "rnnkit.language_modeling.LanguageModelingData", "--data.corpus", corpus),
        *("--data.batch_size", "4", "--data.window", "10", "--trainer.max_epochs", "2"),
    ]


def test_an_exponential_average_is_that_of_a_run_from_python(corpus, tmp_path, monkeypatch):
    ema = ("--trainer.callbacks+", "EMAWeightAveraging", "--trainer.callbacks.decay", "0.9")
    found = fit(tmp_path, monkeypatch, *language_model(corpus), *ema)["last"]
    data = make_data(corpus)
    model = make_model(data)
    make_trainer(callbacks=[EMAWeightAveraging(decay=0.9)], max_epochs=2).fit(model, data)
    for name, value in model.state_dict().items():
        assert torch.equal(found["state_dict"][name], value), name
    unlike = [
        not torch.equal(value, found["current_model_state"][name])
        for name, value in found["state_dict"].items()
    ]
    assert all(unlike)


def test_a_stochastic_average_is_saved_beside_what_training_goes_on_with(
    corpus, tmp_path, monkeypatch, capsys
):
    swa = ("--trainer.callbacks+", "StochasticWeightAveraging", "--trainer.callbacks.swa_lrs")
    more = ("--trainer.callbacks.swa_epoch_start", "1", "--trainer.callbacks.annealing_epochs", "1")
    found = fit(tmp_path, monkeypatch, *language_model(corpus), *swa, "0.5", *more)
    assert f"{Path('checkpoints', 'averaged.ckpt')}" in capsys.readouterr().out
    data = make_data(corpus)
    model = make_model(data)
    averaging = StochasticWeightAveraging(0.5, swa_epoch_start=1, annealing_epochs=1)
    make_trainer(callbacks=[averaging], max_epochs=2).fit(model, data)
    for name, value in model.state_dict().items():
        assert torch.equal(found["averaged"]["state_dict"][name], value), name
        assert not torch.equal(found["last"]["state_dict"][name], value), name
    saved = Path("of", "lightning_logs", "version_0", "config.yaml")
    assert main(["fit", "-c", str(saved), "--trainer.max_steps", "1"]) == 0


@pytest.mark.parametrize("output", OUTPUTS[1:])
def test_every_kind_of_softmax_is_averaged(output, corpus, tmp_path, monkeypatch):
    ema = ("--trainer.callbacks+", "EMAWeightAveraging", "--trainer.callbacks.decay", "0.0")
    found = fit(tmp_path, monkeypatch, *language_model(corpus, output), *ema)["last"]
    for name, value in found["current_model_state"].items():
        assert torch.equal(found["state_dict"][name], value), name


class Line(LightningModule):
    """A model that is none of rnnkit's."""

    def __init__(self, optimizer: OptimizerCallable) -> None:
        super().__init__()
        self.make = optimizer
        self.line = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.line(batch).square().sum()

    def configure_optimizers(self):
        return self.make(self.parameters())


class Numbers(LightningDataModule):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(4, 1))


def test_models_of_others_are_averaged_too(tmp_path, monkeypatch):
    model = ("--model", f"{__name__}.Line", "--model.optimizer", "torch.optim.SGD")
    found = fit(
        tmp_path, monkeypatch, *model, "--data", f"{__name__}.Numbers",
        *("--trainer.max_epochs", "1", "--trainer.callbacks+", "EMAWeightAveraging"),
    )["last"]  # fmt: skip
    assert found["averaging_state"]["n_averaged"] == 4
