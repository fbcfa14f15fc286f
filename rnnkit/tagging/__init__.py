"""Tagging: sentences with tags, a bidirectional layer under a CRF, `tag`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rnnkit.on_demand import on_demand

if TYPE_CHECKING:
    from rnnkit.tagging.columns import read_columns as read_columns
    from rnnkit.tagging.corpora import read_tagged as read_tagged
    from rnnkit.tagging.data import TaggingData as TaggingData
    from rnnkit.tagging.task import Tagger as Tagger

# Who reads files need not wait for Lightning.
__getattr__, __dir__ = on_demand(
    __name__,
    {
        "Tagger": "task",
        "TaggingData": "data",
        "read_columns": "columns",
        "read_tagged": "corpora",
    },
)
