"""What commands make of a checkpoint that reads well and holds something else than ours do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import LightningModule

from rnnkit.callbacks.checkpoint_io import CheckpointError


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
    except (CheckpointError, ModuleNotFoundError, MemoryError, OSError):
        raise  # which are not of the checkpoint's making
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
