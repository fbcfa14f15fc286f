"""A tagger in training: `rnnkit.tagging.Tagger` against the same model on nn.LSTM and pytorch-crf.

Both read the same batches, distinct words once, from the same parameters; the plain side packs
sequences of different lengths, as one does with torch.nn, and has torchcrf's CRF. Forward, backward
and optimizer are in the clock, Lightning is on neither side. The two sides take turns.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnnkit.nn import LSTM
from rnnkit.nn.characters import CharacterLSTM
from rnnkit.tagging.data import TaggedSentences, TaggingData
from rnnkit.tagging.task import Tagger
from rnnkit.tagging.words import Sentences

from .progress import Progress
from .turns import AGREEMENT, agreeing, figures_of, synchronize, twin

# Those of configs/tagging/conll2003.yaml; without dropout, so that the losses can agree.
SIZES: dict[str, Any] = {
    "embedding_size": 100,
    "character_embedding_size": 25,
    "character_size": 50,
    "hidden_size": 200,
    "dropout": 0.0,
    "singleton_dropout": 0.0,
}
CHARACTERS = {"lstm": "characters by an LSTM", "cnn": "characters by a CNN", "none": "words alone"}


class PlainTagger(nn.Module):
    """The modules of a `Tagger`, with torch.nn's LSTM for rnnkit's, and torchcrf's CRF.

    Args:
        like: Whose parameters to start with.
    """

    def __init__(self, like: Tagger) -> None:
        import torchcrf  # pytorch-crf, of the extra dev

        super().__init__()
        assert isinstance(like.rnn, LSTM)
        width, hidden = like.rnn.input_size, like.rnn.hidden_size
        self.embedding = _embedding(like.embedding, padding=True)
        assert like.casing is not None
        self.casing = _embedding(like.casing, padding=False)
        self.characters: nn.Module | None = None
        if like.characters is not None:
            self.characters = nn.Module()
            self.characters.embedding = _embedding(like.characters.embedding, padding=True)
            size = like.characters.embedding.embedding_dim
            if isinstance(like.characters, CharacterLSTM):
                units = like.characters.output_size // 2
                self.characters.rnn = nn.LSTM(size, units, bidirectional=True)
            else:
                filters = like.characters.output_size
                self.characters.convolution = nn.Conv1d(size, filters, 3, padding=1)
        self.rnn = nn.LSTM(width, hidden, bidirectional=True)
        self.emissions = nn.Linear(2 * hidden, len(like.tags))
        self.crf = torchcrf.CRF(len(like.tags))
        self.load_state_dict(like.state_dict())

    def forward(self, batch: TaggedSentences) -> Tensor:
        """Mean negative log-likelihood of the sentences."""
        sentences = batch.sentences
        parts = [self.embedding(sentences.words)]
        if self.characters is not None:
            parts.append(F.embedding(sentences.spelling, self._spelled(sentences)))
        parts.append(self.casing(sentences.casing))
        packed = pack_padded_sequence(torch.cat(parts, -1), sentences.lengths, enforce_sorted=False)
        output, _ = pad_packed_sequence(self.rnn(packed)[0])
        likelihood = self.crf(
            self.emissions(output), batch.target, sentences.mask, reduction="mean"
        )
        return -likelihood  # type: ignore[no-any-return]

    def _spelled(self, sentences: Sentences) -> Tensor:
        characters: Any = self.characters
        embedded = characters.embedding(sentences.characters)
        lengths = sentences.character_lengths
        if hasattr(characters, "rnn"):
            packed = pack_padded_sequence(embedded, lengths, enforce_sorted=False)
            last: Tensor = characters.rnn(packed)[1][0]
            return last.transpose(0, 1).flatten(1)
        features = characters.convolution(embedded.permute(1, 2, 0))
        outside = torch.arange(len(embedded)) >= lengths.unsqueeze(1)
        return features.masked_fill(outside.to(features.device).unsqueeze(1), -torch.inf).amax(2)  # type: ignore[no-any-return]


def _embedding(like: nn.Embedding, padding: bool) -> nn.Embedding:
    sizes = like.num_embeddings, like.embedding_dim
    return nn.Embedding(*sizes, padding_idx=0 if padding else None)


def tagger(corpus: str, steps: int, repeats: int, backend: str | None = None) -> dict[str, Any]:
    """Sentences a second of a tagger in training, both sides in turn.

    Args:
        corpus: Name or path of a tagged corpus.
        steps: Batches of one turn.
        repeats: Turns of each side.
        backend: None: the other side is the plain tagger; else the same one, whose layers have this
            backend.

    Returns:
        Raw figures for each kind of characters, ready for JSON.

    Raises:
        ValueError: The losses of the two sides disagree, or an epoch has fewer batches.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = TaggingData(corpus)
    batches = [batch for _, batch in zip(range(steps), data.train_dataloader(), strict=False)]
    if len(batches) < steps:
        raise ValueError(f"an epoch of {corpus} has {len(batches)} steps, {steps} were asked for")
    batches = [data.transfer_batch_to_device(batch, device, 0) for batch in batches]
    count = sum(batch.target.shape[1] for batch in batches)
    against = "" if backend is None else f', against backend="{backend}"'
    progress, parts = Progress(), []
    for number, (characters, what) in enumerate(CHARACTERS.items()):
        torch.manual_seed(0)
        ours = Tagger(
            data.vocabulary_size, data.character_vocabulary_size, data.tags, data.scheme,
            characters=characters, **SIZES,  # type: ignore[arg-type]
        ).to(device)  # fmt: skip
        other = PlainTagger(ours).to(device) if backend is None else twin(ours, backend)
        sides = (ours, other)
        optimizers = [torch.optim.AdamW(side.parameters(), lr=1e-3) for side in sides]

        def loss_of(side: Tagger | PlainTagger, batch: TaggedSentences) -> Tensor:
            if isinstance(side, PlainTagger):
                return side(batch)  # type: ignore[no-any-return]
            return side.negative_log_likelihood(side(batch.sentences), batch).mean()

        losses: tuple[list[Tensor], list[Tensor]] = ([], [])
        seconds: list[tuple[float, float]] = []
        for repeat in range(1 + repeats):  # the first turn is the warm-up
            progress((number + repeat / (1 + repeats)) / len(CHARACTERS), f"a tagger, {what}")
            times = [0.0, 0.0]
            # Every other time the other side begins.
            for side in (0, 1) if repeat % 2 == 0 else (1, 0):
                begin = time.perf_counter()
                for batch in batches:
                    loss = loss_of(sides[side], batch)
                    optimizers[side].zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizers[side].step()
                    losses[side].append(loss.detach())
                synchronize(device)
                times[side] = time.perf_counter() - begin
            seconds.append((times[0], times[1]))
        parts.append(
            {
                "what": f"training, sentences/s, BiLSTM-CRF, {what}{against}",
                "steps": steps,
                "mean_loss": agreeing(*losses, AGREEMENT),
                **figures_of([(count / a, count / b) for a, b in seconds[1:]], device),
            }
        )
    progress.close()
    return {"what": f"training of a tagger on {corpus}", "corpus": corpus, "parts": parts}
