"""What is the best checkpoint after a resume in another folder, with scores written down here."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from rnnkit.training.callbacks.best_checkpoint import KeepBestCheckpoint

pytestmark = pytest.mark.training


class Model(LightningModule):
    """One weight, that counts the steps; an epoch has one, and validates with a given score."""

    def __init__(self, scores):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.0))
        self.scores = scores

    def training_step(self, batch, batch_idx):
        return -self.weight

    def validation_step(self, batch, batch_idx):
        self.log("val/ppl", self.scores[self.current_epoch], batch_size=1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(folder, scores, epochs, ckpt_path=None, **options):
    settings = {"dirpath": folder, "enable_version_counter": False, "filename": "best"}
    best = ModelCheckpoint(**{**settings, "monitor": "val/ppl", **options})
    last = ModelCheckpoint(**{**settings, "filename": "last"})
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[KeepBestCheckpoint(), best, last],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    batches = DataLoader([torch.zeros(1)], batch_size=None)
    trainer.fit(Model(scores), batches, batches, ckpt_path=ckpt_path, weights_only=True)
    return best


def epochs_of(path):
    return int(torch.load(path, weights_only=True)["state_dict"]["weight"])


@pytest.mark.parametrize(
    ("scores", "mode", "expected"),
    [
        ([5.0, 3.0, 4.0, 3.5], "min", 2),  # never so good again
        ([5.0, 3.0, 4.0, 2.0], "min", 4),
        ([1.0, 3.0, 2.0, 2.5], "max", 2),
    ],
)
def test_the_best_of_a_resumed_run_is_that_of_all_its_parts(scores, mode, expected, tmp_path):
    fit(tmp_path / "first", scores, 2, mode=mode)
    best = fit(tmp_path / "second", scores, 4, tmp_path / "first" / "last.ckpt", mode=mode)
    assert epochs_of(tmp_path / "second" / "best.ckpt") == expected
    assert best.best_model_path == str(tmp_path / "second" / "best.ckpt")
    assert float(best.best_model_score) == scores[expected - 1]
    assert epochs_of(tmp_path / "first" / "best.ckpt") == 2  # its part stays as it was


def test_several_best_checkpoints_go_along_in_their_order(tmp_path):
    scores = [5.0, 3.0, 4.0, 3.5]
    two = {"save_top_k": 2, "filename": "best{epoch}"}
    fit(tmp_path / "first", scores, 2, **two)
    best = fit(tmp_path / "second", scores, 4, tmp_path / "first" / "last.ckpt", **two)
    found = {epochs_of(path): float(score) for path, score in best.best_k_models.items()}
    assert found == {2: 3.0, 4: 3.5}
    names = {path.name for path in (tmp_path / "second").glob("best*.ckpt")}
    assert len(names) == 2


def test_a_best_checkpoint_that_is_gone_counts_with_its_score(tmp_path):
    scores = [5.0, 3.0, 4.0, 3.5]
    fit(tmp_path / "first", scores, 2)
    (tmp_path / "first" / "best.ckpt").unlink()
    best = fit(tmp_path / "second", scores, 4, tmp_path / "first" / "last.ckpt")
    assert not (tmp_path / "second" / "best.ckpt").exists()
    assert float(best.best_model_score) == 3.0


def test_a_run_in_the_same_folder_is_left_to_lightning(tmp_path):
    fit(tmp_path, [5.0, 3.0], 2)
    best = fit(tmp_path, [5.0, 3.0, 4.0], 3, tmp_path / "last.ckpt")
    assert epochs_of(tmp_path / "best.ckpt") == 2
    assert float(best.best_model_score) == 3.0
