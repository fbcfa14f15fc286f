"""What AWD-LSTM adds to the language model, against explicit loops that draw the same masks."""

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.nn import functional as F

from rnnkit.language_modeling.task import LanguageModel
from rnnkit.nn.truncation import map_state
from tests.small_runs import Losses, make_data, make_model, make_trainer, parameters

AWD = {
    "embedding_size": 6,
    "hidden_size": 9,
    "last_hidden_size": 6,
    "num_layers": 3,
    "tied": True,
    "dropout": 0.4,
    "input_dropout": 0.5,
    "layer_dropout": 0.25,
    "locked_dropout": True,
    "embedding_dropout": 0.1,
    "weight_drop": 0.3,
}


def awd(**changes):
    torch.manual_seed(0)
    return LanguageModel(20, **{**AWD, **changes})


def tokens(steps=7, batch=3):
    return torch.randint(20, (steps, batch), generator=torch.Generator().manual_seed(1))


def locked(sequence, probability):
    mask = F.dropout(torch.ones(1, *sequence.shape[1:]), probability)
    return torch.cat([step * mask for step in sequence.split(1)])


def read_by_a_loop(model, input):
    """Dropped output of the last layer, layer by layer with torch's own LSTM."""
    rows = F.dropout(torch.ones(20, 1), 0.1)
    table = model.embedding.weight * rows
    hidden = locked(torch.stack([table[step] for step in input]), 0.5)
    for index, layer in enumerate(model.rnn.layers):
        if index > 0:
            hidden = locked(hidden, 0.25)
        with torch.random.fork_rng():  # its own parameters are drawn for nothing
            alone = nn.LSTM(layer.input_size, layer.hidden_size)
        weights = layer.state_dict()
        weights["weight_hh_l0"] = F.dropout(weights["weight_hh_l0"], 0.3)
        alone.load_state_dict(weights)
        hidden, _ = alone(hidden)
    return locked(hidden, 0.4)


def test_every_dropout_lies_where_a_plain_loop_has_it():
    model, input = awd(), tokens()
    torch.manual_seed(2)
    logits, _ = model(input)
    torch.manual_seed(2)
    expected = read_by_a_loop(model, input) @ model.embedding.weight.T + model.decoder.bias
    assert torch.allclose(logits, expected, atol=1e-6)
    assert not torch.allclose(model(input)[0], expected, atol=1e-3)


