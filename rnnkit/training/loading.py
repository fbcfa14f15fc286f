"""Trained models out of checkpoints, for the commands that use them, whatever a file holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from lightning.pytorch import LightningModule

from rnnkit.training.callbacks.checkpoint_io import CheckpointError, read_checkpoint
from rnnkit.training.class_names import note_other_name
from rnnkit.training.not_finite import weight_not_finite
from rnnkit.training.task import Task

TaskType = TypeVar("TaskType", bound=Task)


def load_for_use(
    path: str | os.PathLike[str], task: type[TaskType], data: str, what: str
) -> tuple[TaskType, dict[str, Any]]:
    """A trained model on the CPU, in evaluation mode, and what its data left in the checkpoint.

    Args:
        path: The checkpoint.
        task: Class of the model.
        data: Name of the class of its data.
        what: To call it in an error: "language model".

    Raises:
        CheckpointError: It is missing, damaged or of another task.
        FloatingPointError: A weight is NaN or infinite; names it.
    """
    checkpoint = read_checkpoint(path)
    parts = {"state_dict", "hyper_parameters", data}
    if missing := ", ".join(sorted(parts - checkpoint.keys())):
        raise CheckpointError(f"{path} is no checkpoint of a {what}: no {missing}")
    arguments = {
        name: value
        for name, value in checkpoint["hyper_parameters"].items()
        if not name.startswith("_")  # what Lightning's command line adds
    }
    note_other_name(checkpoint["hyper_parameters"], task)
    model = task(**arguments)
    model.load_state_dict(checkpoint["state_dict"])
    if name := weight_not_finite(model):
        raise FloatingPointError(
            f"{path} cannot be used: {name} is NaN or infinite somewhere; name another checkpoint"
        )
    return model.eval(), dict(checkpoint[data])


@contextmanager
def usable(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Tell what goes wrong within, while a model is made of a checkpoint, in one sentence.

    Args:
        path: The checkpoint.
        what: What it should hold: "language model".

    Raises:
        CheckpointError: Its content is of other types, names or sizes than ours.
    """
    try:
        yield
    except (CheckpointError, ModuleNotFoundError, MemoryError, OSError, FloatingPointError):
        raise  # which are not of the checkpoint's making, or name what is
    except Exception as error:  # libraries raise anything for what is none of theirs
        reason = next(iter(str(error).splitlines()), "").strip()
        raise CheckpointError(
            f"{path} cannot be used as a checkpoint of a {what} ({type(error).__name__}: {reason})"
        ) from error


def check_vocabularies(model: LightningModule, **sizes: int) -> None:
    """Refuse vocabularies that have not as many tokens as the model.

    Args:
        model: The model, with its sizes as hyperparameters.
        sizes: Of the vocabularies, by the names of those.

    Raises:
        ValueError: One has another size; the message has both.
    """
    for name, size in sizes.items():
        if model.hparams[name] != size:
            raise ValueError(f"{name} is {model.hparams[name]}, and {size} tokens are beside it")
