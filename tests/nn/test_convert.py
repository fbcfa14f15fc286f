"""`replace_rnns` and `to_torch`: in place, sharing parameters, and back."""

import copy
import functools
import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

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


CELLS = ("LSTMCell", "GRUCell", "RNNCell")
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
@pytest.mark.parametrize("subclass", [False, True])
@pytest.mark.parametrize("reparametrise", [weight_norm, spectral_norm, prune.random_unstructured])
def test_a_weight_that_a_hook_computes_stays_computed(reparametrise: Any, subclass: bool) -> None:
    model = nn.Sequential(nn.GRU(3, 4))
    options = {"amount": 0.5} if reparametrise is prune.random_unstructured else {}
    reparametrise(model[0], "weight_hh_l0", **options)
    model.eval()  # spectral_norm changes its buffers in every call of training
    input = torch.randn(5, 2, 3)
    expected = model(input)
    state = copy.deepcopy(model.state_dict())
    for convert in (functools.partial(rnnkit.replace_rnns, subclass=subclass), rnnkit.to_torch):
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
    found = rnnkit.replace_rnns(model)
    assert found == 0
    assert "weight_hh_l0 is parametrised: call torch.nn.utils.parametrize.rem" in found.left["0"]
    assert_equal(model(input), expected)


class OwnLSTM(nn.LSTM):
    """May do anything in forward."""


class OwnGRU(rnnkit.GRU):
    """One of rnnkit's that torch has no class for."""


class OwnCell(rnnkit.GRUCell):
    """One of rnnkit's that is one of torch's too."""


def test_subclasses_of_torchs_layers_are_left_alone_and_named() -> None:
    model = nn.ModuleList([OwnLSTM(3, 4), OwnGRU(3, 4), OwnCell(3, 4), rnnkit.LSTMCell(3, 4)])
    before = list(model)
    found = rnnkit.replace_rnns(model)
    assert found == 0
    assert found.left == {"0": "OwnLSTM is a subclass, which may do anything"}
    assert all(a is b for a, b in zip(model, before, strict=True))
    assert rnnkit.replace_rnns(OwnLSTM(3, 4)).left == {"": found.left["0"]}


@pytest.mark.parametrize("kind", [OwnGRU, OwnCell])
def test_a_subclass_of_rnnkits_cannot_go_to_torch(kind: Any) -> None:
    model = nn.ModuleList([OwnLSTM(3, 4), rnnkit.GRU(3, 4), kind(3, 4)])
    before = list(model)
    with pytest.raises(ValueError, match=rf"layer '2' can't be converted: {kind.__name__} is a"):
        rnnkit.to_torch(model)
    with pytest.raises(ValueError, match="the layer can't be converted"):
        rnnkit.to_torch(model[2])
    assert all(a is b for a, b in zip(model, before, strict=True))


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


def patch_forward(layer: Any) -> None:
    forward = layer.forward
    layer.forward = lambda *inputs: (forward(*inputs)[0] * 2, None)


def add_hook_as_accelerate_does(layer: Any) -> None:
    layer._hf_hook, layer._old_forward = object(), layer.forward
    layer.forward = functools.update_wrapper(
        functools.partial(lambda module, *inputs: module._old_forward(*inputs), layer),
        layer._old_forward,
    )


PUT_ON: dict[str, tuple[Any, str]] = {
    "a forward": (patch_forward, "its forward was replaced"),
    "accelerate's hook": (add_hook_as_accelerate_does, "its forward was replaced"),
    "another method": (
        lambda layer: setattr(layer, "extra_repr", lambda: "mine"),
        "its extra_repr was replaced",
    ),
    "a module": (
        lambda layer: layer.add_module("norm", nn.LayerNorm(4)),
        "modules were put on it: norm",
    ),
    "a function": (
        lambda layer: setattr(layer, "width", lambda: layer.hidden_size),
        "a function was put on it: width",
    ),
    "compile": (lambda layer: layer.compile(), "it is compiled by itself"),
    "a parametrisation": (
        lambda layer: parametrizations.weight_norm(layer, next(iter(layer._parameters))),
        "is parametrised",
    ),
    "no weight": (lambda layer: delattr(layer, next(iter(layer._parameters))), "it has no weight_"),
}
EITHER_WAY = {**CLASSES, **{name: (getattr(rnnkit, name), getattr(nn, name)) for name in CELLS}}


@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
@pytest.mark.parametrize("what", PUT_ON)
def test_what_is_no_plain_layer_stays_and_is_named(what: str, name: str) -> None:
    put, reason = PUT_ON[what]
    ours, theirs = EITHER_WAY[name]
    model = nn.ModuleDict({"plain": theirs(3, 4), "more": theirs(3, 4)})
    layer = model["more"]
    put(layer)
    found = rnnkit.replace_rnns(model)
    assert found == 1
    assert found.replaced == ("plain",)
    assert list(found.left) == ["more"]
    assert reason in found.left["more"]
    assert reason in str(found)
    assert model["more"] is layer

    model = nn.ModuleDict({"plain": ours(3, 4), "more": ours(3, 4)})
    put(model["more"])
    before = dict(model.named_children())
    with pytest.raises(ValueError, match=f"layer 'more' can't be converted: .*{reason}"):
        rnnkit.to_torch(model)
    assert dict(model.named_children()) == before


