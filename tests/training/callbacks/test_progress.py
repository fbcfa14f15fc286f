import io
import re

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from torch import nn

from rnnkit.language_modeling.windows import Window, WindowLoader
from rnnkit.training.callbacks.progress import TrainingProgress

pytestmark = pytest.mark.training


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, window: Window, batch_idx):
        self.log("train/loss", torch.tensor(3.25))
        self.log("train/ppl", torch.tensor(25.8), prog_bar=True)
        self.log("train/grad_norm", torch.tensor(0.123))
        return self.weight * 1.0

    def validation_step(self, window, batch_idx):
        self.log("val/ppl", torch.tensor(31.5), prog_bar=True, batch_size=1)
        self.log("val/bits_per_token", torch.tensor(4.98), batch_size=1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(monkeypatch, terminal, **options):
    monkeypatch.setattr("rnnkit.training.callbacks.progress._REFRESH_SECONDS", 0.0)
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=100)
    tokens = torch.zeros(40, 6, dtype=torch.int64)
    Trainer(
        accelerator="cpu",
        max_epochs=options.pop("max_epochs", 2),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=[TrainingProgress(console)],
        **options,
    ).fit(Model(), WindowLoader(tokens, tokens, 5), WindowLoader(tokens, tokens, 20))
    return output.getvalue()


def test_the_bar_tells_place_time_left_speed_loss_perplexity_and_gradient(monkeypatch):
    text = fit(monkeypatch, terminal=True)
    shown = ("epoch 1/2", "0:00 left", "tokens/s", "loss 3.250", "ppl 25.8", "grad 0.12")
    for part in (*shown, "epoch 2/2"):
        assert part in text
    assert "validation 2/2" in text


def test_no_time_is_left_to_tell_before_the_first_step_or_where_no_step_is_the_last(monkeypatch):
    text = fit(monkeypatch, terminal=True, accumulate_grad_batches=3)
    assert "epoch 1/2  0:00 left" in text
    assert re.search(r"epoch 1/2  [\d,]+ tokens/s", text)
    text = fit(monkeypatch, terminal=True, max_epochs=-1, max_time="00:00:00:01")
    assert "tokens/s" in text
    assert " left" not in text


@pytest.mark.parametrize("terminal", [False, True])
def test_each_validation_leaves_a_line_of_scores(monkeypatch, terminal):
    lines = [line for line in fit(monkeypatch, terminal).splitlines() if "val/ppl" in line]
    assert len(lines) == 2
    for line, place in zip(lines, ("epoch  1  step      8", "epoch  2  step     16"), strict=True):
        assert f"{place}  train/ppl 25.8   val/ppl 31.5" in line
        assert "bits" not in line
        assert len(line.split("\x1b")[-1]) <= 80


def test_without_a_terminal_no_bar_is_drawn(monkeypatch):
    text = fit(monkeypatch, terminal=False)
    assert "left" not in text
    assert "\x1b" not in text
    assert text.splitlines()[0].startswith("1 parameters on cpu, 16 steps")
