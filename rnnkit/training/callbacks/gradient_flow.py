"""How far back gradients reach while a task trains: a picture, norms and a ratio in the log."""

from __future__ import annotations

import csv
import logging
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from rnnkit.nn.gradient_flow import Flow, flows
from rnnkit.nn.states import watch_states
from rnnkit.screen.gradient_picture import Line, Panel, draw_gradients
from rnnkit_kernels.functional import LayerStates

_log = logging.getLogger(__name__)


class GradientFlow(Callback):
    """Looks every so many steps at ‖∂L/∂h_t‖ and ‖∂L/∂c_t‖ in every recurrent layer of a model.

    L is the training's own loss, so every step's targets give their share. Beside `metrics.csv`
    stand then `gradient_flow.png`, which shows the first look and the last, and
    `gradient_flow.csv`, all of them. `gradient_ratio/<layer>` is logged: what reaches the first
    state of what the last one gets, each a mean over sequences. A ratio that falls while a model
    trains tells of gradients that vanish, one that rises of such that explode.

    At the steps at which it looks, layers that torch would run are run by an engine of rnnkit:
    results differ in rounding, and dropout between layers draws other masks. A look costs about as
    much as one more backward pass of these layers.

    Args:
        every_n_steps: Optimizer steps from one look to the next.

    Raises:
        ValueError: `every_n_steps` is below 1; or the model has no recurrent layer of rnnkit.

    Example:
        trainer:
          callbacks:
            - class_path: GradientFlow
              init_args: {every_n_steps: 200}
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        if every_n_steps < 1:
            raise ValueError(f"expected every_n_steps of 1 or more, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._stack = ExitStack()
        self._watched: dict[str, list[LayerStates]] | None = None
        self._first: tuple[int, dict[str, dict[str, list[float]]]] | None = None
        self._left_out: set[str] = set()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin to watch, where a look is due."""
        due = trainer.global_step % self.every_n_steps == 0
        begins_step = batch_idx % trainer.accumulate_grad_batches == 0
        if due and begins_step and trainer.is_global_zero:
            self._watched = self._stack.enter_context(watch_states(pl_module))

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, and watch no more."""
        if self._watched is None:
            return
        watched, self._watched = self._watched, None
        self._stack.close()
        found = self._found(watched)
        if not found:
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # of 16-mixed: scales the loss
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        self._note(trainer, found, scale)

    def _found(self, watched: dict[str, list[LayerStates]]) -> dict[str, Flow]:
        found: dict[str, Flow] = {}
        for name, entries in watched.items():
            known = [each for each in entries if each.differentiated]
            if len(known) > len({each.layer for each in known}) and len(known[0].hidden) == 1:
                if name not in self._left_out:
                    _log.info("gradient flow leaves %s out, which is called step by step", name)
                    self._left_out.add(name)
                continue
            for each in known:  # of an optimizer that evaluates more than once the last call
                for flow in flows(each):
                    found[f"{name}_l{flow.layer}" + "_reverse" * flow.direction] = flow
        return found

    def _note(self, trainer: Trainer, found: dict[str, Flow], scale: float) -> None:
        step = trainer.global_step
        means = {name: _means(flow, scale) for name, flow in found.items()}
        ratios = {f"gradient_ratio/{name}": _ratio(norms["both"]) for name, norms in means.items()}
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": trainer.current_epoch, **ratios}, step)
        csv_logger = next((each for each in trainer.loggers if isinstance(each, CSVLogger)), None)
        if csv_logger is None:
            return
        folder = Path(csv_logger.log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        _append(folder / "gradient_flow.csv", step, means)
        self._first = self._first or (step, means)
        first, before = self._first
        lines = []
        for number, (name, norms) in enumerate(means.items()):
            lines.append(Line(name, norms["both"], number))
            if first < step and name in before:
                lines.append(Line(f"dashed: at step {first:,}", before[name]["both"], number, "--"))
        panel = Panel(
            f"{folder.parent.name}, {folder.name}, at step {step:,}",
            r"$\|\partial L\,/\,\partial(h_t, c_t)\|$",
            lines,
        )
        note = "L: the training's own loss; mean over the sequences of a batch"
        draw_gradients([panel], folder / "gradient_flow.png", "steps before the last one", note)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Watch no more where a step breaks off."""
        self._stack.close()
        self._watched = None


def _means(flow: Flow, scale: float) -> dict[str, list[float]]:
    """Means over sequences, a list a norm; without c there is none of it."""
    norms = {"hidden": flow.hidden, "cell": flow.cell, "both": flow.both}
    return {
        name: (flow.mean(value) / scale).tolist()
        for name, value in norms.items()
        if value is not None
    }


def _ratio(norms: list[float]) -> float:
    """First to last; infinite where the last state gets nothing."""
    known = [norm for norm in norms if not math.isnan(norm)]
    return known[0] / known[-1] if known[-1] else math.inf


def _append(path: Path, step: int, means: dict[str, dict[str, list[float]]]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, ["step", "layer", "t", "hidden", "cell", "both"], "")
        if new:
            writer.writeheader()
        for layer, norms in means.items():
            for t, values in enumerate(zip(*norms.values(), strict=True), 1):
                row = {name: f"{value:.6g}" for name, value in zip(norms, values, strict=True)}
                writer.writerow({"step": step, "layer": layer, "t": t, **row})