def test_a_patched_layer_computes_what_it_did() -> None:
    model = nn.Sequential(nn.LSTM(8, 16))
    patch_forward(model[0])
    input = torch.randn(5, 2, 8)
    expected = model(input)
    rnnkit.replace_rnns(model)
    assert_equal(model(input), expected)


@pytest.mark.parametrize("name", EITHER_WAY)
def test_data_buffers_and_parameters_move_with_their_layer(name: str) -> None:
    ours, theirs = EITHER_WAY[name]
    model = nn.Sequential(theirs(3, 4, bias=False))
    layer, note = model[0], {"width": 4}
    layer.note = note
    layer.mean = torch.zeros(3)
    layer.register_buffer("kept", torch.ones(2))
    layer.register_buffer("dropped", torch.ones(2), persistent=False)
    layer.scale = nn.Parameter(torch.ones(1))
    first = next(iter(layer._parameters))
    weight = layer._parameters.pop(first)
    setattr(layer, first, weight)  # the first is the last now, which optimisers count by
    parameters, state, buffers = list(model.parameters()), list(model.state_dict()), layer._buffers
    assert "0.kept" in state
    for convert, kind in ((rnnkit.replace_rnns, ours), (rnnkit.to_torch, theirs)):
        convert(model)
        assert type(model[0]) is kind
        assert model[0].note is note
        assert model[0].mean is layer.mean
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        assert list(model.state_dict()) == state
        assert model[0]._buffers == buffers


def test_an_attribute_that_would_mean_something_else_stays() -> None:
    model = nn.Sequential(nn.GRU(3, 4))
    model[0].zoneout = 0.5
    assert "means something to GRU was put on it: zoneout" in rnnkit.replace_rnns(model).left["0"]


CELL_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "LSTMCell": [{}, {"bias": False}],
    "GRUCell": [{}, {"bias": False}],
    "RNNCell": [{}, {"nonlinearity": "relu", "bias": False}],
}


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name in CELLS for options in CELL_OPTIONS[name]]
)
def test_cells_are_converted_both_ways(name: str, options: dict[str, Any]) -> None:
    ours, theirs = EITHER_WAY[name]
    model = nn.ModuleDict({"cell": theirs(3, 4, **options)}).eval()
    input, text, parameters = torch.randn(2, 3), str(model), list(model.parameters())
    expected = model["cell"](input)
    assert rnnkit.replace_rnns(model) == 1
    assert type(model["cell"]) is ours
    assert_equal(model["cell"](input), expected)
    with torch.no_grad():
        assert_close(model["cell"](input), expected)  # makes what a cell makes when it runs
    assert str(model) == text
    assert not model["cell"].training
    assert rnnkit.to_torch(model) is model
    assert type(model["cell"]) is theirs
    assert "_fast_path" not in vars(model["cell"])
    assert str(model) == text
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert_equal(model["cell"](input), expected)
    assert type(rnnkit.to_torch(ours(3, 4, **options))) is theirs


def test_a_reset_before_cell_stays() -> None:
    model = nn.Sequential(rnnkit.GRUCell(3, 4, reset_after=False))
    with pytest.raises(ValueError, match="layer '0' has reset_after=False"):
        rnnkit.to_torch(model)
    assert type(model[0]) is rnnkit.GRUCell


@pytest.mark.parametrize("name", EITHER_WAY)
def test_a_bare_layer_or_cell_cannot_be_replaced_in_place(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} is the layer itself"):
        rnnkit.replace_rnns(EITHER_WAY[name][1](3, 4))


def test_the_backend_of_the_new_layers_is_chosen() -> None:
    model = Tagger().eval()
    expected = model(TOKENS)
    model.cell = nn.GRUCell(3, 4)
    found = rnnkit.replace_rnns(model, backend="torch")
    assert found == 3
    assert found.left == {"cell": "a cell has no backend='torch'"}
    assert {layer.backend for layer in model.modules() if hasattr(layer, "backend")} == {"torch"}
    assert torch.equal(model(TOKENS), expected)
    with pytest.raises(ValueError, match="backend must be one of"):
        rnnkit.replace_rnns(model, backend="cuda")  # type: ignore[arg-type]


def test_the_result_is_the_number_of_layers_and_says_which() -> None:
    model = Tagger()
    patch_forward(model.shared)
    found = rnnkit.replace_rnns(model)
    assert found.replaced == ("encoder.lstm", "encoder.gru")
    assert found.left == {"shared": "its forward was replaced"}
    assert str(found).splitlines() == [
        "2 replaced",
        "  encoder.lstm",
        "  encoder.gru",
        "1 left as they are",
        "  shared: its forward was replaced",
    ]
    assert isinstance(found, int)
    assert (found, int(found), range(3)[found], hash(found)) == (2, 2, 2, hash(2))
    assert found
    assert not rnnkit.replace_rnns(model)
    with pytest.raises(AttributeError):
        found.replaced = ()  # type: ignore[misc]
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert (other, other.replaced, other.left) == (2, found.replaced, found.left)
