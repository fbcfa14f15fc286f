"""What Lightning tells: what somebody has asked for, and warnings; not what is no news.

Of several processes, each of which reads the data, one tells rnnkit's notes.
"""

from __future__ import annotations

import logging

from lightning.fabric.utilities.rank_zero import rank_zero_only

# What callbacks, profilers and the searches for a batch size or a learning rate log is their work.
_WORKING = ("callbacks", "profilers", "tuner")

# All modules tell things by this one logger: devices, tips and the end of a run too.
_SHARED = "lightning.pytorch.utilities.rank_zero"
_TOLD_BY = ("batch_size_scaling", "model_checkpoint", "stochastic_weight_avg", "timer")


def select_messages() -> None:
    """Choose what is shown of Lightning's messages and ours, for the rest of the process."""
    first = getattr(rank_zero_only, "rank", 0) == 0
    logging.getLogger("rnnkit").setLevel(logging.NOTSET if first else logging.ERROR)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _WORKING:
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.INFO)
    shared = logging.getLogger(_SHARED)
    shared.setLevel(logging.INFO)
    shared.addFilter(_asked_for)  # a second time changes nothing


def _asked_for(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.module in _TOLD_BY
