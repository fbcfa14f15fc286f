"""Words as vectors: neighbours, analogies, evaluation, and vectors from counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rnnkit.on_demand import on_demand

if TYPE_CHECKING:
    from rnnkit.word_vectors.counts import ppmi_vectors as ppmi_vectors
    from rnnkit.word_vectors.evaluation import analogies as analogies
    from rnnkit.word_vectors.evaluation import similarity as similarity
    from rnnkit.word_vectors.vectors import WordVectors as WordVectors

# Who looks for neighbours need not wait for scipy.
__getattr__, __dir__ = on_demand(
    __name__,
    {
        "WordVectors": "vectors",
        "analogies": "evaluation",
        "ppmi_vectors": "counts",
        "similarity": "evaluation",
    },
)
