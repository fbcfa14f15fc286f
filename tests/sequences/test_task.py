import csv
import math

import pytest
import torch
from torch.nn import functional as F

from rnnkit.cli import main
from rnnkit.sequences import SequenceData, SequenceModel
from rnnkit.sequences.problem import Examples
from tests.small_runs import make_trainer
from tests.small_tasks import ROOT

CONFIGS = ROOT / "configs" / "sequences"


def make(problem="adding", cell="gru", **options):
    data = SequenceData(problem, length=10, steps_per_epoch=4, eval_examples=60, batch_size=8)
    torch.manual_seed(0)
    sizes = (data.input_size, data.output_size, data.every_step)
    return data, SequenceModel(*sizes, cell, hidden_size=12, **options)


@pytest.mark.parametrize("cell", ["tanh", "relu", "gru", "lstm"])
def test_answers_are_those_of_torch(cell):
    _, model = make(cell=cell, num_layers=2)
    kind = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}.get(cell, torch.nn.RNN)
    options = {"nonlinearity": cell} if kind is torch.nn.RNN else {}
    theirs = kind(2, 12, 2, **options)
    theirs.load_state_dict(model.rnn.state_dict())
    input = torch.randn(10, 3, 2)
    expected = theirs(input)[0][-1] @ model.answer.weight.t() + model.answer.bias
    torch.testing.assert_close(model(input), expected)


def test_errors_are_squared_for_numbers_and_entropies_for_classes():
    _, model = make()
    answers, target = torch.randn(5, 1), torch.rand(5)
    torch.testing.assert_close(model.errors(answers, target), (answers[:, 0] - target) ** 2)
    scores = torch.randn(7, 5, 3)
    classes = torch.randint(3, (7, 5))
    classes[2:] = -100
    found = model.errors(scores, classes)
    assert not found[2:].any()
    expected = F.cross_entropy(scores[:2].flatten(0, 1), classes[:2].flatten())
    torch.testing.assert_close(found[:2].mean(), expected)


@pytest.mark.training
@pytest.mark.parametrize("problem", ["adding", "copy", "order", "anbn", "dyck-2", "parity"])
def test_scores_are_means_over_all_that_is_asked(problem):
    data, model = make(problem)
    (found,) = make_trainer().test(model, data, verbose=False)
    losses, right = [], []
    for batch in data.test_dataloader():
        with torch.no_grad():
            answers = model(batch.input)
        if batch.target.is_floating_point():
            losses += (answers[:, 0] - batch.target).square().tolist()
            right += [abs(a - t) < 0.04 for a, t in zip(answers[:, 0], batch.target, strict=True)]
            continue
        asked = batch.target != -100
        losses += F.cross_entropy(answers[asked], batch.target[asked], reduction="none").tolist()
        fits = (answers.argmax(-1) == batch.target) | ~asked
        right += (fits.all(0) if batch.target.ndim == 2 else fits).tolist()
    assert found["test/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found["test/accuracy"] == pytest.approx(sum(map(float, right)) / len(right))
    assert found["test/baseline"] == pytest.approx(data.baselines["test"])


@pytest.mark.training
def test_a_short_memory_is_learned_and_its_accuracy_rises():
    data = SequenceData("order", length=10, batch_size=32, steps_per_epoch=100, eval_examples=200)
    torch.manual_seed(0)
    adam = lambda parameters: torch.optim.Adam(parameters, 1e-2)  # noqa: E731
    sizes = (data.input_size, data.output_size, data.every_step)
    model = SequenceModel(*sizes, "lstm", hidden_size=16, optimizer=adam)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(model, data)
    assert float(trainer.callback_metrics["val/accuracy"]) > 0.95
    assert float(trainer.callback_metrics["val/loss"]) < 0.2 < math.log(4)


@pytest.mark.training
@pytest.mark.parametrize("name", ["adding", "copy_memory", "temporal_order", "counting"])
def test_every_configuration_trains_and_is_tested(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = str(CONFIGS / f"{name}.yaml")
    small = ["--data.steps_per_epoch", "2", "--data.eval_examples", "8", "--data.batch_size", "4"]
    small += ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger"]
    small += ["--trainer.logger.save_dir", "out", "--trainer.logger.name", "run"]
    assert main(["fit", "-c", config, "--trainer.max_epochs", "1", *small]) == 0
    best = tmp_path / "out" / "run" / "version_0" / "checkpoints" / "best.ckpt"
    assert main(["test", "-c", config, "--ckpt_path", str(best), *small]) == 0
    with (tmp_path / "out" / "run" / "version_0" / "metrics.csv").open(newline="") as file:
        row = list(csv.DictReader(file))[-1]
    assert float(row["val/loss"]) > 0
    assert float(row["val/baseline"]) > 0


@pytest.mark.training
def test_a_checkpoint_of_another_problem_is_refused_by_its_sizes(tmp_path):
    data, model = make("adding")
    trainer = make_trainer(max_steps=1)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "adding.ckpt")
    other, wider = make("copy")
    with pytest.raises(ValueError, match="input_size 2 in the checkpoint, 10 here"):
        make_trainer().test(wider, other, ckpt_path=str(tmp_path / "adding.ckpt"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"cell": "other"}, "cell tanh, relu, gru, lstm, got 'other'"),
        ({"num_layers": 0}, "num_layers of 1 or more, got 0"),
        ({"cell": "gru", "forget_bias": 1.0}, "forget bias of 1 is for LSTMs"),
        ({"cell": "lstm", "recurrent_init": "identity"}, "4 blocks of gates"),
    ],
)
def test_what_is_out_of_bounds_is_told(options, match):
    with pytest.raises(ValueError, match=match):
        make(**options)


def test_examples_keep_their_answers_when_some_are_taken():
    examples = Examples(torch.arange(12.0).view(2, 3, 2), torch.arange(6).view(2, 3))
    some = examples.rows([2, 0])
    assert some.input[0, :, 0].tolist() == [4.0, 0.0]
    assert some.target.tolist() == [[2, 0], [5, 3]]
