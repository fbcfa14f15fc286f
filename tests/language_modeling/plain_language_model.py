"""The language model as one would write it with PyTorch alone: the yardstick of `LanguageModel`.

Recipe of Zaremba et al. 2014 (arXiv 1409.2329), run by itself the small model. It needs torch and
nothing else:

    python tests/language_modeling/plain_language_model.py PTB_FOLDER --epochs 1

prints the speed of training and the validation perplexity after each epoch. The tests and
`rnnkit bench end-to-end` import it, to compare losses, parameters and speed.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PlainLanguageModel(nn.Module):
    """Embedding, nn.LSTM, linear; every parameter drawn from U(-init_range, init_range)."""

    def __init__(
        self, vocabulary_size: int, size: int, layers: int, init_range: float, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, size)
        self.dropout = nn.Dropout(dropout)
        self.rnn = nn.LSTM(size, size, layers, dropout=dropout)
        self.decoder = nn.Linear(size, vocabulary_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -init_range, init_range)

    def forward(
        self, tokens: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        output, state = self.rnn(self.dropout(self.embedding(tokens)), state)
        return self.decoder(self.dropout(output)), state


def streams(tokens: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (N // B - 1, B): B contiguous streams side by side."""
    steps = len(tokens) // batch_size
    columns = tokens[: steps * batch_size].view(batch_size, steps).t().contiguous()
    return columns[:-1], columns[1:]


def train(
    model: PlainLanguageModel,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    window: int,
    clip: float,
) -> Iterator[Tensor]:
    """Train one epoch, one window for each value asked for: the loss per token of that window.

    The loss that is optimised is its sum over the steps of the window.
    """
    state = None
    model.train()
    for start in range(0, len(inputs), window):
        input, target = inputs[start : start + window], targets[start : start + window]
        logits, state = model(input, state)
        state = (state[0].detach(), state[1].detach())
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        (loss * len(input)).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        del logits
        yield loss.detach()


@torch.no_grad()
def perplexity(
    model: PlainLanguageModel, tokens: Tensor, batch_size: int, window: int, first: int
) -> float:
    """Every token scored once, in B streams; the text's first input is the token `first`."""
    model.eval()
    steps = -(-len(tokens) // batch_size)
    inputs = F.pad(tokens[:-1], (1, steps * batch_size - len(tokens)), value=first)
    inputs[0] = first
    targets = F.pad(tokens, (0, steps * batch_size - len(tokens)), value=-100)
    inputs, targets = inputs.view(batch_size, steps).t(), targets.view(batch_size, steps).t()
    state, total = None, 0.0
    for start in range(0, steps, window):
        logits, state = model(inputs[start : start + window], state)
        target = targets[start : start + window].flatten()
        total += float(F.cross_entropy(logits.flatten(0, 1), target, reduction="sum"))
    return math.exp(total / len(tokens))


def read_treebank(folder: Path) -> tuple[dict[str, int], list[Tensor]]:
    """Word ids by falling frequency, and the ids of ptb.train.txt and ptb.valid.txt."""
    texts = [
        (folder / f"ptb.{part}.txt").read_text("utf-8").replace("\n", " <eos> ").split()
        for part in ("train", "valid")
    ]
    counts = Counter(texts[0])
    ids = {word: i for i, word in enumerate(sorted(counts, key=lambda w: (-counts[w], w)))}
    return ids, [torch.tensor([ids[word] for word in text]) for text in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder with ptb.train.txt and ptb.valid.txt")
    parser.add_argument("--epochs", type=int, default=13)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    ids, (training, validation) = read_treebank(arguments.folder)
    model = PlainLanguageModel(len(ids), size=200, layers=2, init_range=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    inputs, targets = streams(training, 20)
    for epoch in range(arguments.epochs):
        optimizer.param_groups[0]["lr"] = 0.5 ** max(epoch - 3, 0)
        begin = time.perf_counter()
        losses = torch.stack(list(train(model, optimizer, inputs, targets, 20, clip=5.0)))
        speed = inputs.numel() / (time.perf_counter() - begin)
        score = perplexity(model, validation, 20, 20, ids["<eos>"])
        print(
            f"epoch {epoch + 1}: training {losses.mean().exp():.2f}, validation {score:.2f}, "
            f"{speed:,.0f} tokens/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
