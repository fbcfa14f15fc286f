"""`replace_rnns` and `to_torch`: in place, sharing parameters, and back."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune, weight_norm

import rnnkit
from tests.nn.layers import (
    CLASSES,
    assert_close,
    assert_equal,
    assert_follows_the_rule,
    tensors,
    twins,
)


class Tagger(nn.Module):
    """Every kind of layer, nested, with one used in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.encoder = nn.ModuleDict(
            {
                "lstm": nn.LSTM(4, 6, 2, dropout=0.5, bidirectional=True, proj_size=3),
                "gru": nn.GRU(6, 6, bias=False),
            }
        )
        self.shared = nn.RNN(6, 6, nonlinearity="relu")
        self.again = self.shared
        self.head = nn.Sequential(nn.Linear(6, 5), nn.ReLU())

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        for layer in (*self.encoder.values(), self.shared, self.again):
            hidden = layer(hidden)[0]
        return self.head(hidden)


TOKENS = torch.randint(11, (5, 3), generator=torch.Generator().manual_seed(0))


def run_torchs_own(model: nn.Module) -> None:
    """Let every rnnkit layer of the model give torch's bits."""
    for layer in model.modules():
        if isinstance(layer, (rnnkit.LSTM, rnnkit.GRU, rnnkit.RNN)):
            layer.backend = "torch"


def rnns(model: nn.Module) -> list[str]:
    return [
        f"{name}: {type(layer).__module__.split('.')[0]}.{type(layer).__name__}"
        for name, layer in model.named_modules()
        if type(layer).__name__ in CLASSES
    ]


def test_every_layer_is_replaced_in_place_and_put_back() -> None:
    torch.manual_seed(0)
    model = Tagger().eval()
    text, expected, original = str(model), model(TOKENS), copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    state = list(model.state_dict())

    assert rnnkit.replace_rnns(model) == 3
    assert rnns(model) == [
        "encoder.lstm: rnnkit.LSTM",
        "encoder.gru: rnnkit.GRU",
        "shared: rnnkit.RNN",
    ]
    assert model.shared is model.again
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert list(model.state_dict()) == state
    assert str(model) == text
    assert_follows_the_rule(model(TOKENS), original, lambda one: one(TOKENS))
    run_torchs_own(model)
    assert torch.equal(model(TOKENS), expected)
    assert rnnkit.replace_rnns(model) == 0

    assert rnnkit.to_torch(model) is model
    assert rnns(model) == [
        "encoder.lstm: torch.LSTM",
        "encoder.gru: torch.GRU",
        "shared: torch.RNN",
    ]
    assert model.shared is model.again
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert str(model) == text
    assert torch.equal(model(TOKENS), expected)


def test_training_mode_and_dropout_are_kept() -> None:
    model = Tagger()
    model.encoder["gru"].eval()
    torch.manual_seed(3)
    expected = model(TOKENS)
    rnnkit.replace_rnns(model)
    run_torchs_own(model)
    assert model.encoder["lstm"].training
    assert not model.encoder["gru"].training
    torch.manual_seed(3)
    assert torch.equal(model(TOKENS), expected)
    torch.manual_seed(4)
    assert not torch.equal(model(TOKENS), expected)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("back", [False, True])
