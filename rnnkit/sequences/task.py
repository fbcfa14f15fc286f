r"""A recurrent network on a synthetic task: what it can remember, and over how many steps.

    h_1..h_T = RNN(x_1..x_T)
    at the end         y = W h_T + b
    at every step    y_t = W h_t + b

Numbers are learned by their squared error, classes by cross-entropy, each the mean over what is
asked.
"""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam
from torchmetrics import MeanMetric

from rnnkit.nn.initialisation import RecurrentInit, initialise
from rnnkit.nn.recurrent import GRU, LSTM, RNN
from rnnkit.sequences.problem import IGNORED, Examples
from rnnkit.training.penalties import Penalty
from rnnkit.training.task import Task, check_sizes

RIGHT = 0.04
"""How near a number has to be to count as right: Hochreiter & Schmidhuber's, 1997."""

_LAYERS = {"tanh": RNN, "relu": RNN, "gru": GRU, "lstm": LSTM}


class SequenceModel(Task):
    """Recurrent layers that read a sequence, and a linear layer that answers.

    Training logs `train/loss`, without penalties. Validation and test log under `val/` and `test/`:
    `loss`; `baseline` beside it, the loss of who does not look at the sequence; and `accuracy`, the
    share of sequences of which every answer is right (a number: within 0.04).

    Args:
        input_size: D; this and the next two come from the data in a configuration file.
        output_size: Numbers or classes that are answered.
        every_step: Whether an answer is asked at every step, not after the last one alone.
        cell: tanh, relu, gru or lstm.
        hidden_size: H, units.
        num_layers: Recurrent layers.
        recurrent_init: How every weight_hh begins. uniform: torch's U(-1/sqrt(H), 1/sqrt(H));
            orthogonal, each gate by itself; identity, for tanh and relu, with biases of zero.
        forget_bias: Of an LSTM's forget gate, the sum of torch's two biases; none: torch's. 1 keeps
            73 % of c from step to step, where torch's keep about a half.
        penalties: On the recurrent weights, a list of name and weight: identity, spectral_radius,
            spectral_norm, omega, jacobian and contraction, see `rnnkit.training.penalties`.
        backend: Of the layers: auto, native, triton or torch, see `rnnkit.LSTM`.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the learning rate scheduler from the optimizer; none: constant rate.
        lr_scheduler_interval: Whether the scheduler counts epochs or optimizer steps.

    Raises:
        ValueError: A size is out of bounds, there is no such cell, or it can't begin so.

    Example:
        >>> model = SequenceModel(2, 1, False, "gru", hidden_size=8)
        >>> model(torch.zeros(20, 3, 2)).shape
        torch.Size([3, 1])
    """

    shape_arguments = (
        "input_size", "output_size", "every_step", "cell", "hidden_size", "num_layers",
    )  # fmt: skip
    logs_perplexity = False
    target_name = "answers"
    plateaus = {"min": "val/loss", "max": "val/accuracy"}  # noqa: RUF012

    def __init__(
        self,
        input_size: int,
        output_size: int,
        every_step: bool,
        cell: Literal["tanh", "relu", "gru", "lstm"] = "lstm",
        hidden_size: int = 100,
        num_layers: int = 1,
        recurrent_init: RecurrentInit = "uniform",
        forget_bias: float | None = None,
        penalties: list[Penalty] | None = None,
        backend: Literal["auto", "native", "triton", "torch"] = "auto",
        optimizer: OptimizerCallable = lambda parameters: Adam(parameters, lr=2e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_scheduler_interval)
        check_sizes(
            input_size=input_size,
            output_size=output_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
        )
        if cell not in _LAYERS:
            raise ValueError(f"expected cell {', '.join(_LAYERS)}, got {cell!r}")
        # The two factories are no plain data, which is all that a checkpoint holds.
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"], logger=False)
        self.every_step = every_step
        options = {"nonlinearity": cell} if cell in ("tanh", "relu") else {}
        self.rnn = _LAYERS[cell](input_size, hidden_size, num_layers, backend=backend, **options)
        initialise(self.rnn, recurrent_init, forget_bias)
        self.penalise(penalties, self.rnn)
        self.answer = nn.Linear(hidden_size, output_size)
        # Lightning's own mean over processes is wrong where they have different numbers of targets.
        # Validation and test have the same two, one after the other.
        self.mean_loss = MeanMetric(nan_strategy="disable")
        self.accuracy = MeanMetric(nan_strategy="disable")

    def forward(self, input: Tensor) -> Tensor:
        """Answers about sequences: (T, B, K) where they are asked at every step, else (B, K).

        Args:
            input: float32 (T, B, D).
        """
        output, _ = self.rnn(input)  # (T, B, H)
        return self.answer(output if self.every_step else output[-1])  # type: ignore[no-any-return]

    def training_step(self, batch: Examples, batch_idx: int) -> Tensor:
        """The mean loss of what is asked about a batch."""
        losses = self.errors(self(batch.input), batch.target)
        return self.loss_per_target(losses.sum(), _asked(batch.target).sum())

    def errors(self, answers: Tensor, target: Tensor) -> Tensor:
        """Squared errors of numbers, negative log-likelihoods of classes, shaped as the target.

        Args:
            answers: What `forward` gave.
            target: Of the same batch; 0 is returned where nothing is asked.
        """
        if target.is_floating_point():
            return (answers.squeeze(-1) - target).square()
        # The classes are the second dimension for torch.
        losses = F.cross_entropy(
            answers.flatten(0, -2), target.flatten(), reduction="none", ignore_index=IGNORED
        )
        return losses.view(target.shape)

    def validation_step(self, batch: Examples, batch_idx: int) -> None:
        """Score one batch."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the validation, and what they would be for nothing learned."""
        self._log_scores("val")

    def test_step(self, batch: Examples, batch_idx: int) -> None:
        """Score one batch."""
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        """Log the scores of the test, and what they would be for nothing learned."""
        self._log_scores("test")

    def _evaluate(self, batch: Examples) -> None:
        answers, asked = self(batch.input), _asked(batch.target)
        self.mean_loss.update(self.errors(answers, batch.target)[asked])
        if batch.target.is_floating_point():
            right = (answers.squeeze(-1) - batch.target).abs() < RIGHT
        else:
            right = answers.argmax(-1) == batch.target
        right = right | ~asked
        self.accuracy.update((right.all(0) if self.every_step else right).float())

    def _log_scores(self, stage: str) -> None:
        # Sums over all processes: the same on every one already, which sync_dist tells Lightning.
        for name, metric in (("loss", self.mean_loss), ("accuracy", self.accuracy)):
            value = metric.compute().float()
            self.log(f"{stage}/{name}", value, prog_bar=True, sync_dist=True)
            metric.reset()
        baselines = getattr(self.trainer.datamodule, "baselines", {})  # type: ignore[attr-defined]
        if stage in baselines:
            self.log(f"{stage}/baseline", baselines[stage], prog_bar=True, sync_dist=True)


def _asked(target: Tensor) -> Tensor:
    """Where an answer is asked for, bool, shaped as the target."""
    return torch.ones_like(target, dtype=torch.bool) if target.ndim == 1 else target != IGNORED
