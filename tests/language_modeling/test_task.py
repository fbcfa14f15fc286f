import math

import pytest
import torch
from lightning.pytorch import Callback
from torch.nn import functional as F

from rnnkit.language_modeling.task import LanguageModel
from rnnkit.language_modeling.windows import IGNORED
from tests.language_modeling import plain_language_model as plain
from tests.small_runs import Losses, make_data, make_model, make_trainer, parameters

# The model


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_carried_state_equals_one_long_call(cell):
    model = LanguageModel(20, cell=cell, embedding_size=8, hidden_size=8).eval()
    tokens = torch.randint(20, (9, 3))
    whole, _ = model(tokens)
    first, state = model(tokens[:4])
    second, _ = model(tokens[4:], state)
    assert torch.allclose(torch.cat([first, second]), whole, atol=1e-6)
    assert not torch.allclose(model(tokens[4:])[0], second, atol=1e-3)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_decoding_token_by_token_equals_one_call(cell):
    model = LanguageModel(20, cell=cell, embedding_size=8, hidden_size=8).eval()
    tokens = torch.randint(20, (6, 3))
    expected = model(tokens)[0].log_softmax(-1)
    state = model.start(tokens[:2])
    for step in range(2, 6):
        log_probabilities, state = model.step(tokens[step], state)
        assert torch.allclose(log_probabilities, expected[step], atol=1e-6)


def test_an_empty_source_starts_without_a_state():
    assert LanguageModel(20).start(torch.zeros(0, 3, dtype=torch.int64)) is None


def test_every_parameter_is_drawn_from_the_given_range():
    model = LanguageModel(500, embedding_size=50, hidden_size=50, init_range=0.03)
    for parameter in model.parameters():
        assert parameter.abs().max() <= 0.03
        assert parameter.abs().max() > 0.02
        assert parameter.min() < 0 < parameter.max()


def test_tied_weights_share_their_storage_and_are_counted_once():
    tied = LanguageModel(20, embedding_size=8, hidden_size=8, tied=True)
    assert tied.decoder.weight.data_ptr() == tied.embedding.weight.data_ptr()
    untied = LanguageModel(20, embedding_size=8, hidden_size=8)
    assert untied.decoder.weight.data_ptr() != untied.embedding.weight.data_ptr()
    assert len(parameters(untied)) - len(parameters(tied)) == 20 * 8


def test_tied_weights_of_two_widths_are_refused():
    with pytest.raises(ValueError, match="got 8 and 9"):
        LanguageModel(20, embedding_size=8, hidden_size=9, tied=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary_size": 0}, "vocabulary_size of 1 or more, got 0"),
        ({"num_layers": 0}, "num_layers of 1 or more, got 0"),
        ({"dropout": 1.5}, r"0 to 1, got 1\.5"),
        ({"init_range": 0.0}, r"above 0, got 0\.0"),
    ],
)
def test_sizes_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        LanguageModel(**{"vocabulary_size": 5, **changes})


# Dropout: with probability 1 everything that it acts on is zero.


def test_dropout_acts_on_the_last_output():
    model = LanguageModel(20, embedding_size=8, hidden_size=8, dropout=1.0)
    logits, _ = model(torch.randint(20, (5, 2)))
    assert torch.equal(logits, model.decoder.bias.expand_as(logits))


def test_dropout_acts_on_the_input_of_every_layer_and_never_from_step_to_step():
    model = LanguageModel(20, embedding_size=8, hidden_size=8, num_layers=2, dropout=1.0)
    _, (hidden, cell) = model(torch.randint(20, (5, 2)))
    for layer in range(2):
        # Alone, without any input, with its recurrent weights at work for 5 steps.
        alone = torch.nn.LSTM(8, 8)
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        state = {f"{name}_l0": getattr(model.rnn, f"{name}_l{layer}").detach() for name in names}
        alone.load_state_dict(state)
        _, (expected_hidden, expected_cell) = alone(torch.zeros(5, 2, 8))
        assert torch.allclose(hidden[layer], expected_hidden[0], atol=1e-6)
        assert torch.allclose(cell[layer], expected_cell[0], atol=1e-6)


