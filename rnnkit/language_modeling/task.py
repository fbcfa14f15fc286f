r"""Recurrent language model, with the state carried from window to window.

    x_t = dropout(E w_t)                     h_t^l = cell(dropout(h_t^{l-1}), h_{t-1}^l)
    p(w_{t+1} | w_{\le t}) = softmax(W dropout(h_t^L) + b)

Dropout is placed as by Zaremba et al. 2014 (arXiv 1409.2329): on every layer's input and on the
last layer's output, never between h_{t-1} and h_t. What Merity et al. 2018 (arXiv 1708.02182) add,
AWD-LSTM, are options; activations h_t^L are then kept small and slow by

    loss = nats per token + alpha mean(dropout(h_t^L)^2) + beta mean((h_t^L - h_{t-1}^L)^2)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import SGD

from rnnkit.data.vocabulary import UNKNOWN
from rnnkit.language_modeling.window_rates import WindowTask
from rnnkit.language_modeling.windows import IGNORED, Window
from rnnkit.metrics.perplexity import Perplexity, bits_per_token
from rnnkit.nn import GRU, LSTM, RNN, Stack
from rnnkit.nn.connections import ConnectionName, NormName
from rnnkit.nn.dropout import DroppedEmbedding, LockedDropout
from rnnkit.nn.hierarchical_softmax import HierarchicalSoftmax
from rnnkit.nn.initialisation import RecurrentInit, initialise
from rnnkit.nn.sampled_softmax import SampledSoftmax
from rnnkit.nn.softmax import AdaptiveSoftmax, CountedOutputLayer, FullSoftmax, OutputLayer
from rnnkit.nn.truncation import State, Truncation, map_state
from rnnkit.training.penalties import Penalty

CELLS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
OUTPUTS = {
    "full": FullSoftmax,
    "adaptive": AdaptiveSoftmax,
    "sampled": SampledSoftmax,
    "hierarchical": HierarchicalSoftmax,
}


class LanguageModel(WindowTask):
    """Predicts the next token of a text: embedding, recurrent layers, softmax.

    Training logs `train/loss` (nats per token, and penalties) and `train/ppl` (without), over the
    steps since they were last logged; validation and test log `ppl` and `bits_per_token` under
    `val/` and `test/`, and under `train_eval/` where the data let a validation score the training
    text too. A test text with unknown words has `test/unknown_percent` besides, their share, and
    `test/ppl_known`, the perplexity of the other tokens.

    Args:
        vocabulary_size: V. From a configuration file it comes from the data.
        cell: Kind of recurrent layer; rnn is Elman's, with tanh.
        embedding_size: Width of a token's vector.
        hidden_size: H.
        num_layers: L.
        connection: What goes around the layers. plain: nothing; residual: what a layer reads is
            added to what it gives; highway: a gate mixes the two, of one width; dense: every layer
            reads all that is below it. See `rnnkit.nn.Stack`.
        norm: Of what every layer reads: layer, batch (over the tokens of a window, which then see a
            little of those after them while training) or none.
        dropout: Probability to zero an element of a layer's input or of the last output.
        input_dropout: The same of the first layer's input; none: as `dropout`.
        layer_dropout: The same of the other layers' inputs; none: as `dropout`.
        locked_dropout: Zero the same elements at all steps of a window.
        embedding_dropout: Probability to forget a word, wherever it stands in a window.
        weight_drop: Probability to zero an element of a recurrent weight for a window.
        activation_regularization: alpha, for small activations of the last layer.
        temporal_activation_regularization: beta, for slow ones.
        last_hidden_size: H of the last layer; none: `hidden_size`.
        output: Kind of softmax. full; adaptive: rare words in narrow clusters; sampled: trained on
            the targets and some words drawn by how often they occur, so that `train/ppl` is an
            estimate; hierarchical: decisions in a Huffman tree. Scores are exact for all of them.
        output_samples: How many words output sampled draws for each window.
        tied: Use the embedding as the softmax's weight as well (Press and Wolf 2017, arXiv
            1608.05859); needs the last layer as wide as the embedding, and output full or sampled.
        init_range: Draw every parameter, biases included, from U(-init_range, init_range).
        init_recurrent: Do so for the recurrent layers too; false: U(-1/sqrt(H), 1/sqrt(H)).
        recurrent_init: How every weight_hh begins: uniform, as the two above say;
            orthogonal, each gate by itself; identity, with cell rnn only, and biases of zero.
        forget_bias: Of an LSTM's forget gate, the sum of torch's two biases; none: as drawn. 1
            keeps 73 % of c from step to step, where 0 keeps a half.
        penalties: On the recurrent weights, a list of name and weight: identity,
            spectral_radius, spectral_norm, omega, jacobian and contraction, see
            `rnnkit.training.penalties`.
        truncation_steps: Steps between the places inside a window where its gradient may be cut;
            none: it is cut only where windows meet. With `weight_drop`, weights are then dropped
            anew at each place.
        truncation_probability: With which it is cut there. 1: truncated backpropagation as usual;
            less: what passes is scaled up and the window's gradient unbiased, see
            `rnnkit.nn.truncation`.
        loss_reduction: mean: nats per token. sum_over_time: T times that, the sum over the steps
            of the batch mean that Zaremba et al. optimise; with plain SGD, a learning rate and
            a clipping threshold for it are T times those for mean.
        backend: Of the recurrent layers: auto, native, triton or torch, see `rnnkit.LSTM`.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the learning rate scheduler from the optimizer; none: constant rate.
        lr_scheduler_interval: Whether the scheduler counts epochs or optimizer steps.

    Raises:
        ValueError: A size, probability or range is out of bounds, or tied weights do not fit.

    Example:
        >>> model = LanguageModel(vocabulary_size=50, hidden_size=8, embedding_size=8)
        >>> logits, state = model(torch.zeros(7, 2, dtype=torch.int64))
        >>> logits.shape
        torch.Size([7, 2, 50])
    """

    shape_arguments = (
        "vocabulary_size", "cell", "embedding_size", "hidden_size", "num_layers", "tied",
        "last_hidden_size", "locked_dropout", "output", "connection", "norm",
    )  # fmt: skip
    equal_batches = True

    def __init__(
        self,
        vocabulary_size: int,
        cell: Literal["lstm", "gru", "rnn"] = "lstm",
        embedding_size: int = 200,
        hidden_size: int = 200,
        num_layers: int = 2,
        connection: ConnectionName = "plain",
        norm: NormName | None = None,
        dropout: float = 0.0,
        input_dropout: float | None = None,
        layer_dropout: float | None = None,
        locked_dropout: bool = False,
        embedding_dropout: float = 0.0,
        weight_drop: float = 0.0,
        activation_regularization: float = 0.0,
        temporal_activation_regularization: float = 0.0,
        last_hidden_size: int | None = None,
        output: Literal["full", "adaptive", "sampled", "hierarchical"] = "full",
        output_samples: int = 1000,
        tied: bool = False,
        init_range: float = 0.1,
        init_recurrent: bool = True,
        recurrent_init: RecurrentInit = "uniform",
        forget_bias: float | None = None,
        penalties: list[Penalty] | None = None,
        truncation_steps: int | None = None,
        truncation_probability: float = 1.0,
        loss_reduction: Literal["mean", "sum_over_time"] = "mean",
        backend: Literal["auto", "native", "triton", "torch"] = "auto",
        optimizer: OptimizerCallable = lambda parameters: SGD(parameters, lr=1.0),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_scheduler_interval)
        last_size = hidden_size if last_hidden_size is None else last_hidden_size
        for name, size in (
            ("vocabulary_size", vocabulary_size),
            ("num_layers", num_layers),
            ("truncation_steps", truncation_steps),
        ):
            if size is not None and size < 1:
                raise ValueError(f"expected {name} of 1 or more, got {size}")
        if tied and embedding_size != last_size:
            raise ValueError(
                "tied weights need embedding_size = hidden_size, or last_hidden_size where that is "
                f"given, got {embedding_size} and {last_size}"
            )
        if tied and output not in ("full", "sampled"):
            raise ValueError(
                f"tied weights need output full or sampled, got {output}, whose weights are not "
                "one row a word"
            )
        for name, value, most in (
            ("dropout", dropout, 1),
            ("input_dropout", input_dropout, 1),
            ("layer_dropout", layer_dropout, 1),
            ("truncation_probability", truncation_probability, 1),
            ("activation_regularization", activation_regularization, math.inf),
            ("temporal_activation_regularization", temporal_activation_regularization, math.inf),
        ):
            if value is not None and not 0 <= value <= most:
                raise ValueError(f"expected {name} from 0 to {most}, got {value}")
        if init_range <= 0:
            raise ValueError(f"expected init_range above 0, got {init_range}")
        # The two factories are no plain data, which is all that a checkpoint holds.
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"], logger=False)
        self.loss_reduction = loss_reduction
        self.activation_regularization = activation_regularization
        self.temporal_activation_regularization = temporal_activation_regularization
        self.truncation_steps = truncation_steps
        self.truncation_probability = truncation_probability
        dropout_kind = LockedDropout if locked_dropout else nn.Dropout
        self.embedding = DroppedEmbedding(vocabulary_size, embedding_size, embedding_dropout)
        self.input_dropout = dropout_kind(dropout if input_dropout is None else input_dropout)
        self.dropout = dropout_kind(dropout)
        self.rnn = Stack(
            CELLS[cell],
            embedding_size,
            [*[hidden_size] * (num_layers - 1), last_size],
            connection,
            norm,
            dropout=dropout if layer_dropout is None else layer_dropout,
            locked_dropout=locked_dropout,
            weight_drop=weight_drop,
            backend=backend,
        ).simplified()
        samples = (output_samples,) if output == "sampled" else ()
        self.decoder: OutputLayer = OUTPUTS[output](last_size, vocabulary_size, *samples)
        if tied:
            self.decoder.weight = self.embedding.weight
        for name, parameter in self.named_parameters():
            if name.startswith(("rnn.norms.", "rnn.connections.")):
                continue  # gains of 1, and gates that begin shut
            if init_recurrent or not name.startswith("rnn."):
                nn.init.uniform_(parameter, -init_range, init_range)
        initialise(self.rnn, recurrent_init, forget_bias)
        self.penalise(penalties, self.rnn)
        self._training_state: State | None = None  # after the last window
        self._window_state: State | None = None  # before it
        self._evaluation_state: State | None = None
        self.validation_perplexity = Perplexity(IGNORED)
        self.train_perplexity = Perplexity(IGNORED)
        self.test_perplexity = Perplexity(IGNORED)
        self.known_perplexity = Perplexity(IGNORED)

    def forward(self, input: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Scores of the token after each input token.

        Args:
            input: Token ids, int64 (T, B).
            state: What the previous window returned; None: zeros.

        Returns:
            Scores (T, B, V), whose softmax is the distribution, and the state after the last step.
        """
        output, state = self._read(input, state)
        return self.decoder(self.dropout(output)), state

    def _read(self, input: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Output of the last layer, (T, B, H), before its dropout, and the state."""
        embedded = self.input_dropout(self.embedding(input))  # (T, B, D)
        if self.truncation_steps is None or not self.training:
            return self.rnn(embedded, state)  # type: ignore[no-any-return]
        truncation = Truncation.draw(len(input), self.truncation_steps, self.truncation_probability)
        if isinstance(self.rnn, Stack):
            return self.rnn(embedded, state, truncation=truncation)  # type: ignore[no-any-return]
        return truncation.run(self.rnn, embedded, state)

    def setup(self, stage: str) -> None:
        """Tell the output layer how often words occur; a checkpoint's counts come after that."""
        tokens = getattr(self.trainer.datamodule, "train_tokens", None)  # type: ignore[attr-defined]
        if isinstance(self.decoder, CountedOutputLayer) and tokens is not None:
            self.decoder.set_counts(tokens.bincount(minlength=self.decoder.vocabulary_size))

    def start(self, source: Tensor) -> State | None:
        """State after reading a text; None for one without tokens.

        Args:
            source: Token ids, int64 (T, B).

        Returns:
            Hidden and cell state as in `forward` but batch-first, (B, L, H): decoding chooses rows.
        """
        if not len(source):
            return None
        _, state = self.rnn(self.embedding(source))
        return map_state(state, lambda s: s.transpose(0, 1))

    def step(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        """One step of decoding.

        Args:
            tokens: Token ids, int64 (B,).
            state: From `start` or the step before, (B, L, H).

        Returns:
            Log-probabilities of the next token (B, V), and the state after this one.
        """
        if state is not None:
            state = map_state(state, lambda s: s.transpose(0, 1).contiguous())
        logits, state = self(tokens.unsqueeze(0), state)
        log_probabilities = torch.log_softmax(logits.squeeze(0), dim=-1)
        return log_probabilities, map_state(state, lambda s: s.transpose(0, 1))

    @torch.no_grad()
    def perplexity(self, windows: Iterable[Window]) -> float:
        """Perplexity of a text, without dropout.

        Args:
            windows: Of the whole text in order, on any device.
        """
        training, metric, state = self.training, Perplexity(IGNORED).to(self.device), None
        self.eval()
        for window in windows:
            window = window.to(self.device)
            logits, state = self(window.input, state)
            metric.update(logits, window.target)
        self.train(training)
        return float(metric.compute())

    def on_train_batch_start(self, batch: Window, batch_idx: int) -> None:
        """Hold the state that the window starts from: an optimizer may read it several times."""
        super().on_train_batch_start(batch, batch_idx)
        self._window_state = None if batch.position == 0 else self._training_state

    def training_step(self, window: Window, batch_idx: int) -> Tensor:
        """Loss of one window, which starts from the state that the one before it ended with."""
        output, state = self._read(window.input, self._window_state)
        self._training_state = map_state(state, Tensor.detach)
        dropped = self.dropout(output)
        summed = self.decoder.loss(dropped.flatten(0, 1), window.target.flatten(), IGNORED)
        targets = (window.target != IGNORED).sum()
        penalties = self._activation_penalties(output, dropped)
        penalised = summed + sum(penalties) * targets if penalties else summed
        divisor = targets
        if self.loss_reduction == "sum_over_time":
            divisor = targets / len(window.input)
        return self.loss_per_target(penalised, targets, summed, divisor)

    def _activation_penalties(self, output: Tensor, dropped: Tensor) -> list[Tensor]:
        """What the activations of the last layer, (T, B, H), cost a token."""
        penalties = []
        if self.activation_regularization > 0:
            penalties.append(self.activation_regularization * dropped.square().mean())
        if self.temporal_activation_regularization > 0 and len(output) > 1:
            slowness = output.diff(dim=0).square().mean()
            penalties.append(self.temporal_activation_regularization * slowness)
        return penalties

    def on_train_start(self) -> None:
        """Bring the state of a checkpoint to this process: its device, its streams."""
        super().on_train_start()
        if self._training_state is not None:
            world_size, rank = self.trainer.world_size, self.trainer.global_rank
            self._training_state = map_state(
                self._training_state,
                lambda s: s.chunk(world_size, dim=1)[rank].to(self.device).contiguous(),
            )

    def validation_step(self, window: Window, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score one window of a validation text."""
        self._evaluate(window, self._perplexities[self._validation_stages[dataloader_idx]])

    def on_validation_epoch_end(self) -> None:
        """Log the scores of each validation text."""
        for stage in self._validation_stages:
            self._log_evaluation(stage, self._perplexities[stage])

    def test_step(self, window: Window, batch_idx: int) -> None:
        """Score one window of the test text."""
        logits = self._evaluate(window, self.test_perplexity)
        if self._unknown_share:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            unknown = window.target == data.vocabulary.index(UNKNOWN)
            self.known_perplexity.update(logits, window.target.masked_fill(unknown, IGNORED))

    def on_test_epoch_end(self) -> None:
        """Log the scores of the test text."""
        self._log_evaluation("test", self.test_perplexity)
        if share := self._unknown_share:
            self.log("test/unknown_percent", 100 * share, sync_dist=True)
            self.log("test/ppl_known", self.known_perplexity.compute().float(), sync_dist=True)
            self.known_perplexity.reset()

    @property
    def _unknown_share(self) -> float:
        """Of the test tokens, where the data tell it."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        shares: dict[str, float] = getattr(data, "unknown_shares", {})
        return shares.get("test", 0.0)

    @property
    def _perplexities(self) -> dict[str, Perplexity]:
        return {
            "val": self.validation_perplexity,
            "test": self.test_perplexity,
            "train_eval": self.train_perplexity,
        }

    @property
    def _validation_stages(self) -> Sequence[str]:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return getattr(data, "validation_stages", ("val",))

    def _evaluate(self, window: Window, perplexity: Perplexity) -> Tensor:
        # Texts are scored one after the other, and a text begins at position 0.
        state = None if window.position == 0 else self._evaluation_state
        logits: Tensor
        logits, self._evaluation_state = self(window.input, state)
        perplexity.update(logits, window.target)
        return logits

    def _log_evaluation(self, stage: str, perplexity: Perplexity) -> None:
        value = perplexity.compute()  # sums over all processes
        perplexity.reset()
        # It is the same on every process already; sync_dist says so to Lightning.
        self.log(f"{stage}/ppl", value.float(), prog_bar=True, sync_dist=True)
        self.log(f"{stage}/bits_per_token", bits_per_token(value).float(), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the carried state of all streams, so that training can go on within an epoch."""
        state = self._training_state
        if state is not None:
            if self.trainer.world_size > 1:
                state = map_state(state, _gather)
            checkpoint["carried_state"] = map_state(state, Tensor.cpu)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the carried state.

        Raises:
            ValueError: The checkpoint is of a model with other shapes; names each difference.
        """
        super().on_load_checkpoint(checkpoint)
        self._training_state = checkpoint.get("carried_state")


def _gather(state: Tensor) -> Tensor:
    """State of all streams (L, B, H) from that of each process's (L, B / W, H)."""
    parts = [torch.empty_like(state) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, state.contiguous())
    return torch.cat(parts, dim=1)
