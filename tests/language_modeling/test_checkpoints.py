from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from rnnkit.training.callbacks.averaging import TriggeredAveraging
from rnnkit.training.callbacks.generator_states import GeneratorStates
from tests.small_runs import make_data, make_model, make_trainer, parameters

pytestmark = pytest.mark.training


class SaveAt(Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("step", [7, 25, 30])  # within an epoch of 25 steps, at its end, beyond
def test_a_resumed_run_equals_the_unbroken_one(corpus, tmp_path, cell, step):
    changes = {
        "cell": cell,
        "dropout": 0.3,
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    }
    data = make_data(corpus)
    path = tmp_path / "middle.ckpt"
    unbroken = make_model(data, **changes)
    callbacks = [GeneratorStates(), SaveAt(step, path)]
    make_trainer(callbacks=callbacks, max_steps=40, max_epochs=-1).fit(unbroken, data)

    resumed = make_model(make_data(corpus), **changes)
    torch.manual_seed(1)
    trainer = make_trainer(callbacks=[GeneratorStates()], max_steps=40, max_epochs=-1)
    trainer.fit(resumed, make_data(corpus), ckpt_path=path)
    assert trainer.global_step == 40
    assert torch.equal(parameters(resumed), parameters(unbroken))


AWD = {
    "embedding_size": 8,
    "hidden_size": 12,
    "last_hidden_size": 8,
    "tied": True,
    "dropout": 0.2,
    "locked_dropout": True,
    "embedding_dropout": 0.1,
    "weight_drop": 0.2,
    "activation_regularization": 2.0,
    "temporal_activation_regularization": 1.0,
    "truncation_steps": 4,
    "truncation_probability": 0.5,
    "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=3.0, momentum=0.5),
}


class Steps(Callback):
    """Length of the window, and the rate, of every step."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seen.append((len(batch.input), self.rate))


# 25 random windows an epoch, a check after every fourth: averaging begins with the third or fourth.
@pytest.mark.parametrize("step", [7, 18, 25, 30, 47])
def test_a_resumed_awd_lstm_equals_the_unbroken_one(corpus, tmp_path, step):
    def fit(*callbacks, **options):
        data = make_data(corpus, random_windows=True)
        assert len(data.train_dataloader()) == 25
        model, steps = make_model(data, **AWD), Steps()
        averaging = TriggeredAveraging(interval=1)
        trainer = make_trainer(
            callbacks=[GeneratorStates(), averaging, steps, *callbacks],
            val_check_interval=4,
            max_steps=60,
            max_epochs=-1,
        )
        trainer.fit(model, data, **options)
        return model, averaging, steps.seen

    path = tmp_path / "middle.ckpt"
    unbroken, averaging, steps = fit(SaveAt(step, path))
    assert len(averaging.scores) == 6 + 6 + 2
    assert averaging.triggered
    torch.manual_seed(1)
    resumed, resumed_averaging, resumed_steps = fit(ckpt_path=path)
    assert resumed_steps == steps[step:]
    assert resumed_averaging.scores == averaging.scores
    assert torch.equal(parameters(resumed), parameters(unbroken))
    # The checkpoints lie on both sides of the trigger.
    saved = torch.load(path, weights_only=True)
    assert ("averaging_state" in saved) == (step > 7)


def test_a_checkpoint_from_before_there_were_these_options_is_taken(corpus, tmp_path):
    data = make_data(corpus)
    save = SaveAt(7, tmp_path / "new.ckpt")
    model = make_model(data)
    make_trainer(callbacks=[save], max_steps=12).fit(model, data)
    old = torch.load(save.path, weights_only=True)
    known = {"vocabulary_size", "cell", "embedding_size", "hidden_size", "num_layers", "dropout"}
    known |= {"tied", "init_range", "loss_reduction", "backend", "lr_scheduler_interval"}
    for name in old["hyper_parameters"].keys() - known:
        del old["hyper_parameters"][name]
    (loader,) = old["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    del loader["epoch"], loader["seed"]
    torch.save(old, tmp_path / "old.ckpt")
    resumed = make_model(data)
    make_trainer(max_steps=12).fit(resumed, make_data(corpus), ckpt_path=tmp_path / "old.ckpt")
    assert torch.equal(parameters(resumed), parameters(model))


def test_a_checkpoint_holds_the_carried_state_as_plain_tensors(corpus, tmp_path):
    data = make_data(corpus)
    save = SaveAt(7, tmp_path / "middle.ckpt")
    make_trainer(callbacks=[save]).fit(make_model(data), data)
    hidden, cell = torch.load(save.path, weights_only=True)["carried_state"]
    assert hidden.shape == cell.shape == (2, 4, 12)
    assert hidden.abs().max() > 0
    assert not hidden.requires_grad


def test_a_checkpoint_of_another_model_is_refused_with_every_difference(corpus, tmp_path):
    data = make_data(corpus)
    save = SaveAt(2, tmp_path / "small.ckpt")
    make_trainer(callbacks=[save], max_steps=2).fit(make_model(data), data)
    other = make_model(data, cell="gru", hidden_size=20)
    with pytest.raises(ValueError, match=r"cell lstm .* gru here; hidden_size 12 .* 20 here"):
        make_trainer().test(other, data, ckpt_path=save.path, verbose=False)


def test_a_checkpoint_with_other_words_is_refused(corpus, tmp_path):
    data = make_data(corpus)
    save = SaveAt(2, tmp_path / "words.ckpt")
    make_trainer(callbacks=[save], max_steps=2).fit(make_model(data), data)
    for name in ("train", "valid", "test"):
        text = Path(corpus, f"{name}.txt").read_text()
        (tmp_path / f"{name}.txt").write_text(text.replace("cat", "fox"))
    other = make_data(str(tmp_path))
    for run in (make_trainer().validate, make_trainer().test):
        with pytest.raises(ValueError, match="vocabulary"):
            run(make_model(other), other, ckpt_path=save.path, verbose=False)
    with pytest.raises(ValueError, match="vocabulary"):
        make_trainer().fit(make_model(other), other, ckpt_path=save.path)
