"""Clipping at a percentile: gradients whose norms are written down here, and rnnkit's own tasks."""

import csv
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy
from torch.utils.data import DataLoader

from rnnkit.cli import main
from rnnkit.training.callbacks import PercentileClipping
from rnnkit.training.callbacks.percentile_clipping import FIRST, percentile_clipping
from tests.small_runs import make_data, make_model, make_trainer, parameters
from tests.small_tasks import language_model

pytestmark = [pytest.mark.training, pytest.mark.usefixtures("no_pictures")]

ROOT = Path(__file__).parents[3]

# Norms that rise, fall, stay and jump.
NORMS = [
    *(3.0, 1.0, 4.0, 1.5, 9.0, 2.6, 5.0, 3.5, 8.0, 9.0, 7.0, 9.5, 3.0, 2.0, 3.8, 4.6, 2.5, 6.4),
    *(3.3, 8.3, 2.7, 90.0, 5.0, 0.2, 8.8, 4.1, 9.7, 1.6, 9.3, 30.0, 9.3, 7.5, 1.0, 5.8, 2.1, 0.0),
]


class Line(LightningModule):
    """A model whose gradient is the batch, whatever its weights are."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.bias = torch.nn.Parameter(torch.zeros(1))  # norms are of all gradients together
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        if batch.isnan().all():  # Lightning's way to leave a batch out
            return None
        return self.weight @ batch[:2] + self.bias @ batch[2:]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Steps(Callback):
    """The threshold of every step, infinite for none, and the norm that clipping has left."""

    def __init__(self, clipping):
        self.clipping, self.thresholds, self.left = clipping, [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx % trainer.accumulate_grad_batches == 0:
            threshold = self.clipping.threshold
            self.thresholds.append(math.inf if threshold is None else threshold)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        gradients = [each.grad.flatten() for each in module.parameters() if each.grad is not None]
        self.left.append(float(torch.cat(gradients).norm()) if gradients else None)


def gradients(norms):
    """A gradient of three values for each norm."""
    directions = torch.nn.functional.normalize(torch.tensor([[2.0, -1.0, 2.0]]))
    return directions * torch.tensor(norms)[:, None]


def train(clipping, batches, module=None, **options):
    steps, module = Steps(clipping), module or Line()
    trainer = make_trainer(callbacks=[clipping, steps], **options)
    trainer.fit(module, DataLoader(list(batches), batch_size=None))
    return steps, module


def expected_thresholds(norms, percentile, window=1000, initial=math.inf):
    return [
        initial if step < FIRST else np.percentile(norms[max(step - window, 0) : step], percentile)
        for step in range(len(norms))
    ]


@pytest.mark.parametrize("percentile", [0.5, 10, 50, 95, 99.9])
@pytest.mark.parametrize("known", [20, 21, 36])
def test_the_threshold_is_numpys_percentile_of_a_recorded_list(percentile, known):
    clipping = PercentileClipping(percentile)
    clipping.load_state_dict({"norms": NORMS[:known]})
    assert clipping.threshold == pytest.approx(np.percentile(NORMS[:known], percentile), rel=1e-14)


@pytest.mark.parametrize("window", [20, 25, 1000])
@pytest.mark.parametrize("initial", [math.inf, 3.2])
def test_a_step_is_clipped_at_the_percentile_of_the_steps_before(window, initial):
    given = None if initial == math.inf else initial
    steps, _ = train(PercentileClipping(75, window, given), gradients(NORMS))
    expected = expected_thresholds(NORMS, 75, window, initial)
    assert steps.thresholds == pytest.approx(expected, rel=1e-6)
    assert steps.left == pytest.approx([*map(min, NORMS, expected)], rel=1e-6)
    assert sum(norm > limit for norm, limit in zip(NORMS, expected, strict=True)) >= 5


def test_without_an_initial_threshold_twenty_steps_are_not_clipped():
    steps, module = train(PercentileClipping(50), gradients(NORMS[:FIRST]))
    assert steps.thresholds == [math.inf] * FIRST
    assert torch.allclose(module.weight, -gradients(NORMS[:FIRST]).sum(0)[:2])
    steps, _ = train(PercentileClipping(50), gradients(NORMS[: FIRST + 1]))
    assert steps.thresholds[-1] == pytest.approx(np.percentile(NORMS[:FIRST], 50))


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_norms_that_are_not_finite_are_not_remembered(value):
    batches = gradients(NORMS)
    batches[[0, 7, 25, 30], 0] = value
    clipping = PercentileClipping(60, window=22)
    steps, _ = train(clipping, batches)
    finite = [norm for step, norm in enumerate(NORMS) if step not in (0, 7, 25, 30)]
    assert clipping.state_dict()["norms"] == pytest.approx(finite[-22:], rel=1e-6)
    # Two of the first twenty do not count.
    expected = [math.inf, math.inf, np.percentile(finite[:FIRST], 60)]
    assert steps.thresholds[FIRST : FIRST + 3] == pytest.approx(expected)


def test_a_batch_that_the_model_leaves_out_has_no_norm():
    batches = gradients(NORMS[:24])
    batches[[3, 21]] = math.nan
    clipping = PercentileClipping()
    steps, _ = train(clipping, batches)
    kept = [norm for step, norm in enumerate(NORMS[:24]) if step not in (3, 21)]
    assert clipping.state_dict()["norms"] == pytest.approx(kept, rel=1e-6)
    assert [step for step, left in enumerate(steps.left) if left is None] == [3, 21]


def test_the_norm_of_accumulated_batches_is_that_of_their_sum():
    norms = NORMS[:30]
    batches = gradients(norms).repeat_interleave(3, 0)
    batches[0::3], batches[1::3] = batches[0::3] * 4, -batches[1::3] * 2  # 4 - 2 + 1 = 3
    clipping = PercentileClipping(70)
    steps, _ = train(clipping, batches, accumulate_grad_batches=3)
    assert clipping.state_dict()["norms"] == pytest.approx(norms, rel=1e-5)
    assert steps.thresholds == pytest.approx(expected_thresholds(norms, 70), rel=1e-5)
    assert steps.left[21] == pytest.approx(steps.thresholds[21], rel=1e-5)  # of 90


def test_float16s_scaled_gradients_are_unscaled_before():
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0, growth_interval=20)
    clipping = PercentileClipping(80)
    batches = gradients(NORMS)
    batches[9] = 1e4  # times the scale too much for float16: the scaler leaves the step out
    plugins = [MixedPrecision("16-mixed", "cpu", scaler)]
    steps, _ = train(clipping, batches, plugins=plugins)
    assert scaler.get_scale() == 128  # half of it after step 9, and again as much after 20 more
    kept = [norm for step, norm in enumerate(NORMS) if step != 9]
    assert clipping.state_dict()["norms"] == pytest.approx(kept, rel=2e-3)
    expected = np.percentile(kept[:-1], 80)
    assert steps.thresholds[-1] == pytest.approx(expected, rel=2e-3)
    assert steps.left[21] == pytest.approx(steps.thresholds[21], rel=2e-3)  # of 90


class Save(Callback):
    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("step", [8, 20, 50])
def test_a_resumed_run_clips_bit_for_bit_as_an_unbroken_one(step, corpus, tmp_path):
    def run(checkpoint, *callbacks):
        clipping, data = PercentileClipping(65, window=24), make_data(corpus)
        steps, model = Steps(clipping), make_model(data)
        settings = {"max_epochs": 3, "limit_val_batches": 0, "log_every_n_steps": 5}
        trainer = make_trainer(callbacks=[clipping, steps, *callbacks], **settings)
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        return steps, parameters(model)

    path = tmp_path / "saved.ckpt"
    unbroken, expected = run(None, Save(path, step))
    assert len(unbroken.thresholds) > 60
    resumed, found = run(path)
    assert resumed.thresholds == unbroken.thresholds[step:]
    assert torch.equal(found, expected)
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "callbacks": {}}, path)
    forgetful, found = run(path)
    assert forgetful.thresholds != unbroken.thresholds[step:]
    assert not torch.equal(found, expected)


def test_each_fit_begins_anew_and_a_smaller_window_keeps_the_last():
    clipping = PercentileClipping(50)
    train(clipping, gradients(NORMS))
    train(clipping, gradients(NORMS[:2]))
    assert clipping.state_dict()["norms"] == pytest.approx(NORMS[:2])
    small = PercentileClipping(50, window=20)
    small.load_state_dict({"norms": NORMS})
    assert small.state_dict()["norms"] == NORMS[-20:]
    assert small.threshold == np.percentile(NORMS[-20:], 50)


class Sharded(Line):
    """As FSDP's module, which alone knows the norm of what all processes have."""

    def __init__(self):
        super().__init__()
        self.limits = []

    def clip_grad_norm_(self, limit):
        self.limits.append(limit)
        return torch.nn.utils.clip_grad_norm_(self.parameters(), limit) * 2  # of two processes


