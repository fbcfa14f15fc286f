"""Clipping at a percentile of the gradient's norms so far: AutoClip.

    c_t = the p-th percentile of ‖g_s‖, s < t        over the last `window` finite norms
    g_t ← g_t · min(1, c_t / ‖g_t‖)                  ‖·‖: 2-norm of all gradients together

Seetharaman et al. 2020 (arXiv 2007.14469). Their c_t has seen ‖g_t‖ too, and all steps before it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

FIRST = 20
"""The norms from which on there is a percentile: the 95th of fewer is their largest, or nearly."""


class PercentileClipping(Callback):
    """Clips the gradient by its norm, at a percentile of the norms of the steps before.

    The threshold follows the scale of the loss and of the model, which `gradient_clip_val` has to
    be told. Norms are taken before clipping, of all gradients of the optimizer together. One that
    is not finite is not remembered, and would not be mended by clipping either. The threshold is
    logged as `train/clip_threshold`, and the norms are in the checkpoint.

    A percentile of 95 clips about 5 % of the steps, those whose gradients stand out. AutoClip's
    default of 10 is another thing: it clips about 90 % of them, nearly every step to one length.

    Lightning calls `on_before_optimizer_step`, where this clips, once an optimizer step: after the
    last of accumulated batches, after the processes of DDP have averaged their gradients, whose
    norms and thresholds therefore agree, and after the scaler of 16-mixed has unscaled them, so
    that these are the norms that full precision would have. FSDP's own norm is that of all
    parts. Callbacks that stand behind this one and the model's own hook see a clipped gradient.

    The host reads a norm when the next step asks for its threshold. On a GPU it waits for no
    more than the step before, while the work of this one is queued. On a CPU, gradients that are
    within the threshold are not multiplied by 1.

    Args:
        percentile: p, above 0 and below 100; between two norms it is interpolated linearly, as
            numpy.percentile does.
        window: Norms that are remembered, 20 or more. Norms drift while a model learns, so the
            oldest should be forgotten; of 1,000, which is AutoClip's too, still 50 lie above the
            95th percentile.
        initial: The threshold until 20 norms are known; None: nothing is clipped until then. A
            model whose first steps explode needs one.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> trainer = Trainer(callbacks=[PercentileClipping(95, initial=5.0)])
    """

    def __init__(
        self, percentile: float = 95.0, window: int = 1000, initial: float | None = None
    ) -> None:
        if not 0 < percentile < 100:
            raise ValueError(f"expected a percentile above 0 and below 100, got {percentile}")
        if window < FIRST:
            raise ValueError(
                f"expected a window of {FIRST} norms or more, got {window}: nothing is clipped "
                "at a percentile of fewer"
            )
        if initial is not None and not 0 < initial < math.inf:
            raise ValueError(f"expected an initial threshold above 0 and finite, got {initial}")
        self.percentile = percentile
        self.window = window
        self.initial = initial
        self.norm: Tensor | None = None
        """The gradient's norm at the last step, before clipping; None where it had no gradient."""
        self._norms: deque[float] = deque()  # oldest first
        self._sorted: list[float] = []
        self._pending: Tensor | None = None  # the last norm, on its way to the host
        self._copied: torch.cuda.Event | None = None  # when it is there, of a GPU's

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin anew with each fit.

        Raises:
            ValueError: The Trainer clips too, or its strategy has parts of the gradients only.
        """
        if stage != "fit":
            return
        if trainer.gradient_clip_val:
            raise ValueError(
                f"PercentileClipping and trainer.gradient_clip_val {trainer.gradient_clip_val} "
                "would both clip: set trainer.gradient_clip_val to null, or leave the callback out"
            )
        if isinstance(trainer.strategy, (DeepSpeedStrategy, ModelParallelStrategy)):
            raise ValueError(
                f"PercentileClipping cannot clip the gradients of {type(trainer.strategy).__name__}"
                ", which keeps them in parts: use trainer.strategy ddp or fsdp"
            )
        self.load_state_dict({"norms": []})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the optimizers, which are made by now.

        Raises:
            ValueError: There are several, or one that unscales gradients only in its step.
        """
        if len(trainer.optimizers) > 1:
            raise ValueError(
                f"PercentileClipping remembers the norms of 1 optimizer, the model has "
                f"{len(trainer.optimizers)}: leave it out, and clip in the model"
            )
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        for optimizer in trainer.optimizers:
            if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
                raise ValueError(
                    f"a fused {type(optimizer).__name__} unscales the gradients of 16-mixed after "
                    "PercentileClipping has seen them: make it without fused, or use "
                    "--trainer.precision bf16-mixed"
                )

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Clip at the percentile of the norms before, and note this one."""
        threshold = self.threshold
        self.norm = self._clip(trainer, optimizer, threshold)
        if self.norm is None:
            return
        self._pending, self._copied = self.norm.to("cpu", non_blocking=self.norm.is_cuda), None
        if self.norm.is_cuda:
            self._copied = torch.cuda.current_stream(self.norm.device).record_event()
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if threshold is not None and every > 0 and (trainer.global_step + 1) % every == 0:
            pl_module.log("train/clip_threshold", threshold)

    @staticmethod
    def _clip(trainer: Trainer, optimizer: Optimizer, threshold: float | None) -> Tensor | None:
        """Clip where there is a threshold; the norm before."""
        sharded = getattr(trainer.strategy.model, "clip_grad_norm_", None)
        if sharded is not None:  # FSDP, where each process has a part of every gradient
            norm: Tensor = sharded(math.inf if threshold is None else threshold)
            return norm.detach()
        parameters = [
            each
            for each in trainer.precision_plugin.main_params(optimizer)
            if each.grad is not None
        ]
        if not parameters:  # of a batch that the model has left out
            return None
        norm = get_total_norm([each.grad for each in parameters if each.grad is not None])
        within = threshold is None or (norm.device.type == "cpu" and bool(norm <= threshold))
        if threshold is not None and not within:
            clip_grads_with_norm_(parameters, threshold, norm)
        return norm.detach()

    @property
    def threshold(self) -> float | None:
        """What the next step is clipped at; None: it is not clipped."""
        self._take()
        known = self._sorted
        if len(known) < FIRST:
            return self.initial
        below, share = divmod(self.percentile / 100 * (len(known) - 1), 1)
        lower, upper = known[int(below)], known[min(int(below) + 1, len(known) - 1)]
        return lower + share * (upper - lower)

    def _take(self) -> None:
        """Remember the norm of the step before, once it is on the host."""
        if self._pending is None:
            return
        if self._copied is not None:
            self._copied.synchronize()
        norm, self._pending = float(self._pending), None
        if not math.isfinite(norm):
            return
        if len(self._norms) == self.window:
            del self._sorted[bisect_left(self._sorted, self._norms.popleft())]
        self._norms.append(norm)
        insort(self._sorted, norm)

    def remedy(self) -> str:
        """What of this to lower where training has diverged all the same, in words."""
        threshold = self.threshold
        if len(self._sorted) < FIRST:
            return (
                f"the initial threshold of PercentileClipping, {threshold or 'none'} until {FIRST} "
                f"norms are known"
            )
        return f"the percentile of PercentileClipping, {self.percentile:g}: {threshold:.3g} by now"

    def state_dict(self) -> dict[str, Any]:
        """The norms that are remembered, oldest first, as plain data."""
        self._take()
        return {"norms": list(self._norms)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the norms of a checkpoint, the last of them where this window is smaller."""
        self.norm = self._pending = self._copied = None
        self._norms = deque(state_dict["norms"][-self.window :])
        self._sorted = sorted(self._norms)


def percentile_clipping(trainer: Trainer) -> PercentileClipping | None:
    """The one among a Trainer's callbacks; None where there is none."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((each for each in callbacks if isinstance(each, PercentileClipping)), None)
