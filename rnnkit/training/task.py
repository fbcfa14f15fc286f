"""What the tasks share: optimizers from factories, a loss over real targets, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from typing_extensions import Self  # torch brings it; typing has it from Python 3.11

from rnnkit.training.accumulation import Accumulation
from rnnkit.training.callbacks.divergence import remedy, stop_if_not_finite
from rnnkit.training.callbacks.percentile_clipping import percentile_clipping
from rnnkit.training.class_names import name_of, note_other_name
from rnnkit.training.learning_rate import learning_rate, set_learning_rate, watched_by
from rnnkit.training.not_finite import weight_not_finite
from rnnkit.training.penalties import EndOfWatch, Penalties, Penalty

_NORMS_TOLD = 5  # how a norm grows shows in a few steps


class Task(LightningModule):
    """A task whose loss is a sum over targets divided by their number.

    Beside the loss, training logs `train/grad_norm` and `train/seconds` since it began.

    Args:
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the learning rate scheduler from the optimizer; none: constant rate.
        lr_scheduler_interval: Whether the scheduler counts epochs or optimizer steps.

    Raises:
        ValueError: `optimizer` makes none.
    """

    shape_arguments: ClassVar[tuple[str, ...]] = ()
    """What decides the shapes of the parameters: a checkpoint has to agree in all of it."""

    logs_perplexity: ClassVar[bool] = True
    """Whether `train/ppl`, the exponential of the loss, means anything."""

    plateaus: Mapping[str, str] = {"min": "val/ppl"}
    """The score that torch's ReduceLROnPlateau watches in each of its modes."""

    target_name: ClassVar[str] = "tokens"
    """What the progress bar calls targets."""

    equal_batches: ClassVar[bool] = False
    """Whether every process has as many targets in a batch as the others."""

    def __init__(
        self,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        lr_scheduler_interval: str,
    ) -> None:
        super().__init__()
        if not callable(optimizer):  # a configuration may hold null
            raise ValueError(f"expected the class of an optimizer, got {optimizer!r}")
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self._lr_scheduler_interval = lr_scheduler_interval
        self._losses: list[tuple[int, Tensor, Tensor, Tensor]] = []  # and their steps
        self._evaluated = False  # whether this batch has had its loss
        self._accumulation = Accumulation(self._mean_over_processes)
        self._norms: list[tuple[int, Tensor]] = []  # steps, and their gradients' norms
        self._started = 0.0
        self._penalties: Penalties | None = None

    def penalise(self, penalties: list[Penalty] | None, module: nn.Module) -> None:
        """Add penalties to the training loss of every batch, logged as `train/penalty_<name>`.

        They are no part of `train/loss`, perplexities or scores. A penalty counts as much beside
        the loss per target as its weight says, whatever number of batches a step accumulates.

        Args:
            penalties: As a configuration has them; None or empty: none.
            module: Holds the recurrent layers that they are on.

        Raises:
            ValueError: See `Penalties`.
        """
        self._penalties = Penalties(penalties, module) if penalties else None

    def configure_callbacks(self) -> list[Callback]:
        """What penalties need."""
        return [] if self._penalties is None else [EndOfWatch()]

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the hook that runs some forty times a step, each of them a search for
        # parameters and modules in nn.Module's own, which is slow.
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Begin with a batch, and with a step where no other batch waits for its own."""
        self._evaluated = False
        if self._penalties is not None:
            self._penalties.begin()
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._accumulation.begin()

    def loss_per_target(
        self,
        summed: Tensor,
        targets: Tensor,
        likelihood: Tensor | None = None,
        divisor: Tensor | None = None,
    ) -> Tensor:
        """The loss of a training batch, noted for `train/loss` and `train/ppl`.

        Args:
            summed: Over the real targets, scalar.
            targets: Their number, a scalar tensor: of tokens, or of sentences.
            likelihood: Summed negative log-likelihood, for the perplexity; None: `summed` is that.
            divisor: What the sum is divided by, a scalar tensor; None: `targets`.

        Raises:
            ValueError: The optimizer asks for the loss of accumulated batches again.
        """
        batches = self.trainer.accumulate_grad_batches
        if not self._evaluated:
            likelihood = summed if likelihood is None else likelihood
            noted = summed.detach(), likelihood.detach(), targets
            self._losses.append((self.global_step, *noted))
        elif batches > 1:
            raise ValueError(
                f"the optimizer evaluates the loss more than once a step, which "
                f"trainer.accumulate_grad_batches {batches} cannot repeat: make it 1, and the "
                "batches of the data larger instead"
            )
        divisor = targets if divisor is None else divisor
        if self._penalties is not None:
            summed = summed + self._penalties(summed / targets.clamp(min=1)) * targets
        if not self._evaluated:
            self._log_training()
        self._evaluated = True
        if batches == 1:
            return summed / self._mean_over_processes(divisor).to(summed.dtype)
        # The Trainer divides by the number of batches.
        return summed * batches / self._accumulation.add(divisor).to(summed.dtype)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Differentiate, and put the sum right after the last of accumulated batches."""
        super().backward(loss, *args, **kwargs)
        if self._ends_step():
            self._accumulation.finish(self.parameters())

    def _ends_step(self) -> bool:
        """Whether this batch is the last one of an optimizer step."""
        ends = (self.trainer.fit_loop.batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        return ends or self.trainer.is_last_batch

    def _mean_over_processes(self, divisor: Tensor) -> Tensor:
        """What each process divides by, for their gradients are averaged."""
        if self.trainer.world_size == 1 or self.equal_batches:
            return divisor
        # No integer, for the mean may be none; a copy, for the sum is made in place; not by
        # Lightning, which adds a barrier.
        divisor = divisor.to(torch.float64, copy=True)
        torch.distributed.all_reduce(divisor)
        return divisor / self.trainer.world_size

    def _log_training(self) -> None:
        """Log the steps since the last time, and stop where one of them has no finite loss.

        Between the steps that are logged a loss stays on its device, so that the host need not
        wait for it.
        """
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        due = every > 0 and (self.global_step + 1) % every == 0 and self._ends_step()
        if not (due or self.trainer.is_last_batch):
            return
        steps, *noted = zip(*self._losses, strict=True)
        summed, likelihood, targets = (torch.stack(part).double() for part in noted)
        totals = torch.stack([summed.sum(), likelihood.sum(), targets.sum()])
        if self.trainer.world_size > 1:
            totals = self.trainer.strategy.reduce(totals, reduce_op="sum")
        loss = totals[0] / totals[2]
        if not loss.isfinite():
            if self.trainer.world_size > 1:  # one of which has the culprit
                summed = self.trainer.strategy.reduce(summed, reduce_op="sum")
            step = steps[int(summed.isfinite().int().argmin())]
            raise FloatingPointError(
                f"the loss became {float(loss)} at step {step} of epoch {self.current_epoch}: "
                f"{remedy(self.trainer, step)}{self.last_norms(step)}"
            )
        if due:
            self.log("train/seconds", time.perf_counter() - self._started)
            self.log("train/loss", loss.float(), prog_bar=not self.logs_perplexity)
            if self.logs_perplexity:
                self.log("train/ppl", (totals[1] / totals[2]).exp().float(), prog_bar=True)
            for name, value in (self._penalties.values if self._penalties else {}).items():
                self.log(f"train/penalty_{name}", value)
        if due or every == 0:
            self._losses.clear()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient as the Trainer is told to; log its norm before as `train/grad_norm`.

        The norm (2-norm of all gradients together) is a by-product of clipping by norm, here or by
        PercentileClipping. Where there is none, it is taken at the steps that are logged.

        Args:
            optimizer: Whose parameters' gradients are clipped.
            gradient_clip_val: The Trainer's; None or 0: nothing is clipped.
            gradient_clip_algorithm: The Trainer's, norm or value; None: norm.
        """
        plugin = self.trainer.precision_plugin
        # A precision with a clipping of its own is left to it.
        names = ("clip_gradients", "clip_grad_by_norm")
        plain = all(getattr(type(plugin), each) is getattr(Precision, each) for each in names)
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        due = every > 0 and (self.global_step + 1) % every == 0
        norm = None
        by_norm = gradient_clip_algorithm in (None, "norm")
        # FSDP, where each process has a part of every gradient and one part's norm says nothing.
        sharded = getattr(self.trainer.strategy.model, "clip_grad_norm_", None)
        if (percentile := percentile_clipping(self.trainer)) is not None:
            norm = percentile.norm  # of the gradient that it has clipped by now
        elif sharded is not None:
            limit = gradient_clip_val if by_norm else None
            if limit or due:
                norm = sharded(limit or math.inf)
            if not by_norm:
                self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val and plain and by_norm:
            norm = clip_grad_norm_(plugin.main_params(optimizer), gradient_clip_val)
        else:
            if due:
                gradients = (parameter.grad for parameter in plugin.main_params(optimizer))
                norm = get_total_norm([each for each in gradients if each is not None])
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        if norm is not None:
            # Some before the steps whose losses nobody has looked at yet.
            del self._norms[: -(len(self._losses) + _NORMS_TOLD)]
            self._norms.append((self.global_step, norm.detach()))
            if due:
                self.log("train/grad_norm", norm.float())

    def last_norms(self, step: int) -> str:
        """The gradient's norms before a step, in words; empty where none is known."""
        known = [(each, float(norm)) for each, norm in self._norms if each < step]
        finite = [(each, norm) for each, norm in known if math.isfinite(norm)][-_NORMS_TOLD:]
        told = ", ".join(f"{norm:.3g} at step {each}" for each, norm in finite)
        return f"; the gradient's last finite norms were {told}" if told else ""

    def on_train_start(self) -> None:
        """Forget what another run has noted, and refuse what would weigh the loss wrongly.

        Raises:
            ValueError: A strategy accumulates gradients by itself, or shares out weights with
                penalties on them.
        """
        strategy, batches = self.trainer.strategy, self.trainer.accumulate_grad_batches
        if batches > 1 and strategy.handles_gradient_accumulation:
            raise ValueError(
                f"trainer.accumulate_grad_batches {batches} with {type(strategy).__name__} would "
                "weigh batches and not what is in them: make the batches of the data larger instead"
            )
        if self._penalties is not None and isinstance(
            strategy, (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)
        ):
            raise ValueError(
                f"penalties need whole recurrent weights, of which {type(strategy).__name__} gives "
                "every process a part: use trainer.strategy ddp"
            )
        self._losses.clear()
        self._accumulation.begin()
        self._norms.clear()
        self._started = time.perf_counter()

    def on_validation_start(self) -> None:
        """Refuse to score weights that are not finite: training says more of it than decoding."""
        if self._penalties is not None:
            self._penalties.end()
        if self.trainer.state.fn == "fit":
            stop_if_not_finite(self.trainer, self)
        else:
            self._check_weights()

    def on_test_start(self) -> None:
        """Refuse to score weights that are not finite."""
        self._check_weights()

    def _check_weights(self) -> None:
        # Their scores may well be numbers: a gate that reads infinity is 0 or 1.
        if name := weight_not_finite(self):
            raise FloatingPointError(
                f"{name} is NaN or infinite somewhere, and scores would mean nothing: name another "
                "checkpoint with --ckpt_path"
            )

    def configure_optimizers(self) -> Any:
        """Optimizer and scheduler from their factories."""
        optimizer = self._optimizer(self.parameters())
        if self._lr_scheduler is None:
            return optimizer
        scheduler = self._lr_scheduler(optimizer)
        settings: dict[str, Any] = {"scheduler": scheduler, "interval": self._lr_scheduler_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            settings["monitor"] = watched_by(scheduler, self.plateaus)
        return {"optimizer": optimizer, "lr_scheduler": settings}

    @property
    def learning_rate(self) -> float | None:
        """That of the run, by the name under which LearningRateFinder reads and sets it."""
        return learning_rate(self.trainer) if self._trainer is not None else None

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        set_learning_rate(self.trainer, rate)

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Self:
        """As LightningModule's, also where the checkpoint names its class otherwise."""
        # Lightning takes the checkpoint's own name for the class unless one is given.
        return super().load_from_checkpoint(*args, **{"_class_path": name_of(cls), **kwargs})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model; tell where its class had another name.

        Raises:
            ValueError: It has other shapes; names each difference.
        """
        saved = checkpoint.get("hyper_parameters", {})
        note_other_name(saved, type(self))
        if saved:  # a checkpoint from before there was an argument is one without it
            known = signature(type(self)).parameters.values()
            saved = {
                each.name: each.default for each in known if each.default is not Parameter.empty
            } | saved
        different = [
            f"{name} {saved[name]} in the checkpoint, {self.hparams[name]} here"
            for name in self.shape_arguments
            if name in saved and saved[name] != self.hparams[name]
        ]
        if different:
            raise ValueError(
                f"the checkpoint is of another model: {'; '.join(different)}; use the "
                "configuration it was trained with, config.yaml in the folder of its run"
            )


def check_sizes(**sizes: int) -> None:
    """Refuse a size below 1 with a ValueError that names it."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"expected {name} of 1 or more, got {size}")


def check_probabilities(**probabilities: float | None) -> None:
    """Refuse a probability outside [0, 1] with a ValueError that names it; None is none."""
    for name, value in probabilities.items():
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"expected {name} between 0 and 1, got {value}")