def test_the_norm_of_sharded_gradients_is_asked_of_their_module():
    module = Sharded()
    steps, _ = train(PercentileClipping(90), gradients(NORMS), module=module)
    expected = expected_thresholds([2 * norm for norm in NORMS], 90, 1000, math.inf)
    assert module.limits == pytest.approx(expected, rel=1e-6)
    assert steps.left[21] < 90


@pytest.mark.parametrize("strategy", [DeepSpeedStrategy, ModelParallelStrategy])
def test_strategies_that_keep_gradients_in_parts_are_refused(strategy):
    trainer = SimpleNamespace(gradient_clip_val=None, strategy=object.__new__(strategy))
    with pytest.raises(ValueError, match=f"the gradients of {strategy.__name__}, which keeps"):
        PercentileClipping().setup(trainer, Line(), "fit")
    PercentileClipping().setup(trainer, Line(), "test")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"percentile": 0}, "expected a percentile above 0 and below 100, got 0"),
        ({"percentile": 100}, "expected a percentile above 0 and below 100, got 100"),
        ({"percentile": -5.5}, "above 0 and below 100, got -5.5"),
        ({"percentile": math.nan}, "above 0 and below 100, got nan"),
        ({"window": 19}, "expected a window of 20 norms or more, got 19"),
        ({"initial": 0.0}, "expected an initial threshold above 0 and finite, got 0.0"),
        ({"initial": math.inf}, "above 0 and finite, got inf"),
    ],
)
def test_what_is_out_of_range_is_refused(arguments, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        PercentileClipping(**arguments)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_two_clippings_are_refused(algorithm):
    told = "PercentileClipping and trainer.gradient_clip_val 5.0 would both clip: set"
    limits = {"gradient_clip_val": 5.0, "gradient_clip_algorithm": algorithm}
    with pytest.raises(ValueError, match=told):
        train(PercentileClipping(), gradients(NORMS), **limits)
    steps, _ = train(PercentileClipping(), gradients(NORMS), gradient_clip_val=0)
    assert len(steps.thresholds) == len(NORMS)


class Pair(Line):
    """A model with two optimizers, which it steps itself."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD([each], lr=1.0) for each in (self.weight, self.bias)]


def test_several_optimizers_are_refused():
    with pytest.raises(ValueError, match="the norms of 1 optimizer, the model has 2: leave"):
        train(PercentileClipping(), gradients(NORMS), module=Pair())


class Fused(Line):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0, fused=True)


def test_an_optimizer_that_unscales_in_its_step_is_refused():
    plugins = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]
    with pytest.raises(ValueError, match="a fused SGD unscales the gradients of 16-mixed after"):
        train(PercentileClipping(), gradients(NORMS), module=Fused(), plugins=plugins)
    steps, _ = train(PercentileClipping(), gradients(NORMS), module=Fused())
    assert len(steps.left) == len(NORMS)


class Manual(Line):
    """A model that steps its optimizer itself."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx))
        self.optimizers().step()
        self.optimizers().zero_grad()


def test_a_model_that_steps_by_itself_is_clipped_too():
    steps, module = train(PercentileClipping(75), gradients(NORMS), module=Manual())
    expected, like = train(PercentileClipping(75), gradients(NORMS))
    assert steps.thresholds == expected.thresholds
    assert torch.equal(module.weight, like.weight)


def logged(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ("train/grad_norm", "train/clip_threshold")
    return [{int(row["step"]): float(row[name]) for row in rows if row.get(name)} for name in names]


def test_a_task_logs_the_norm_that_was_taken_once(corpus, tmp_path, monkeypatch):
    for name in ("get_total_norm", "clip_grad_norm_"):
        monkeypatch.setattr(f"rnnkit.training.task.{name}", None)  # the callback has taken it
    data, clipping = make_data(corpus), PercentileClipping(50, initial=0.1)
    before = Steps(clipping)  # it stands before the one that clips
    trainer = make_trainer(
        callbacks=[before, clipping],
        logger=CSVLogger(tmp_path, name="", version=""),
        log_every_n_steps=4,
        max_steps=28,
        max_epochs=2,
        limit_val_batches=0,
    )
    trainer.fit(make_model(data), data)
    norms, thresholds = logged(tmp_path / "metrics.csv")
    steps = [*range(3, 28, 4)]
    assert norms == pytest.approx({step: before.left[step] for step in steps}, rel=1e-5)
    expected = expected_thresholds(before.left, 50, 1000, 0.1)
    assert thresholds == pytest.approx({step: expected[step] for step in steps}, rel=1e-5)
    assert any(norms[step] > thresholds[step] for step in steps)


def test_nothing_is_logged_before_there_is_a_threshold(corpus, tmp_path):
    data, logger = make_data(corpus), CSVLogger(tmp_path, name="", version="")
    settings = {"logger": logger, "log_every_n_steps": 1, "max_steps": 22, "limit_val_batches": 0}
    trainer = make_trainer(callbacks=[PercentileClipping()], **settings)
    trainer.fit(make_model(data), data)
    norms, thresholds = logged(tmp_path / "metrics.csv")
    assert [*norms] == [*range(22)]
    assert [*thresholds] == [20, 21]


SHORT = """\
trainer:
  gradient_clip_val: null
  callbacks:
    - class_path: PercentileClipping
      init_args:
        percentile: 80
"""


@pytest.mark.parametrize("name", ["PercentileClipping", "rnnkit.training.callbacks.*"])
def test_three_lines_of_a_configuration_are_enough(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = SHORT.replace("PercentileClipping", name.replace("*", "PercentileClipping"))
    Path("clip.yaml").write_text(text)
    arguments = [*language_model(tmp_path), "-c", "clip.yaml", "--trainer.max_epochs", "2"]
    assert main(["fit", *arguments, "--trainer.log_every_n_steps", "1"]) == 0
    folder = next(Path("runs").glob("*/version_0"))
    _, thresholds = logged(folder / "metrics.csv")
    assert min(thresholds) == FIRST
    saved = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["callbacks"]
    whole = "rnnkit.training.callbacks.PercentileClipping"
    kept = {"percentile": 80.0, "window": 1000, "initial": None}
    assert saved == [{"class_path": whole, "init_args": kept}]


def test_the_shipped_configuration_clips_from_its_first_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = language_model(tmp_path)
    arguments[1] = str(ROOT / "configs" / "lm" / "ptb_small_percentile.yaml")
    arguments += ["--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1"]
    assert main(["fit", *arguments]) == 0
    _, thresholds = logged(next(Path("runs").glob("*/version_0/metrics.csv")))
    assert min(thresholds) == 0
    assert thresholds[0] == 5.0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--trainer.callbacks.percentile", "100"], "above 0 and below 100, got 100"),
        ([], "trainer.gradient_clip_val 5.0 would both clip"),
    ],
)
def test_the_command_line_says_what_is_wrong(arguments, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    callback = ["--trainer.callbacks+", "PercentileClipping", *arguments]
    assert main(["fit", *language_model(tmp_path), *callback]) != 0
    assert told in capsys.readouterr().err
    assert not [*Path("runs").rglob("*.ckpt")]


def test_the_one_of_a_trainer_is_found():
    clipping = PercentileClipping()
    assert percentile_clipping(make_trainer(callbacks=[Steps(clipping), clipping])) is clipping
    assert percentile_clipping(make_trainer()) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_norm_of_the_step_before_is_read_from_a_gpu():
    steps, _ = train(PercentileClipping(75), gradients(NORMS), accelerator="gpu", devices=1)
    assert steps.thresholds == pytest.approx(expected_thresholds(NORMS, 75), rel=1e-6)
