"""Checkpoints that are written whole or not at all, and read as plain data only."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from rnnkit.screen.atomic_file import atomic_write


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message is one sentence for the user."""


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Content of a checkpoint, on the CPU.

    Args:
        path: The file.

    Raises:
        CheckpointError: It is missing, damaged, or holds other objects than plain data.
    """
    return AtomicCheckpointIO().load_checkpoint(path, map_location="cpu")


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint beside its place and renames it when it is on the disk.

    Lightning's own writes to the folder for temporary files first, which may be another file
    system: the move to the checkpoint's place is then a copy, which a crash cuts off.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,
    ) -> None:
        """Write a checkpoint; the file at `path` is the old one until the new one is complete.

        Args:
            checkpoint: Tensors and plain data.
            path: A local path.
            storage_options: Has to be None: there are none.

        Raises:
            CheckpointError: The disk is full, or writing fails otherwise. The old one stays.
            TypeError: `storage_options` were given.
        """
        if storage_options is not None:
            raise TypeError(f"{type(self).__name__} has no storage options, got {storage_options}")
        try:
            # A file of Python's, for one that torch opens does not tell what the system said.
            with atomic_write(path) as beside, beside.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            # Closing its archive, torch stumbles over what is missing and raises that instead.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            old = "the one before is as it was" if Path(path).is_file() else "there is none before"
            raise CheckpointError(
                f"cannot write the checkpoint {path} ({cause.strerror or cause}); {old}"
            ) from error

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Content of a checkpoint.

        Args:
            path: A local path.
            map_location: Where the tensors go, as for `torch.load`; None: where they were.
            weights_only: Has to be True or None: a configuration must not open the door to code
                in a checkpoint.

        Raises:
            CheckpointError: It is missing, damaged, or holds other objects than plain data.
            ValueError: `weights_only` is False.
        """
        if weights_only is False:
            raise ValueError(
                "weights_only=False would run code that a checkpoint holds: rnnkit's hold none"
            )
        if not Path(path).is_file():
            raise CheckpointError(f"there is no checkpoint {path}")
        try:
            content = torch.load(path, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path} is no checkpoint, or one that holds more than tensors and plain data"
            ) from error
        except Exception as error:  # of damaged bytes the unpickler raises almost anything
            size = Path(path).stat().st_size
            raise CheckpointError(
                f"{path} is damaged or cut off (it has {size:,} bytes): copy it again or use "
                "another checkpoint of the same run"
            ) from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint")
        return content

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint, if it is there."""
        Path(path).unlink(missing_ok=True)
