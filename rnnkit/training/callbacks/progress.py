"""Progress of a run on the terminal."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

# Often enough to look alive; drawing takes about a millisecond.
_REFRESH_SECONDS = 0.25

_SHOWN = {"train/loss": "loss {:.3f}", "train/ppl": "ppl {:.1f}", "train/grad_norm": "grad {:.2g}"}


class TrainingProgress(ProgressBar):
    """One bar for the whole run: time left, tokens per second, loss, perplexity, gradient's norm.

    After each validation a line with its scores stays on the screen. Where the output is no
    terminal there is no bar, only these lines. A batch's tokens are the elements of its `target`;
    a task with `target_name` calls them otherwise.

    Args:
        console: Where to draw; none: standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self.console = console or Console()
        self._enabled = True
        self._terminal = self.console.is_terminal  # slow to ask at every step
        self._progress: Progress | None = None
        self._task: Any = None
        self._drawn = 0.0
        self._started = 0.0
        self._first_step = 0
        self._interval_started = 0.0
        self._interval_tokens = 0
        self._epoch_speed = ""
        self._tokens = "tokens"

    def disable(self) -> None:
        """Draw nothing from now on."""
        self._enabled = False

    def enable(self) -> None:
        """Draw again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        self.console.print(*args, **kwargs)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is trained where, and open the bar."""
        self._started, self._first_step = time.perf_counter(), trainer.global_step
        self._tokens = getattr(pl_module, "target_name", "tokens")
        steps, folder = trainer.estimated_stepping_batches, trainer.log_dir  # on every process
        self._open(steps)
        if self._enabled:
            parameters = sum(parameter.numel() for parameter in pl_module.parameters())
            self.console.print(
                f"{parameters:,} parameters on {pl_module.device}"
                f"{f', {steps:,} steps' if math.isfinite(steps) else ''}"
                f"{f'; run in {folder}' if folder else ''}",
                soft_wrap=True,
                highlight=False,
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the speed anew."""
        self._restart_clock()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move the bar on, four times a second."""
        target = getattr(batch, "target", None)
        if target is not None:
            self._interval_tokens += target.numel() * trainer.world_size
        if self._due():
            self._draw(trainer.global_step, self._training_text(trainer))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the speed of training before validation takes time."""
        self._epoch_speed = self._speed()

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Show that a validation runs, and how far it is."""
        if self._due():
            self._draw_evaluation(trainer, trainer.num_val_batches, "validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a line with the scores."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._enabled:
            self.console.print(self._scores(trainer), highlight=False, soft_wrap=True)
        self._restart_clock()

    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Show how far the test is."""
        if self._due():
            self._draw_evaluation(trainer, trainer.num_test_batches, "test")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close the bar, so that what follows is not drawn over."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the bar."""
        self._close()

    def _open(self, total: float) -> None:
        if self._progress is None and self._enabled and self._terminal:
            self._progress = Progress(
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:>3.0f} %  {task.description}"),
                console=self.console,
                auto_refresh=False,  # a thread would take time from training
                expand=True,
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task("", total=total)

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _due(self) -> bool:
        due = time.perf_counter() - self._drawn > _REFRESH_SECONDS
        return due and self._enabled and self._terminal

    def _draw(self, completed: int, text: str) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=completed, description=text)
            self._progress.refresh()
            self._drawn = time.perf_counter()

    def _draw_evaluation(self, trainer: Trainer, batches: Any, name: str) -> None:
        total = sum(batches) if isinstance(batches, list) else batches
        done = trainer._active_loop.batch_progress.current.ready  # type: ignore[union-attr]
        if trainer.state.fn == "fit":
            self._draw(trainer.global_step, f"{name} {done}/{total}")
        else:
            self._open(total)
            self._draw(done, f"{name} {done}/{total}")

    def _training_text(self, trainer: Trainer) -> str:
        epoch = f"epoch {trainer.current_epoch + 1}"
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            epoch += f"/{trainer.max_epochs}"
        done = trainer.global_step - self._first_step
        left = trainer.estimated_stepping_batches - trainer.global_step
        elapsed = time.perf_counter() - self._started  # with the validations between the steps
        parts = [epoch, self._speed()]
        if done and math.isfinite(left):  # a run may have no last step
            parts.insert(1, f"{_clock(elapsed / done * left)} left")
        metrics = trainer.callback_metrics
        for name, text in _SHOWN.items():
            if name in metrics:
                parts.append(text.format(float(metrics[name])))
        return "  ".join(parts)

    def _scores(self, trainer: Trainer) -> str:
        place = f"epoch {trainer.current_epoch + 1:>2}  step {trainer.global_step:>6,}"
        metrics = trainer.progress_bar_metrics  # those logged with prog_bar=True
        scores = [f"{name} {metrics[name]:<5.4g}" for name in sorted(metrics)]
        elapsed = _clock(time.perf_counter() - self._started)
        return "  ".join([place, *scores, self._epoch_speed, elapsed])

    def _restart_clock(self) -> None:
        self._interval_started = time.perf_counter()
        self._interval_tokens = 0

    def _speed(self) -> str:
        seconds = max(time.perf_counter() - self._interval_started, 1e-9)
        return f"{self._interval_tokens / seconds:,.0f} {self._tokens}/s"


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
