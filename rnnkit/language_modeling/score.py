"""`rnnkit score`: how probable a language model finds a text, line by line.

The text is one stream: the state slides over all of it, and every token is scored once. Dynamic
evaluation (Krause et al. 2018, arXiv 1709.07432, section 3, by plain SGD) lets the model learn
from what it has read: after a segment s_i is scored with the weights theta_{i-1},

    theta_i = theta_{i-1} - eta d/dtheta L(s_i; theta_{i-1}),     L in nats per token.
"""

from __future__ import annotations

import copy
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional as F

from rnnkit.data.encodings import decode
from rnnkit.data.files import read_text
from rnnkit.data.registry import DataError
from rnnkit.data.vocabulary import UNKNOWN, Vocabulary
from rnnkit.language_modeling.corpora import Tokenizer, read_corpus
from rnnkit.language_modeling.generate import Writer
from rnnkit.language_modeling.ngram import InterpolatedKneserNey, UnigramModel
from rnnkit.language_modeling.task import LanguageModel
from rnnkit.nn.truncation import State, map_state
from rnnkit.screen.terminal import Parser, sentence

ORDERS = {"character": 6, "word": 5}
"""Order of the n-gram model beside the network: more hardly helps it on the named corpora."""

# Long enough that a segment's start costs nothing; for dynamic evaluation Krause et al.'s choices.
SEGMENT, DYNAMIC_SEGMENTS = 256, {"character": 20, "word": 5}

_UNKNOWN_SHOWN = 5


