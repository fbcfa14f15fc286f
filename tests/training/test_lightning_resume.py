"""What Lightning does with the loaders and the state of LanguageModelingData.

Its order for `ckpt_path` is the model's weights first, then the data's state: the model here has
no weight that depends on the vocabulary, so that the data's own check is reached.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from rnnkit.language_modeling.data import LanguageModelingData, Window, WindowLoader

pytestmark = pytest.mark.training

EPOCHS = 3


class Recorder(LightningModule):
    """Keeps the first token and the position of every window that it trains on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, int, int]] = []

    def training_step(self, batch: Window, batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch.position, int(batch.input.sum())))
        return (self.weight * batch.input.sum()).sum()

    def validation_step(self, batch: Window, batch_idx: int) -> None:
        assert isinstance(batch, Window)

    def test_step(self, batch: Window, batch_idx: int) -> None:
        assert isinstance(batch, Window)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


class Interruption(Exception):
    pass


class SaveAndInterrupt(Callback):
    """Saves a checkpoint at a given hook after a number of training steps and stops there."""

    def __init__(self, path: Path, hook: str, steps: int) -> None:
        self.path, self.steps = path, steps
        setattr(self, hook, self._interrupt)

    def _interrupt(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.steps:
            trainer.save_checkpoint(self.path)
            raise Interruption


def corpus(folder: Path, words: int = 47) -> Path:
    folder.mkdir(exist_ok=True)
    text = " ".join(f"w{i * 7 % 29}" for i in range(words))
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text(text)
    return folder


def data(folder: Path) -> LanguageModelingData:
    return LanguageModelingData(str(folder), batch_size=3, window=3, eval_batch_size=2)


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )


def seen_unbroken(folder: Path, **options: Any) -> list[tuple[int, int, int]]:
    model = Recorder()
    trainer(**options).fit(model, data(folder))
    return model.seen


def seen_with_interruption(
    folder: Path, hook: str, steps: int, **options: Any
) -> list[tuple[int, int, int]]:
    path = folder / "interrupted.ckpt"
    first, second = Recorder(), Recorder()
    with pytest.raises(Interruption):
        trainer(SaveAndInterrupt(path, hook, steps), **options).fit(first, data(folder))
    trainer(**options).fit(second, data(folder), ckpt_path=path, weights_only=True)
    return first.seen + second.seen


WINDOWS = 5  # 48 tokens, 3 streams of 16, 15 steps in windows of 3


def test_the_unbroken_run_sees_every_window_in_order(tmp_path: Path) -> None:
    seen = seen_unbroken(corpus(tmp_path))
    assert [(epoch, position) for epoch, position, _ in seen] == [
        (epoch, position) for epoch in range(EPOCHS) for position in range(WINDOWS)
    ]
    assert len({tokens for _, _, tokens in seen}) == WINDOWS


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 6, 8, 10, 11])
def test_a_run_interrupted_after_a_batch_goes_on_with_the_next_window(
    tmp_path: Path, steps: int
) -> None:
    folder = corpus(tmp_path)
    resumed = seen_with_interruption(folder, "on_train_batch_end", steps)
    assert resumed == seen_unbroken(folder)


@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_epoch_end"])
@pytest.mark.parametrize("steps", [5, 10])
def test_a_run_interrupted_at_the_end_of_an_epoch_goes_on_with_the_next_epoch(
    tmp_path: Path, hook: str, steps: int
) -> None:
    folder = corpus(tmp_path)
    assert seen_with_interruption(folder, hook, steps) == seen_unbroken(folder)


def test_a_run_interrupted_in_mid_epoch_validation_goes_on_with_the_next_window(
    tmp_path: Path,
) -> None:
    folder = corpus(tmp_path)
    options = {"val_check_interval": 2}
    resumed = seen_with_interruption(folder, "on_validation_end", 2, **options)
    assert resumed == seen_unbroken(folder, **options)


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_epoch_end"])
@pytest.mark.parametrize(("limit", "windows"), [(3, 3), (0.4, 2)])
def test_a_limited_epoch_begins_anew_after_resuming_at_its_end(
    tmp_path: Path, limit: float, windows: int, hook: str
) -> None:
    folder = corpus(tmp_path)
    options = {"limit_train_batches": limit}
    resumed = seen_with_interruption(folder, hook, windows, **options)
    assert resumed == seen_unbroken(folder, **options)
    assert {position for _, position, _ in resumed} == set(range(windows))


def test_lightning_leaves_the_loader_alone(tmp_path: Path) -> None:
    model, run = Recorder(), trainer()
    run.fit(model, data(corpus(tmp_path)))
    assert isinstance(run.train_dataloader, WindowLoader)


def test_resuming_within_an_epoch_with_another_window_is_refused(tmp_path: Path) -> None:
    folder = corpus(tmp_path)
    path = folder / "interrupted.ckpt"
    with pytest.raises(Interruption):
        trainer(SaveAndInterrupt(path, "on_train_batch_end", 2)).fit(Recorder(), data(folder))
    other = LanguageModelingData(str(folder), batch_size=3, window=4, eval_batch_size=2)
    with pytest.raises(ValueError, match=r"shape \(3, 3\).*got \(4, 3\)"):
        trainer().fit(Recorder(), other, ckpt_path=path, weights_only=True)


@pytest.mark.parametrize("run", ["fit", "validate", "test"])
def test_a_checkpoint_of_another_vocabulary_is_refused(tmp_path: Path, run: str) -> None:
    path = tmp_path / "model.ckpt"
    first = trainer()
    first.fit(Recorder(), data(corpus(tmp_path / "one")))
    first.save_checkpoint(path)
    other = data(corpus(tmp_path / "two", words=20))
    with pytest.raises(ValueError, match="31 and 22 tokens, first difference at id 0"):
        getattr(trainer(), run)(Recorder(), datamodule=other, ckpt_path=path, weights_only=True)
