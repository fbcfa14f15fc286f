import csv
import os

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader

from rnnkit.training.callbacks.curve import CurvePlot, draw_curves, score_of


@pytest.fixture
def figures(monkeypatch):
    """The axes of every picture that is saved."""
    drawn = []
    save = Figure.savefig

    def keep(figure, *arguments, **settings):
        drawn.append(figure.axes[0])
        save(figure, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", keep)
    return drawn


def draw(folder, text, metric="ppl"):
    (folder / "metrics.csv").write_text(text)
    draw_curves(folder / "metrics.csv", folder / f"{metric}.png", metric)
    return (folder / f"{metric}.png").read_bytes()


def test_the_picture_follows_the_csv(tmp_path):
    one = draw(tmp_path, "step,train/ppl,val/ppl\n9,90,\n19,60,\n19,,70\n")
    two = draw(tmp_path, "step,train/ppl,val/ppl\n9,90,\n19,60,\n19,,70\n29,50,\n29,,55\n")
    assert one.startswith(b"\x89PNG")
    assert one != two
    assert sorted(os.listdir(tmp_path)) == ["metrics.csv", "ppl.png"]


def test_a_run_without_training_points_is_drawn(tmp_path):
    assert draw(tmp_path, "step,val/ppl\n19,70\n").startswith(b"\x89PNG")


def test_every_text_that_was_scored_has_its_curve(tmp_path, figures):
    draw(tmp_path, "step,train/ppl,val/ppl,test/ppl,train_eval/ppl\n9,5,,,\n9,,6,7,4\n19,,5,6,3\n")
    lines = {line.get_label(): list(line.get_ydata()) for line in figures[0].lines}
    assert lines == {
        "training": [5],
        "validation": [6, 5],
        "test": [7, 6],
        "training text, without dropout": [4, 3],
    }


@pytest.mark.parametrize(
    ("metric", "scale", "best"),
    [("ppl", "log", "2"), ("f1", "linear", "5"), ("bleu", "linear", "5"), ("other", "linear", "")],
)
def test_the_best_value_is_the_lowest_or_the_highest(metric, scale, best, tmp_path, figures):
    draw(tmp_path, f"step,val/{metric}\n9,3\n19,2\n29,nan\n39,5\n49,inf\n", metric)
    assert figures[0].get_yscale() == scale
    assert [text.get_text() for text in figures[0].texts] == ([best] if best else [])
    if best:
        assert figures[0].texts[0].xy == ({"2": 19, "5": 39}[best], float(best))


def test_a_stage_makes_no_other_metric():
    assert score_of("train/ppl") is score_of("ppl")
    assert score_of("val/seconds").best is None


class Model(LightningModule):
    """Logs what it is told to."""

    def __init__(self, names):
        super().__init__()
        self.names = names
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.log_dict(dict.fromkeys(self.names, 1.0 + self.current_epoch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.training
@pytest.mark.parametrize(
    ("names", "pictures"),
    [
        (["val/ppl", "val/bits_per_token"], {"ppl.png"}),
        (["val/f1", "val/loss", "val/precision"], {"f1.png"}),
        (["val/bleu", "val/ppl"], {"bleu.png", "ppl.png"}),
        (["val/loss"], set()),
    ],
)
def test_a_run_draws_what_it_has_after_every_validation(names, pictures, tmp_path, figures):
    loader = DataLoader(torch.zeros(3))
    Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=CSVLogger(tmp_path, name="", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        callbacks=[CurvePlot()],
    ).fit(Model(names), loader, loader)
    assert {path.name for path in tmp_path.glob("*.png")} == pictures
    points = [len(axes.lines[0].get_xdata()) for axes in figures]
    assert points == [1] * len(pictures) + [2] * len(pictures)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2
