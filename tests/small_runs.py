"""Small language models, their data and trainers, for the tests of what trains them."""

import torch
from lightning.pytorch import Callback, Trainer

from rnnkit.language_modeling.data import LanguageModelingData
from rnnkit.language_modeling.task import LanguageModel
from rnnkit.training.callbacks.checkpoint_io import AtomicCheckpointIO


def make_data(corpus, **changes):
    return LanguageModelingData(corpus, **{"batch_size": 4, "window": 10, **changes})


def make_model(data, **changes):
    torch.manual_seed(0)
    sizes = {"embedding_size": 12, "hidden_size": 12}
    return LanguageModel(data.vocabulary_size, **{**sizes, **changes})


def make_trainer(**changes):
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 1,
        "plugins": [AtomicCheckpointIO()],
    }
    return Trainer(**{**defaults, **changes})


def parameters(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class Losses(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))
