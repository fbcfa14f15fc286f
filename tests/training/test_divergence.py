"""Runs that diverge, and how the norm of the gradient tells of it."""

import csv
import math
import re
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.optim import SGD

from rnnkit.language_modeling.task import LanguageModel
from rnnkit.training.callbacks.divergence import KeepGoodCheckpoints, remedy
from rnnkit.training.callbacks.percentile_clipping import PercentileClipping
from tests.small_runs import Losses, make_data, make_model, make_trainer

pytestmark = pytest.mark.training


class Norms(Callback):
    """The norm of every step's gradient, by hand, before it is clipped."""

    def __init__(self):
        self.values = {}

    def on_before_optimizer_step(self, trainer, module, optimizer):
        squares = sum(float(each.grad.double().square().sum()) for each in module.parameters())
        self.values[trainer.global_step] = squares**0.5


def logged(folder, name):
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {int(row["step"]): float(row[name]) for row in rows if row.get(name)}


@pytest.mark.parametrize(
    "clipping",
    [
        {"gradient_clip_val": 0.01},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"gradient_clip_val": 0.01, "precision": "bf16-mixed"},
        {},
    ],
    ids=["by_norm", "by_value", "by_norm_in_bfloat16", "none"],
)
def test_the_norm_before_clipping_is_logged(clipping, corpus, tmp_path):
    norms, data = Norms(), make_data(corpus)
    trainer = make_trainer(
        callbacks=[norms],
        logger=CSVLogger(tmp_path, name="", version=""),
        log_every_n_steps=4,
        max_steps=12,
        limit_val_batches=0,
        **clipping,
    )
    trainer.fit(make_model(data), data)
    found = logged(tmp_path, "train/grad_norm")
    assert sorted(found) == [3, 7, 11]
    assert found == pytest.approx({step: norms.values[step] for step in found}, rel=1e-4)
    assert min(found.values()) > 0.05  # more than what is left by clipping
    assert sorted(logged(tmp_path, "train/seconds")) == [3, 7, 11]


class Sharded(LanguageModel):
    """As FSDP's module, which alone can clip by the norm of what all processes have."""

    def clip_grad_norm_(self, limit):
        return torch.nn.utils.clip_grad_norm_(self.parameters(), limit)


@pytest.mark.parametrize("algorithm", [None, "norm", "value"])
def test_a_module_that_clips_its_own_gradients_is_left_to_it(algorithm, corpus, monkeypatch):
    asked, norms, data = [], Norms(), make_data(corpus)
    clip = Sharded.clip_grad_norm_

    def note(module, limit):
        asked.append((limit, float(clip(module, limit))))
        return torch.tensor(asked[-1][1])

    monkeypatch.setattr(Sharded, "clip_grad_norm_", note)
    torch.manual_seed(0)
    model = Sharded(data.vocabulary_size, embedding_size=12, hidden_size=12)
    limits = {} if algorithm is None else {"gradient_clip_val": 0.01}
    trainer = make_trainer(
        callbacks=[norms],
        max_steps=2,
        log_every_n_steps=1 if algorithm is None else 50,
        limit_val_batches=0,
        gradient_clip_algorithm=algorithm,
        **limits,
    )
    trainer.fit(model, data)
    # Clipping needs it at every step, a log where it is written.
    expected = {None: [math.inf] * 2, "norm": [0.01] * 2, "value": []}[algorithm]
    assert [limit for limit, _ in asked] == expected
    if expected:
        assert [norm for _, norm in asked] == pytest.approx([*norms.values.values()], rel=1e-4)
    largest = max(float(each.grad.abs().max()) for each in model.parameters())
    assert (largest <= 0.01) == (algorithm is not None)


@pytest.mark.parametrize("accumulated", [1, 3])
def test_the_loss_is_the_mean_over_all_batches_since_it_was_last_logged(
    accumulated, corpus, tmp_path
):
    losses, data = Losses(), make_data(corpus)
    trainer = make_trainer(
        callbacks=[losses],
        logger=CSVLogger(tmp_path, name="", version=""),
        log_every_n_steps=2,
        max_steps=6,
        limit_val_batches=0,
        accumulate_grad_batches=accumulated,
    )
    trainer.fit(make_model(data), data)
    batches = torch.tensor(losses.values)
    expected = batches.view(3, 2 * accumulated).mean(1).tolist()
    found = logged(tmp_path, "train/loss")
    assert found == pytest.approx(dict(zip((1, 3, 5), expected, strict=True)), rel=1e-5)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_as_the_trainer_is_told_to(algorithm, corpus):
    class Clipped(Callback):
        largest = 0.0

        def on_before_zero_grad(self, trainer, module, optimizer):
            gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
            if gradients:
                whole = torch.cat(gradients)
                size = whole.norm() if algorithm == "norm" else whole.abs().max()
                self.largest = max(self.largest, float(size))

    clipped, data = Clipped(), make_data(corpus)
    trainer = make_trainer(
        callbacks=[clipped],
        max_steps=6,
        limit_val_batches=0,
        gradient_clip_val=0.002,
        gradient_clip_algorithm=algorithm,
    )
    trainer.fit(make_model(data), data)
    assert clipped.largest == pytest.approx(0.002, rel=1e-3)


