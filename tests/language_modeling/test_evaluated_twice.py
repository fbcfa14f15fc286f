"""Optimizers that ask for a window's loss several times a step: LBFGS, SAM."""

import pytest
import torch

from tests.small_runs import make_data, make_model, make_trainer

pytestmark = pytest.mark.training


class Twice(torch.optim.SGD):
    """Evaluates the loss again with the same weights, and steps by the second gradient."""

    def __init__(self, parameters, losses):
        super().__init__(parameters, lr=1.0)
        self.seen = losses

    def step(self, closure=None):
        with torch.enable_grad():
            self.seen.append([float(closure()), float(closure())])
        return super().step()


def fit(corpus, make_optimizer, max_steps=6, **changes):
    data = make_data(corpus)
    model = make_model(data, optimizer=make_optimizer)
    trainer = make_trainer(limit_val_batches=0, max_steps=max_steps, **changes)
    trainer.fit(model, data)
    return model, trainer


def test_equal_weights_and_window_have_equal_losses(corpus):
    losses = []
    twice, _ = fit(corpus, lambda parameters: Twice(parameters, losses))
    once, _ = fit(corpus, lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    assert len(losses) == 6
    assert all(first == second for first, second in losses)
    for found, expected in zip(twice._training_state, once._training_state, strict=True):
        assert torch.equal(found, expected)
    for found, expected in zip(twice.parameters(), once.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_the_logged_loss_is_that_before_the_step_and_no_mean_with_what_was_tried(corpus):
    def make_lbfgs(parameters):
        return torch.optim.LBFGS(parameters, lr=0.5, max_iter=3)

    options = {"max_steps": 1, "log_every_n_steps": 1}
    _, searched = fit(corpus, make_lbfgs, **options)
    assert searched.optimizers[0].state_dict()["state"][0]["func_evals"] > 1
    _, still = fit(corpus, lambda parameters: torch.optim.SGD(parameters, lr=0.0), **options)
    assert searched.callback_metrics["train/loss"] == still.callback_metrics["train/loss"]
