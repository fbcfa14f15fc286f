"""Checkpoints of small language models, for the commands that use one."""

import torch
from lightning.pytorch import Trainer

from rnnkit.language_modeling.data import LanguageModelingData
from rnnkit.language_modeling.task import LanguageModel
from rnnkit.training.callbacks.checkpoint_io import AtomicCheckpointIO


def make_checkpoint(folder, level, train, test, **changes):
    """Path of a model that has not learned anything, with the vocabulary of a training text.

    The corpus lies in the subfolder `corpus`; `changes` are arguments of the model.
    """
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for name, text in (("train", train), ("valid", train), ("test", test)):
        (corpus / f"{name}.txt").write_text(text, encoding="utf-8", newline="")
    data = LanguageModelingData(str(corpus), level=level, batch_size=2, window=5)
    torch.manual_seed(0)
    sizes = {"embedding_size": 7, "hidden_size": 9, "init_range": 0.7, "dropout": 0.5}
    model = LanguageModel(data.vocabulary_size, **{**sizes, **changes})
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        max_steps=1,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        plugins=[AtomicCheckpointIO()],
    )
    trainer.fit(model, data)
    trainer.save_checkpoint(folder / f"{level}.ckpt")
    return str(folder / f"{level}.ckpt")
