"""`rnnkit words`: what word vectors know, and how well."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator
from pathlib import Path

from rnnkit.data.files import read_text
from rnnkit.data.registry import DataError
from rnnkit.data.storage import fetch
from rnnkit.data.word2vec_format import write_vectors
from rnnkit.screen.terminal import Parser, visible, waiting
from rnnkit.word_vectors.evaluation import (
    Group,
    analogies,
    lower_case,
    read_pairs,
    read_questions,
    similarity,
)
from rnnkit.word_vectors.vectors import WordVectors

_DESCRIPTION = """\
rnnkit words ppmi text.txt --out words.bin
rnnkit words similar words.bin king queen
rnnkit words analogy words.bin king - man + woman
rnnkit words evaluate words.bin --first 30000
rnnkit words plot words.bin man woman king queen --arrows --out words.png
rnnkit words export words.bin words.txt
rnnkit words info words.bin

Vectors are files of word2vec's, in text or binary, or of GloVe's; plain or packed.
"""

_TERM = re.compile(r"[+-]")


def main(argv: list[str]) -> int:
    """Run `rnnkit words` with the arguments that follow these two words.

    Args:
        argv: Arguments, for example `["similar", "words.bin", "king"]`.

    Returns:
        Exit status: 0.

    Raises:
        DataError: A file cannot be read, or a word has no vector.
        ValueError: An argument cannot be used.
    """
    parser = Parser(prog="rnnkit words", description=_DESCRIPTION)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        own = commands.add_parser(name, help=text, description=_example(name) + text)
        own.set_defaults(run=run)
        return own

    own = command("similar", _similar, "the nearest words by the cosine")
    _vectors(own)
    own.add_argument("words", nargs="+", metavar="WORD")
    _number(own)
    own = command("analogy", _analogy, "words near some and far from others")
    _vectors(own)
    own.add_argument("terms", nargs="+", metavar="TERM", help="words, with + or - between them")
    _number(own)
    _method(own)
    own = command("evaluate", _evaluate, "analogies by groups, and ratings of pairs by people")
    _vectors(own)
    add = own.add_argument
    add("--questions", metavar="FILE", help="lines a b c d, in groups (default: questions-words)")
    add("--pairs", nargs="+", metavar="FILE", help="two words and a rating (default: WordSim-353)")
    add("--first", type=_positive, metavar="N", help="the first N words, for the analogies")
    _method(own)
    own = command("plot", _plot, "chosen words in the plane of their largest variance")
    _vectors(own)
    own.add_argument("words", nargs="+", metavar="WORD")
    own.add_argument("--arrows", action="store_true", help="from each odd word to the next")
    own.add_argument("--out", default="words.png", metavar="FILE", help="default: words.png")
    own = command("export", _export, "write vectors in word2vec's text or binary format")
    _vectors(own)
    own.add_argument("out", metavar="FILE", help="binary where its name ends in .bin, else text")
    own.add_argument("--first", type=_positive, metavar="N", help="the first N words alone")
    own = command("ppmi", _ppmi, "vectors from counts of a text: PPMI and its singular vectors")
    add = own.add_argument
    add("text", metavar="TEXT", help="words between blanks, plain or packed")
    add(
        "--out", required=True, metavar="FILE", help="binary where its name ends in .bin, else text"
    )
    add("--dimensions", type=int, default=100, metavar="D", help="default: 100")
    add("--window", type=int, default=5, metavar="L", help="largest distance (default: 5)")
    add("--min-count", type=int, default=5, metavar="N", help="least of a word (default: 5)")
    add("--most", type=int, metavar="V", help="the V most frequent words alone")
    add("--lower", action="store_true", help="read the text in lower case")
    own = command("info", _info, "how many words, dimensions and parameters")
    _vectors(own)
    arguments = parser.parse_args(argv)
    arguments.run(arguments)
    return 0


def _example(name: str) -> str:
    return next(line for line in _DESCRIPTION.splitlines() if f" {name} " in line) + "\n\n"


def _vectors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("vectors", metavar="VECTORS", help="file of word vectors")


def _number(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n", type=_positive, default=10, metavar="N", help="how many (default: 10)"
    )


def _method(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--method", choices=["add", "mul"], default="add", help="3CosAdd (default) or 3CosMul"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {number}")
    return number


def _read(path: str, limit: int | None = None) -> WordVectors:
    with waiting(f"reading {visible(path)} …"):
        return WordVectors.read(path, limit)


def _similar(arguments: argparse.Namespace) -> None:
    vectors = _read(arguments.vectors)
    for word in arguments.words:
        if len(arguments.words) > 1:
            print(visible(f"{word}:"))
        _print(vectors.similar(word, arguments.n))


def _analogy(arguments: argparse.Namespace) -> None:
    plus, minus = _terms(arguments.terms)
    vectors = _read(arguments.vectors)
    _print(vectors.analogy(plus, minus, arguments.n, arguments.method))


def _terms(terms: list[str]) -> tuple[list[str], list[str]]:
    """Words that count for and against: king - man + woman, as one argument or several."""
    sides: dict[str, list[str]] = {"+": [], "-": []}
    sign = "+"
    for part in " ".join(terms).split():
        if _TERM.fullmatch(part):
            sign = part
        else:
            sides[sign].append(part)
            sign = "+"
    if not sides["+"]:
        raise ValueError(f"expected words as in king - man + woman, got {' '.join(terms)!r}")
    return sides["+"], sides["-"]


def _print(found: list[tuple[str, float]]) -> None:
    width = max((len(word) for word, _ in found), default=0)
    for word, score in found:
        print(visible(f"{word:{width}}  {score:.3f}"))


def _evaluate(arguments: argparse.Namespace) -> None:
    if arguments.questions is None or arguments.pairs is None:
        files = fetch("word2vec")
    questions = arguments.questions or files["questions-words.txt"]
    pairs = arguments.pairs or [files["wordsim353.tsv"]]
    vectors = _read(arguments.vectors)
    chosen = vectors if arguments.first is None else vectors.first(arguments.first)
    if lower_case(chosen):
        print("no word has a capital: questions and pairs are read in lower case")
    with waiting("answering …"):
        groups = analogies(chosen, read_questions(questions), arguments.method)
    print(visible(f"analogies of {Path(questions).name} among {len(chosen.words):,} words, 3Cos"
                  f"{arguments.method.capitalize()}"))  # fmt: skip
    width = max(len(group.name) for group in groups)
    print(f"{'':{width}}  {'right':>7}  {'answered':>8}  {'left out':>8}")
    for group in [*groups, _total(groups)]:
        share = f"{group.accuracy:7.1%}" if group.answered else f"{'–':>7}"
        left = group.asked - group.answered
        print(visible(f"{group.name:{width}}  {share}  {group.answered:8,}  {left:8,}"))
    total = _total(groups)
    print(f"of all {total.asked:,} questions {total.right / total.asked:.1%} are answered right")
    for path in pairs:
        found = similarity(vectors, read_pairs(path))
        rho = "unknown" if math.isnan(found.rho) else f"{found.rho:.3f}"
        print(visible(
            f"{Path(path).name}: Spearman's ρ {rho} over {found.rated:,} of {found.pairs:,} pairs"
        ))  # fmt: skip


def _total(groups: list[Group]) -> Group:
    right, answered, asked = (sum(group[i] for group in groups) for i in (1, 2, 3))  # type: ignore[misc]
    return Group("all", right, answered, asked)


def _plot(arguments: argparse.Namespace) -> None:
    from rnnkit.word_vectors.picture import draw_words

    if arguments.arrows and len(arguments.words) % 2:
        raise ValueError(f"arrows need pairs of words, got {len(arguments.words)} words")
    vectors = _read(arguments.vectors)
    share = draw_words(vectors, arguments.words, arguments.out, arguments.arrows)
    print(visible(f"{arguments.out}: {share:.0%} of the variance of these words"))


def _export(arguments: argparse.Namespace) -> None:
    vectors = _read(arguments.vectors, arguments.first)
    _write(arguments.out, vectors)


def _write(out: str, vectors: WordVectors) -> None:
    binary = out.endswith(".bin")
    write_vectors(out, vectors.words, vectors.vectors, binary)
    count, size = vectors.vectors.shape
    kind = "binary" if binary else "text"
    print(visible(f"{out}: {count:,} vectors of {size} numbers, in word2vec's {kind} format"))


def _ppmi(arguments: argparse.Namespace) -> None:
    from rnnkit.word_vectors.counts import cooccurrences, ppmi, ppmi_vectors, vocabulary_of

    lines = Lines(arguments.text, arguments.lower)
    with waiting("counting words …"):
        counts = vocabulary_of(lines, arguments.min_count, arguments.most)
    print(f"{len(counts):,} words are kept, {counts.total():,} of the text's")
    ids = {word: number for number, word in enumerate(counts)}
    with waiting("counting pairs …"):
        information = ppmi(cooccurrences(lines, ids, arguments.window))
    print(f"{information.nnz:,} pairs of words with positive information")
    with waiting("finding singular vectors …"):
        vectors = ppmi_vectors(information, arguments.dimensions)
    _write(arguments.out, WordVectors([*counts], vectors))


class Lines:
    """The words of each line of a text, which may be read again.

    Args:
        path: The file, plain or packed.
        lower: Whether to read it in lower case.

    Raises:
        DataError: It cannot be read, or holds no word.
    """

    def __init__(self, path: str, lower: bool = False) -> None:
        text = read_text(Path(path))
        self._lines = (text.lower() if lower else text).splitlines()
        if not any(line.strip() for line in self._lines):
            raise DataError(f"{path} holds no word")

    def __iter__(self) -> Iterator[list[str]]:
        return (line.split() for line in self._lines)


def _info(arguments: argparse.Namespace) -> None:
    vectors = _read(arguments.vectors)
    count, size = vectors.vectors.shape
    print(f"{count:,} words, {size} dimensions")
    print(
        f"{count * size:,} numbers; {2 * count * size:,} in the two matrices that word2vec trains"
    )
