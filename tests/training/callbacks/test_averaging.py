"""Averaging that begins where validation gets stuck, with scores that are written down here."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from rnnkit.training.callbacks.averaging import TriggeredAveraging
from rnnkit.training.callbacks.checkpoint_io import AtomicCheckpointIO

pytestmark = pytest.mark.training

# With an interval of 2 the fifth check, 4.5, is the first that is worse than the best of those
# more than 2 checks old: 4. The one before, 6, is worse than those within the interval alone.
SCORES = [5.0, 4.0, 3.9, 3.8, 4.5, 3.0, 2.0, 1.0]
TRIGGER = 5  # checks
STEPS = 3  # an epoch
EPOCHS = len(SCORES)


class Model(LightningModule):
    """Two weights, changed by every step, that validate with the next of `SCORES`."""

    def __init__(self, scores=SCORES):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        self.scores = scores
        self.trained, self.validated, self.tested = [], [], []

    def training_step(self, batch, batch_idx):
        return ((self.weight - batch) ** 2).sum() + self.weight.prod()

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.weight.detach().clone())

    def on_validation_epoch_end(self):
        if self.scores is not None:
            self.log("val/ppl", self.scores[min(self.current_epoch, len(self.scores) - 1)])

    def test_step(self, batch, batch_idx):
        self.tested.append(self.weight.detach().clone())

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.trained.append(self.weight.detach().clone())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.5)


class SaveAfterEpochs(Callback):
    """Saves every epoch's end as <epochs>.ckpt, behind all other callbacks' ends of validation."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_epoch_end(self, trainer, module):
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch + 1}.ckpt")


def batches():
    values = torch.linspace(-1, 1, 2 * STEPS).view(STEPS, 2)
    return DataLoader(list(values), batch_size=None), DataLoader([torch.zeros(2)], batch_size=None)


def make_trainer(*callbacks, epochs=EPOCHS, **options):
    defaults = {"num_sanity_val_steps": 0, "enable_checkpointing": False}
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        plugins=[AtomicCheckpointIO()],
        **{**defaults, **options},
    )


def run(folder, scores=SCORES, ckpt_path=None, averaging=None, **options):
    """A fit with averaging, and its callback."""
    averaging = averaging or TriggeredAveraging(interval=2)
    model = Model(scores)
    trainer = make_trainer(averaging, SaveAfterEpochs(folder), **options)
    trainer.fit(model, *batches(), ckpt_path=ckpt_path)
    return model, averaging, trainer


@pytest.fixture(scope="module")
def plain():
    """The weights after every step without any averaging."""
    model = Model()
    make_trainer().fit(model, *batches())
    return model.trained


@pytest.fixture(scope="module")
def averages(plain):
    """For every epoch's end the mean of the weights since the trigger, by a plain loop."""
    means = {}
    for epochs in range(TRIGGER, EPOCHS + 1):
        total, number = torch.zeros(2, dtype=torch.float64), 0
        for weight in plain[TRIGGER * STEPS - 1 : epochs * STEPS]:
            total, number = total + weight, number + 1
        means[epochs] = (total / number).float()
    return means


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaged")
    model, averaging, _ = run(folder)
    return model, averaging, folder


def load(folder, epochs):
    return torch.load(folder / f"{epochs}.ckpt", weights_only=True)


# The trigger


