"""A trained translation model for lines of text, with the tokenizers that belong to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from rnnkit.decoding import BeamSearch, Hypothesis
from rnnkit.training.lines import batches, read_ahead
from rnnkit.training.loading import check_vocabularies, load_for_use, usable
from rnnkit.translation.data import source_batch, tokenizers
from rnnkit.translation.task import Translation
from rnnkit.translation.tokenizers import LineTokenizer, encode_lines
from rnnkit.translation.unknown import SourceWords
from rnnkit.translation.written import text_of


class Translated(NamedTuple):
    """A line and its translations.

    Attributes:
        line: The source line as it came.
        source: Ids of its tokens that were read, without the end.
        best: Translations, best first; none of a line without text.
    """

    line: str
    source: list[int]
    best: list[Hypothesis]


@dataclass(frozen=True)
class Translator:
    """A translation model with the tokenizers that it was trained with.

    Attributes:
        model: In evaluation mode.
        source_tokenizer: Of the lines that it reads.
        target_tokenizer: Of the lines that it writes.
        writes_unknown: Whether it may write `<unk>`; it reads unknown words as that all the same.
        source_words: Chooses what is put for every `<unk>` that it wrote; None: `<unk>` stands.
    """

    model: Translation
    source_tokenizer: LineTokenizer
    target_tokenizer: LineTokenizer
    writes_unknown: bool = True
    source_words: SourceWords | None = None

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str]) -> Translator:
        """Load a checkpoint of `Translation` trained on `TranslationData`, on the CPU.

        Args:
            path: The checkpoint.

        Raises:
            CheckpointError: It is missing, damaged or of another task.
        """
        with usable(path, "translation model"):
            model, data = load_for_use(path, Translation, "TranslationData", "translation model")
            source, target = tokenizers(data)
            check_vocabularies(
                model, source_vocabulary_size=len(source), target_vocabulary_size=len(target)
            )
            return cls(model, source, target)

    def translate(
        self,
        lines: Iterable[str],
        search: BeamSearch,
        batch_size: int,
        max_source: int | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> Iterator[Translated]:
        """Translate lines as they come.

        Args:
            lines: Source lines.
            search: How to decode.
            batch_size: Lines at once; with 1 each is translated before the next is asked for.
            max_source: Tokens of a line that are read, what follows is left out; None: the model's.
            note: Told of every line that is not translated as it stands.

        Yields:
            Every line, in order, with its translations.
        """
        most = self.model.max_source if max_source is None else max_source
        begun = 0
        for chunk in read_ahead(lines, batch_size):
            encoded = encode_lines(self.source_tokenizer, chunk)
            for ids in encoded:
                begun += 1
                if ids and self.source_tokenizer.count_unknown(ids) == len(ids):
                    note(f"line {begun} has no word that the model knows")
                if len(ids) > most:
                    note(f"line {begun} has {len(ids)} tokens, only {most} are translated")
                    del ids[most:]
            found: dict[int, list[Hypothesis]] = {}
            for batch in batches(dict(enumerate(map(len, encoded))), batch_size):
                source, lengths = source_batch([encoded[i] for i in batch])
                source = source.to(self.model.device)  # the lengths stay on the host, which reads
                translations = self.model.translate(
                    (source, lengths), search, most, self.writes_unknown
                )
                found |= dict(zip(batch, translations, strict=True))
            for i, (line, ids) in enumerate(zip(chunk, encoded, strict=True)):
                yield Translated(line, ids, found[i])

    def text(self, translated: Translated, hypothesis: Hypothesis) -> str:
        """One of the translations of a line as it is to be printed."""
        if self.source_words is None:
            return text_of(hypothesis, self.target_tokenizer)
        words = self.source_words(translated.line, len(translated.source), hypothesis)
        return text_of(hypothesis, self.target_tokenizer, words)
