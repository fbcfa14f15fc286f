"""Translation: pairs of lines, an encoder and a decoder with attention, `translate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rnnkit.on_demand import on_demand

if TYPE_CHECKING:
    from rnnkit.translation.corpora import read_parallel as read_parallel
    from rnnkit.translation.data import TranslationData as TranslationData
    from rnnkit.translation.samples import SampleTranslations as SampleTranslations
    from rnnkit.translation.task import Translation as Translation

# Who reads files need not wait for Lightning.
__getattr__, __dir__ = on_demand(
    __name__,
    {
        "SampleTranslations": "samples",
        "Translation": "task",
        "TranslationData": "data",
        "read_parallel": "corpora",
    },
)
