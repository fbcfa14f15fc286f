"""Windows of random lengths in training: every token is read, and the rate follows the length."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from torch.nn import functional as F

from tests.small_runs import make_data, make_model, make_trainer, parameters

pytestmark = pytest.mark.training

RANDOM = {"window": 20, "random_windows": True}


class Seen(Callback):
    """Epoch, input and factor of every window that was trained on, and the rates of its step."""

    def __init__(self):
        self.windows, self.rates, self.between = [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.windows.append((trainer.current_epoch, batch))
        self.between.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])


def fit(corpus, trainer_options=None, **changes):
    data, seen = make_data(corpus, **RANDOM), Seen()
    model = make_model(data, **changes)
    trainer = make_trainer(callbacks=[seen], **{"limit_val_batches": 0, **(trainer_options or {})})
    trainer.fit(model, data)
    return model, data, seen, trainer


def test_every_token_is_read_once_in_each_of_three_epochs(corpus):
    _, data, seen, trainer = fit(corpus, {"max_epochs": 3})
    whole = data.train_dataloader()
    lengths = []
    for epoch in range(3):
        windows = [window for number, window in seen.windows if number == epoch]
        assert torch.equal(torch.cat([window.input for window in windows]), whole.inputs)
        assert torch.equal(torch.cat([window.target for window in windows]), whole.targets)
        lengths.append([len(window.input) for window in windows])
    assert trainer.global_step == len(seen.windows)
    assert len({tuple(epoch) for epoch in lengths}) == 3
    assert len(set(lengths[0])) > 3


def test_validation_comes_after_the_last_window_of_each_epoch(corpus):
    class Validations(Callback):
        def __init__(self):
            self.steps = []

        def on_validation_start(self, trainer, module):
            self.steps.append(trainer.global_step)

    data, validations = make_data(corpus, **RANDOM), Validations()
    make_trainer(callbacks=[validations], max_epochs=3).fit(make_model(data), data)
    windows = len(data.train_dataloader())
    assert validations.steps == [windows, 2 * windows, 3 * windows]


def test_the_rate_of_a_step_follows_its_window_and_is_restored(corpus):
    _, _, seen, trainer = fit(
        corpus, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.3)
    )
    assert seen.rates == pytest.approx([0.3 * len(w.input) / 20 for _, w in seen.windows])
    assert set(seen.between) == {0.3}
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.3


def test_a_scheduler_never_sees_the_rate_of_a_window(corpus):
    _, _, seen, _ = fit(
        corpus,
        {"max_steps": 6},
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
        lr_scheduler_interval="step",
    )
    assert seen.between == [0.5**step for step in range(6)]
    assert seen.rates == pytest.approx(
        [0.5**step * len(w.input) / 20 for step, (_, w) in enumerate(seen.windows)]
    )


def test_training_equals_a_loop_that_scales_the_rate_by_hand(corpus):
    model, data, seen, _ = fit(
        corpus, {"max_epochs": 2}, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.3)
    )
    twin = make_model(data)
    state = None
    for _, window in seen.windows:
        state = None if window.position == 0 else state
        logits, state = twin(window.input, state)
        state = tuple(part.detach() for part in state)
        loss = F.cross_entropy(logits.flatten(0, 1), window.target.flatten())
        twin.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter -= 0.3 * len(window.input) / 20 * parameter.grad
    assert torch.allclose(parameters(model), parameters(twin), atol=1e-5)


def test_the_rate_is_restored_where_a_step_fails(corpus):
    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            raise RuntimeError("no step")

    optimizers = []

    def make(parameters):
        optimizers.append(Broken(parameters, lr=0.3))
        return optimizers[-1]

    with pytest.raises(RuntimeError, match="no step"):
        fit(corpus, optimizer=make)
    assert optimizers[0].param_groups[0]["lr"] == 0.3


def test_windows_of_one_length_leave_the_rate_alone(corpus):
    data, seen = make_data(corpus, window=20), Seen()
    make_trainer(callbacks=[seen], limit_val_batches=0).fit(make_model(data), data)
    assert set(seen.rates) == {1.0}


def test_windows_with_rates_of_their_own_are_not_accumulated(corpus):
    with pytest.raises(ValueError, match="accumulate_grad_batches 2 makes one step of windows"):
        fit(corpus, {"accumulate_grad_batches": 2})


def test_processes_share_windows_of_the_same_lengths(corpus):
    whole = list(make_data(corpus, **RANDOM).train_dataloader())
    shares = []
    for rank in range(2):
        data = make_data(corpus, **RANDOM)
        data.trainer = SimpleNamespace(
            global_rank=rank,
            world_size=2,
            limit_train_batches=1.0,
            fit_loop=make_trainer().fit_loop,
        )
        shares.append(list(data.train_dataloader()))
    for window, first, second in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([first.input, second.input], dim=1), window.input)
        assert first.rate_factor == second.rate_factor == window.rate_factor


def test_a_run_that_goes_on_from_an_epochs_end_has_the_lengths_of_the_next_epoch(corpus, tmp_path):
    class Save(Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "first.ckpt")

    def lengths(*callbacks, **options):
        data, seen = make_data(corpus, **RANDOM), Seen()
        trainer = make_trainer(callbacks=[seen, *callbacks], limit_val_batches=0, max_epochs=3)
        trainer.fit(make_model(data), data, **options)
        return [(epoch, len(window.input)) for epoch, window in seen.windows]

    unbroken = lengths(Save())
    resumed = lengths(ckpt_path=tmp_path / "first.ckpt")
    assert resumed == [(epoch, length) for epoch, length in unbroken if epoch > 0]
