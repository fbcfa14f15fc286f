"""torch.fx, torch.jit.script and torch.onnx: one node a layer, or one sentence."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx
from torch.nn.utils.rnn import PackedSequence

import rnnkit
import rnnkit.compat
from tests.conftest import needs_engine
from tests.nn.layers import CLASSES, assert_equal, build

CELLS = ("LSTMCell", "GRUCell", "RNNCell")
EVERY = [*CLASSES, *CELLS]


class Step(nn.Module):
    """A cell between two linear layers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.before = nn.Linear(3, 3)
        self.layer = layer
        self.after = nn.Linear(4, 2)

    def forward(self, input: Tensor) -> Tensor:
        return self.after(self.layer(self.before(input)))


class Sequence(Step):
    """A layer, whose result is a pair, between two linear layers."""

    def forward(self, input: Tensor) -> Tensor:
        return self.after(self.layer(self.before(input))[0])


def model_of(name: str, module: Any = rnnkit) -> tuple[nn.Module, Tensor]:
    layer = getattr(module, name)(3, 4)
    if name in CLASSES:
        return Sequence(layer), torch.randn(5, 2, 3)
    kind = Sequence if name == "LSTMCell" else Step
    return kind(layer), torch.randn(2, 3)


@pytest.mark.parametrize("name", EVERY)
def test_fx_takes_a_layer_for_one_node_as_it_takes_torchs(name: str) -> None:
    model, input = model_of(name)
    theirs, _ = model_of(name, nn)
    traced, expected = fx.symbolic_trace(model), fx.symbolic_trace(theirs)
    nodes = [[(n.op, str(n.target)) for n in one.graph.nodes] for one in (traced, expected)]
    assert nodes[0] == nodes[1]
    assert nodes[0].count(("call_module", "layer")) == 1
    assert traced.layer is model.layer
    assert_equal(traced(input), model(input))
    assert_equal(fx.symbolic_trace(traced)(input), model(input))


@pytest.mark.parametrize("module", [rnnkit, rnnkit.compat])
@pytest.mark.parametrize("name", CLASSES)
def test_fx_hands_on_states_and_lengths(name: str, module: Any) -> None:
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deep = nn.ModuleList([getattr(module, name)(3, 4)])

        def forward(self, input: Tensor, h: Tensor, lengths: Tensor) -> Any:
            hx = (h, h) if name == "LSTM" else h
            output, last = self.deep[0](input, hx, lengths=lengths)
            return output, last, self.deep[0](input)

    model = Stateful()
    traced = fx.symbolic_trace(model)
    calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    assert [node.target for node in calls] == ["deep.0", "deep.0"]
    arguments = (torch.randn(5, 2, 3), torch.randn(1, 2, 4), torch.tensor([2, 5]))
    assert_equal(traced(*arguments), model(*arguments))


@pytest.mark.parametrize("name", EVERY)
def test_fx_sees_a_state_alone(name: str) -> None:
    class Start(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = getattr(rnnkit, name)(3, 4)

        def forward(self, h: Tensor) -> Any:
            start = torch.ones((5, 2, 3) if name in CLASSES else (2, 3))
            return self.layer(start, (h, h) if "LSTM" in name else h)

    model = Start()
    traced = fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["layer"]
    state = torch.randn((1, 2, 4) if name in CLASSES else (2, 4))
    assert_equal(traced(state), model(state))


class Partly(nn.Module):
    """A layer some of whose arguments are known before it runs."""

    def __init__(self, layer: nn.Module, call: Any) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, given: Tensor) -> Any:
        return self.call(self.layer, given)


INPUT, H, CUT = torch.ones(5, 2, 3), torch.zeros(1, 2, 4), torch.zeros(5, 2, dtype=torch.bool)
ALONE: dict[str, tuple[str, Any, Tensor]] = {
    "lengths": ("GRU", lambda layer, n: layer(INPUT, lengths=n), torch.tensor([5, 2])),
    "resets": ("LSTM", lambda layer, cut: layer(INPUT, resets=cut), ~CUT),
    "resets beside a state": ("LSTM", lambda layer, cut: layer(INPUT, (H, H), resets=cut), ~CUT),
    "hx_reset": ("RNN", lambda layer, h: layer(INPUT, resets=~CUT, hx_reset=h), H[:, 0] + 1),
    "a pair hx_reset": (
        "LSTM",
        lambda layer, h: layer(INPUT, resets=~CUT, hx_reset=(h, h)),
        H[:, 0] + 1,
    ),
    "a list": ("LSTM", lambda layer, h: layer(INPUT, [h, h]), H + 1),
    "a cell's list": ("LSTMCell", lambda layer, h: layer(INPUT[0], [h, h]), H[0] + 1),
    "c": ("LSTM", lambda layer, c: layer(INPUT, (H, c)), H + 1),
    "a cell's c": ("LSTMCell", lambda layer, c: layer(INPUT[0], (H[0], c)), H[0] + 1),
    "packed rows": (
        "GRU",
        lambda layer, rows: layer(PackedSequence(rows, torch.tensor([2, 1])))[1],
        torch.ones(3, 3),
    ),
}