def diverge(corpus, folder, **changes):
    """Train well for an epoch, then with a decay so large that it turns every weight over."""

    class Overshoot(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                trainer.optimizers[0].param_groups[0]["weight_decay"] = 3e3

    settings = {"dirpath": folder, "enable_version_counter": False}
    best = ModelCheckpoint(**settings, monitor="val/ppl", filename="best", save_last=True)
    newest = ModelCheckpoint(**settings, filename="newest")  # after every validation
    data = make_data(corpus)
    model = make_model(data, cell="rnn", optimizer=lambda parameters: SGD(parameters, lr=0.5))
    trainer = make_trainer(
        **{
            "callbacks": [Overshoot(), KeepGoodCheckpoints(), best, newest],
            "max_epochs": 5,
            "enable_checkpointing": True,
            "gradient_clip_val": 1e30,
            **changes,
        }
    )
    with pytest.raises(FloatingPointError) as error:
        trainer.fit(model, data)
    return str(error.value), model


def assert_finite(folder, *names):
    assert {path.name for path in folder.iterdir()} == {f"{name}.ckpt" for name in names}
    for name in names:
        weights = torch.load(folder / f"{name}.ckpt", weights_only=True)["state_dict"]
        assert all(weight.isfinite().all() for weight in weights.values())


def test_a_run_that_diverges_tells_its_last_norms_and_keeps_what_was_good(corpus, tmp_path):
    message, model = diverge(corpus, tmp_path, log_every_n_steps=5)
    assert not all(p.isfinite().all() for p in model.parameters())  # it did diverge
    step = int(re.search(r"became nan at step (\d+) of epoch 1: lower the learn", message)[1])
    told = last_norms(message)
    assert max(told) < step
    assert [*told] == list(range(max(told) - 4, max(told) + 1))  # every step's
    assert all(norm < 1 for each, norm in told.items() if each < 20)  # the good epoch's
    assert_finite(tmp_path, "best", "last", "newest")


@pytest.mark.parametrize("looked_at", ["loss", "weights"])
@pytest.mark.parametrize(
    ("clipping", "told"),
    [
        (None, "lower the learning rate or clip the gradient: with PercentileClipping in"),
        (1.5, "the learning rate or trainer.gradient_clip_val, which is 1.5, or set that to null"),
        (95, r"learning rate or the percentile of PercentileClipping, 95: [\d.e+]+ by now, and go"),
    ],
    ids=["none", "fixed", "percentile"],
)
def test_what_is_proposed_depends_on_what_clips(clipping, told, looked_at, corpus):
    class Break(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step == 22:
                module.decoder.bias.data[0] = torch.nan
                if looked_at == "weights":
                    trainer.save_checkpoint("untouched.ckpt")

    data = make_data(corpus)
    trainer = make_trainer(
        callbacks=[Break(), KeepGoodCheckpoints(), *[PercentileClipping()][: clipping == 95]],
        gradient_clip_val=None if clipping == 95 else clipping,
        log_every_n_steps=1,
    )
    with pytest.raises(FloatingPointError, match=told) as caught:
        trainer.fit(make_model(data), data)
    message = str(caught.value)
    beginning = {"loss": "the loss became nan at step 22 of", "weights": "decoder.bias is not fin"}
    assert message.startswith(beginning[looked_at])
    assert [*last_norms(message)] == [17, 18, 19, 20, 21]
    assert ("or trainer.gradient_clip_val, which" in message) == (clipping == 1.5)


def last_norms(message):
    """The norms that a message tells, by their steps, which are five in a row."""
    told = re.findall(r"([\d.e+]+) at step (\d+)", message.split("last finite norms were ")[1])
    steps = [int(step) for _, step in told]
    assert steps == list(range(steps[-1] - 4, steps[-1] + 1))
    return {int(step): float(norm) for norm, step in told}


@pytest.mark.parametrize("every", [0, 1000])
def test_weights_that_are_not_finite_are_never_saved(every, corpus, tmp_path):
    # Validated within the epoch, between the steps at which anybody looks at the loss.
    message, _ = diverge(
        corpus, tmp_path, log_every_n_steps=every, val_check_interval=5, limit_train_batches=23
    )
    assert re.search(r"\w is not finite after step \d+, so no checkpoint was written: ", message)
    last_norms(message)
    assert_finite(tmp_path, "best", "last", "newest")


def test_no_checkpoint_between_validations_holds_weights_that_are_not_finite(corpus, tmp_path):
    class Break(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step == 3:
                module.decoder.bias.data[0] = torch.nan

    every = ModelCheckpoint(tmp_path, filename="newest", every_n_train_steps=1)
    trainer = make_trainer(
        callbacks=[Break(), KeepGoodCheckpoints(), every],
        enable_checkpointing=True,
        limit_val_batches=0,
    )
    data = make_data(corpus)
    with pytest.raises(FloatingPointError, match=r"decoder\.bias is not finite after step 3,"):
        trainer.fit(make_model(data), data)
    assert_finite(tmp_path, "newest")


@pytest.mark.parametrize(("culprit", "step"), [(3, 0), (4, 1), (8, 2)])
def test_the_step_is_named_whose_loss_is_not_finite(culprit, step, corpus, monkeypatch):
    """Of nine batches in steps of four, the last of one, the only one of which is looked at."""
    loss = LanguageModel.loss_per_target

    def spoilt(model, summed, *others):
        factor = math.nan if model.trainer.fit_loop.batch_idx == culprit else 1.0
        return loss(model, summed * factor, *others)

    monkeypatch.setattr(LanguageModel, "loss_per_target", spoilt)
    data = make_data(corpus)
    trainer = make_trainer(
        accumulate_grad_batches=4, limit_train_batches=9, log_every_n_steps=50, limit_val_batches=0
    )
    with pytest.raises(FloatingPointError, match=f"became nan at step {step} of epoch 0: "):
        trainer.fit(make_model(data), data)


def test_float16_is_named_where_it_is_the_reason(corpus):
    data = make_data(corpus)
    trainer = make_trainer(precision="16-true", log_every_n_steps=1, limit_val_batches=0)
    model = make_model(data, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3))
    with pytest.raises(FloatingPointError) as caught:
        trainer.fit(model, data)
    told = str(caught.value)
    assert re.search(r"became nan at step \d of epoch 0: 16-true computes in float16 alone", told)
    assert "use --trainer.precision bf16-true or 32-true, or 16-mixed on a GPU" in told
    assert "learning rate" not in told


@pytest.mark.parametrize(
    ("precision", "step", "told", "untold"),
    [
        ("16-true", 0, "does not scale the loss: use --trainer.precision bf16-true", "learning"),
        ("16-mixed", 3, "use --trainer.precision bf16-mixed or 32-true, or lower the l", "scale"),
        ("bf16-true", 3, "lower the learning rate or", "precision"),
        ("32-true", 1, "lower the learning rate or", "precision"),
        ("32-true", 0, "no step has changed a weight yet", "lower"),
        ("bf16-mixed", 0, "no step has changed a weight yet", "lower"),
    ],
)
def test_the_remedy_is_for_the_precision_and_the_step(precision, step, told, untold):
    trainer = SimpleNamespace(precision=precision, gradient_clip_val=5.0, callbacks=[])
    found = remedy(trainer, step)
    assert told in found
    assert untold not in found


@pytest.mark.parametrize(("initial", "told"), [(None, "none"), (0.25, "0.25")])
def test_before_there_is_a_percentile_the_initial_threshold_is_to_blame(initial, told):
    clipping = PercentileClipping(initial=initial)
    clipping.load_state_dict({"norms": [1.0] * 19})
    trainer = SimpleNamespace(precision="32-true", gradient_clip_val=None, callbacks=[clipping])
    expected = f"or the initial threshold of PercentileClipping, {told} until 20 norms are known, "
    assert expected in remedy(trainer, 3)
    clipping.load_state_dict({"norms": [1.0] * 20})
    assert "or the percentile of PercentileClipping, 95: 1 by now, and go on" in remedy(trainer, 3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_not_scored(value, corpus):
    data = make_data(corpus)
    model = make_model(data)
    name, weight = next(model.named_parameters())
    weight.data[0, 0] = value
    for score in (make_trainer().test, make_trainer().validate):
        with pytest.raises(FloatingPointError, match=f"^{name} is NaN or infinite somewhere, and"):
            score(model, data, verbose=False)
