"""What a model wrote, as text: the same in `rnnkit test`, in `rnnkit translate` and in samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

from rnnkit.decoding import Hypothesis
from rnnkit.translation.tokenizers import LineTokenizer


def text_of(
    hypothesis: Hypothesis, tokenizer: LineTokenizer, unknown: Iterable[str] = repeat("<unk>")
) -> str:
    """A translation as one line.

    Args:
        hypothesis: What was found.
        tokenizer: Of the target.
        unknown: What stands for each `<unk>` that the model wrote, in their order.
    """
    # Without anything that some program takes for a line's end.
    return " ".join(tokenizer.decode(hypothesis.tokens, unknown).splitlines())


def best_text(found: Sequence[Hypothesis], tokenizer: LineTokenizer) -> str:
    """The best translation of a line; empty where there is none, as of an empty line."""
    return text_of(found[0], tokenizer) if found else ""