class Score(NamedTuple):
    """Summed negative log-likelihood of some tokens, in nats, and their number."""

    likelihood: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp of nats per token; infinite beyond the largest float."""
        mean = self.likelihood / self.tokens
        return math.exp(mean) if mean < 709 else math.inf  # the largest float is about e^709.8

    @property
    def bits_per_token(self) -> float:
        """Bits per token, or per character of a character model."""
        return self.likelihood / self.tokens / math.log(2)


def token_losses(
    model: LanguageModel, tokens: Tensor, start: int, segment: int, rate: float = 0.0
) -> Iterator[Tensor]:
    """Negative log-likelihood of every token of a text, given all before it.

    Args:
        model: In evaluation mode. It is left as it is: dynamic evaluation changes a copy.
        tokens: Token ids, int64 (N,).
        start: Id of the token before the first one.
        segment: Tokens at a time. Without dynamic evaluation it has no effect on the result.
        rate: Learning rate of dynamic evaluation, after every segment; 0: none.

    Yields:
        Nats, float64, of one segment after the other, each (segment,) but the last.

    Raises:
        ValueError: `segment` is below 1, or the rate is negative or not finite.
        FloatingPointError: A loss is not finite: the rate is too high, or the model's weights are
            not finite either.
    """
    if segment < 1:
        raise ValueError(f"expected a segment of 1 token or more, got {segment}")
    if not (rate >= 0 and math.isfinite(rate)):
        raise ValueError(f"expected a learning rate of 0 or more, got {rate}")
    if rate:
        model = copy.deepcopy(model)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    inputs = torch.cat([tokens.new_tensor([start]), tokens[:-1]])
    state: State | None = None
    for begin in range(0, len(tokens), segment):
        part = slice(begin, begin + segment)
        with torch.set_grad_enabled(rate > 0):
            logits, state = model(inputs[part].unsqueeze(1), state)  # (T, 1, V)
            losses = F.cross_entropy(logits.squeeze(1).float(), tokens[part], reduction="none")
        if not bool(losses.isfinite().all()):
            if rate:
                raise FloatingPointError(
                    f"the loss is no longer finite after {begin} tokens of dynamic evaluation "
                    f"with learning rate {rate}: lower it"
                )
            raise FloatingPointError(
                f"the loss is not finite after {begin} tokens: look for NaN and infinity in the "
                "model's parameters"
            )
        if rate:
            gradients = torch.autograd.grad(losses.mean(), weights, allow_unused=True)
            for weight, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    weight.data.sub_(gradient, alpha=rate)
            state = map_state(state, Tensor.detach)
        yield losses.detach().double()


def split_lines(tokenizer: Tokenizer, text: str) -> list[list[str]]:
    """Tokens of each line, the end of the line with it; together those of `tokenizer.tokenize`."""
    lines = text.split("\n")
    tokens = [[*tokenizer.tokenize_line(line), tokenizer.start] for line in lines]
    if not lines[-1]:  # what follows the last line's end
        tokens.pop()
    elif tokenizer.level == "character":
        tokens[-1].pop()  # the last line has no end
    return tokens


def encode_lines(vocabulary: Vocabulary, lines: list[list[str]], name: str) -> Tensor:
    """Ids of all tokens, int64 (N,); says on standard error how many are `<unk>`, or read so.

    Args:
        vocabulary: The model's.
        lines: Tokens of each line.
        name: Of the text, for an error.

    Raises:
        DataError: There is no token, or one that is not known where nothing stands for it.
    """
    known = {*vocabulary.tokens} - {UNKNOWN}
    unknown = Counter(token for line in lines for token in line if token not in known)
    if unknown and UNKNOWN not in vocabulary:
        number = next(i for i, line in enumerate(lines, 1) if not unknown.keys().isdisjoint(line))
        token = next(token for token in lines[number - 1] if token in unknown)
        raise DataError(
            f"line {number} of {name} has {token!r}, which is not among the {len(vocabulary)} "
            f"tokens of the model, and it has no {UNKNOWN} to stand for others"
        )
    ids = vocabulary.encode(token for line in lines for token in line)
    if not len(ids):
        raise DataError(f"{name} is empty: there is nothing to score")
    if unknown:
        shown = ", ".join(repr(token) for token, _ in unknown.most_common(_UNKNOWN_SHOWN))
        more = ", ..." if len(unknown) > _UNKNOWN_SHOWN else ""
        print(
            f"rnnkit score: {unknown.total():,} of {len(ids):,} tokens "
            f"({100 * unknown.total() / len(ids):.1f} %) are read as {UNKNOWN}: "
            f"{sentence(shown)}{more}",
            file=sys.stderr,
        )
    return ids


def line_scores(losses: Tensor, lines: list[list[str]]) -> list[Score]:
    """Scores of the lines that have tokens (all but an empty last one), from those of the tokens.

    Args:
        losses: Nats of every token, float64 (N,).
        lines: Tokens of each line, N in all.
    """
    parts = torch.split(losses, [len(line) for line in lines])
    return [Score(float(part.sum()), len(part)) for part in parts if len(part)]


def _with_progress(losses: Iterable[Tensor], total: int) -> Tensor:
    """All losses, with a bar on standard error where that is a terminal."""
    console = Console(stderr=True)
    columns = (BarColumn(bar_width=None), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(
        *columns,
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
        expand=True,
        disable=not console.is_terminal,
    ) as progress:
        task, found = progress.add_task("", total=total), []
        for part in losses:
            found.append(part)
            progress.advance(task, len(part))
    return torch.cat(found)


def _beside(train: Tensor, test: Tensor, size: int, level: str, start: int) -> dict[str, float]:
    """Perplexities of models that only count, estimated on the training text of a corpus."""
    order = ORDERS[level]
    kneser_ney = InterpolatedKneserNey(train, size, order, start)
    return {
        "uniform": float(size),
        "unigram": UnigramModel(train, size).perplexity(test),
        f"Kneser-Ney {order}-gram": kneser_ney.perplexity(test),
    }


def main(argv: list[str]) -> int:
    """Run `rnnkit score` with the arguments that follow these two words.

    Args:
        argv: Arguments, for example `["text.txt", "--ckpt", "best.ckpt"]`.

    Returns:
        Exit status: 0.

    Raises:
        DataError: The text cannot be read or is empty.
        ValueError: The checkpoint or an argument cannot be used.
    """
    parser = Parser(
        prog="rnnkit score",
        description="rnnkit score letter.txt --ckpt best.ckpt\n"
        "rnnkit score --corpus python-docs --ckpt best.ckpt\n\n"
        "Score a text with a language model: one stream, every token once.",
    )
    add = parser.add_argument
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("file", nargs="?", metavar="FILE", help="text to score; -: standard input")
    text.add_argument(
        "--corpus",
        metavar="NAME",
        help="score the test text of a corpus, beside models that count in its training text",
    )
    add("--ckpt", required=True, metavar="PATH", help="checkpoint of `rnnkit fit`")
    add("--per-line", action="store_true", help="a line of tab-separated values for every line")
    add(
        "--dynamic",
        type=float,
        default=0.0,
        metavar="LR",
        help="dynamic evaluation: a step of SGD after each segment is scored (default: 0, none)",
    )
    add(
        "--segment",
        type=int,
        metavar="N",
        help=f"tokens at a time (default: {SEGMENT}; with --dynamic, which depends on it, "
        f"{DYNAMIC_SEGMENTS['character']} characters or {DYNAMIC_SEGMENTS['word']} words)",
    )
    arguments = parser.parse_args(argv)
    writer = Writer.from_checkpoint(arguments.ckpt)
    vocabulary, tokenizer = writer.vocabulary, writer.tokenizer
    train: list[str] = []
    if arguments.corpus is not None:
        corpus = read_corpus(arguments.corpus, tokenizer.level, tokenizer.lowercase)
        train, name = corpus.train, f"the test text of {arguments.corpus}"
        lines = _lines_of(corpus.test, tokenizer.start)
    else:
        name = "standard input" if arguments.file == "-" else arguments.file
        if arguments.file == "-":
            if sys.stdin.buffer.isatty():
                print("type the text; Ctrl-D ends it", file=sys.stderr)
            content = decode(sys.stdin.buffer.read(), name)
        else:
            content = read_text(Path(arguments.file))
        lines = split_lines(tokenizer, content)
    ids, start = encode_lines(vocabulary, lines, name), vocabulary.index(tokenizer.start)
    segment = arguments.segment
    if segment is None:
        segment = DYNAMIC_SEGMENTS[tokenizer.level] if arguments.dynamic else SEGMENT
    parts = token_losses(writer.model, ids, start, segment, arguments.dynamic)
    losses = _with_progress(parts, len(ids))
    scores = line_scores(losses, lines)
    total = Score(math.fsum(score.likelihood for score in scores), len(ids))
    if arguments.per_line:
        print("line\ttokens\tnll\tperplexity\tbits_per_token")
        for number, score in enumerate(scores, 1):
            print(_row(str(number), score))
        print(_row("total", total))
        return 0
    unit = f"bits per {tokenizer.level}"
    print(f"{total.tokens:,} {tokenizer.level}s, {total.likelihood:,.1f} nats")
    print(f"{'':20}{'perplexity':>12}{unit:>20}")
    if train:
        counted = vocabulary.encode(train)
        beside = _beside(counted, ids, len(vocabulary), tokenizer.level, start)
        for label, perplexity in beside.items():
            print(f"{label:20}{perplexity:12.4g}{math.log2(perplexity):20.3f}")
    shown = {"the model": total}
    if UNKNOWN in vocabulary:
        known = ids != vocabulary.index(UNKNOWN)
        if 0 < (count := int(known.sum())) < len(ids):
            shown[f"without {UNKNOWN}"] = Score(float(losses[known].sum()), count)
    for label, score in shown.items():
        print(f"{label:20}{score.perplexity:12.4g}{score.bits_per_token:20.3f}")
    return 0


def _lines_of(tokens: list[str], end: str) -> list[list[str]]:
    lines: list[list[str]] = [[]]
    for token in tokens:
        lines[-1].append(token)
        if token == end:
            lines.append([])
    return lines if lines[-1] else lines[:-1]


def _row(label: str, score: Score) -> str:
    return (
        f"{label}\t{score.tokens}\t{score.likelihood:.6f}\t{score.perplexity:.6f}"
        f"\t{score.bits_per_token:.6f}"
    )