def test_an_optimiser_made_before_trains_the_model_after(back: bool, backend: str) -> None:
    def train(convert: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = Tagger().eval()
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        for i in range(4):
            if convert and i == 1:
                assert rnnkit.replace_rnns(model) == 3
                if backend == "torch":
                    run_torchs_own(model)
            if convert and back and i == 3:
                rnnkit.to_torch(model)
            optimiser.zero_grad()
            model(TOKENS).square().sum().backward()
            optimiser.step()
        return list(model.parameters())

    untrained = Tagger()
    found = train(convert=True)
    assert not torch.equal(found[0], next(untrained.parameters()))
    agree = assert_equal if backend == "torch" else assert_close
    agree(found, train(convert=False))


def test_hooks_move_with_their_layer() -> None:
    model = nn.Sequential(nn.GRU(3, 4))
    calls: list[str] = []
    handles = [
        model[0].register_forward_pre_hook(lambda *_: calls.append("before")),
        model[0].register_forward_hook(lambda *_: calls.append("after")),
        model[0].register_forward_hook(
            lambda *_, **__: calls.append("with keywords"), with_kwargs=True
        ),
    ]
    rnnkit.replace_rnns(model)
    model(torch.randn(5, 2, 3))
    assert calls == ["before", "after", "with keywords"]
    calls.clear()
    for handle in handles:
        handle.remove()
    model(torch.randn(5, 2, 3))
    assert calls == []


def test_hooks_of_the_backward_pass_and_of_the_state_dict_move_too() -> None:
    model = nn.Sequential(nn.GRU(3, 4))
    calls: list[str] = []
    model[0].register_full_backward_hook(lambda *_: calls.append("backward"))
    model[0].register_full_backward_pre_hook(lambda *_: calls.append("before backward"))
    model[0].register_state_dict_post_hook(lambda *_: calls.append("saved"))
    model[0].register_load_state_dict_pre_hook(lambda *_: calls.append("loading"))
    model[0].register_load_state_dict_post_hook(lambda *_: calls.append("loaded"))
    rnnkit.replace_rnns(model)
    output, _ = model(torch.randn(5, 2, 3, requires_grad=True))
    output.sum().backward()
    model.load_state_dict(model.state_dict())
    assert sorted(calls) == ["backward", "before backward", "loaded", "loading", "saved"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("reparametrise", [weight_norm, prune.random_unstructured])
def test_a_weight_that_a_hook_computes_stays_computed(reparametrise: Any) -> None:
    model = nn.Sequential(nn.GRU(3, 4))
    options = {"amount": 0.5} if reparametrise is prune.random_unstructured else {}
    reparametrise(model[0], "weight_hh_l0", **options)
    input = torch.randn(5, 2, 3)
    expected = model(input)
    state = copy.deepcopy(model.state_dict())
    for convert in (rnnkit.replace_rnns, rnnkit.to_torch):
        convert(model)
        run_torchs_own(model)
        assert list(model.state_dict()) == list(state)
        assert_equal(model(input), expected)
    rnnkit.replace_rnns(model)
    run_torchs_own(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert not torch.equal(model(input)[0], expected[0])
    model.load_state_dict(state)
    assert_equal(model(input), expected)


def test_a_parametrised_layer_is_left_alone() -> None:
    model = nn.Sequential(nn.GRU(3, 4))
    nn.utils.parametrizations.weight_norm(model[0], "weight_hh_l0")
    input = torch.randn(5, 2, 3)
    expected = model(input)
    assert rnnkit.replace_rnns(model) == 0  # torch makes it a subclass
    assert_equal(model(input), expected)


class OwnLSTM(nn.LSTM):
    """May do anything in forward."""


def test_subclasses_are_left_alone_in_both_directions() -> None:
    class OwnGRU(rnnkit.GRU):
        pass

    model = nn.ModuleList([OwnLSTM(3, 4), OwnGRU(3, 4), nn.LSTMCell(3, 4)])
    before = list(model)
    assert rnnkit.replace_rnns(model) == 0
    rnnkit.to_torch(model)
    assert all(a is b for a, b in zip(model, before, strict=True))


@pytest.mark.parametrize("name", CLASSES)
def test_a_bare_layer_cannot_be_replaced_in_place(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} is the layer itself"):
        rnnkit.replace_rnns(CLASSES[name][1](3, 4))


@pytest.mark.parametrize("kind", ["LSTM with projection", "GRU", "RNN relu"])
def test_a_bare_layer_is_converted_to_torch(kind: str) -> None:
    ours, theirs = twins(kind, 3, 5, num_layers=2, bidirectional=True, batch_first=True)
    found: Any = rnnkit.to_torch(ours.eval())
    assert type(found) is type(theirs)
    assert not found.training
    assert repr(found) == repr(theirs)
    assert all(a is b for a, b in zip(found.parameters(), ours.parameters(), strict=True))
    input = torch.randn(2, 4, 3)
    assert_equal(found(input), theirs(input))
    assert len(tensors(found(input))) == len(tensors(ours(input)))


def test_converting_warns_of_no_dropout_a_second_time(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.warns(UserWarning, match="dropout"):
        model = nn.Sequential(nn.LSTM(3, 4, dropout=0.5))
    rnnkit.replace_rnns(model)
    assert model[0].dropout == 0.5
    assert not [w for w in recwarn if "dropout" in str(w.message)]


def test_a_reset_before_gru_stays_and_nothing_else_is_changed() -> None:
    model = nn.ModuleDict(
        {
            "lstm": rnnkit.LSTM(3, 4),
            "deep": nn.Sequential(nn.Linear(4, 4), rnnkit.GRU(4, 4, reset_after=False)),
        }
    )
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=r"layer 'deep\.1' has reset_after=False"):
        rnnkit.to_torch(model)
    after = dict(model.named_modules())
    assert before.keys() == after.keys()
    assert all(after[name] is module for name, module in before.items())
    with pytest.raises(ValueError, match="the layer has reset_after=False"):
        rnnkit.to_torch(rnnkit.GRU(3, 4, reset_after=False))


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("LSTM", "peephole", True),
        ("LSTM", "coupled", True),
        ("LSTM", "zoneout", (0.0, 0.1)),
        ("GRU", "zoneout", 0.2),
        ("RNN", "weight_drop", 0.3),
        ("GRU", "layer_norm", True),
    ],
)
def test_a_layer_with_an_option_that_torch_lacks_stays(name: str, option: str, value: Any) -> None:
    layer = CLASSES[name][0](4, 4, **{option: value})
    model = nn.ModuleDict({"first": rnnkit.GRU(4, 4), "deep": nn.Sequential(nn.ReLU(), layer)})
    where = re.escape(f"torch.nn has no {option}: layer 'deep.1' has {option}={value} and can't")
    with pytest.raises(ValueError, match=where):
        rnnkit.to_torch(model)
    assert type(model["first"]) is rnnkit.GRU
    assert model["deep"][1] is layer
    with pytest.raises(ValueError, match=re.escape(f"the layer has {option}={value} and can't")):
        rnnkit.to_torch(layer)
    if option in ("zoneout", "weight_drop"):
        setattr(layer, option, 0.0)
        assert type(rnnkit.to_torch(model)["deep"][1]) is CLASSES[name][1]


@pytest.mark.parametrize("name", CLASSES)
def test_recomputation_converts_for_it_changes_no_result(name: str) -> None:
    layer = CLASSES[name][0](3, 4, 2, bidirectional=True, recompute=True)
    model = nn.ModuleDict({"layer": layer})
    input, parameters = torch.randn(5, 2, 3), list(model.parameters())
    expected = layer(input)
    assert rnnkit.to_torch(model) is model
    assert type(model["layer"]) is CLASSES[name][1]
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert_close(model["layer"](input), expected)


def test_a_model_that_refers_to_itself_ends() -> None:
    model = Tagger()
    wrapper = nn.ModuleList([model, model])
    assert rnnkit.replace_rnns(wrapper) == 3
