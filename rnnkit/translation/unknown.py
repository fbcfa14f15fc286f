"""What to put for the unknown words that a model wrote: the source's, or a dictionary's.

For `<unk>` stands the source word to which the decoder paid most attention when it wrote that
(Jean et al. 2015, arXiv 1412.2007, section 3.3), or what a dictionary has for the word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rnnkit.data.files import read_lines
from rnnkit.data.registry import DataError
from rnnkit.decoding import Hypothesis
from rnnkit.translation.tokenizers import LineTokenizer
from rnnkit.translation.words import UNKNOWN


@dataclass(frozen=True)
class SourceWords:
    """Chooses source words by attention.

    Attributes:
        tokenizer: Of the source.
        dictionary: Translations of source words, as they are written or in lower case. A word
            that it lacks stands as it is.
    """

    tokenizer: LineTokenizer
    dictionary: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, line: str, read: int, hypothesis: Hypothesis) -> list[str]:
        """What stands for each `<unk>` of a translation, in their order.

        Args:
            line: The source line as it is written.
            read: How many of its tokens the model read.
            hypothesis: A translation of it, with attention.
        """
        assert hypothesis.attention is not None
        rows = [i for i, token in enumerate(hypothesis.tokens) if token == UNKNOWN]
        if not rows:
            return []
        words = self.tokenizer.written(line)
        # Not the end of the sentence and the padding, which follow the words.
        aligned = hypothesis.attention[rows, :read].argmax(-1).tolist()
        return [self._translated(words[i]) for i in aligned]

    def _translated(self, word: str) -> str:
        return self.dictionary.get(word, self.dictionary.get(word.lower(), word))


def read_dictionary(path: Path) -> dict[str, str]:
    """A dictionary of lines `source<TAB>target`; of several lines for a source the first counts.

    Args:
        path: The file; empty lines are left out.

    Raises:
        DataError: It cannot be read, or a line is of another form.
    """
    dictionary: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        source, tab, target = line.partition("\t")
        if not (tab and source.strip() and target.strip()) or "\t" in target:
            raise DataError(
                f"line {number} of {path} is no entry of a dictionary: expected a source word, a "
                f"tab and a target word, got {line[:40]!r}"
            )
        dictionary.setdefault(source.strip(), target.strip())
    return dictionary
