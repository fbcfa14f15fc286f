"""The layers that are instances of torch's classes too, and what looks up torch's classes."""

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

import rnnkit
import rnnkit.compat
from tests.nn.layers import CLASSES, STANDARD, assert_close, assert_equal, gradients, random_state

OPTIONS: dict[str, Any] = {"num_layers": 2, "bidirectional": True}


def build(kind: str, which: str = "compat", **options: Any) -> Any:
    """A layer of a kind of `STANDARD`: of rnnkit.compat, of rnnkit, or of torch.nn."""
    name, extra = STANDARD[kind]
    module = {"compat": rnnkit.compat, "rnnkit": rnnkit, "torch": nn}[which]
    torch.manual_seed(0)
    return getattr(module, name)(3, 5, **extra, **options)


@pytest.mark.parametrize("kind", STANDARD)
def test_it_is_an_instance_of_both_and_keeps_nothing_more(kind: str) -> None:
    layer, plain, theirs = (
        build(kind, which, **OPTIONS) for which in ("compat", "rnnkit", "torch")
    )
    assert isinstance(layer, type(theirs))
    assert isinstance(layer, nn.RNNBase)
    assert isinstance(layer, type(plain))
    assert repr(layer) == repr(theirs)
    assert vars(layer).keys() == vars(plain).keys()
    assert not [name for name in vars(type(layer)) if inspect.isfunction(getattr(layer, name))]
    assert type(layer).forward is type(plain).forward
    assert_equal(tuple(layer._flat_weights), tuple(theirs._flat_weights))
    assert_equal(layer.all_weights, theirs.all_weights)
    assert layer.mode == theirs.mode


@pytest.mark.parametrize("form", ["batched", "packed", "lengths"])
@pytest.mark.parametrize("kind", STANDARD)
def test_it_computes_what_rnnkits_own_layer_does(kind: str, form: str) -> None:
    layer, plain = (build(kind, which, **OPTIONS) for which in ("compat", "rnnkit"))
    input, lengths, hx = torch.randn(6, 3, 3), torch.tensor([2, 6, 1]), random_state(plain, 3)
    given: Any = input
    if form == "packed":
        given = pack_padded_sequence(input, lengths, enforce_sorted=False)
    options = {"lengths": lengths} if form == "lengths" else {}
    for training in (True, False):
        found = []
        for one in (layer, plain):
            one.train(training)
            result = one(given, hx, **options)
            found.append((result, gradients(result, list(one.parameters()))))
            with torch.no_grad():
                assert_equal(one(given, hx, **options)[1], one(given, hx, **options)[1])
        assert_equal(*found)


@pytest.mark.parametrize("through", ["deepcopy", "copy", "pickle", "replica"])
@pytest.mark.parametrize("kind", STANDARD)
def test_a_copy_computes_the_same(kind: str, through: str) -> None:
    layer = build(kind, **OPTIONS).eval()
    input = torch.randn(4, 2, 3)
    expected = layer(input)
    make = {"deepcopy": copy.deepcopy, "copy": copy.copy}
    make["pickle"] = lambda one: pickle.loads(pickle.dumps(one))
    make["replica"] = lambda one: one._replicate_for_data_parallel()
    other = make[through](layer)
    if through == "replica":
        for name, parameter in layer._parameters.items():
            setattr(other, name, parameter.detach().clone())
    assert type(other) is type(layer)
    assert_equal(other(input), expected)
    if through in ("deepcopy", "pickle"):
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1)
        assert_equal(layer(input), expected)


@pytest.mark.parametrize("kind", STANDARD)
def test_the_weights_that_it_holds_are_the_ones_that_run(kind: str) -> None:
    layer, theirs = build(kind, backend="torch"), build(kind, "torch")
    input = torch.randn(4, 2, 3)
    layer(input)
    given = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
    assert_equal(*(functional_call(one, given, (input,)) for one in (layer, theirs)))
    theirs.load_state_dict(given)
    layer.load_state_dict(theirs.state_dict())
    assert_equal(layer(input), theirs(input))
    for one in (layer, theirs):
        torch.manual_seed(1)
        one.weight_hh_l0 = nn.Parameter(torch.randn_like(one.weight_hh_l0))
        one.double()
    assert_equal(layer(input.double()), theirs(input.double()))
    del layer.weight_hh_l0
    layer.to("cpu").float()
    layer.weight_hh_l0 = torch.zeros_like(theirs.weight_hh_l0, dtype=torch.float32)
    layer(input)
    assert layer._flat_weights[1] is layer.weight_hh_l0


