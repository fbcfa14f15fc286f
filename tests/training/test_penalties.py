"""Penalties of a configuration: added to the loss as their weights say, and to nothing else."""

import csv

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from torch.nn import functional as F

import rnnkit
from rnnkit.cli import main
from rnnkit.language_modeling.task import LanguageModel
from rnnkit.language_modeling.windows import IGNORED
from rnnkit.nn.gradient_flow import gradient_flow
from rnnkit.nn.penalties import identity_penalty, omega, spectral_radius_penalty
from rnnkit.nn.states import differentiate, watch_states
from rnnkit.sequences import SequenceData, SequenceModel
from rnnkit.training.callbacks.gradient_flow import GradientFlow
from rnnkit.training.penalties import Penalties
from rnnkit.translation.task import Translation
from rnnkit_kernels.functional import watched
from tests.small_runs import make_data, make_model, make_trainer, parameters
from tests.small_tasks import TASKS

RATE = 0.5


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "corpus").mkdir()
    for name in ("train", "valid", "test"):
        text = " ".join("abcdefg"[i * i % 7] for i in range(210))
        (tmp_path / "corpus" / f"{name}.txt").write_text(text)
    return str(tmp_path / "corpus")


def sgd(weights):
    return torch.optim.SGD(weights, RATE)


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.training
@pytest.mark.parametrize("reduction", ["mean", "sum_over_time"])
@pytest.mark.parametrize("accumulated", [1, 4])
def test_a_penalty_is_added_to_the_loss_per_target(accumulated, reduction, corpus):
    """Of six windows, the last shorter than the others: a step may have fewer batches."""
    penalties = [{"name": "identity", "weight": 2.0}, {"name": "spectral_radius", "weight": 0.5}]
    data = make_data(corpus)
    changes = {"optimizer": sgd, "loss_reduction": reduction, "dropout": 0.0}
    model = make_model(data, **changes, penalties=penalties)
    trainer = make_trainer(accumulate_grad_batches=accumulated, limit_val_batches=0)
    trainer.fit(model, data)

    other, state, group = make_model(data, **changes), None, []
    optimizer = sgd(other.parameters())
    windows = list(data.train_dataloader())
    assert len(windows) % accumulated or accumulated == 1
    for number, window in enumerate(windows, 1):
        logits, state = other(window.input, state)
        state = tuple(part.detach() for part in state)
        target = window.target.flatten()
        summed = F.cross_entropy(logits.flatten(0, 1), target, reduction="sum")
        count = int((target != IGNORED).sum())
        steps = len(window.input) if reduction == "sum_over_time" else 1
        group.append((summed, count / steps, count))
        if number % accumulated and number < len(windows):
            continue
        optimizer.zero_grad()
        divisor = sum(n for _, n, _ in group)
        penalty = 2 * identity_penalty(other.rnn) + spectral_radius_penalty(other.rnn) / 2
        # A target's share is as large whatever the sum is divided by.
        whole = sum(s for s, _, _ in group) + penalty * sum(count for _, _, count in group)
        (whole / divisor).backward()
        optimizer.step()
        group = []
    assert torch.allclose(parameters(model), parameters(other), atol=1e-5)


@pytest.mark.training
def test_penalties_are_logged_beside_the_loss_and_no_part_of_it(corpus, tmp_path):
    found = {}
    for penalties in (
        None,
        [{"name": "omega", "weight": 3.0}, {"name": "jacobian", "weight": 1.0}],
    ):
        data = make_data(corpus)
        model = make_model(data, optimizer=sgd, penalties=penalties)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        folder = tmp_path / str(penalties is not None)
        logger = CSVLogger(folder, name="", version="")
        trainer = make_trainer(logger=logger, max_steps=1, log_every_n_steps=1)
        trainer.fit(model, data)
        found[penalties is not None] = read(folder / "metrics.csv")[0]
    plain, penalised = found[False], found[True]
    assert float(penalised["train/loss"]) == pytest.approx(float(plain["train/loss"]), rel=1e-6)
    assert float(penalised["train/ppl"]) == pytest.approx(float(plain["train/ppl"]), rel=1e-6)
    assert "train/penalty_omega" not in plain
    # The value is the one that the functions have for the first window.
    model.load_state_dict(before)
    window = next(iter(make_data(corpus).train_dataloader()))
    with watch_states(model.rnn) as states:
        logits, _ = model(window.input)
        F.cross_entropy(logits.flatten(0, 1), window.target.flatten()).backward()
    (entries,) = states.values()
    expected = torch.stack([omega(entry) for entry in entries]).mean()
    assert float(penalised["train/penalty_omega"]) == pytest.approx(float(expected), rel=1e-4)
    assert float(penalised["train/penalty_jacobian"]) > 0