def test_everything_rests_in_evaluation():
    model, input = awd().eval(), tokens()
    before = torch.get_rng_state()
    assert torch.equal(model(input)[0], model(input)[0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("locked_dropout", [False, True])
@pytest.mark.parametrize("place", ["input_dropout", "layer_dropout", "dropout"])
def test_each_probability_acts_at_its_own_place_alone(place, locked_dropout):
    # With probability 1 the place is zero: what comes after depends on nothing before.
    options = {"input_dropout": 0.0, "layer_dropout": 0.0, "dropout": 0.0, place: 1.0}
    torch.manual_seed(0)
    model = LanguageModel(20, num_layers=2, locked_dropout=locked_dropout, **options)
    first, second = model(tokens()), model(torch.flip(tokens(), [0]))
    states = [state[0] for state in (first[1], second[1])]  # of both layers
    same = [torch.equal(*pair) for pair in zip(*states, strict=True)]
    assert (
        same
        == {
            "input_dropout": [True, True],
            "layer_dropout": [False, True],
            "dropout": [False, False],
        }[place]
    )
    assert torch.equal(first[0], second[0])
    assert (first[0] == model.decoder.bias).all() == (place == "dropout")


def test_layers_have_the_widths_of_the_paper():
    model = awd(embedding_size=4, hidden_size=11, last_hidden_size=4)
    widths = [(layer.input_size, layer.hidden_size) for layer in model.rnn.layers]
    assert widths == [(4, 11), (11, 11), (11, 4)]
    assert model.decoder.weight is model.embedding.weight


def test_tied_weights_need_the_last_layer_as_wide_as_the_embedding():
    with pytest.raises(ValueError, match="last_hidden_size where that is given, got 6 and 7"):
        awd(last_hidden_size=7)


def test_the_options_change_no_name_of_a_parameter_where_they_rest():
    plain = [name for name, _ in nn.LSTM(200, 200, 2).named_parameters()]
    names = [name for name, _ in LanguageModel(20).named_parameters()]
    assert names == [
        "embedding.weight",
        *[f"rnn.{name}" for name in plain],
        "decoder.weight",
        "decoder.bias",
    ]


def test_recurrent_parameters_may_keep_their_own_range():
    model = LanguageModel(
        50, embedding_size=30, hidden_size=400, num_layers=1, init_range=0.5, init_recurrent=False
    )
    assert 0.049 < max(float(p.detach().abs().max()) for p in model.rnn.parameters()) <= 0.05
    assert float(model.embedding.weight.detach().abs().max()) > 0.4
    assert float(model.decoder.weight.detach().abs().max()) > 0.4


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_layers_of_several_widths_decode_as_one_call(cell):
    model, input = awd(cell=cell).eval(), tokens()
    expected = model(input)[0].log_softmax(-1)
    state = model.start(input[:2])
    for step in range(2, 7):
        log_probabilities, state = model.step(input[step], state)
        assert torch.allclose(log_probabilities, expected[step], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_dropout": -0.1}, "layer_dropout from 0 to 1, got -0.1"),
        ({"input_dropout": 2.0}, "input_dropout from 0 to 1, got 2.0"),
        ({"embedding_dropout": 2.0}, "dropout .* got 2.0"),
        ({"weight_drop": 2.0}, "weight_drop .* got 2.0"),
        ({"activation_regularization": -1.0}, "activation_regularization from 0 .* got -1.0"),
        ({"temporal_activation_regularization": -1.0}, "temporal_.* from 0 to inf, got -1.0"),
        ({"truncation_steps": 0}, "truncation_steps of 1 or more, got 0"),
        ({"truncation_probability": 1.5}, "truncation_probability from 0 to 1, got 1.5"),
    ],
)
def test_numbers_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        awd(**changes)


# Penalties on activations


class Logged(Callback):
    def __init__(self):
        self.metrics = []

    def on_train_batch_end(self, trainer, *_):
        self.metrics.append({name: float(v) for name, v in trainer.callback_metrics.items()})


def first_step(corpus, **changes):
    """Loss, logged metrics and gradients of the first window, and the model before it."""
    data = make_data(corpus)
    options = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0), **changes}
    model, losses, logged = make_model(data, **options), Losses(), Logged()
    gradients = []

    class Gradients(Callback):
        def on_before_optimizer_step(self, *_):
            gradients.append([p.grad.clone() for p in model.parameters()])

    torch.manual_seed(3)
    make_trainer(
        max_steps=2, log_every_n_steps=1, callbacks=[losses, logged, Gradients()],
        limit_val_batches=0,
    ).fit(model, data)  # fmt: skip
    return model, data, losses.values[0], logged.metrics[1], gradients[0]


@pytest.mark.training
@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 0.0), (0.0, 1.5), (2.0, 1.5)])
@pytest.mark.parametrize("reduction", ["mean", "sum_over_time"])
def test_penalties_are_those_of_a_loop_over_steps(corpus, alpha, beta, reduction):
    options = {
        "activation_regularization": alpha,
        "temporal_activation_regularization": beta,
        "loss_reduction": reduction,
        "dropout": 0.5,
        "num_layers": 1,
        "locked_dropout": True,
    }
    model, data, loss, _, gradients = first_step(corpus, **options)
    window = next(iter(data.train_dataloader()))
    torch.manual_seed(3)
    output, _ = model.rnn(locked(model.embedding(window.input), 0.5))
    dropped = locked(output, 0.5)
    steps, batch, width = output.shape
    small, slow = torch.zeros(()), torch.zeros(())
    for step in range(steps):
        small = small + (dropped[step] ** 2).sum() / (steps * batch * width)
        if step > 0:
            change = output[step] - output[step - 1]
            slow = slow + (change**2).sum() / ((steps - 1) * batch * width)
    likelihood = F.cross_entropy(model.decoder(dropped).flatten(0, 1), window.target.flatten())
    expected = likelihood + alpha * small + beta * slow
    expected = expected * steps if reduction == "sum_over_time" else expected
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for gradient, other in zip(
        gradients, torch.autograd.grad(expected, list(model.parameters())), strict=True
    ):
        assert torch.allclose(gradient, other, rtol=1e-4, atol=1e-6)


