r"""Translation: an encoder reads a sentence, a decoder with attention writes another.

    p(y_t | y_{<t}, x) = softmax(W o_t + b)          o_t of `rnnkit.nn.encoder_decoder`

The loss is summed over the real target tokens, ends included, and divided by their number. Label
smoothing (Szegedy et al. 2016) enters the loss and never perplexity.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import Adam
from torchmetrics import MetricCollection

from rnnkit.decoding import BeamSearch, GreedySearch, Hypothesis, StepModel, Without
from rnnkit.metrics.bleu import CorpusScore, check_tokenizer
from rnnkit.metrics.perplexity import Perplexity
from rnnkit.nn.connections import ConnectionName, NormName
from rnnkit.nn.encoder_decoder import (
    AttentionName,
    Bridge,
    BridgeName,
    CellName,
    Decoder,
    DecoderState,
    Encoder,
)
from rnnkit.nn.initialisation import RecurrentInit, initialise
from rnnkit.training.penalties import Penalty
from rnnkit.training.task import Task, check_probabilities, check_sizes
from rnnkit.translation.data import BEGIN, END, PADDING, UNKNOWN, Pairs
from rnnkit.translation.scores import make_scores
from rnnkit.translation.tokenizers import LineTokenizer
from rnnkit.translation.written import best_text

_log = logging.getLogger(__name__)


class Translation(Task):
    """Recurrent encoder and decoder with attention.

    Training logs `train/loss` (nats per token, with label smoothing) and `train/ppl` (without);
    validation and test log `ppl` of the references, given the words before, and `bleu` and
    `exact_match` (per cent of the lines) of what the model writes by itself, under `val/` and
    `test/`: greedily in validation, with the beam in test. Test adds `chrf` and `bleu_tokenized`,
    on words and marks as `words.py` cuts them, or on characters where these are the tokens. What is
    compared is the text that `rnnkit translate` prints, `<unk>` included.

    Args:
        source_vocabulary_size: From a configuration file it comes from the data, as the next.
        target_vocabulary_size: V.
        cell: lstm, gru or rnn, of both sides.
        embedding_size: E, width of a token's vector on both sides, and of what the softmax reads.
        encoder_size: Units of the encoder in one direction.
        hidden_size: H of the decoder.
        encoder_layers: Of the encoder.
        encoder_connection: What goes around them: plain, residual, highway or dense, see
            `rnnkit.nn.Stack`.
        encoder_norm: Of what every one of them reads: layer, batch or none.
        decoder_layers: Of the decoder.
        recurrent_init: How every weight_hh of both sides begins: uniform, as torch's; orthogonal,
            each gate by itself; identity, with cell rnn only, and biases of zero.
        forget_bias: Of an LSTM's forget gate, the sum of torch's two biases; none: torch's. 1 keeps
            73 % of c from step to step, where torch's keep about a half.
        penalties: On the encoder's recurrent weights, a list of name and weight: identity,
            spectral_radius, spectral_norm, omega, jacobian and contraction, see
            `rnnkit.training.penalties`.
        bidirectional: Whether the encoder reads in both directions.
        bridge: How the decoder starts: tanh, last or zero, see `rnnkit.nn.encoder_decoder.Bridge`.
        attention: additive (after the recurrence that is Luong's concat), general, dot or none: the
            encoder's last state at every step.
        attention_inside: Whether the context enters the recurrence (Bahdanau), where training takes
            a step at a time; false: after it (Luong), where all steps of a target run in one call.
        input_feeding: Whether the last output enters the next step, with attention after.
        dropout: On the vectors, between layers and on what the softmax reads.
        tied: Use the target's embedding as the softmax's weight as well.
        label_smoothing: Share of the target that is spread over the vocabulary.
        teacher_forcing: Probability that a step in training reads the reference's last token, and
            not the model's own, drawn for each sentence and step.
        teacher_forcing_end: The probability at the end, reached in equal steps; null: the same.
        teacher_forcing_epochs: Epochs over which it gets there.
        beam_size: Of decoding in test and `rnnkit translate`; validation is greedy.
        length_penalty: Of the beam, see `rnnkit.decoding.BeamSearch`.
        max_length: Longest translation, in tokens.
        max_source: Tokens of a source line that are translated; what follows is left out, and told.
        tokenize: How sacrebleu cuts text for BLEU: 13a (words and marks), zh, ja-mecab, ko-mecab,
            char, intl, none (at blanks), flores101, flores200 or spBLEU-1K.
        lowercase: Whether the scores compare in lower case; the data's own `lowercase` is about
            what the model reads and writes.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the learning rate scheduler from the optimizer; none: constant rate.
        lr_scheduler_interval: Whether the scheduler counts epochs or optimizer steps.

    Raises:
        ValueError: A size, probability or range is out of bounds, or options exclude each other.

    Example:
        >>> model = Translation(30, 20, embedding_size=8, encoder_size=8, hidden_size=8)
        >>> state = model.start((torch.randint(4, 30, (5, 2)), torch.tensor([5, 3])))
        >>> model.step(torch.full((2,), BEGIN), state)[0].shape
        torch.Size([2, 20])
    """

    shape_arguments = (
        "source_vocabulary_size", "target_vocabulary_size", "cell", "embedding_size",
        "encoder_size", "hidden_size", "encoder_layers", "decoder_layers", "bidirectional",
        "bridge", "attention", "attention_inside", "input_feeding", "tied", "encoder_connection",
        "encoder_norm",
    )  # fmt: skip
    plateaus: Mapping[str, str] = {"min": "val/ppl", "max": "val/bleu"}

    def __init__(
        self,
        source_vocabulary_size: int,
        target_vocabulary_size: int,
        cell: CellName = "gru",
        embedding_size: int = 256,
        encoder_size: int = 256,
        hidden_size: int = 256,
        encoder_layers: int = 1,
        encoder_connection: ConnectionName = "plain",
        encoder_norm: NormName | None = None,
        decoder_layers: int = 1,
        recurrent_init: RecurrentInit = "uniform",
        forget_bias: float | None = None,
        penalties: list[Penalty] | None = None,
        bidirectional: bool = True,
        bridge: BridgeName = "tanh",
        attention: AttentionName = "additive",
        attention_inside: bool = True,
        input_feeding: bool = False,
        dropout: float = 0.0,
        tied: bool = False,
        label_smoothing: float = 0.0,
        teacher_forcing: float = 1.0,
        teacher_forcing_end: float | None = None,
        teacher_forcing_epochs: int = 10,
        beam_size: int = 5,
        length_penalty: float = 0.6,
        max_length: int = 100,
        max_source: int = 200,
        tokenize: str = "13a",
        lowercase: bool = True,
        optimizer: OptimizerCallable = lambda parameters: Adam(parameters, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_scheduler_interval)
        check_sizes(
            source_vocabulary_size=source_vocabulary_size,
            target_vocabulary_size=target_vocabulary_size,
            embedding_size=embedding_size,
            encoder_size=encoder_size,
            hidden_size=hidden_size,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
            teacher_forcing_epochs=teacher_forcing_epochs,
            max_source=max_source,
        )
        check_probabilities(
            dropout=dropout,
            label_smoothing=label_smoothing,
            teacher_forcing=teacher_forcing,
            teacher_forcing_end=teacher_forcing_end,
        )
        check_tokenizer(tokenize)
        # The two factories are no plain data, which is all that a checkpoint holds.
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"], logger=False)
        self.label_smoothing = label_smoothing
        self.teacher_forcing = teacher_forcing
        self.teacher_forcing_end = teacher_forcing_end
        self.teacher_forcing_epochs = teacher_forcing_epochs
        self.encoder = Encoder(
            source_vocabulary_size, embedding_size, encoder_size, encoder_layers, cell,
            bidirectional, dropout, PADDING, encoder_connection, encoder_norm,
        )  # fmt: skip
        memory = self.encoder.output_size
        self.bridge = Bridge(
            bridge, 1 + (cell == "lstm"), encoder_layers, memory, decoder_layers, hidden_size
        )
        self.decoder = Decoder(
            target_vocabulary_size, embedding_size, hidden_size, memory, decoder_layers, cell,
            attention, attention_inside, input_feeding, dropout, PADDING,
        )  # fmt: skip
        for side in (self.encoder, self.decoder):
            initialise(side, recurrent_init, forget_bias)
        self.penalise(penalties, self.encoder)
        self.softmax = nn.Linear(embedding_size, target_vocabulary_size)
        for embedding in (self.encoder.embedding, self.decoder.embedding):
            # torch's own N(0, 1) would give tied logits of a standard deviation of √E.
            nn.init.normal_(embedding.weight, std=embedding_size**-0.5)
            with torch.no_grad():
                embedding.weight[PADDING].zero_()
        if tied:
            self.softmax.weight = self.decoder.embedding.weight
        self.greedy = GreedySearch(max_length)
        self.beam = BeamSearch(beam_size, length_penalty=length_penalty, max_length=max_length)
        self.max_source = max_source
        self.tokenize = tokenize
        self.lowercase = lowercase
        self.perplexity = Perplexity(PADDING)
        self.scores = MetricCollection([])  # of `setup`
        self._told: set[str] = set()

    def setup(self, stage: str) -> None:
        """Make the scores; not before, for a tokenizer of sacrebleu may need a package.

        Raises:
            ValueError: What it needs is not there.
        """
        self._told.clear()
        target = self._target_tokenizer
        self.scores = make_scores(stage, target.level, self.tokenize, self.lowercase)
        if target.lowercase and not self.lowercase:
            self._tell(
                "case",
                "data.lowercase lets the model write lower case alone, and model.lowercase false "
                "counts each capital letter of the references as a mistake",
            )

    def start(self, source: tuple[Tensor, Tensor]) -> DecoderState:
        """State of a decoder that has read nothing yet.

        Args:
            source: Token ids, int64 (S, B), and lengths, int64 (B,).
        """
        encoded = self.encoder(*source)
        return self.decoder.start(encoded, self.bridge(encoded.last))

    def step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """One step of decoding.

        Args:
            tokens: Token ids, int64 (B,).
            state: From `start` or the step before.

        Returns:
            Log-probabilities of the next token (B, V), -inf for padding and begin, and the state
            after this one.
        """
        output, state = self.decoder.step(tokens, state)
        logits = self.softmax(output).float()
        # What only ever stands around a sentence can't be written.
        logits[:, PADDING] = logits[:, BEGIN] = -torch.inf
        return torch.log_softmax(logits, dim=-1), state

    def forward(self, pairs: Pairs, teacher_forcing: float = 1.0) -> Tensor:
        """Logits (T - 1, B, V) of the target's tokens after the first, given those before.

        Args:
            pairs: A batch.
            teacher_forcing: Probability that a step reads the reference's token.
        """
        state = self.start((pairs.source, pairs.source_lengths))
        read = pairs.target[:-1]
        if teacher_forcing >= 1:
            return self.softmax(self.decoder.forced(read, state))  # type: ignore[no-any-return]
        logits: list[Tensor] = []
        for step, tokens in enumerate(read):
            if step > 0:
                forced = torch.rand(tokens.shape, device=tokens.device) < teacher_forcing
                tokens = torch.where(forced, tokens, logits[-1].detach().argmax(-1))
            output, state = self.decoder.step(tokens, state)
            logits.append(self.softmax(output))
        return torch.stack(logits)

    def translate(
        self,
        source: tuple[Tensor, Tensor],
        search: GreedySearch | BeamSearch | None = None,
        max_source: int | None = None,
        unknown: bool = True,
    ) -> list[list[Hypothesis]]:
        """Translations of each sentence, best first; none of one without tokens.

        Args:
            source: Token ids, int64 (S, B), and lengths, int64 (B,), on the CPU, with the ends.
            search: How to decode; None: with the model's beam.
            max_source: Tokens of a sentence that are translated; None: the model's.
            unknown: Whether `<unk>` may be written.
        """
        ids, lengths = source
        most = self.max_source if max_source is None else max_source
        if (long := lengths > most + 1).any():
            ids, lengths = ids[: most + 1].clone(), lengths.clamp(max=most + 1)
            ids[most, long.to(ids.device)] = END
        found: list[list[Hypothesis]] = [[] for _ in lengths]
        rows = (lengths > 1).nonzero().squeeze(-1)
        if len(rows) < len(lengths):
            ids, lengths = ids[:, rows.to(ids.device)], lengths[rows]
        model: StepModel = self if unknown else Without(self, [UNKNOWN])
        begin = torch.full((len(rows),), BEGIN, device=ids.device)
        search = self.beam if search is None else search
        if len(rows):
            translations = search(model, (ids, lengths), begin, END)
            for row, each in zip(rows.tolist(), translations, strict=True):
                found[row] = each
        return found

    def training_step(self, pairs: Pairs, batch_idx: int) -> Tensor:
        """Loss per real target token of one batch."""
        logits = self(pairs, self._forcing()).flatten(0, 1)
        target = pairs.target[1:].flatten()
        # Once, for the loss and for the perplexity: it is the largest tensor of all.
        log_probabilities = logits.float().log_softmax(-1)
        real = target != PADDING
        gold = log_probabilities.gather(-1, target.unsqueeze(-1)).squeeze(-1)
        likelihood = -torch.where(real, gold, 0).sum()
        loss = likelihood
        if self.label_smoothing > 0:
            spread = -torch.where(real, log_probabilities.mean(-1), 0).sum()
            loss = (1 - self.label_smoothing) * likelihood + self.label_smoothing * spread
        return self.loss_per_target(loss, real.sum(), likelihood)

    def _forcing(self) -> float:
        """Probability of this epoch to read the reference."""
        if self.teacher_forcing_end is None:
            return self.teacher_forcing
        done = min(1.0, self.current_epoch / max(1, self.teacher_forcing_epochs))
        return self.teacher_forcing + done * (self.teacher_forcing_end - self.teacher_forcing)

    def validation_step(self, pairs: Pairs, batch_idx: int) -> dict[str, Any]:
        """Score one batch, and translate it greedily."""
        return self._score(pairs, self.greedy)

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the validation text."""
        self._log_scores()

    def test_step(self, pairs: Pairs, batch_idx: int) -> dict[str, Any]:
        """Score one batch, and translate it with the beam."""
        return self._score(pairs, self.beam)

    def on_test_epoch_end(self) -> None:
        """Log the scores of the test text, and say how sacrebleu counted."""
        self._log_scores()
        for name, metric in self.scores.items():
            if isinstance(metric, CorpusScore) and self.trainer.is_global_zero:
                print(f"{name}: {metric.signature}")

    @property
    def _target_tokenizer(self) -> LineTokenizer:
        return self.trainer.datamodule.target_tokenizer  # type: ignore[attr-defined,no-any-return]

    def _score(self, pairs: Pairs, search: GreedySearch | BeamSearch) -> dict[str, Any]:
        """Score a batch by its references, and what the model writes for it."""
        self.perplexity.update(self(pairs), pairs.target[1:])
        if (pairs.source_lengths > self.max_source + 1).any():
            self._tell(
                "max_source",
                f"of source lines with more than {self.max_source:,} tokens only these are "
                f"translated (--model.max_source), the first such has "
                f"{int(pairs.source_lengths.max()) - 1:,}",
            )
        found = self.translate((pairs.source, pairs.source_lengths), search)
        texts = [best_text(each, self._target_tokenizer) for each in found]
        self.scores.update(texts, pairs.references)
        return {"translations": found}

    def _log_scores(self) -> None:
        """Log all scores and begin anew; tell what a BLEU does not say."""
        prefix = self.scores.prefix
        scores = {f"{prefix}ppl": self.perplexity.compute(), **self.scores.compute()}
        for name, score in scores.items():
            # Sums over all processes: the same on every one already, as sync_dist tells Lightning.
            shown = name.endswith(("/ppl", "/bleu", "/exact_match"))
            self.log(name, score.float(), prog_bar=shown, sync_dist=True)
        bleu = self.scores["bleu"]
        if bleu.caution is not None:
            self._tell("bleu", f"{prefix}bleu: {bleu.caution} (--model.tokenize)")
        self.perplexity.reset()
        self.scores.reset()

    def _tell(self, what: str, text: str) -> None:
        """Tell something once a run, by the first process."""
        if what not in self._told and self.trainer.is_global_zero:
            _log.warning("Note: %s.", text)
        self._told.add(what)