def test_dropout_rests_in_evaluation():
    model = LanguageModel(20, dropout=0.5).eval()
    tokens = torch.randint(20, (5, 2))
    assert torch.equal(model(tokens)[0], model(tokens)[0])


# Training


def train(corpus, model_changes, **trainer_changes):
    data = make_data(corpus)
    model = make_model(data, **model_changes)
    losses = Losses()
    make_trainer(callbacks=[losses], limit_val_batches=0, **trainer_changes).fit(model, data)
    return model, losses.values


def sgd(rate):
    return lambda parameters: torch.optim.SGD(parameters, lr=rate)


@pytest.mark.training
def test_sum_over_time_at_rate_1_is_mean_at_rate_t(corpus):
    # The corpus has 24 whole windows of T = 10 and a shorter one: that one stays out.
    summed, losses = train(
        corpus,
        {"loss_reduction": "sum_over_time", "optimizer": sgd(1.0)},
        gradient_clip_val=2.0,
        max_steps=24,
    )
    mean, mean_losses = train(corpus, {"optimizer": sgd(10.0)}, gradient_clip_val=0.2, max_steps=24)
    assert torch.allclose(parameters(summed), parameters(mean), atol=1e-5)
    assert losses == pytest.approx([10 * loss for loss in mean_losses], rel=1e-4)


@pytest.mark.training
def test_training_equals_a_plain_loop_step_by_step(corpus):
    data = make_data(corpus)
    model = make_model(data, loss_reduction="sum_over_time")
    twin = plain.PlainLanguageModel(data.vocabulary_size, size=12, layers=2, init_range=0.1)
    twin.load_state_dict(model.state_dict())
    losses = Losses()
    make_trainer(callbacks=[losses], gradient_clip_val=1.0).fit(model, data)
    inputs, targets = plain.streams(data.train_tokens, 4)
    optimizer = torch.optim.SGD(twin.parameters(), lr=1.0)
    expected = list(plain.train(twin, optimizer, inputs, targets, 10, clip=1.0))
    steps = [len(part) for part in inputs.split(10)]
    actual = [loss / count for loss, count in zip(losses.values, steps, strict=True)]
    assert actual == pytest.approx([float(loss) for loss in expected], rel=1e-5)
    assert torch.allclose(parameters(model), parameters(twin), atol=1e-5)

    trainer = make_trainer()
    scores = trainer.validate(model, data, verbose=False)[0]
    score = plain.perplexity(twin, data.valid_tokens, 10, 10, data.start_index)
    assert scores["val/ppl"] == pytest.approx(score, rel=1e-4)
    assert scores["val/bits_per_token"] == pytest.approx(math.log2(score), rel=1e-4)


def test_the_plain_script_draws_the_same_parameters_from_a_seed(corpus):
    model = make_model(make_data(corpus))
    torch.manual_seed(0)
    twin = plain.PlainLanguageModel(model.hparams["vocabulary_size"], 12, 2, 0.1)
    assert torch.equal(parameters(model), parameters(twin))


def test_padding_is_not_counted():
    model = LanguageModel(20, embedding_size=8, hidden_size=8)
    logits, _ = model(torch.zeros(4, 2, dtype=torch.int64))
    target = torch.tensor([[1, 2], [3, -100], [-100, -100], [4, -100]])
    perplexity = model.validation_perplexity
    perplexity.update(logits, target)
    kept = target != -100
    expected = F.cross_entropy(logits[kept], target[kept]).exp()
    assert float(perplexity.compute()) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.training
def test_validation_does_not_touch_training(corpus):
    without, losses = train(corpus, {})
    data = make_data(corpus)
    model = make_model(data)
    watched = Losses()
    trainer = make_trainer(callbacks=[watched], val_check_interval=3)
    trainer.fit(model, data)
    assert watched.values == losses
    assert torch.equal(parameters(model), parameters(without))