@pytest.mark.training
def test_penalties_are_in_the_loss_and_never_in_perplexity(corpus):
    *_, plain, _ = first_step(corpus)
    *_, penalised, _ = first_step(corpus, activation_regularization=500.0)
    assert penalised["train/loss"] > plain["train/loss"] + 0.1
    assert penalised["train/ppl"] == pytest.approx(plain["train/ppl"], rel=1e-6)


@pytest.mark.training
def test_a_window_of_one_step_has_no_change_to_penalise(corpus):
    data = make_data(corpus, window=1)
    model, losses = make_model(data, temporal_activation_regularization=1.0), Losses()
    make_trainer(max_steps=3, callbacks=[losses], limit_val_batches=0).fit(model, data)
    assert all(loss == pytest.approx(2.5, abs=0.3) for loss in losses.values)


# Truncation


def gradients_of(model, data):
    """Of one window in training, with respect to the recurrent weights."""
    window = next(iter(data.train_dataloader()))
    logits, _ = model(window.input)
    loss = F.cross_entropy(logits.flatten(0, 1), window.target.flatten())
    return torch.autograd.grad(loss, list(model.rnn.parameters()))


@pytest.mark.parametrize("locked_dropout", [False, True])
def test_the_gradient_of_a_window_is_cut_every_few_steps(corpus, locked_dropout):
    data = make_data(corpus, window=10)
    options = {"locked_dropout": locked_dropout, "init_range": 0.8}
    model = make_model(data, truncation_steps=4, **options)
    window = next(iter(data.train_dataloader()))
    loss, state = 0.0, None
    for input, target in zip(window.input.split(4), window.target.split(4), strict=True):
        hidden, state = model.rnn(model.embedding(input), state)
        state = map_state(state, torch.Tensor.detach)
        logits = model.decoder(hidden).flatten(0, 1)
        loss = loss + F.cross_entropy(logits, target.flatten(), reduction="sum") / 40
    expected = torch.autograd.grad(loss, list(model.rnn.parameters()))
    full = gradients_of(make_model(data, **options), data)
    for gradient, other, whole in zip(gradients_of(model, data), expected, full, strict=True):
        assert torch.allclose(gradient, other, atol=1e-6)
        assert not torch.allclose(gradient, whole, atol=1e-4)


def test_a_random_truncation_is_right_on_average(corpus):
    data = make_data(corpus, window=10)
    model = make_model(data, truncation_steps=4, truncation_probability=0.5, init_range=0.8)
    full = torch.cat([g.flatten() for g in gradients_of(model.eval(), data)])
    draws = [
        torch.cat([g.flatten() for g in gradients_of(model.train(), data)]) for _ in range(144)
    ]
    patterns = {tuple(gradient.tolist()) for gradient in draws}
    assert len(patterns) == 4  # two places
    mean, spread = torch.stack(draws).mean(0), torch.stack(draws).std(0)
    assert ((mean - full).abs() <= 5 * spread / 12 + 1e-6).all()
    assert not torch.allclose(draws[0], full, atol=1e-4)


def test_evaluation_reads_a_window_in_one_piece(corpus):
    data = make_data(corpus)
    model = make_model(data, truncation_steps=4).eval()
    window = next(iter(data.train_dataloader()))
    assert torch.equal(model(window.input)[0], make_model(data).eval()(window.input)[0])


@pytest.mark.training
def test_a_truncated_run_ends_elsewhere_than_a_whole_one(corpus):
    ends = []
    for options in ({}, {"truncation_steps": 4}, {"truncation_steps": 10}):
        data = make_data(corpus)
        model = make_model(data, **options)
        make_trainer(max_steps=5, limit_val_batches=0).fit(model, data)
        ends.append(parameters(model))
    assert not torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])  # no place inside a window of 10
