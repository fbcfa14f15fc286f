"""A tagger's encoder in training: sentences of different lengths through a bidirectional LSTM.

`rnnkit.LSTM` with lengths against nn.LSTM with packing, from the same parameters on the same
sentences; the two sides take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnkit

from .end_to_end import AGREEMENT, agreeing, figures_of, synchronize
from .progress import Progress

# Words, a word's vector, units of a direction, tags: those of a tagger for CoNLL-2003.
WORDS, VECTOR, UNITS, TAGS = 20_000, 100, 200, 9
SENTENCES, MEAN_WORDS, MOST_WORDS = 32, 14.5, 60


class Encoder(nn.Module):
    """Word vectors, a bidirectional LSTM, scores of tags.

    Args:
        layer: rnnkit's or torch.nn's LSTM, bidirectional.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, VECTOR)
        self.layer = layer
        self.scores = nn.Linear(2 * UNITS, TAGS)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        """Scores (T, B, tags) of padded words (T, B) with lengths (B,) on the CPU."""
        vectors = self.embedding(words)
        if isinstance(self.layer, nn.LSTM):
            packed = pack_padded_sequence(vectors, lengths, enforce_sorted=False)
            found, _ = pad_packed_sequence(self.layer(packed)[0], total_length=len(words))
        else:
            found = self.layer(vectors, lengths=lengths)[0]
        return self.scores(found)  # type: ignore[no-any-return]


def sentences(count: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of words (T, B) and lengths (B,), as long as newspaper sentences are: exponential."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        drawn = torch.empty(SENTENCES).exponential_(1 / MEAN_WORDS, generator=generator)
        lengths = drawn.long().clamp(1, MOST_WORDS)
        shape = (int(lengths.max()), SENTENCES)
        found.append((torch.randint(WORDS, shape, generator=generator), lengths))
    return found


def encoder(steps: int, repeats: int) -> dict[str, Any]:
    """Sentences a second of a tagger's encoder in training, both sides in turn.

    Args:
        steps: batches of one turn.
        repeats: turns of each side.

    Returns:
        Raw figures, ready for JSON.

    Raises:
        ValueError: the losses of the two sides disagree.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    theirs = Encoder(nn.LSTM(VECTOR, UNITS, bidirectional=True)).to(device)
    ours = Encoder(rnnkit.LSTM(VECTOR, UNITS, bidirectional=True)).to(device)
    ours.load_state_dict(theirs.state_dict())
    batches = [(words.to(device), lengths) for words, lengths in sentences(steps)]

    def turn(model: Encoder) -> tuple[float, list[Tensor]]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        losses = []
        begin = time.perf_counter()
        for words, lengths in batches:
            target = words % TAGS
            loss = nn.functional.cross_entropy(
                model(words, lengths).flatten(0, 1), target.flatten()
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.detach())
        synchronize(device)
        return time.perf_counter() - begin, losses

    progress = Progress()
    seconds: list[tuple[float, float]] = []
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for repeat in range(1 + repeats):  # the first turn is the warm-up
        progress(repeat / (1 + repeats), "the encoder of a tagger")
        sides: list[Callable[[], tuple[float, list[Tensor]]]] = [
            lambda: turn(ours),
            lambda: turn(theirs),
        ]
        times = [0.0, 0.0]
        # Every other time the other side begins.
        for side in (0, 1) if repeat % 2 == 0 else (1, 0):
            times[side], of_turn = sides[side]()
            found[side].extend(of_turn)
        seconds.append((times[0], times[1]))
    progress.close()
    losses = agreeing(*found, AGREEMENT)
    count = steps * SENTENCES
    return {
        "what": f"training, sentences/s, embedding and bidirectional LSTM {VECTOR} to {UNITS}",
        "steps": steps,
        "mean_loss": losses,
        **figures_of([(count / a, count / b) for a, b in seconds[1:]], device),
    }