@pytest.mark.training
@pytest.mark.parametrize("gradient", ["immediate", "full"])
@pytest.mark.parametrize("form", ["squared", "norm"])
def test_omega_trains_by_its_gradient(form, gradient):
    options = {"length": 10, "steps_per_epoch": 1, "batch_size": 5, "eval_examples": 5}

    def make(penalties=None):
        torch.manual_seed(1)
        return SequenceModel(2, 1, False, "gru", 6, penalties=penalties, optimizer=sgd)

    penalty = {"name": "omega", "weight": 0.7, "form": form, "gradient": gradient}
    model = make([penalty])
    make_trainer(limit_val_batches=0).fit(model, SequenceData("adding", **options))

    other, batch = make(), next(iter(SequenceData("adding", **options).train_dataloader()))
    with watch_states(other.rnn, graph=gradient == "full") as states:
        loss = (other(batch.input)[:, 0] - batch.target).square().mean()
    (entry,) = states[""]
    if gradient == "full":
        differentiate(loss, [entry])
    else:
        torch.autograd.grad(loss, list(other.rnn.parameters()), retain_graph=True)
    (loss + 0.7 * omega(entry, form)).backward()
    sgd(other.parameters()).step()
    assert torch.allclose(parameters(model), parameters(other), atol=1e-6)


@pytest.mark.training
def test_a_run_with_jacobian_reaches_further_back():
    reached = {}
    for penalties in ([], [{"name": "jacobian", "weight": 5.0, "steps": 5}]):
        data = SequenceData("adding", length=30, steps_per_epoch=60, batch_size=8, eval_examples=8)
        torch.manual_seed(0)
        model = SequenceModel(2, 1, False, "tanh", 16, penalties=penalties)
        make_trainer().fit(model, data)
        input = data._draw(8, 30, "test").input
        reached[len(penalties)] = float(gradient_flow(model.rnn, input)[0].hidden[0].mean())
    assert reached[1] > 100 * reached[0]


@pytest.mark.training
@pytest.mark.usefixtures("no_pictures")
def test_gradient_flow_looks_at_the_same_steps(tmp_path):
    data = SequenceData("adding", length=10, steps_per_epoch=3, batch_size=5, eval_examples=5)
    tables = []
    for penalties in (None, [{"name": "omega", "weight": 1e-9}]):
        torch.manual_seed(0)
        model = SequenceModel(2, 1, False, "lstm", 6, penalties=penalties)
        folder = tmp_path / str(bool(penalties))
        logger = CSVLogger(folder, name="", version="")
        make_trainer(logger=logger, callbacks=[GradientFlow(1)]).fit(model, data)
        tables.append(read(folder / "gradient_flow.csv"))
    assert len(tables[0]) == len(tables[1]) == 3 * 10
    for one, other in zip(*tables, strict=True):
        assert float(one["both"]) == pytest.approx(float(other["both"]), rel=1e-3)


