import csv

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from rnnkit.nn.states import watch_states
from rnnkit.training.callbacks.gradient_flow import GradientFlow
from tests.small_runs import make_data, make_model, make_trainer, parameters


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "corpus").mkdir()
    for name in ("train", "valid", "test"):
        (tmp_path / "corpus" / f"{name}.txt").write_text(
            " ".join("abcde"[i % 5] for i in range(210))
        )
    return str(tmp_path / "corpus")


def fit(corpus, folder, steps=5, **changes):
    data = make_data(corpus)
    model = make_model(data, **changes)
    callback = GradientFlow(every_n_steps=2)
    trainer = make_trainer(
        logger=CSVLogger(folder, name="", version=""), callbacks=[callback], max_steps=steps,
        log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(model, data)
    return model, trainer


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.training
def test_it_looks_every_so_many_steps_at_every_layer(corpus, tmp_path):
    model, _ = fit(corpus, tmp_path)
    found = rows(tmp_path / "gradient_flow.csv")
    assert [(row["step"], row["layer"], row["t"]) for row in found] == [
        (str(step), layer, str(t))
        for step in (0, 2, 4)
        for layer in ("rnn_l0", "rnn_l1")
        for t in range(1, 11)
    ]
    assert (tmp_path / "gradient_flow.png").read_bytes().startswith(b"\x89PNG")
    logged = [row for row in rows(tmp_path / "metrics.csv") if row["gradient_ratio/rnn_l1"]]
    assert [row["step"] for row in logged] == ["0", "2", "4"]
    first, last = (float(found[i]["both"]) for i in (10, 19))
    assert float(logged[0]["gradient_ratio/rnn_l1"]) == pytest.approx(first / last, rel=1e-4)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.training
def test_norms_are_of_the_gradients_of_the_loss_that_trains(corpus, tmp_path):
    fit(corpus, tmp_path, steps=1)
    data = make_data(corpus)
    data.setup("fit")
    model = make_model(data)
    window = next(iter(data.train_dataloader()))
    with watch_states(model) as states:
        logits, _ = model(window.input)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), window.target.flatten()).backward()
    entry = states["rnn"][1]
    norms = entry.hidden_gradient.norm(dim=-1).hypot(entry.cell_gradient.norm(dim=-1)).mean((1, 2))
    ours = [float(row["both"]) for row in rows(tmp_path / "gradient_flow.csv")[10:]]
    torch.testing.assert_close(torch.tensor(ours), norms, rtol=1e-4, atol=0)


@pytest.mark.training
def test_looking_changes_the_run_by_rounding_alone(corpus, tmp_path):
    watched, _ = fit(corpus, tmp_path)
    data = make_data(corpus)
    plain = make_model(data)
    make_trainer(max_steps=5).fit(plain, data)
    torch.testing.assert_close(parameters(watched), parameters(plain), rtol=1e-4, atol=1e-6)


@pytest.mark.training
def test_a_step_that_breaks_off_leaves_nothing_behind(corpus, tmp_path, monkeypatch):
    def fails(self, window, batch_idx):
        raise FloatingPointError("the loss became nan")

    monkeypatch.setattr("rnnkit.language_modeling.task.LanguageModel.training_step", fails)
    data = make_data(corpus)
    model = make_model(data)
    with pytest.raises(FloatingPointError):
        make_trainer(callbacks=[GradientFlow()]).fit(model, data)
    assert not any(module._forward_hooks for module in model.modules())


def test_every_0_steps_is_refused():
    with pytest.raises(ValueError, match="1 or more, got 0"):
        GradientFlow(every_n_steps=0)