@pytest.mark.parametrize("kind", STANDARD)
def test_a_parametrised_weight_trains(kind: str) -> None:
    layer, theirs = build(kind, backend="torch"), build(kind, "torch")
    input = torch.randn(4, 2, 3)
    for one in (layer, theirs):
        parametrizations.weight_norm(one, "weight_hh_l0")
    results = [one(input) for one in (layer, theirs)]
    assert_equal(*results)
    found = [
        gradients(r, list(o.parameters())) for r, o in zip(results, (layer, theirs), strict=True)
    ]
    assert_equal(*found)


@pytest.mark.parametrize("name", CLASSES)
def test_a_model_is_converted_and_back(name: str) -> None:
    model = nn.Sequential(CLASSES[name][1](3, 4, 2))
    parameters, input = list(model.parameters()), torch.randn(5, 2, 3)
    expected = model(input)
    assert rnnkit.replace_rnns(model, subclass=True, backend="torch") == 1
    assert type(model[0]) is getattr(rnnkit.compat, name)
    assert model[0].backend == "torch"
    assert_equal(model(input), expected)
    assert f"0: {name}(3, 4, num_layers=2, backend='torch')" in str(rnnkit.explain(model))
    assert rnnkit.explain(model[0], input).decision.engine == "torch"
    assert rnnkit.replace_rnns(model) == 0
    assert rnnkit.to_torch(model) is model
    assert type(model[0]) is CLASSES[name][1]
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert_equal(model(input), expected)


def initialise(module: nn.Module) -> None:
    """As programs for handwriting draw their weights, by the classes of their layers."""
    if isinstance(module, nn.LSTM):
        for parameter in module.parameters():
            if parameter.dim() == 2:
                nn.init.orthogonal_(parameter.data)
            else:
                nn.init.constant_(parameter.data[len(parameter) // 4 : len(parameter) // 2], 1.0)
    elif isinstance(module, nn.GRU | nn.RNN | nn.RNNCellBase):
        for weight in module.parameters():
            nn.init.normal_(weight)


@pytest.mark.parametrize("name", [*CLASSES, "LSTMCell", "GRUCell", "RNNCell"])
def test_an_initialisation_that_asks_for_the_class_reaches_it(name: str) -> None:
    def initialised(convert: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(getattr(nn, name)(3, 4))
        before = [p.detach().clone() for p in model.parameters()]
        if convert:
            assert rnnkit.replace_rnns(model, subclass=True) == 1
        model.apply(initialise)
        assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        return list(model.parameters())

    assert_equal(initialised(convert=True), initialised(convert=False))


@pytest.mark.parametrize("name", CLASSES)
def test_compilation_passes_over_the_caller_and_computes_the_same(name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), build(name + " tanh" * (name == "RNN"))).double()
    input = torch.randn(4, 2, 3, dtype=torch.float64)
    expected = model(input)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="wrap RNN, GRU, or LSTM"):
        torch.compile(model, backend="eager", fullgraph=True)(input)
    torch._dynamo.reset()
    targets: list[Any] = []

    def see(graph: torch.fx.GraphModule, _: Any) -> Any:
        targets.extend(node.target for node in graph.graph.nodes)
        return graph

    found = torch.compile(model, backend=see)(input)
    assert torch.ops.rnnkit.recurrence.default in targets
    assert nn.functional.linear not in targets
    assert_close(found, expected)
    parameters = list(model.parameters())
    assert_close(gradients(found, parameters), gradients(expected, parameters))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_what_looks_up_the_exact_class_needs_the_way_back_to_torch(name: str) -> None:
    if not {"fbgemm", "x86"} & set(torch.backends.quantized.supported_engines):
        pytest.skip("this build of torch quantises no recurrent layers")
    theirs = CLASSES[name][1]
    model = nn.Sequential(theirs(3, 4))
    input = torch.randn(5, 2, 3)
    expected = torch.ao.quantization.quantize_dynamic(model, {theirs})
    assert type(expected[0]) is getattr(torch.ao.nn.quantized.dynamic, name)
    for subclass in (False, True):
        assert rnnkit.replace_rnns(model, subclass=subclass) == 1
        unchanged = torch.ao.quantization.quantize_dynamic(model, {theirs})
        assert type(unchanged[0]) is type(model[0])
        quantised = torch.ao.quantization.quantize_dynamic(rnnkit.to_torch(model), {theirs})
        assert type(quantised[0]) is type(expected[0])
        assert_equal(quantised(input), expected(input))
