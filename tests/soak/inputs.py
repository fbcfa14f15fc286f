"""Where inputs lie, and what hostile ones are made of."""

import functools
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from rnnkit.training.callbacks.checkpoint_io import AtomicCheckpointIO


@functools.cache
def folder() -> Path:
    """A folder of this process, in memory where the system has such."""
    memory = Path("/dev/shm")
    made = tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None)
    _kept.append(made)
    return Path(made.name)


_kept: list[Any] = []  # a temporary folder lasts as long as its object

# Characters that have gone wrong somewhere, beside any.
_ODD = "\0\t\n\r\x0b\x1b\x85\xa0\u200c\u2028\u202e\u2067\u2069\ufeff\ufffd\uffed\ud800-#\"'\\ OBI"
hostile_text = st.text(st.one_of(st.sampled_from(_ODD), st.characters()), max_size=60)
word = st.text(st.one_of(st.sampled_from("abc\0\u202e\x1b- "), st.characters()), min_size=1)


def write(name: str, content: bytes) -> Path:
    """Write a file into that folder."""
    path = folder() / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def small_checkpoint() -> bytes:
    """Bytes of a checkpoint with all that ours have."""
    path = folder() / "small.ckpt"
    state = {"weight": torch.arange(6.0).view(2, 3), "ids": torch.tensor([1, 2])}
    content = {"state_dict": state, "epoch": 3, "LanguageModelingData": {"vocabulary": ["a", "b"]}}
    AtomicCheckpointIO().save_checkpoint({**content, "rate": 0.5, "none": None}, path)
    return path.read_bytes()
