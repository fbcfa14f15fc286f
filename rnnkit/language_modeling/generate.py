"""`rnnkit generate`: let a trained language model continue a text."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rnnkit.data.vocabulary import UNKNOWN, Vocabulary
from rnnkit.decoding.lines import LinesOf
from rnnkit.decoding.sampling import Sampler
from rnnkit.decoding.steps import StepModel
from rnnkit.decoding.without import Without
from rnnkit.language_modeling.corpora import Tokenizer
from rnnkit.language_modeling.task import LanguageModel
from rnnkit.screen.terminal import Parser, couplets, for_terminal, sentence
from rnnkit.training.loading import check_vocabularies, load_for_use, usable

LONGEST_LINE = {"character": 100, "word": 50}
"""Most tokens of a line, twice what is usual in verse and a good sentence."""

_DESCRIPTION = """\
rnnkit generate --ckpt best.ckpt --prompt "the company said" --temperature 0.8 --no-unknown

Let a trained language model continue a text.
"""


@dataclass(frozen=True)
class Writer:
    """A language model with the vocabulary and the tokenizer that it was trained with.

    Attributes:
        model: The model.
        vocabulary: What its ids stand for.
        tokenizer: What makes tokens of a text and back.
        writes_unknown: Whether it may write `<unk>`; it reads unknown words as that all the same.
    """

    model: LanguageModel
    vocabulary: Vocabulary
    tokenizer: Tokenizer
    writes_unknown: bool = True

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str]) -> Writer:
        """Load a checkpoint of `LanguageModel` trained on `LanguageModelingData`, on the CPU.

        Args:
            path: The checkpoint.

        Raises:
            CheckpointError: It is missing, damaged or of another task.
        """
        with usable(path, "language model"):
            model, data = load_for_use(
                path, LanguageModel, "LanguageModelingData", "language model"
            )
            vocabulary = Vocabulary.from_state_dict(data.pop("vocabulary"))
            check_vocabularies(model, vocabulary_size=len(vocabulary))
            return cls(model, vocabulary, Tokenizer(**data))

    def unknown(self, prompt: str) -> list[str]:
        """Tokens of a prompt that the model does not know and reads as `<unk>`."""
        tokens = self.tokenizer.tokenize_line(prompt)
        return [token for token in tokens if token not in self.vocabulary]

    def write(self, prompt: str, length: int, count: int, sampler: Sampler) -> list[str]:
        """Continue a prompt.

        Args:
            prompt: May be empty: the model then begins a line.
            length: Tokens to draw.
            count: Number of continuations.
            sampler: How they are drawn.

        Returns:
            `count` texts, each with the prompt, as the model reads it.

        Raises:
            ValueError: A number is below 1, or the vocabulary has no `<unk>` for a token.
        """
        if length < 1 or count < 1:
            raise ValueError(f"expected length and count of 1 or more, got {length} and {count}")
        read = self._read(prompt, 1, count)
        drawn = sampler.generate(self._writing(), read[:-1], read[-1], length)
        return [self._text(tokens) for tokens in torch.cat([read[1:], drawn]).t().tolist()]

    def write_lines(
        self, prompt: str, lines: int, longest: int, paired: bool, count: int, sampler: Sampler
    ) -> list[str]:
        """Continue a prompt to a number of lines; blank ones do not count.

        Args:
            prompt: May be empty: the model then begins a line, or a poem where lines are paired.
            lines: Lines of the text, those of the prompt among them.
            longest: Most tokens of a line that the model writes.
            paired: Let a poem end after an even number of lines only.
            count: Number of continuations.
            sampler: How tokens are drawn.

        Returns:
            `count` texts, each with the prompt, as the model reads it, and without a last line end.

        Raises:
            ValueError: A number is below 1, `lines` is odd where lines are paired, the prompt has
                as many lines already, or the vocabulary has no `<unk>` for a token.
        """
        if count < 1:
            raise ValueError(f"expected count of 1 or more, got {count}")
        size, line_end = len(self.vocabulary), self.vocabulary.index(self.tokenizer.start)
        form = LinesOf(self._writing(), line_end, size, lines, longest, paired)
        finished = sum(bool(line) for line in prompt.split("\n")[:-1])
        if finished >= lines:
            raise ValueError(f"the prompt has {finished} lines, there is none left of {lines}")
        before = 2 if paired else 1  # a poem begins after a blank line
        read = self._read(prompt, before, count)
        sampler = replace(sampler, max_length=form.max_length)
        found = sampler(form, read[:-1], read[-1], form.text_end)
        rows = zip(read[before:].t().tolist(), found, strict=True)
        texts = [self._text([*row, *one.tokens[:-1]]) for row, (one,) in rows]
        return [text.rstrip("\n") for text in texts]

    def _writing(self) -> StepModel:
        """What chooses the tokens that are written."""
        if self.writes_unknown or UNKNOWN not in self.vocabulary:
            return self.model
        return Without(self.model, [self.vocabulary.index(UNKNOWN)])

    def _read(self, prompt: str, before: int, count: int) -> Tensor:
        """Ids (T, count) of a prompt after as many line ends."""
        lines = prompt.split("\n")
        tokens = [self.tokenizer.start] * before
        for line in lines[:-1]:
            tokens += [*self.tokenizer.tokenize_line(line), self.tokenizer.start]
        tokens += self.tokenizer.tokenize_line(lines[-1])
        return self.vocabulary.encode(tokens).unsqueeze(1).expand(-1, count)

    def _text(self, tokens: list[int]) -> str:
        return self.tokenizer.detokenize(self.vocabulary.decode(tokens))


def main(argv: list[str]) -> int:
    """Run `rnnkit generate` with the arguments that follow these two words.

    Args:
        argv: Arguments, for example `["--ckpt", "best.ckpt", "--prompt", "the"]`.

    Returns:
        Exit status: 0.

    Raises:
        ValueError: The checkpoint or an argument cannot be used.
    """
    parser = Parser(
        prog="rnnkit generate",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--ckpt", required=True, metavar="PATH", help="checkpoint of `rnnkit fit`")
    add("--prompt", default="", metavar="TEXT", help="text to continue (default: a new line)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--length", type=int, default=50, metavar="N", help="tokens to draw (default: 50)"
    )
    size.add_argument(
        "--lines", type=int, metavar="N", help="write N lines, blank ones not counted"
    )
    size.add_argument(
        "--couplets",
        type=int,
        metavar="N",
        help="write N pairs of lines and print each side by side, with a tab between them where "
        "standard output is no terminal",
    )
    add(
        "--longest-line",
        type=int,
        metavar="N",
        help="tokens after which --lines and --couplets end a line (default: "
        f"{LONGEST_LINE['character']} characters or {LONGEST_LINE['word']} words)",
    )
    add("--count", type=int, default=1, metavar="N", help="number of continuations (default: 1)")
    add(
        "--temperature",
        type=float,
        default=1.0,
        metavar="X",
        help="below 1 keeps to the probable, above 1 dares more, 0 always takes the most probable "
        "token (default: 1)",
    )
    add("--top-k", type=int, metavar="K", help="draw from the K most probable tokens only")
    add("--top-p", type=float, metavar="P", help="draw from the tokens that reach probability P")
    add("--no-unknown", action="store_true", help=f"never write {UNKNOWN}, but the next best token")
    add("--seed", type=int, metavar="N", help="the same seed draws the same tokens")
    arguments = parser.parse_args(argv)
    sampler = Sampler(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    writer = Writer.from_checkpoint(arguments.ckpt)
    writer = replace(writer, writes_unknown=not arguments.no_unknown)
    if UNKNOWN in writer.vocabulary and (unknown := writer.unknown(arguments.prompt)):
        print(f"read as {UNKNOWN}: {sentence(', '.join(unknown))}", file=sys.stderr)
    print_texts(_written(writer, arguments, sampler), arguments.couplets is not None)
    return 0


def _written(writer: Writer, arguments: argparse.Namespace, sampler: Sampler) -> list[str]:
    prompt, count, longest = arguments.prompt, arguments.count, arguments.longest_line
    paired = arguments.couplets is not None
    lines = 2 * arguments.couplets if paired else arguments.lines
    if lines is None:
        if longest is not None:
            raise ValueError("--longest-line needs --lines or --couplets")
        return writer.write(prompt, arguments.length, count, sampler)
    if longest is None:
        longest = LONGEST_LINE[writer.tokenizer.level]
    return writer.write_lines(prompt, lines, longest, paired, count, sampler)


def print_texts(texts: list[str], paired: bool) -> None:
    """Print texts with a blank line between them, a terminal's otherwise than a file's.

    A file or a pipe gets UTF-8 and what was written, a terminal what `screen/terminal.py` makes
    of it.

    Args:
        texts: Texts of one or more lines.
        paired: Print two lines side by side.
    """
    terminal = sys.stdout.isatty()
    if isinstance(sys.stdout, io.TextIOWrapper):
        if terminal:
            sys.stdout.reconfigure(errors="backslashreplace")
        else:
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    if paired:
        columns = shutil.get_terminal_size().columns if terminal else None
        shown = [couplets(text, columns) for text in texts]
    else:
        shown = [for_terminal(text) if terminal else text for text in texts]
    print("\n\n".join(shown))