@pytest.mark.parametrize(
    "scores",
    [
        SCORES,
        [5, 4, 3, 2, 1, 0.5],  # always better
        [3, 3, 3, 3, 3, 3],  # no better, no worse
        [1, 2, 3, 4, 5, 6],  # worse from the start
        [2, 3, 1, 1.5, 2.5, 0.5],  # waits until the 2 is old
        [2, 1, 3, 4, 0.5, 1],
    ],
)
@pytest.mark.parametrize("interval", [1, 2, 4])
def test_averaging_begins_where_the_papers_algorithm_says(scores, interval):
    callback, model = TriggeredAveraging(interval=interval), Model()
    trainer = SimpleNamespace(
        state=SimpleNamespace(fn=TrainerFn.FITTING), sanity_checking=False, global_step=0
    )
    callback.setup(trainer, model, "fit")
    callback.on_train_start(trainer, model)
    logs, average = [], False
    for score in scores:
        t = len(logs)
        average = average or (t > interval and score > min(logs[: t - interval]))
        logs.append(score)
        trainer.callback_metrics = {"val/ppl": torch.tensor(score)}
        callback.on_validation_end(trainer, model)
        assert callback.triggered == average
    assert callback.scores == pytest.approx(scores)


def test_a_trial_of_the_validation_before_training_is_no_check(tmp_path):
    _, averaging, _ = run(tmp_path, num_sanity_val_steps=1, epochs=3)
    assert averaging.scores == pytest.approx(SCORES[:3])


def test_another_fit_begins_anew(tmp_path, plain):
    averaging = TriggeredAveraging(interval=2)
    run(tmp_path, averaging=averaging)
    assert averaging.triggered
    model, _, _ = run(tmp_path, averaging=averaging, epochs=3)
    assert not averaging.triggered
    assert averaging.scores == pytest.approx(SCORES[:3])
    assert torch.equal(model.weight, plain[3 * STEPS - 1])


# Before it


def test_before_the_trigger_validation_sees_the_trained_weights(averaged, plain):
    model, _, _ = averaged
    for epochs in range(1, TRIGGER + 1):
        assert torch.equal(model.validated[epochs - 1], plain[epochs * STEPS - 1])


def test_before_the_trigger_a_checkpoint_holds_the_trained_weights(averaged, plain):
    _, _, folder = averaged
    for epochs in range(1, TRIGGER):
        checkpoint = load(folder, epochs)
        assert torch.equal(checkpoint["state_dict"]["weight"], plain[epochs * STEPS - 1])
        assert "averaging_state" not in checkpoint
        assert "current_model_state" not in checkpoint


def test_a_run_that_never_triggers_ends_with_the_trained_weights(tmp_path, plain):
    model, averaging, _ = run(tmp_path, epochs=TRIGGER - 1)
    assert not averaging.triggered
    assert torch.equal(model.weight, plain[(TRIGGER - 1) * STEPS - 1])


# After it


def test_the_optimizer_goes_on_as_if_there_were_no_average(averaged, plain):
    model, _, _ = averaged
    assert len(model.trained) == len(plain)
    assert all(
        torch.equal(weight, other) for weight, other in zip(model.trained, plain, strict=True)
    )


def test_after_the_trigger_validation_sees_the_average(averaged, averages):
    model, _, _ = averaged
    for epochs in range(TRIGGER + 1, EPOCHS + 1):
        assert torch.allclose(model.validated[epochs - 1], averages[epochs], rtol=1e-5)
        assert not torch.allclose(model.validated[epochs - 1], model.trained[epochs * STEPS - 1])


def test_after_the_trigger_a_checkpoint_holds_the_average(averaged, averages, plain):
    _, _, folder = averaged
    for epochs in range(TRIGGER, EPOCHS + 1):
        checkpoint = load(folder, epochs)
        assert torch.allclose(checkpoint["state_dict"]["weight"], averages[epochs], rtol=1e-5)
        assert torch.equal(checkpoint["current_model_state"]["weight"], plain[epochs * STEPS - 1])
    # At the trigger itself the average is of one set of weights.
    assert torch.equal(load(folder, TRIGGER)["state_dict"]["weight"], plain[TRIGGER * STEPS - 1])


def test_the_average_is_what_remains_in_the_end(averaged, averages):
    model, _, _ = averaged
    assert torch.allclose(model.weight, averages[EPOCHS], rtol=1e-5)


