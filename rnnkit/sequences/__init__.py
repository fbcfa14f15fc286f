"""Sequences: synthetic tasks that need a memory of many steps, and a model that learns them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rnnkit.on_demand import on_demand

if TYPE_CHECKING:
    from rnnkit.sequences.counting import AnBn as AnBn
    from rnnkit.sequences.counting import Dyck as Dyck
    from rnnkit.sequences.counting import Parity as Parity
    from rnnkit.sequences.data import SequenceData as SequenceData
    from rnnkit.sequences.memory import Adding as Adding
    from rnnkit.sequences.memory import CopyMemory as CopyMemory
    from rnnkit.sequences.memory import TemporalOrder as TemporalOrder
    from rnnkit.sequences.task import SequenceModel as SequenceModel

# Who draws examples need not wait for Lightning.
__getattr__, __dir__ = on_demand(
    __name__,
    {
        "Adding": "memory",
        "AnBn": "counting",
        "CopyMemory": "memory",
        "Dyck": "counting",
        "Parity": "counting",
        "SequenceData": "data",
        "SequenceModel": "task",
        "TemporalOrder": "memory",
    },
)
