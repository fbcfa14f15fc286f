"""`rnnkit generate`: let a trained language model continue a text."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass

import torch

from rnnkit.data.text import Tokenizer
from rnnkit.data.vocabulary import UNKNOWN, Vocabulary
from rnnkit.decoding.sampling import Sampler
from rnnkit.tasks.base import load_for_use
from rnnkit.tasks.language_modeling import LanguageModel


@dataclass(frozen=True)
class Writer:
    """A language model with the vocabulary and the tokenizer that it was trained with."""

    model: LanguageModel
    vocabulary: Vocabulary
    tokenizer: Tokenizer

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str]) -> Writer:
        """Load a checkpoint of `LanguageModel` trained on `LanguageModelingData`, on the CPU.

        Args:
            path: The checkpoint.

        Raises:
            CheckpointError: It is missing, damaged or of another task.
        """
        model, data = load_for_use(path, LanguageModel, "LanguageModelingData", "language model")
        vocabulary = Vocabulary.from_state_dict(data.pop("vocabulary"))
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
        lines = prompt.split("\n")
        tokens = [self.tokenizer.start]
        for line in lines[:-1]:
            tokens += [*self.tokenizer.tokenize_line(line), self.tokenizer.start]
        tokens += self.tokenizer.tokenize_line(lines[-1])
        read = self.vocabulary.encode(tokens).unsqueeze(1).expand(-1, count)  # (T, count)
        drawn = sampler.generate(self.model, read[:-1], read[-1], length)
        texts = torch.cat([read[1:], drawn]).t()
        return [self.tokenizer.detokenize(self.vocabulary.decode(text)) for text in texts]


def main(argv: list[str]) -> int:
    """Run `rnnkit generate` with the arguments that follow these two words.

    Args:
        argv: Arguments, for example `["--ckpt", "best.ckpt", "--prompt", "the"]`.

    Returns:
        Exit status: 0.

    Raises:
        ValueError: The checkpoint or an argument cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="rnnkit generate", description="Let a trained language model continue a text."
    )
    add = parser.add_argument
    add("--ckpt", required=True, metavar="PATH", help="checkpoint of `rnnkit fit`")
    add("--prompt", default="", metavar="TEXT", help="text to continue (default: a new line)")
    add("--length", type=int, default=50, metavar="N", help="tokens to draw (default: 50)")
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
    add("--seed", type=int, metavar="N", help="the same seed draws the same tokens")
    arguments = parser.parse_args(argv)
    sampler = Sampler(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    writer = Writer.from_checkpoint(arguments.ckpt)
    if UNKNOWN in writer.vocabulary and (unknown := writer.unknown(arguments.prompt)):
        print(f"read as {UNKNOWN}: {', '.join(unknown)}", file=sys.stderr)
    texts = writer.write(arguments.prompt, arguments.length, arguments.count, sampler)
    print("\n\n".join(texts))
    return 0