@pytest.mark.parametrize("what", ALONE)
def test_fx_sees_any_argument_alone(what: str) -> None:
    name, call, given = ALONE[what]
    model = Partly(getattr(rnnkit, name)(3, 4), call)
    traced = fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["layer"]
    assert_equal(traced(given), model(given))
    other = given.flip(0) if what == "lengths" else ~given if "resets" in what else given * 2
    assert_equal(traced(other), model(other))


@pytest.mark.parametrize("name", EVERY)
def test_fx_is_told_why_it_cannot_trace(name: str) -> None:
    layer = getattr(rnnkit, name)(3, 4)
    with pytest.raises(TypeError, match=f"takes {name} for one node: trace a module that holds it"):
        fx.symbolic_trace(layer)
    model, input = model_of(name)
    handle = model.layer.register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match=f"run the hooks of {name} twice"):
        fx.symbolic_trace(model)
    handle.remove()
    assert_equal(fx.symbolic_trace(model)(input), model(input))


class PathTracer(fx.Tracer):
    """How feature extraction names its nodes: by the module that is being called."""

    def __init__(self) -> None:
        super().__init__()
        self.current, self.names = "", {}

    def call_module(self, m: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        outer, self.current = self.current, self.path_of_module(m)
        try:
            if not self.is_leaf_module(m, self.current):
                return forward(*args, **kwargs)
            return self.create_proxy("call_module", self.current, args, kwargs)
        finally:
            self.current = outer

    def create_proxy(self, *args: Any, **kwargs: Any) -> Any:
        proxy = super().create_proxy(*args, **kwargs)
        self.names[proxy.node.name] = self.current
        return proxy


@pytest.mark.parametrize("name", EVERY)
def test_feature_extraction_finds_the_layer_by_its_path(name: str) -> None:
    model, input = model_of(name)
    tracer = PathTracer()
    graph = tracer.trace(model)
    assert tracer.names["layer"] == "layer"
    node = next(node for node in graph.nodes if node.name == "layer")
    assert (node.op, node.target) == ("call_module", "layer")
    features = fx.GraphModule(model, graph)
    output = next(node for node in graph.nodes if node.op == "output")
    with graph.inserting_before(output):
        graph.output(node)
    graph.erase_node(output)
    features.recompile()
    assert_equal(features(input), model.layer(model.before(input)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_quantisation_by_fx_leaves_the_layer_between_quantised_ones(name: str) -> None:
    if not {"fbgemm", "x86"} & set(torch.backends.quantized.supported_engines):
        pytest.skip("this build of torch has no quantised linear layers")
    model, input = model_of(name)
    model.eval()
    prepared = quantize_fx.prepare_fx(model, get_default_qconfig_mapping("fbgemm"), (input,))
    prepared(input)
    quantised = quantize_fx.convert_fx(prepared)
    assert type(quantised.before) is torch.ao.nn.quantized.Linear
    assert type(quantised.layer) is type(model.layer)
    torch.testing.assert_close(quantised(input), model(input), atol=0.1, rtol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "module"),
    [*((name, rnnkit) for name in EVERY), *((name, rnnkit.compat) for name in CLASSES)],
)
def test_scripting_says_what_to_call_and_changes_nothing(name: str, module: Any) -> None:
    layer = getattr(module, name)(3, 4)
    message = rf"can't compile rnnkit's {name}: call rnnkit\.to_torch\(model\) first"
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(layer))
    for scripted in (layer, model):
        with pytest.raises(RuntimeError, match=message):
            torch.jit.script(scripted)
    assert model[1][0] is layer
    input = torch.randn(5, 3)
    assert_equal(torch.jit.script(rnnkit.to_torch(model))(input), model(input))


WHAT_TO_CALL = r"ONNX has none of rnnkit's operators.*call rnnkit\.to_torch\(model\)"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["LSTM", "GRU reset before"])
def test_the_exporter_of_onnx_says_what_to_call(kind: str) -> None:
    pytest.importorskip("onnxscript")
    model = Sequence(build(kind, 3, 4)).eval()
    with pytest.raises(RuntimeError, match=WHAT_TO_CALL):
        torch.onnx.export(model, (torch.randn(5, 2, 3),), dynamo=True, verbose=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("backend", ["auto", "torch", pytest.param("native", marks=needs_engine)])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_the_older_exporter_of_onnx_writes_torchs_layers_or_says_what_to_call(
    kind: str, backend: Any, trains: bool
) -> None:
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    model, input = Sequence(build(kind, 3, 4, backend=backend)).eval(), torch.randn(5, 2, 3)
    file = io.BytesIO()
    with torch.set_grad_enabled(trains):
        if backend == "native":
            with pytest.raises(RuntimeError, match=WHAT_TO_CALL):
                torch.onnx.export(model, (input,), file, dynamo=False)
            return
        torch.onnx.export(model, (input,), file, dynamo=False)
    exported = onnx.load_from_string(file.getvalue())
    name = exported.graph.input[0].name
    other = torch.randn(5, 2, 3)
    found = reference.ReferenceEvaluator(exported).run(None, {name: other.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), model(other))
