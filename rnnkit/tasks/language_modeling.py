r"""Recurrent language model, with the state carried from window to window.

    x_t = dropout(E w_t)                     h_t^l = cell(dropout(h_t^{l-1}), h_{t-1}^l)
    p(w_{t+1} | w_{\le t}) = softmax(W dropout(h_t^L) + b)

Dropout is placed as by Zaremba et al. 2014 (arXiv 1409.2329): on every layer's input and on the
last layer's output, never between h_{t-1} and h_t.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from rnnkit.data.windows import IGNORED, Window
from rnnkit.metrics.perplexity import Perplexity, bits_per_token
from rnnkit.nn import GRU, LSTM, RNN
from rnnkit.tasks.base import Task

CELLS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}

State = Tensor | tuple[Tensor, Tensor]
"""Hidden state (L, B, H), for an LSTM with the cell state (L, B, H)."""


class LanguageModel(Task):
    """Predicts the next token of a text: embedding, recurrent layers, softmax.

    Training logs `train/loss` (nats per token) and `train/ppl`, over the steps since they were
    last logged; validation and test log `ppl` and `bits_per_token` under `val/` and `test/`.

    Args:
        vocabulary_size: V. From a configuration file it comes from the data.
        cell: Kind of recurrent layer; rnn is Elman's, with tanh.
        embedding_size: Width of a token's vector.
        hidden_size: H.
        num_layers: L.
        dropout: Probability to zero an element of a layer's input or of the last output.
        tied: Use the embedding as the softmax's weight as well (Press and Wolf 2017, arXiv
            1608.05859); needs embedding_size = hidden_size.
        init_range: Draw every parameter, biases included, from U(-init_range, init_range).
        loss_reduction: mean: nats per token. sum_over_time: T times that, the sum over the steps
            of the batch mean that Zaremba et al. optimise; with plain SGD, a learning rate and
            a clipping threshold for it are T times those for mean.
        backend: Of the recurrent layers: auto, triton or torch, see `rnnkit.LSTM`.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the learning rate scheduler from the optimizer; none: constant rate.
        lr_scheduler_interval: Whether the scheduler counts epochs or optimizer steps.

    Raises:
        ValueError: A size, probability or range is out of bounds, or tied sizes differ.

    Example:
        >>> model = LanguageModel(vocabulary_size=50, hidden_size=8, embedding_size=8)
        >>> logits, state = model(torch.zeros(7, 2, dtype=torch.int64))
        >>> logits.shape
        torch.Size([7, 2, 50])
    """

    shape_arguments = (
        "vocabulary_size", "cell", "embedding_size", "hidden_size", "num_layers", "tied",
    )  # fmt: skip

    def __init__(
        self,
        vocabulary_size: int,
        cell: Literal["lstm", "gru", "rnn"] = "lstm",
        embedding_size: int = 200,
        hidden_size: int = 200,
        num_layers: int = 2,
        dropout: float = 0.0,
        tied: bool = False,
        init_range: float = 0.1,
        loss_reduction: Literal["mean", "sum_over_time"] = "mean",
        backend: Literal["auto", "triton", "torch"] = "auto",
        optimizer: OptimizerCallable = lambda parameters: SGD(parameters, lr=1.0),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_scheduler_interval)
        for name, size in (("vocabulary_size", vocabulary_size), ("num_layers", num_layers)):
            if size < 1:
                raise ValueError(f"expected {name} of 1 or more, got {size}")
        if tied and embedding_size != hidden_size:
            raise ValueError(
                "tied weights need embedding_size = hidden_size, got "
                f"{embedding_size} and {hidden_size}"
            )
        if not 0 <= dropout <= 1:
            raise ValueError(f"expected a dropout probability from 0 to 1, got {dropout}")
        if init_range <= 0:
            raise ValueError(f"expected init_range above 0, got {init_range}")
        # The two factories are no plain data, which is all that a checkpoint holds.
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"], logger=False)
        self.loss_reduction = loss_reduction
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        self.dropout = nn.Dropout(dropout)
        self.rnn = CELLS[cell](
            embedding_size,
            hidden_size,
            num_layers,
            dropout=dropout if num_layers > 1 else 0.0,  # torch's own lies between the layers
            backend=backend,
        )
        self.decoder = nn.Linear(hidden_size, vocabulary_size)
        if tied:
            self.decoder.weight = self.embedding.weight
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -init_range, init_range)
        self._training_state: State | None = None
        self._evaluation_state: State | None = None
        self.validation_perplexity = Perplexity(IGNORED)
        self.test_perplexity = Perplexity(IGNORED)

    def forward(self, input: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Scores of the token after each input token.

        Args:
            input: Token ids, int64 (T, B).
            state: What the previous window returned; None: zeros.

        Returns:
            Logits (T, B, V), and the state after the last step.
        """
        embedded = self.dropout(self.embedding(input))  # (T, B, D)
        output, state = self.rnn(embedded, state)  # (T, B, H)
        return self.decoder(self.dropout(output)), state

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
        return _apply(state, lambda s: s.transpose(0, 1))

    def step(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        """One step of decoding.

        Args:
            tokens: Token ids, int64 (B,).
            state: From `start` or the step before, (B, L, H).

        Returns:
            Log-probabilities of the next token (B, V), and the state after this one.
        """
        if state is not None:
            state = _apply(state, lambda s: s.transpose(0, 1).contiguous())
        logits, state = self(tokens.unsqueeze(0), state)
        log_probabilities = torch.log_softmax(logits.squeeze(0), dim=-1)
        return log_probabilities, _apply(state, lambda s: s.transpose(0, 1))

    def training_step(self, window: Window, batch_idx: int) -> Tensor:
        """Loss of one window, which starts from the state that the one before it ended with."""
        state = None if window.position == 0 else self._training_state
        logits, state = self(window.input, state)
        self._training_state = _detach(state)
        summed = F.cross_entropy(
            logits.flatten(0, 1), window.target.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        loss = self.loss_per_token(summed, (window.target != IGNORED).sum())
        return loss * len(window.input) if self.loss_reduction == "sum_over_time" else loss

    def on_train_start(self) -> None:
        """Bring the state of a checkpoint to this process: its device, its streams."""
        super().on_train_start()
        if self._training_state is not None:
            world_size, rank = self.trainer.world_size, self.trainer.global_rank
            self._training_state = _apply(
                self._training_state,
                lambda s: s.chunk(world_size, dim=1)[rank].to(self.device).contiguous(),
            )

    def validation_step(self, window: Window, batch_idx: int) -> None:
        """Score one window of the validation text."""
        self._evaluate(window, self.validation_perplexity)

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the validation text."""
        self._log_evaluation("val", self.validation_perplexity)

    def test_step(self, window: Window, batch_idx: int) -> None:
        """Score one window of the test text."""
        self._evaluate(window, self.test_perplexity)

    def on_test_epoch_end(self) -> None:
        """Log the scores of the test text."""
        self._log_evaluation("test", self.test_perplexity)

    def _evaluate(self, window: Window, perplexity: Perplexity) -> None:
        state = None if window.position == 0 else self._evaluation_state
        logits, self._evaluation_state = self(window.input, state)
        perplexity.update(logits, window.target)

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
                state = _apply(state, _gather)
            checkpoint["carried_state"] = _apply(state, Tensor.cpu)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the carried state.

        Raises:
            ValueError: The checkpoint is of a model with other shapes; names each difference.
        """
        super().on_load_checkpoint(checkpoint)
        self._training_state = checkpoint.get("carried_state")


def _apply(state: State, function: Any) -> State:
    if isinstance(state, Tensor):
        return function(state)  # type: ignore[no-any-return]
    return function(state[0]), function(state[1])


def _gather(state: Tensor) -> Tensor:
    """State of all streams (L, B, H) from that of each process's (L, B / W, H)."""
    parts = [torch.empty_like(state) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, state.contiguous())
    return torch.cat(parts, dim=1)


def _detach(state: State) -> State:
    return _apply(state, Tensor.detach)
