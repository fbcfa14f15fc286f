"""Parity on a real GPU, against float64; `pytest -m gpu`."""

import pytest
import torch

import rnnkit
from rnnkit_kernels import functional
from rnnkit_kernels.cells import CELLS
from tests.kernels.layers import Layer, assert_as_exact_as_a_plain_loop, random_layer

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "ieee")


def on_gpu(layer: Layer) -> Layer:
    rows = layer.rows.to(torch.device("cuda"))
    inputs = [None if t is None else t.detach().cuda() for t in layer.inputs]
    return Layer(layer.cell, inputs, rows, layer.reverse, [t.cuda() for t in layer.gradients])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("storage", ["dense", "packed", "padded"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("mode", ["launch", "resident"])
@pytest.mark.parametrize("cell", CELLS)
def test_results_and_gradients_match_the_definition(
    cell: str, mode: str, reverse: bool, storage: str, dtype: torch.dtype
) -> None:
    layer = random_layer(cell, storage, reverse, hidden=60, batch=19)
    assert_as_exact_as_a_plain_loop(on_gpu(layer), mode, dtype)


@pytest.mark.parametrize("hidden", [200, 300, 650, 1024])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_large_layers_in_launch_mode(cell: str, hidden: int) -> None:
    layer = random_layer(cell, "packed", hidden=hidden, batch=33)
    assert_as_exact_as_a_plain_loop(on_gpu(layer), "launch", torch.bfloat16)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_captured_graph_sees_new_weights(kind: str) -> None:
    """Nothing about the weights is cached, and nothing waits for the host, backward included."""
    layer = (torch.nn.LSTM if kind == "lstm" else torch.nn.GRU)(32, 64, device="cuda")
    x = torch.randn(9, 8, 32, device="cuda")
    h0, c0 = torch.zeros(2, 1, 8, 64, device="cuda")
    start = ((h0, c0),) if kind == "lstm" else (h0,)

    def run() -> torch.Tensor:
        weights = list(layer.parameters())
        output: torch.Tensor = getattr(functional, kind)(x, *start, weights, backend="triton")[0]
        return output

    def step() -> tuple[torch.Tensor, ...]:
        y = run()
        return y, *torch.autograd.grad(y.square().sum(), layer.parameters())

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    for _ in range(2):
        with torch.no_grad():
            for weight in layer.parameters():
                weight.mul_(0.5)
        graph.replay()
        y = layer(x, *start)[0]
        expected = (y, *torch.autograd.grad(y.square().sum(), layer.parameters()))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_lengths_on_the_gpu_are_never_read_by_the_host() -> None:
    layer = torch.nn.GRU(16, 32, bidirectional=True, device="cuda")
    x = torch.randn(7, 5, 16, device="cuda")
    lengths = torch.tensor([3, 7, 0, 1, 7], device="cuda")
    h0 = torch.randn(2, 5, 32, device="cuda")
    weights = list(layer.parameters())
    options = {"bidirectional": True, "lengths": lengths}
    torch.autograd.grad(functional.gru(x, h0, weights, **options)[0].sum(), weights)
    torch.cuda.set_sync_debug_mode("error")
    try:
        y, h_n = functional.gru(x, h0, weights, **options)
        torch.autograd.grad(y.sum(), weights)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected, expected_h_n = functional.gru(
        x, h0, weights, bidirectional=True, lengths=lengths.cpu(), backend="torch"
    )
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(h_n, expected_h_n, rtol=1e-4, atol=1e-5)


def test_compiled_layer_trains_as_one_graph() -> None:
    layer = rnnkit.LSTM(16, 32, 2, bidirectional=True, device="cuda")
    x = torch.randn(7, 5, 16, device="cuda")
    lengths = torch.tensor([3, 7, 0, 1, 7], device="cuda")
    compiled = torch.compile(layer, fullgraph=True)
    for options in ({}, {"lengths": lengths}):
        y, y_compiled = layer(x, **options)[0], compiled(x, **options)[0]
        torch.testing.assert_close(y_compiled, y, rtol=1e-4, atol=1e-5)
        ours = torch.autograd.grad(y_compiled.square().sum(), layer.parameters())
        eager = torch.autograd.grad(y.square().sum(), layer.parameters())
        for a, b in zip(ours, eager, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