@pytest.mark.training
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("task", TASKS)
def test_every_task_takes_them_from_its_configuration(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = task.__name__
    penalties = "[{name: identity, weight: 0.1}, {name: omega, weight: 0.1}]"
    logger = ("--trainer.logger", "lightning.pytorch.loggers.CSVLogger")
    options = [
        *("--model.penalties", penalties, "--model.recurrent_init", "orthogonal"),
        *("--trainer.max_steps", "2", "--trainer.log_every_n_steps", "1"),
        *("--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "0"),
        *(*logger, "--trainer.logger.save_dir", "out", "--trainer.logger.name", "run"),
    ]
    assert main(["fit", *task(tmp_path), *options]) == 0
    rows = read(tmp_path / "out" / "run" / "version_0" / "metrics.csv")
    assert [row["train/penalty_omega"] != "" for row in rows] == [True, True], name
    assert float(rows[0]["train/penalty_identity"]) > 0


@pytest.mark.parametrize(
    ("penalties", "match"),
    [
        ([{"name": "other", "weight": 1.0}], "spectral_norm, omega.*, got 'other'"),
        ([{"name": "omega", "weight": 0}], "weight above 0 for penalty omega, got 0"),
        ([{"name": "omega"}], "weight above 0 for penalty omega, got None"),
        ([{"name": "omega", "weight": 1, "steps": 3}], "omega has no steps"),
        ([{"name": "identity", "weight": 1, "form": "norm"}], "identity has no form"),
        ([{"name": "jacobian", "weight": 1, "steps": 0}], "steps of 1 or more .* got 0"),
        ([{"name": "omega", "weight": 1, "form": "x"}], "squared or norm, got 'x'"),
        ([{"name": "omega", "weight": 1}] * 2, "every penalty once, got omega, omega"),
    ],
)
def test_what_is_wrong_with_a_penalty_is_told(penalties, match):
    with pytest.raises(ValueError, match=match):
        SequenceModel(2, 1, False, "gru", 6, penalties=penalties)


def test_layers_that_a_penalty_cannot_be_on_are_refused():
    one = [{"name": "identity", "weight": 1.0}]
    with pytest.raises(ValueError, match="Linear has 0 recurrent layers of rnnkit"):
        Penalties(one, torch.nn.Linear(3, 3))
    with pytest.raises(ValueError, match="6 x 4"):
        Penalties(one, rnnkit.LSTM(2, 6, proj_size=4))
    normalised = rnnkit.LSTM(2, 6, layer_norm=True)
    with pytest.raises(ValueError, match="gradient full"):
        Penalties([{"name": "omega", "weight": 1.0}], normalised)
    Penalties([{"name": "omega", "weight": 1.0, "gradient": "full"}], normalised)


def test_contraction_warns_of_what_it_does():
    with pytest.warns(UserWarning, match="makes gradients vanish"):
        Penalties([{"name": "contraction", "weight": 1.0}], rnnkit.RNN(2, 6))


@pytest.mark.training
def test_an_optimizer_that_asks_again_has_no_states_to_penalise():
    data = SequenceData("adding", length=5, steps_per_epoch=1, batch_size=4, eval_examples=4)
    lbfgs = lambda weights: torch.optim.LBFGS(weights, lr=0.1)  # noqa: E731
    penalties = [{"name": "jacobian", "weight": 1.0, "steps": 2}]
    model = SequenceModel(2, 1, False, "gru", 6, penalties=penalties, optimizer=lbfgs)
    with pytest.raises(ValueError, match="evaluates the loss once a step"):
        make_trainer().fit(model, data)
    weights = [{"name": "identity", "weight": 1.0}]
    make_trainer().fit(
        SequenceModel(2, 1, False, "gru", 6, penalties=weights, optimizer=lbfgs), data
    )


def test_weights_in_parts_are_refused(monkeypatch):
    model = SequenceModel(2, 1, False, "gru", 6, penalties=[{"name": "identity", "weight": 1.0}])
    trainer = make_trainer()
    model.trainer = trainer
    monkeypatch.setattr(type(trainer), "strategy", FSDPStrategy.__new__(FSDPStrategy))
    with pytest.raises(ValueError, match=r"whole recurrent weights.*FSDPStrategy"):
        model.on_train_start()


def test_recurrent_weights_begin_as_told():
    model = LanguageModel(20, "rnn", 8, 8, recurrent_init="identity")
    assert torch.equal(model.rnn.weight_hh_l1, torch.eye(8))
    model = LanguageModel(20, "lstm", 8, 8, recurrent_init="orthogonal", forget_bias=1.0)
    block = model.rnn.weight_hh_l0[8:16].detach()
    torch.testing.assert_close(block @ block.t(), torch.eye(8), atol=1e-5, rtol=0)
    bias = model.rnn.bias_ih_l0 + model.rnn.bias_hh_l0
    assert torch.equal(bias[8:16], torch.ones(8))
    sizes = {"embedding_size": 8, "encoder_size": 8, "hidden_size": 8}
    translation = Translation(9, 9, "lstm", **sizes, forget_bias=2.0)
    for layer in (translation.encoder.rnn, translation.decoder.rnn):
        assert torch.equal((layer.bias_ih_l0 + layer.bias_hh_l0)[8:16], torch.full((8,), 2.0))


@pytest.mark.training
@pytest.mark.parametrize("name", ["identity", "spectral_radius", "spectral_norm", "omega"])
def test_a_run_that_diverges_is_told_whatever_its_penalty(name):
    data = SequenceData("adding", length=5, steps_per_epoch=9, batch_size=4, eval_examples=4)
    huge = lambda weights: torch.optim.SGD(weights, lr=1e30)  # noqa: E731
    penalties = [{"name": name, "weight": 1.0}]
    model = SequenceModel(2, 1, False, "relu", 6, penalties=penalties, optimizer=huge)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        make_trainer(log_every_n_steps=1).fit(model, data)


@pytest.mark.training
@pytest.mark.parametrize("options", [{}, {"gradient": "full"}])
def test_batches_shorter_than_the_steps_and_frozen_layers_are_let_be(options):
    data = SequenceData("adding", length=7, steps_per_epoch=1, batch_size=4, eval_examples=4)
    penalties = [{"name": "omega", "weight": 1.0, **options}, {"name": "jacobian", "weight": 1.0}]
    model = SequenceModel(2, 1, False, "gru", 6, num_layers=2, penalties=penalties)
    make_trainer().fit(model, data)
    assert model._penalties.values["jacobian"] > 0
    for name, weight in model.rnn.named_parameters():
        weight.requires_grad_("_l1" in name)
    make_trainer().fit(model, data)
    assert model._penalties.values["omega"] > 0
    model.rnn.requires_grad_(False)
    make_trainer().fit(model, data)
    assert model._penalties.values == {"omega": 0, "jacobian": 0}


@pytest.mark.training
def test_nobody_watches_after_a_step_that_broke_off():
    class Breaks(SequenceModel):
        def errors(self, answers, target):
            raise RuntimeError("out of memory")

    data = SequenceData("adding", length=7, steps_per_epoch=1, batch_size=4, eval_examples=4)
    model = Breaks(2, 1, False, "gru", 6, penalties=[{"name": "omega", "weight": 1.0}])
    with pytest.raises(RuntimeError, match="out of memory"):
        make_trainer().fit(model, data)
    assert watched() is None


def test_omega_in_half_precision_is_that_of_float32_or_refused():
    torch.manual_seed(0)
    model = SequenceModel(2, 1, False, "lstm", 8)
    input = torch.rand(40, 4, 2)
    values = []
    for dtype, gradient in (
        ("float32", "immediate"),
        ("float16", "immediate"),
        ("float16", "full"),
    ):
        penalties = Penalties([{"name": "omega", "weight": 1.0, "gradient": gradient}], model.rnn)
        penalties.begin()
        with torch.autocast("cpu", torch.float16, enabled=dtype == "float16"):
            loss = model(input).float().square().mean()
            if gradient == "full":
                with pytest.raises(ValueError, match="overflows in float16: use bf16-mixed"):
                    penalties(loss)
                continue
            value = penalties(loss)
        model.zero_grad()
        value.backward()
        assert model.rnn.weight_hh_l0.grad.isfinite().all()
        assert model.rnn.weight_hh_l0.grad.any()
        values.append(float(value))
    assert values[1] == pytest.approx(values[0], rel=0.05)