@pytest.mark.training
def test_each_epoch_begins_without_a_state(corpus):
    # With a learning rate of 0 two epochs are the same only if they begin alike.
    _, losses = train(corpus, {"optimizer": sgd(0.0)}, max_epochs=2)
    half = len(losses) // 2
    assert losses[:half] == losses[half:]


@pytest.mark.training
def test_logged_training_scores_are_those_of_the_steps_since(corpus):
    class Logged(Callback):
        def __init__(self):
            self.values = []

        def on_train_batch_start(self, trainer, *_):
            metrics = trainer.callback_metrics
            if "train/ppl" in metrics and trainer.global_step % 5 == 0:
                self.values.append((float(metrics["train/loss"]), float(metrics["train/ppl"])))

    logged, losses = Logged(), Losses()
    data = make_data(corpus)
    trainer = make_trainer(callbacks=[losses, logged], limit_val_batches=0, log_every_n_steps=5)
    trainer.fit(make_model(data, loss_reduction="mean"), data)
    means = [sum(losses.values[i : i + 5]) / 5 for i in range(0, 20, 5)]
    assert [loss for loss, _ in logged.values[:4]] == pytest.approx(means, rel=1e-5)
    assert [ppl for _, ppl in logged.values[:4]] == pytest.approx(
        [math.exp(loss) for loss in means], rel=1e-5
    )


@pytest.mark.training
def test_a_loss_that_is_not_finite_stops_and_names_its_step(corpus):
    class Break(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 7:
                module.decoder.bias.data[0] = torch.nan

    data = make_data(corpus)
    trainer = make_trainer(callbacks=[Break()], log_every_n_steps=5)
    with pytest.raises(FloatingPointError, match="became nan at step 7 of epoch 0: lower"):
        trainer.fit(make_model(data), data)


@pytest.mark.training
def test_zarembas_schedule_halves_the_rate_after_four_epochs(corpus):
    class Rates(Callback):
        def __init__(self):
            self.values = []

        def on_train_epoch_start(self, trainer, module):
            self.values.append(trainer.optimizers[0].param_groups[0]["lr"])

    rates, data = Rates(), make_data(corpus)
    model = make_model(
        data,
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(
            optimizer, milestones=range(4, 13), gamma=0.5
        ),
    )
    make_trainer(callbacks=[rates], max_epochs=7, limit_train_batches=2).fit(model, data)
    assert rates.values == [1, 1, 1, 1, 0.5, 0.25, 0.125]


@pytest.mark.training
def test_a_scheduler_may_count_steps(corpus):
    data = make_data(corpus)
    model = make_model(
        data,
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
        lr_scheduler_interval="step",
    )
    trainer = make_trainer(max_steps=3)
    trainer.fit(model, data)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.125


@pytest.mark.training
def test_a_test_tells_the_share_of_unknown_tokens_and_the_perplexity_of_the_others(tmp_path):
    text = "a b c d\n" * 12
    for name, content in (("train", text), ("valid", text), ("test", text.replace("c", "z"))):
        (tmp_path / f"{name}.txt").write_text(content)
    data = make_data(str(tmp_path))
    model = make_model(data, init_range=0.9)
    scores = make_trainer().test(model, data, verbose=False)[0]
    assert scores["test/unknown_percent"] == pytest.approx(20)
    losses, state = [], None
    with torch.no_grad():
        for window in data.test_dataloader():
            logits, state = model(window.input, state)
            losses.append(F.cross_entropy(logits.movedim(2, 1), window.target, reduction="none"))
    known = torch.cat([window.target for window in data.test_dataloader()])
    known = (known != IGNORED) & (known != data.vocabulary.index("<unk>"))
    expected = float(torch.cat(losses)[known].mean().exp())
    assert scores["test/ppl_known"] == pytest.approx(expected, rel=1e-4)
    assert scores["test/ppl"] != pytest.approx(expected, rel=1e-2)
    (tmp_path / "test.txt").write_text(text)
    scores = make_trainer().test(model, make_data(str(tmp_path)), verbose=False)[0]
    assert set(scores) == {"test/ppl", "test/bits_per_token"}
