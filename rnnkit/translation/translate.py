"""`rnnkit translate`: one line out for every line in."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rnnkit.decoding import BeamSearch, Hypothesis
from rnnkit.screen.pictures import draw_attention
from rnnkit.screen.terminal import Parser, for_terminal, json_line, waiting
from rnnkit.training.lines import (
    Notes,
    add_options,
    batches,
    input_lines,
    lines_at_once,
    prepare,
    read_ahead,
)
from rnnkit.training.loading import check_vocabularies, load_for_use, usable
from rnnkit.translation.data import BEGIN, END, source_batch, tokenizers
from rnnkit.translation.subwords import LineTokenizer
from rnnkit.translation.task import Translation

PICTURES = (".png", ".pdf", ".svg")
MOST_DRAWN = 200  # tokens: a picture has an end


@dataclass(frozen=True)
class Translator:
    """A translation model with the tokenizers that it was trained with.

    Attributes:
        model: In evaluation mode.
        source_tokenizer: Of the lines that it reads.
        target_tokenizer: Of the lines that it writes.
    """

    model: Translation
    source_tokenizer: LineTokenizer
    target_tokenizer: LineTokenizer

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
        max_source: int,
        note: Callable[[str], None] = lambda text: None,
    ) -> Iterator[tuple[list[str], list[Hypothesis]]]:
        """Translate lines as they come.

        Args:
            lines: Source lines.
            search: How to decode.
            batch_size: Lines at once; with 1 each is translated before the next is asked for.
            max_source: Tokens of a line that are read; what follows is left out.
            note: Told of every line that is not translated as it stands.

        Yields:
            For every line, in order, its source tokens with the end, and its translations, best
            first; none for a line without text.
        """
        begun = 0
        for chunk in read_ahead(lines, batch_size):
            encoded = []
            for line in chunk:
                begun += 1
                ids = self.source_tokenizer.encode(line) if line.strip() else []
                if ids and self.source_tokenizer.count_unknown(ids) == len(ids):
                    note(f"line {begun} has no word that the model knows")
                if len(ids) > max_source:
                    note(f"line {begun} has {len(ids)} tokens, only {max_source} are translated")
                encoded.append(ids[:max_source])
            found: dict[int, list[Hypothesis]] = {i: [] for i in range(len(chunk))}
            for batch in batches({i: len(encoded[i]) for i in found if encoded[i]}, batch_size):
                translated = self._batch([encoded[i] for i in batch], search)
                found |= dict(zip(batch, translated, strict=True))
            for i, ids in enumerate(encoded):
                yield self.source_tokenizer.vocabulary.decode([*ids, END]), found[i]

    def _batch(self, rows: list[list[int]], search: BeamSearch) -> list[list[Hypothesis]]:
        source, lengths = source_batch(rows)  # the lengths stay on the host, which reads them
        begin = torch.full((len(rows),), BEGIN, device=self.model.device)
        return search(self.model, (source.to(self.model.device), lengths), begin, END)


def main(argv: list[str]) -> int:
    """Run `rnnkit translate` with the arguments that follow these two words.

    A file or a pipe gets what the model wrote, a terminal what `screen/terminal.py` makes of it.

    Args:
        argv: Arguments, for example `["--ckpt", "best.ckpt"]`.

    Returns:
        Exit status: 0.

    Raises:
        ValueError: The checkpoint or an argument cannot be used.
    """
    parser = Parser(
        prog="rnnkit translate",
        description="rnnkit translate --ckpt best.ckpt < german.txt > english.txt\n\n"
        "Translate standard input, one line out for every line in; on a terminal it asks for them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_options(parser)
    add(
        "--beam", type=int, metavar="K", help="size of the beam, 1 is greedy (default: the model's)"
    )
    add("--length-penalty", type=float, metavar="X", help="of the beam (default: the model's)")
    add(
        "--max-length", type=int, metavar="N", help="tokens of a translation (default: the model's)"
    )
    add("--max-source", type=int, default=200, metavar="N", help="tokens of a line (default: 200)")
    add(
        "--n-best",
        type=int,
        metavar="N",
        help="print the N best of each line with their scores, as one JSON object a line",
    )
    add(
        "--attention",
        type=Path,
        metavar="PNG",
        help="draw where the decoder looked in the first line that has text",
    )
    arguments = parser.parse_args(argv)
    batch_size = lines_at_once(arguments)
    if arguments.max_source < 1:
        raise ValueError(f"expected max_source of 1 or more, got {arguments.max_source}")
    with waiting(f"loading {arguments.ckpt} …"):
        translator = Translator.from_checkpoint(arguments.ckpt)
    picture = arguments.attention
    if picture is not None and translator.model.decoder.attention is None:
        raise ValueError("--attention: this model has no attention")
    if picture is not None and picture.suffix not in PICTURES:
        raise ValueError(f"--attention: a picture ends in {', '.join(PICTURES)}, got {picture}")
    prepare(translator.model, arguments.device)
    usual = translator.model.beam
    n_best = 1 if arguments.n_best is None else arguments.n_best
    search = BeamSearch(
        max(usual.beam_size, n_best) if arguments.beam is None else arguments.beam,
        usual.length_penalty if arguments.length_penalty is None else arguments.length_penalty,
        usual.max_length if arguments.max_length is None else arguments.max_length,
        n_best,
    )
    notes = Notes("rnnkit translate")
    sizes = batch_size, arguments.max_source
    found = translator.translate(input_lines(notes), search, *sizes, notes)
    decode, terminal = translator.target_tokenizer.decode, sys.stdout.isatty()
    for number, (source, best) in enumerate(found):
        if arguments.n_best is None:
            text = _one_line(decode(best[0].tokens)) if best else ""
            if terminal:
                text = for_terminal(text)
        else:
            texts = [_described(hypothesis, decode(hypothesis.tokens)) for hypothesis in best]
            text = json_line({"line": number + 1, "translations": texts})
        print(text, flush=batch_size == 1)
        if best and picture is not None:
            _draw(translator, source, best[0], picture)
            picture = None
    if picture is not None:
        notes("--attention: no line has text, nothing was drawn")
    notes.close()
    return 0


def _one_line(text: str) -> str:
    """Without anything that some program takes for a line's end."""
    return " ".join(text.splitlines())


def _described(hypothesis: Hypothesis, text: str) -> dict[str, Any]:
    return {
        "text": text,
        "score": hypothesis.score,
        "log_probability": hypothesis.log_probability,
        "finished": hypothesis.finished,
    }


def _draw(translator: Translator, source: list[str], best: Hypothesis, path: Path) -> None:
    assert best.attention is not None
    target = translator.target_tokenizer.vocabulary.decode(best.tokens)
    weights = best.attention[:, : len(source)]
    draw_attention(source[:MOST_DRAWN], target, weights[:, :MOST_DRAWN], path)
