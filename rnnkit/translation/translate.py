"""`rnnkit translate`: one line out for every line in."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rnnkit.decoding import BeamSearch, Hypothesis
from rnnkit.screen.terminal import Parser, for_terminal, json_line, waiting
from rnnkit.training.lines import Notes, add_options, input_lines, lines_at_once, prepare
from rnnkit.translation.attention_picture import draw_translation
from rnnkit.translation.translator import Translated, Translator
from rnnkit.translation.unknown import SourceWords, read_dictionary
from rnnkit.translation.words import END

PICTURES = (".png", ".pdf", ".svg")


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
    arguments = _parser().parse_args(argv)
    batch_size = lines_at_once(arguments)
    if arguments.max_source is not None and arguments.max_source < 1:
        raise ValueError(f"expected max_source of 1 or more, got {arguments.max_source}")
    picture = arguments.attention
    n_best = 1 if arguments.n_best is None else arguments.n_best
    if arguments.beam is not None and 1 <= arguments.beam < n_best:
        raise ValueError(
            f"--n-best {n_best} needs a beam of {n_best} or more, got --beam {arguments.beam}"
        )
    if arguments.dictionary is not None and not arguments.replace_unk:
        raise ValueError("--dictionary goes with --replace-unk, which is missing")
    with waiting(f"loading {arguments.ckpt} …"):
        translator = Translator.from_checkpoint(arguments.ckpt)
    for option, asked in (("attention", picture), ("replace-unk", arguments.replace_unk or None)):
        if asked is not None and translator.model.decoder.attention is None:
            raise ValueError(f"--{option}: this model has no attention")
    if picture is not None and picture.suffix not in PICTURES:
        raise ValueError(f"--attention: a picture ends in {', '.join(PICTURES)}, got {picture}")
    notes = Notes("rnnkit translate")
    words = None
    if arguments.replace_unk:
        words = _source_words(translator, arguments.dictionary, notes)
    translator = replace(translator, writes_unknown=not arguments.no_unknown, source_words=words)
    prepare(translator.model, arguments.device)
    usual = translator.model.beam
    search = BeamSearch(
        max(usual.beam_size, n_best) if arguments.beam is None else arguments.beam,
        usual.length_penalty if arguments.length_penalty is None else arguments.length_penalty,
        usual.max_length if arguments.max_length is None else arguments.max_length,
        n_best,
    )
    sizes = batch_size, arguments.max_source
    found = translator.translate(input_lines(notes), search, *sizes, notes)
    terminal = sys.stdout.isatty()
    for number, each in enumerate(found, 1):
        if arguments.n_best is None:
            text = translator.text(each, each.best[0]) if each.best else ""
            if terminal:
                text = for_terminal(text)
        else:
            texts = [_described(translator, each, hypothesis) for hypothesis in each.best]
            text = json_line({"line": number, "translations": texts})
        print(text, flush=batch_size == 1)
        if each.best and picture is not None:
            sides = translator.source_tokenizer, translator.target_tokenizer
            draw_translation(each.source, each.best[0], *sides, picture)
            picture = None
    if picture is not None:
        notes("--attention: no line has text, nothing was drawn")
    notes.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="rnnkit translate",
        description="rnnkit translate --ckpt best.ckpt < german.txt > english.txt\n\n"
        "Translate standard input, one line out for every line in; on a terminal it asks for them.",
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
    add("--max-source", type=int, metavar="N", help="tokens of a line (default: the model's)")
    add(
        "--n-best",
        type=int,
        metavar="N",
        help="print the N best of each line with their tokens and scores, as one JSON object a "
        "line",
    )
    unknown = parser.add_mutually_exclusive_group()
    unknown.add_argument(
        "--no-unknown", action="store_true", help="never write <unk>, but the next best token"
    )
    unknown.add_argument(
        "--replace-unk",
        action="store_true",
        help="for <unk> put the source word that had the highest attention",
    )
    add(
        "--dictionary",
        type=Path,
        metavar="FILE",
        help="with --replace-unk: put what this file has for that word, in lines of word, tab and "
        "translation",
    )
    add(
        "--attention",
        type=Path,
        metavar="PNG",
        help="draw where the decoder looked in the first line that has text",
    )
    return parser


def _source_words(
    translator: Translator, path: Path | None, note: Callable[[str], None]
) -> SourceWords:
    """What `--replace-unk` does, and a note of what in it has no effect."""
    tokenizer = translator.source_tokenizer
    if translator.target_tokenizer.level == "bpe":
        note("--replace-unk: byte-pair encodings know every word, there is nothing to replace")
    dictionary = {} if path is None else read_dictionary(path)
    several = [source for source in dictionary if len(tokenizer.written(source)) > 1]
    if several:
        note(
            f"--dictionary: {len(several):,} of {len(dictionary):,} source words are several "
            f"tokens and never found, the first is {several[0]!r}"
        )
    return SourceWords(tokenizer, dictionary)


def _described(
    translator: Translator, translated: Translated, hypothesis: Hypothesis
) -> dict[str, Any]:
    tokens = [token for token in hypothesis.tokens if token != END]
    return {
        "text": translator.text(translated, hypothesis),
        "tokens": translator.target_tokenizer.shown(tokens),
        "score": hypothesis.score,
        "log_probability": hypothesis.log_probability,
        "finished": hypothesis.finished,
    }
