"""The picture of where the decoder looked when it wrote a translation."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rnnkit.decoding import Hypothesis
from rnnkit.screen.pictures import draw_attention
from rnnkit.translation.tokenizers import LineTokenizer
from rnnkit.translation.words import END

MOST_DRAWN = 200  # tokens of a side: a picture has an end


def draw_translation(
    source: Sequence[int],
    hypothesis: Hypothesis,
    source_tokenizer: LineTokenizer,
    target_tokenizer: LineTokenizer,
    path: str | os.PathLike[str],
) -> None:
    """Draw the attention of a translation, one row a token that was written.

    Args:
        source: Ids of the source line that were read, without the end.
        hypothesis: A translation of it, with attention.
        source_tokenizer: Of the source.
        target_tokenizer: Of the translation.
        path: The picture.
    """
    assert hypothesis.attention is not None
    read = source_tokenizer.shown([*source, END])[:MOST_DRAWN]
    written = target_tokenizer.shown(hypothesis.tokens)[:MOST_DRAWN]
    draw_attention(read, written, hypothesis.attention[: len(written), : len(read)], path)
