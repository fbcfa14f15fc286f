r"""Tagging: a bidirectional recurrent layer reads a sentence, every word gets a tag.

    x_t = dropout([E w_t; C(characters of w_t); G casing_t])        h = BiRNN(x)
    e_t = W dropout(directions(h_t)) + b

    CRF       p(y | x) ∝ exp(s_{y_1} + Σ_t e_{t,y_t} + Σ_t A_{y_{t-1},y_t} + z_{y_T})
    softmax   p(y_t | x) ∝ exp(e_{t,y_t})

Huang et al. 2015 (arXiv 1508.01991); Lample et al. 2016 (arXiv 1603.01360) with characters by an
LSTM, Ma and Hovy 2016 (arXiv 1603.01354) by a CNN. The loss is summed over sentences for the CRF,
over words for the softmax, and divided by their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torchmetrics import MeanMetric

from rnnkit.data.schemes import Entity, Scheme, constraints
from rnnkit.metrics.entities import EntityF1
from rnnkit.metrics.labels import LabelScores
from rnnkit.nn import Stack
from rnnkit.nn.characters import CharacterCNN, CharacterLSTM, CharacterName
from rnnkit.nn.connections import ConnectionName, NormName
from rnnkit.nn.crf import CRF, not_finite
from rnnkit.nn.directions import Directions, DirectionsName
from rnnkit.nn.dropout import LockedDropout
from rnnkit.nn.encoder_decoder import CELLS, CellName
from rnnkit.nn.initialisation import RecurrentInit, initialise
from rnnkit.screen.pictures import draw_confusion
from rnnkit.tagging.data import UNSEEN, TaggedSentences
from rnnkit.tagging.watched import BEST, check_watched
from rnnkit.tagging.words import CASINGS, PADDING, UNKNOWN_ID, Sentences, padded
from rnnkit.training.penalties import Penalty
from rnnkit.training.task import Task, check_probabilities, check_sizes

_MOST_DRAWN = 60  # classes: the Penn Treebank's 45 can be read, in a picture of 3,500 pixels


class Tagger(Task):
    """Bidirectional recurrent layers over words and their characters, with a CRF or a softmax.

    Training logs `train/loss` (nats per sentence with the CRF, per word with the softmax);
    validation and test log `loss`, and `f1`, `precision` and `recall` of whole entities, under
    `val/` and `test/`. Test prints conlleval's table and draws which types are taken for which.
    Labels are scored by `accuracy` and `f1_macro` instead, and the table is one of labels.

    Args:
        vocabulary_size: V; this and the next three come from the data in a configuration file.
        character_vocabulary_size: Number of characters' ids.
        tags: Tags by their ids.
        scheme: Their scheme: IOB1, BIO, BILOU or BIOES; labels for tags that write no entities.
        embedding_size: Width of a word's vector; with vectors from a file, theirs.
        freeze_embedding: Leave the words' vectors as they are at the start.
        characters: How words are read by their characters: lstm, cnn or none.
        character_embedding_size: Width of a character's vector.
        character_size: Units of the LSTM in one direction, or filters of the CNN.
        casing_size: Width of the vector for a word's casing; 0: none.
        cell: lstm, gru or rnn, over the words.
        hidden_size: H, units in one direction.
        num_layers: Recurrent layers over the words.
        connection: What goes around them. plain: nothing; residual: what a layer reads is added to
            what it gives; highway: a gate mixes the two, of one width, 2H; dense: every layer reads
            all that is below it. See `rnnkit.nn.Stack`.
        norm: Of what every one of them reads: layer, batch (over the words of a batch) or none.
        recurrent_init: How every weight_hh over the words begins: uniform, as torch's; orthogonal,
            each gate by itself; identity, with cell rnn only, and biases of zero.
        forget_bias: Of an LSTM's forget gate there, the sum of torch's two biases; none: torch's. 1
            keeps 73 % of c from step to step, where torch's keep about a half.
        penalties: On those weights, a list of name and weight: identity, spectral_radius,
            spectral_norm, omega, jacobian and contraction, see `rnnkit.training.penalties`.
        directions: How the two directions f and b become one: concat, sum, product, learned (a
            weight a unit, u ⊙ f + v ⊙ b) or learned_matrix (U f + V b).
        output: crf or softmax.
        constrained: Never let the CRF decode what the scheme forbids.
        dropout: On what the layers over words read, between them and on what they write.
        locked_dropout: Whether one mask holds for all words of a sentence.
        character_dropout: On the characters' vectors.
        word_dropout: Probability to read a word as unknown while training.
        singleton_dropout: The same for words that occur once in the training text.
        backend: Of the layers over words: auto, native, triton or torch, see `rnnkit.LSTM`.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the learning rate scheduler from the optimizer; none: constant rate.
        lr_scheduler_interval: Whether the scheduler counts epochs or optimizer steps.

    Raises:
        ValueError: A size or probability is out of bounds, or there is no such option.

    Example:
        >>> model = Tagger(9, 5, ["O", "U-PER"], "BILOU", hidden_size=8)
        >>> one = torch.ones(1, 1, dtype=torch.int64)
        >>> model(Sentences(one, one, one - 1, one, one[0], one[0])).shape
        torch.Size([1, 1, 2])
    """

    shape_arguments = (
        "vocabulary_size", "character_vocabulary_size", "tags", "scheme", "embedding_size",
        "characters", "character_embedding_size", "character_size", "casing_size", "cell",
        "hidden_size", "num_layers", "directions", "output", "connection", "norm",
    )  # fmt: skip
    logs_perplexity = False

    def __init__(
        self,
        vocabulary_size: int,
        character_vocabulary_size: int,
        tags: list[str],
        scheme: Scheme = "BILOU",
        embedding_size: int = 100,
        freeze_embedding: bool = False,
        characters: CharacterName = "lstm",
        character_embedding_size: int = 25,
        character_size: int = 25,
        casing_size: int = 8,
        cell: CellName = "lstm",
        hidden_size: int = 100,
        num_layers: int = 1,
        connection: ConnectionName = "plain",
        norm: NormName | None = None,
        recurrent_init: RecurrentInit = "uniform",
        forget_bias: float | None = None,
        penalties: list[Penalty] | None = None,
        directions: DirectionsName = "concat",
        output: Literal["crf", "softmax"] = "crf",
        constrained: bool = True,
        dropout: float = 0.5,
        locked_dropout: bool = False,
        character_dropout: float = 0.0,
        word_dropout: float = 0.0,
        singleton_dropout: float = 0.5,
        backend: Literal["auto", "native", "triton", "torch"] = "auto",
        optimizer: OptimizerCallable = lambda parameters: AdamW(parameters, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_scheduler_interval)
        check_sizes(
            vocabulary_size=vocabulary_size,
            character_vocabulary_size=character_vocabulary_size,
            **{"the number of tags": len(tags)},
            embedding_size=embedding_size,
            character_embedding_size=character_embedding_size,
            character_size=character_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
        )
        if casing_size < 0:
            raise ValueError(f"expected casing_size of 0 or more, got {casing_size}")
        check_probabilities(
            dropout=dropout,
            character_dropout=character_dropout,
            word_dropout=word_dropout,
            singleton_dropout=singleton_dropout,
        )
        if characters not in ("lstm", "cnn", "none"):
            raise ValueError(f"expected characters lstm, cnn or none, got {characters!r}")
        if output not in ("crf", "softmax"):
            raise ValueError(f"expected output crf or softmax, got {output!r}")
        # The two factories are no plain data, which is all that a checkpoint holds.
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"], logger=False)
        self.tags = list(tags)
        self._ids = {tag: index for index, tag in enumerate(self.tags)}
        self.scheme: Scheme = scheme
        self.word_dropout = word_dropout
        self.singleton_dropout = singleton_dropout
        self.embedding = nn.Embedding(vocabulary_size, embedding_size, padding_idx=PADDING)
        self.embedding.weight.requires_grad_(not freeze_embedding)
        width = embedding_size
        self.characters: CharacterLSTM | CharacterCNN | None = None
        if characters != "none":
            kind = CharacterLSTM if characters == "lstm" else CharacterCNN
            self.characters = kind(
                character_vocabulary_size,
                character_embedding_size,
                character_size,
                dropout=character_dropout,
            )
            width += self.characters.output_size
        self.casing = nn.Embedding(len(CASINGS), casing_size) if casing_size else None
        width += casing_size
        self.dropout = LockedDropout(dropout) if locked_dropout else nn.Dropout(dropout)
        self.rnn = Stack(
            CELLS[cell],
            width,
            [hidden_size] * num_layers,
            connection,
            norm,
            bidirectional=True,
            dropout=dropout,
            backend=backend,
        ).simplified()
        initialise(self.rnn, recurrent_init, forget_bias)
        self.penalise(penalties, self.rnn)
        self.directions = Directions(directions, hidden_size)
        self.emissions = nn.Linear(self.directions.output_size, len(tags))
        self.crf: CRF | None = None
        if output == "crf":
            free = scheme == "labels" or not constrained
            allowed = None if free else constraints(tags, scheme)
            self.crf = CRF(len(tags), constraints=allowed)
        for embedding in self.modules():
            if isinstance(embedding, nn.Embedding):
                # Ma and Hovy's; torch's own N(0, 1) would drown what is learned from few words.
                bound = (3 / embedding.embedding_dim) ** 0.5
                nn.init.uniform_(embedding.weight, -bound, bound)
                if embedding.padding_idx is not None:
                    with torch.no_grad():
                        embedding.weight[embedding.padding_idx].zero_()
        labels = scheme == "labels"
        self.plateaus = {"min": "val/loss", "max": BEST[labels]}
        self.validation_scores: EntityF1 | LabelScores
        self.test_scores: EntityF1 | LabelScores
        self.validation_scores = LabelScores() if labels else EntityF1(scheme)
        self.test_scores = LabelScores() if labels else EntityF1(scheme)
        # Lightning's own mean over processes is wrong where they have different numbers of targets.
        self.validation_loss = MeanMetric(nan_strategy="disable")
        self.test_loss = MeanMetric(nan_strategy="disable")

    def setup(self, stage: str) -> None:
        """Begin with the vectors of the data, where they have some.

        Raises:
            ValueError: They have another width than `embedding_size`, or there are none and the
                embedding is frozen.
        """
        vectors = getattr(self.trainer.datamodule, "vectors", None)  # type: ignore[attr-defined]
        if stage != "fit":
            return
        if vectors is None:
            if not self.embedding.weight.requires_grad:
                raise ValueError(
                    "freeze_embedding would keep random vectors: name a file with data.vectors"
                )
            return
        ids, rows = vectors
        if rows.shape[1] != self.embedding.embedding_dim:
            raise ValueError(
                f"the vectors have {rows.shape[1]} elements, embedding_size is "
                f"{self.embedding.embedding_dim}: make it {rows.shape[1]}"
            )
        with torch.no_grad():
            self.embedding.weight[ids.to(self.device)] = rows.to(self.embedding.weight)

    def on_fit_start(self) -> None:
        """Refuse to watch a score that is never logged, before an epoch is spent."""
        check_watched(self.trainer, self.scheme)

    def forward(self, sentences: Sentences) -> Tensor:
        """Scores of the tags, (T, B, K); meaningless on padding.

        Args:
            sentences: A batch.
        """
        parts = [self.embedding(sentences.words)]
        if self.characters is not None:
            spelled = self.characters(sentences.characters, sentences.character_lengths)
            parts.append(F.embedding(sentences.spelling, spelled))
        if self.casing is not None:
            parts.append(self.casing(sentences.casing))
        read = self.dropout(torch.cat(parts, -1))  # (T, B, D)
        output, _ = self.rnn(read, lengths=sentences.lengths)  # (T, B, 2H)
        return self.emissions(self.dropout(self.directions(output)))  # type: ignore[no-any-return]

    def decode(self, emissions: Tensor, sentences: Sentences) -> list[list[str]]:
        """The best tags of each sentence.

        Args:
            emissions: What `forward` gave, (T, B, K).
            sentences: For the same batch.

        Raises:
            FloatingPointError: The best tags have a score that is NaN or infinite.
        """
        if self.crf is not None:
            paths = self.crf.decode(emissions, sentences.mask)
        else:
            scores, best = emissions.max(-1)  # NaN is above all
            lengths = sentences.lengths.tolist()
            found = best.masked_fill(~scores.isfinite(), -1).T.tolist()
            paths = [path[:length] for path, length in zip(found, lengths, strict=True)]
            if broken := [i for i, path in enumerate(paths) if -1 in path]:
                raise FloatingPointError(not_finite(broken[0]))
        return [[self.tags[tag] for tag in path] for path in paths]

    def confidences(
        self,
        emissions: Tensor,
        sentences: Sentences,
        tags: Sequence[Sequence[str]],
        found: Sequence[Sequence[Entity]],
    ) -> list[list[float]]:
        """How probable it is that the words of an entity carry its tags, whatever the others do.

        With the CRF that is the partition function with these tags held, divided by the whole one
        (Culotta and McCallum 2004); both under the constraints.

        Args:
            emissions: What `forward` gave, (T, B, K).
            sentences: For the same batch.
            tags: Of each sentence.
            found: Entities in these tags.

        Returns:
            A probability for each entity.
        """
        ids = [[self._ids[tag] for tag in each] for each in tags]
        if self.crf is None:
            written = padded(ids).to(emissions.device).unsqueeze(2)
            scores = emissions.log_softmax(-1).gather(2, written).squeeze(2).T.tolist()
            return [
                [min(1.0, math.exp(sum(row[entity.start : entity.end]))) for entity in each]
                for row, each in zip(scores, found, strict=True)
            ]
        places = [[(entity.start, entity.end) for entity in each] for each in found]
        return self.crf.stretch_probabilities(emissions, ids, places, sentences.mask)

    def negative_log_likelihood(self, emissions: Tensor, batch: TaggedSentences) -> Tensor:
        """Of the references, in nats: of every sentence with the CRF, else of every word.

        Args:
            emissions: What `forward` gave for the batch, (T, B, K).
            batch: With its targets.

        Returns:
            (B,) for the CRF, (words,) for the softmax; 0 where a tag is none of the model's.
        """
        if self.crf is not None:
            target, mask = batch.target.clamp(min=0), batch.sentences.mask
            likelihood: Tensor = self.crf(emissions, target, mask, reduction="none")
            return -likelihood.where(self._have_ids(batch), 0.0)
        words = self._words(batch).to(emissions.device, non_blocking=True)
        scores, target = emissions.flatten(0, 1)[words], batch.target.flatten()[words]
        return F.cross_entropy(scores, target, reduction="none", ignore_index=UNSEEN)

    def _words(self, batch: TaggedSentences) -> Tensor:
        """Where in (T, B) words stand, int64 (words,)."""
        # On the CPU, where the lengths are: how many words there are must not wait for the device.
        inside = torch.arange(len(batch.target)).unsqueeze(1) < batch.sentences.lengths
        return inside.flatten().nonzero().squeeze(1)

    def _have_ids(self, batch: TaggedSentences) -> Tensor:
        """Whose negative log-likelihood there is, bool: (B,) for the CRF, (words,) else."""
        known = batch.target != UNSEEN
        if self.crf is not None:
            return known.all(0)
        return known.flatten()[self._words(batch).to(known.device, non_blocking=True)]

    def training_step(self, batch: TaggedSentences, batch_idx: int) -> Tensor:
        """Loss of one batch, some of whose words are read as unknown."""
        sentences = batch.sentences
        if self.word_dropout > 0 or self.singleton_dropout > 0:
            probability = torch.where(
                batch.rare, max(self.word_dropout, self.singleton_dropout), self.word_dropout
            )
            unknown = (torch.rand_like(probability) < probability) & sentences.mask
            sentences = sentences._replace(words=sentences.words.masked_fill(unknown, UNKNOWN_ID))
        losses = self.negative_log_likelihood(self(sentences), batch)
        return self.loss_per_target(
            losses.sum(), torch.full((), losses.numel(), device=self.device)
        )

    def validation_step(self, batch: TaggedSentences, batch_idx: int) -> None:
        """Score one batch."""
        self._evaluate(batch, self.validation_loss, self.validation_scores)

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the validation sentences."""
        self._log_scores("val", self.validation_loss, self.validation_scores)
        self.validation_scores.reset()

    def test_step(self, batch: TaggedSentences, batch_idx: int) -> None:
        """Score one batch."""
        self._evaluate(batch, self.test_loss, self.test_scores)

    def on_test_epoch_end(self) -> None:
        """Log the scores of the test sentences, print their table, draw the confusion."""
        self._log_scores("test", self.test_loss, self.test_scores)
        table, (classes, counts) = self.test_scores.table(), self.test_scores.confusion()
        # Without a logger log_dir is the working folder, where nobody expects a picture.
        folder = self.trainer.log_dir if self.trainer.loggers else None  # all processes have to ask
        if self.trainer.is_global_zero:
            print(table)
            what = "labels" if self.scheme == "labels" else "types"
            if folder is not None and len(classes) > _MOST_DRAWN:
                print(f"no picture of {len(classes)} {what}: nobody could read over {_MOST_DRAWN}")
            elif folder is not None:
                path = Path(folder) / "confusion.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                draw_confusion(classes, counts, path, none_last=self.scheme != "labels")
                print(f"which {what} are taken for which: {path}")
        self.test_scores.reset()

    def _evaluate(
        self, batch: TaggedSentences, loss: MeanMetric, scores: EntityF1 | LabelScores
    ) -> None:
        emissions = self(batch.sentences)
        scores.update(self.decode(emissions, batch.sentences), batch.references)
        # Chosen, not weighed: MeanMetric leaves weights out where it does not look for NaN.
        loss.update(self.negative_log_likelihood(emissions, batch)[self._have_ids(batch)])

    def _log_scores(self, stage: str, loss: MeanMetric, scores: EntityF1 | LabelScores) -> None:
        # Sums over all processes: the same on every one already, which sync_dist tells Lightning.
        self.log(f"{stage}/loss", loss.compute(), sync_dist=True)
        loss.reset()
        for name, value in scores.compute().items():
            if name in ("precision", "recall", "accuracy") or name.startswith("f1"):
                shown = name in ("f1", "accuracy")
                self.log(f"{stage}/{name}", value.float(), prog_bar=shown, sync_dist=True)