def test_steps_that_accumulate_gradients_count_once(tmp_path):
    plain = Model()
    make_trainer(accumulate_grad_batches=2).fit(plain, *batches())
    model, _, _ = run(tmp_path, accumulate_grad_batches=2)
    # Of 3 batches the second and the last one end with a step.
    steps = [w for batch, w in enumerate(plain.trained) if batch % STEPS != 0]
    expected = torch.stack(steps[TRIGGER * 2 - 1 :]).double().mean(0).float()
    assert torch.allclose(model.weight, expected, rtol=1e-5)


# Resuming and scoring


@pytest.mark.parametrize("epochs", [TRIGGER - 1, TRIGGER, TRIGGER + 1])
def test_a_resumed_run_equals_the_unbroken_one(averaged, tmp_path, epochs):
    model, averaging, folder = averaged
    resumed, callback, _ = run(tmp_path, ckpt_path=folder / f"{epochs}.ckpt")
    assert torch.equal(resumed.weight, model.weight)
    assert callback.scores == averaging.scores
    for later in range(epochs + 1, EPOCHS + 1):
        ours, theirs = load(tmp_path, later), load(folder, later)
        assert torch.equal(ours["state_dict"]["weight"], theirs["state_dict"]["weight"])
    half = len(resumed.trained)
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(resumed.trained, model.trained[-half:], strict=True)
    )


@pytest.mark.parametrize("epochs", [2, TRIGGER + 2])
def test_a_checkpoint_is_scored_with_the_weights_it_holds(averaged, tmp_path, epochs):
    _, _, folder = averaged
    model, _, trainer = run(tmp_path)  # the trainer has an average of its own by now
    weight = load(folder, epochs)["state_dict"]["weight"]
    model.validated.clear()
    trainer.validate(model, batches()[1], ckpt_path=folder / f"{epochs}.ckpt", verbose=False)
    trainer.test(model, batches()[1], ckpt_path=folder / f"{epochs}.ckpt", verbose=False)
    assert torch.equal(model.validated[0], weight)
    assert torch.equal(model.tested[0], weight)


def test_the_checkpoint_of_a_validation_knows_what_that_triggered(tmp_path):
    every = ModelCheckpoint(tmp_path, filename="{epoch}", monitor="val/ppl", save_top_k=-1)
    callback = TriggeredAveraging(interval=2)
    make_trainer(every, callback, epochs=TRIGGER, enable_checkpointing=True).fit(
        Model(), *batches()
    )
    before, at = (
        torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)
        for epoch in (TRIGGER - 2, TRIGGER - 1)
    )
    assert not before["callbacks"]["TriggeredAveraging"]["triggered"]
    assert at["callbacks"]["TriggeredAveraging"]["triggered"]
    assert at["averaging_state"]["n_averaged"] == 1
    assert "averaging_state" not in before


def test_buffers_are_those_of_the_model_and_no_average(tmp_path):
    class Counting(Model):
        """Its table has another shape from `setup` on, and counts the steps."""

        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.zeros(1, dtype=torch.int64))

        def setup(self, stage):
            self.register_buffer("table", torch.zeros(2, dtype=torch.int64))

        def training_step(self, batch, batch_idx):
            self.table += 1
            return super().training_step(batch, batch_idx)

    make_trainer(TriggeredAveraging(interval=2), SaveAfterEpochs(tmp_path)).fit(
        Counting(), *batches()
    )
    for epochs in (TRIGGER, EPOCHS):
        assert load(tmp_path, epochs)["state_dict"]["table"].tolist() == [epochs * STEPS] * 2


# Errors


def test_a_score_that_validation_does_not_log_is_told(tmp_path):
    with pytest.raises(ValueError, match="has to log val/loss, it logged val/ppl"):
        run(tmp_path, averaging=TriggeredAveraging("val/loss"))


def test_an_interval_below_one_is_refused():
    with pytest.raises(ValueError, match="1 check or more, got 0"):
        TriggeredAveraging(interval=0)
