"""torch.compile, torch.export and ONNX on the CPU."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rnnkit
from tests.nn.layers import (
    ALL,
    assert_close,
    build,
    gradients,
    leaf,
    random_state,
    tensors,
)

pytestmark = [
    pytest.mark.compiler,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]
OPTIONS: dict[str, Any] = {"num_layers": 2, "bidirectional": True}


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def assert_compiled_trains_as_eager(layer: Any, compiler: str) -> None:
    dtype = layer.weight_ih_l0.dtype
    compiled = torch.compile(layer, fullgraph=True, backend=compiler)
    results, found = [], []
    input, hx = torch.randn(5, 2, 3, dtype=dtype), random_state(layer, 2)
    for run in (layer, compiled):
        x, h = leaf(input), leaf(hx)
        results.append(run(x, h))
        found.append(gradients(results[-1], [x, *tensors(h), *layer.parameters()]))
    assert_close(*results)
    assert_close(*found)


@pytest.mark.parametrize("kind", ALL)
def test_one_graph_trains_as_eager_does(kind: str) -> None:
    layer = build(kind, 3, 4, **OPTIONS, dtype=torch.float64)
    assert_compiled_trains_as_eager(layer, "aot_eager")


@pytest.mark.process
@pytest.mark.slow
def test_inductor_trains_a_model_as_eager_does() -> None:
    assert_compiled_trains_as_eager(rnnkit.LSTM(3, 4, 2), "inductor")


@pytest.mark.parametrize("kind", ["LSTM", "GRU reset before"])
def test_other_forms_of_call_compile_into_one_graph(kind: str) -> None:
    layer = build(kind, 3, 4, batch_first=True, dtype=torch.float64).eval()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for shape in ((2, 5, 3), (5, 3), (4, 7, 3), (0, 5, 3)):
            input = torch.randn(shape, dtype=torch.float64)
            assert_close(compiled(input), layer(input))


@pytest.mark.parametrize("kind", ALL)
def test_the_graph_does_not_grow_with_the_sequence(kind: str) -> None:
    sizes: list[int] = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        sizes.append(len(graph.graph.nodes))
        return graph

    layer = build(kind, 3, 4, **OPTIONS)
    for steps in (3, 40):
        torch._dynamo.reset()
        torch.compile(layer, fullgraph=True, backend=count, dynamic=False)(torch.randn(steps, 2, 3))
    assert len(sizes) == 2
    assert sizes[0] == sizes[1]


def test_compile_time_does_not_grow_with_the_sequence() -> None:
    layer = rnnkit.LSTM(3, 4)

    def compile_time(steps: int) -> float:
        """Seconds of a first forward and backward pass beyond a second one."""
        torch._dynamo.reset()
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=False)
        seconds = []
        for _ in range(2):
            input = torch.randn(steps, 2, 3, requires_grad=True)
            start = time.perf_counter()
            compiled(input)[0].sum().backward()
            seconds.append(time.perf_counter() - start)
        return seconds[0] - seconds[1]

    compile_time(10)  # imports
    # The least of four in turn: other processes only ever add to it.
    pairs = [(compile_time(10), compile_time(200)) for _ in range(4)]
    short, long = (min(times) for times in zip(*pairs, strict=True))
    assert 0 < long <= 1.5 * short


class Encoder(nn.Module):
    """What a model around a layer looks like."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(8, 2)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        output, last = self.layer(input)
        return self.head(output), tensors(last)[0]


@pytest.mark.parametrize(
    ("kind", "batch_first"),
    [
        *((kind, False) for kind in ALL if "projection" not in kind),
        *((kind, True) for kind in ("LSTM", "GRU reset before")),
    ],
)
def test_an_export_runs_on_other_numbers_of_steps_and_sequences(
    kind: str, batch_first: bool, tmp_path: Path
) -> None:
    options = OPTIONS | {"batch_first": batch_first, "dtype": torch.float64}
    model = Encoder(build(kind, 3, 4, **options)).double().eval()
    sizes = {0: torch.export.Dim("first", min=2), 1: torch.export.Dim("second", min=2)}
    example = torch.randn(5, 3, 3, dtype=torch.float64)
    program = torch.export.export(model, (example,), dynamic_shapes={"input": sizes})
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for shape in ((5, 3, 3), (9, 2, 3), (2, 7, 3)):
        input = torch.randn(shape, dtype=torch.float64)
        assert_close(loaded(input), model(input))
        assert_close(program.module()(input), model(input))


def test_an_export_with_lengths_takes_other_lengths() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = rnnkit.GRU(3, 4, bidirectional=True, dtype=torch.float64)

        def forward(self, input: Tensor, lengths: Tensor) -> Tensor:
            return self.layer(input, lengths=lengths)[0]

    model = Padded().eval()
    steps, batch = torch.export.Dim("steps", min=2), torch.export.Dim("batch", min=2)
    program = torch.export.export(
        model,
        (torch.randn(5, 3, 3, dtype=torch.float64), torch.tensor([5, 2, 3])),
        dynamic_shapes={"input": {0: steps, 1: batch}, "lengths": {0: batch}},
    ).module()
    for lengths in ([5, 2, 3], [0, 4], [7, 1, 6, 7]):
        input = torch.randn(max(lengths), len(lengths), 3, dtype=torch.float64)
        assert_close(program(input, torch.tensor(lengths)), model(input, torch.tensor(lengths)))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN tanh"])
def test_a_model_put_back_to_torch_exports_to_onnx(kind: str) -> None:
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    model = Encoder(build(kind, 3, 4, num_layers=2, bidirectional=True)).eval()
    input = torch.randn(5, 2, 3)
    expected = model(input)
    exported = torch.onnx.export(rnnkit.to_torch(model), (input,), dynamo=True, verbose=False)
    if kind != "RNN tanh":  # which torch writes out step by step
        assert kind in {node.op_type for node in exported.model_proto.graph.node}
    found = reference.ReferenceEvaluator(exported.model_proto).run(None, {"input": input.numpy()})
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(mine), other)
