"""Language models whose layers are connected otherwise, or normalised."""

import pytest
import torch
from torch import nn

from rnnkit.cli import main
from rnnkit.language_modeling.task import LanguageModel
from rnnkit.nn import Stack
from rnnkit.training.callbacks.generator_states import GeneratorStates
from tests.language_modeling.test_checkpoints import SaveAt
from tests.small_checkpoints import make_checkpoint
from tests.small_runs import make_data, make_model, make_trainer, parameters

FORMS = [
    {"connection": "residual", "embedding_size": 5},
    {"connection": "residual", "norm": "layer", "cell": "gru"},
    {"connection": "highway", "norm": "batch", "num_layers": 3},
    {"connection": "dense", "last_hidden_size": 6, "locked_dropout": True, "cell": "rnn"},
    {"norm": "batch", "locked_dropout": True},
]
SOME = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))


def make(**changes):
    torch.manual_seed(0)
    return LanguageModel(20, **{"embedding_size": 9, "hidden_size": 9, **changes})


def tokens(steps=8, batch=3):
    return torch.randint(20, (steps, batch), generator=torch.Generator().manual_seed(1))


@SOME
def test_it_decodes_step_by_step_as_in_one_call(form):
    model, input = make(**form, init_range=0.8), tokens()
    model(input)  # in training: running estimates of its own
    model.eval()
    assert isinstance(model.rnn, Stack)
    expected, _ = model(input)
    first, state = model(input[:3])
    second, _ = model(input[3:], state)
    torch.testing.assert_close(torch.cat([first, second]), expected)
    state = model.start(input[:2])
    for step in range(2, 8):
        log_probabilities, state = model.step(input[step], state)
        torch.testing.assert_close(log_probabilities, expected[step].log_softmax(-1))


def test_the_connection_is_the_one_that_is_asked_for():
    plain, residual = make(), make(connection="residual", embedding_size=9)
    residual.load_state_dict(
        {
            f"rnn.layers.{name[-1]}.{name.removeprefix('rnn.')[:-1]}0"
            if name.startswith("rnn.")
            else name: value
            for name, value in plain.state_dict().items()
        }
    )
    embedded = plain.embedding(tokens())
    first = nn.LSTM(9, 9)
    first.load_state_dict(residual.rnn.layers[0].state_dict())
    second = nn.LSTM(9, 9)
    second.load_state_dict(residual.rnn.layers[1].state_dict())
    below = first(embedded)[0] + embedded
    expected = residual.decoder(second(below)[0] + below)
    torch.testing.assert_close(residual(tokens())[0], expected)
    assert not torch.allclose(plain(tokens())[0], expected, atol=1e-3)


def test_gates_and_gains_begin_as_the_stack_has_them():
    model = make(connection="highway", norm="layer", init_range=0.01)
    assert all((gate.transform.bias == -2).all() for gate in model.rnn.connections)
    assert all((norm.weight == 1).all() for norm in model.rnn.norms)
    assert max(float(p.detach().abs().max()) for p in model.rnn.layers.parameters()) <= 0.01


def test_widths_that_no_highway_joins_are_told():
    with pytest.raises(ValueError, match=r"highway needs .* one reads 7 and gives 9"):
        make(connection="highway", embedding_size=7)


# Checkpoints


def test_parameters_keep_the_names_that_checkpoints_have():
    suffixes = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    names = [name for name in make().state_dict() if name.startswith("rnn.")]
    assert names == [f"rnn.{each}_l{layer}" for layer in range(2) for each in suffixes]
    for changes in ({"locked_dropout": True}, {"last_hidden_size": 8}):
        names = [name for name in make(**changes).state_dict() if name.startswith("rnn.")]
        assert names == [f"rnn.layers.{k}.{each}_l0" for k in range(2) for each in suffixes]


@pytest.mark.training
@SOME
def test_a_resumed_run_equals_the_unbroken_one(corpus, tmp_path, form):
    changes = {**form, "dropout": 0.3, "embedding_size": form.get("embedding_size", 12)}
    data, path = make_data(corpus), tmp_path / "middle.ckpt"
    unbroken = make_model(data, **changes)
    make_trainer(callbacks=[GeneratorStates(), SaveAt(7, path)], max_steps=15).fit(unbroken, data)
    resumed = make_model(data, **changes)
    torch.manual_seed(1)
    trainer = make_trainer(callbacks=[GeneratorStates()], max_steps=15)
    trainer.fit(resumed, make_data(corpus), ckpt_path=path)
    assert torch.equal(parameters(resumed), parameters(unbroken))
    for one, other in zip(resumed.buffers(), unbroken.buffers(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.training
def test_a_state_that_was_carried_apart_is_taken(corpus, tmp_path):
    # Layers with locked dropout have once left a state for each of them.
    changes = {"locked_dropout": True, "dropout": 0.3}
    data, path = make_data(corpus), tmp_path / "new.ckpt"
    unbroken = make_model(data, **changes)
    make_trainer(callbacks=[GeneratorStates(), SaveAt(7, path)], max_steps=15).fit(unbroken, data)
    saved = torch.load(path, weights_only=True)
    hidden, cell = saved["carried_state"]
    saved["carried_state"] = tuple(zip(hidden.split(1), cell.split(1), strict=True))
    torch.save(saved, tmp_path / "old.ckpt")
    resumed = make_model(data, **changes)
    trainer = make_trainer(callbacks=[GeneratorStates()], max_steps=15)
    trainer.fit(resumed, make_data(corpus), ckpt_path=tmp_path / "old.ckpt")
    assert torch.equal(parameters(resumed), parameters(unbroken))


@pytest.mark.training
@pytest.mark.parametrize("told", [True, False])
def test_a_checkpoint_of_another_connection_is_refused(corpus, tmp_path, told):
    # With locked dropout a residual path of one width adds no parameter that could tell.
    data, path = make_data(corpus), tmp_path / "plain.ckpt"
    changes = {"locked_dropout": True}
    make_trainer(callbacks=[SaveAt(2, path)], max_steps=2).fit(make_model(data, **changes), data)
    if not told:  # from before there was the argument
        saved = torch.load(path, weights_only=True)
        del saved["hyper_parameters"]["connection"], saved["hyper_parameters"]["norm"]
        torch.save(saved, path)
    other = make_model(data, connection="residual", **changes)
    with pytest.raises(ValueError, match="connection plain in the checkpoint, residual here"):
        make_trainer().test(other, data, ckpt_path=path, verbose=False)


# Commands


@pytest.mark.training
@pytest.mark.parametrize("form", FORMS[:3])
def test_a_residual_model_writes_and_scores(form, tmp_path, capsys):
    text = "the cat sees\nthe dog\n\nhears the cat\n"
    sizes = {"embedding_size": 9, "hidden_size": 9, **form}
    checkpoint = make_checkpoint(tmp_path, "word", text * 4, text, **sizes)
    capsys.readouterr()
    assert main(["generate", "--ckpt", checkpoint, "--lines", "4", "--seed", "1"]) == 0
    assert len([line for line in capsys.readouterr().out.split("\n") if line]) == 4
    assert main(["score", "--ckpt", checkpoint, str(tmp_path / "corpus" / "test.txt")]) == 0
    assert "perplexity" in capsys.readouterr().out
