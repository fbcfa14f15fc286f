"""Other loggers than the CSV, where their packages are installed."""

import pytest

from rnnkit.cli import main
from tests.test_cli import CONFIG, write_corpus


def test_tensorboard_gets_the_scores(tmp_path, monkeypatch):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "corpus")
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    logger = ("--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", "boards")
    assert main(["fit", "-c", "tiny.yaml", *logger]) == 0
    (folder,) = (tmp_path / "boards" / "lightning_logs").iterdir()
    events = reader.EventAccumulator(str(folder))
    events.Reload()
    assert {"train/loss", "train/ppl", "train/grad_norm", "val/ppl"} <= {*events.Tags()["scalars"]}
    assert len(events.Scalars("val/ppl")) == 2
    assert (folder / "checkpoints" / "best.ckpt").is_file()
    assert not list(tmp_path.rglob("ppl.png"))  # the curves are TensorBoard's to draw
