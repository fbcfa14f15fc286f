"""`rnnkit translate`: one line out for every line in."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from rnnkit.data.subwords import LineTokenizer
from rnnkit.data.translation import BEGIN, END, source_batch, tokenizers
from rnnkit.decoding import BeamSearch, Hypothesis
from rnnkit.pictures import draw_attention
from rnnkit.tasks.base import load_for_use
from rnnkit.tasks.translation import Translation

# Batches that are read, sorted by length and written together.
AHEAD = 16


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
        model, data = load_for_use(path, Translation, "TranslationData", "translation model")
        return cls(model, *tokenizers(data))

    def translate(
        self, lines: Iterable[str], search: BeamSearch, batch_size: int, max_source: int
    ) -> Iterator[tuple[list[str], list[Hypothesis]]]:
        """Translate lines as they come.

        Args:
            lines: Source lines.
            search: How to decode.
            batch_size: Lines at once.
            max_source: Tokens of a line that are read; what follows is left out, with a note.

        Yields:
            For every line, in order, its source tokens with the end, and its translations, best
            first; none for a line without a token.
        """
        begun, source = 0, iter(lines)
        while chunk := list(islice(source, AHEAD * batch_size)):
            encoded = []
            for line in chunk:
                ids = self.source_tokenizer.encode(line)
                begun += 1
                if len(ids) > max_source:
                    note = f"line {begun} has {len(ids)} tokens, only {max_source} are translated"
                    print(f"rnnkit translate: {note}", file=sys.stderr)
                encoded.append(ids[:max_source])
            found: dict[int, list[Hypothesis]] = {i: [] for i in range(len(chunk))}
            # Of similar length, the longest first: too little memory shows at once.
            order = sorted((i for i in found if encoded[i]), key=lambda i: -len(encoded[i]))
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                translated = self._batch([encoded[i] for i in batch], search)
                found |= dict(zip(batch, translated, strict=True))
            for i, ids in enumerate(encoded):
                yield self.source_tokenizer.vocabulary.decode([*ids, END]), found[i]

    def _batch(self, rows: list[list[int]], search: BeamSearch) -> list[list[Hypothesis]]:
        return search(self.model, source_batch(rows), torch.full((len(rows),), BEGIN), END)


def main(argv: list[str]) -> int:
    """Run `rnnkit translate` with the arguments that follow these two words.

    Args:
        argv: Arguments, for example `["--ckpt", "best.ckpt"]`.

    Returns:
        Exit status: 0.

    Raises:
        ValueError: The checkpoint or an argument cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="rnnkit translate",
        description="Translate standard input, one line out for every line in.",
        epilog="rnnkit translate --ckpt best.ckpt < german.txt > english.txt",
    )
    add = parser.add_argument
    add("--ckpt", required=True, metavar="PATH", help="checkpoint of `rnnkit fit`")
    add(
        "--beam", type=int, metavar="K", help="size of the beam, 1 is greedy (default: the model's)"
    )
    add("--length-penalty", type=float, metavar="X", help="of the beam (default: the model's)")
    add(
        "--max-length", type=int, metavar="N", help="tokens of a translation (default: the model's)"
    )
    add("--max-source", type=int, default=200, metavar="N", help="tokens of a line (default: 200)")
    add("--batch-size", type=int, default=64, metavar="N", help="lines at once (default: 64)")
    add(
        "--n-best",
        type=int,
        metavar="N",
        help="print the N best of each line with their scores, as one JSON object a line",
    )
    add("--attention", type=Path, metavar="PNG", help="draw where the first line was looked at")
    arguments = parser.parse_args(argv)
    for name in ("batch_size", "max_source"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"expected {name} of 1 or more, got {getattr(arguments, name)}")
    translator = Translator.from_checkpoint(arguments.ckpt)
    usual = translator.model.beam
    n_best = 1 if arguments.n_best is None else arguments.n_best
    search = BeamSearch(
        max(usual.beam_size, n_best) if arguments.beam is None else arguments.beam,
        usual.length_penalty if arguments.length_penalty is None else arguments.length_penalty,
        usual.max_length if arguments.max_length is None else arguments.max_length,
        n_best,
    )
    lines = _lines(sys.stdin.buffer)
    found = translator.translate(lines, search, arguments.batch_size, arguments.max_source)
    decode = translator.target_tokenizer.decode
    for number, (source, best) in enumerate(found):
        if arguments.n_best is not None:
            texts = [_described(hypothesis, decode(hypothesis.tokens)) for hypothesis in best]
            print(json.dumps({"line": number + 1, "translations": texts}, ensure_ascii=False))
        else:
            print(decode(best[0].tokens) if best else "", flush=sys.stdout.isatty())
        if number == 0 and arguments.attention is not None:
            _draw(translator, source, best, arguments.attention)
    return 0


def _lines(stream: Any) -> Iterator[str]:
    """Lines of a byte stream, whatever they hold: what is no UTF-8 becomes U+FFFD, with a note."""
    for number, raw in enumerate(stream, 1):
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")  # a byte-order mark
        text = raw.decode("utf-8", errors="replace").rstrip("\r\n")
        if "\ufffd" in text and b"\xef\xbf\xbd" not in raw:
            print(f"rnnkit translate: line {number} is no UTF-8", file=sys.stderr)
        yield text


def _described(hypothesis: Hypothesis, text: str) -> dict[str, Any]:
    return {
        "text": text,
        "score": hypothesis.score,
        "log_probability": hypothesis.log_probability,
        "finished": hypothesis.finished,
    }


def _draw(translator: Translator, source: list[str], best: list[Hypothesis], path: Path) -> None:
    if not best or best[0].attention is None:
        why = "the first line has no token" if not best else "this model has no attention"
        raise ValueError(f"nothing to draw: {why}")
    target = translator.target_tokenizer.vocabulary.decode(best[0].tokens)
    draw_attention(source, target, best[0].attention[:, : len(source)], path)
