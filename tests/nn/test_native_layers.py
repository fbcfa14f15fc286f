"""Layers on the native engine: what surrounds it, in one process and in several."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rnnkit_kernels.cpu import native
from tests.conftest import needs_engine
from tests.nn.layers import ALL, STANDARD, build, leaf, tensors, twins

pytestmark = needs_engine


def built(kind: str, *sizes: int, **options: Any) -> Any:
    """A layer that runs natively whatever "auto" would choose."""
    return build(kind, *sizes, backend="native", **options)


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads, however small the layer is."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(native, "FEW", 0)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "GRU reset before", "RNN relu", "LSTM coupled"])
def test_tensors_that_do_not_lie_in_one_piece(kind: str) -> None:
    torch.manual_seed(0)
    layer = built(kind, 4, 5)
    x = leaf(torch.randn(4, 3, 7).permute(2, 1, 0))
    h = torch.randn(5, 1, 1).transpose(0, 2).expand(1, 3, 5)
    hx = (h, h * 2) if kind.startswith("LSTM") else h
    expected = layer(x.contiguous(), tuple(tensors(hx)) if isinstance(hx, tuple) else hx.clone())
    with torch.no_grad():
        for name in ("weight_ih_l0", "weight_hh_l0"):
            weight = getattr(layer, name)
            setattr(layer, name, nn.Parameter(weight.t().contiguous().t()))
            assert not getattr(layer, name).is_contiguous()
    output = layer(x, hx)
    for a, b in zip(tensors(output), tensors(expected), strict=True):
        assert torch.equal(a, b)
    found = torch.autograd.grad(output[0].sum(), [x, *layer.parameters()])  # dy is expanded
    again = torch.autograd.grad(
        layer(x, hx)[0], [x, *layer.parameters()], torch.ones(3, 7, 5).transpose(0, 1)
    )
    for a, b in zip(found, again, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("part", ["output", "h_n", "c_n"])
@pytest.mark.parametrize("lengths", [None, [4, 0, 2]])
def test_a_loss_of_one_result_alone(part: str, lengths: list[int] | None) -> None:
    torch.manual_seed(0)
    layer = built("LSTM", 4, 5, bidirectional=True, dtype=torch.float64)
    x, h = torch.randn(4, 3, 4, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    found = []
    for backend in ("native", "eager"):
        layer.backend = backend
        leaves = [leaf(x), leaf(h), leaf(h)]
        given = None if lengths is None else torch.tensor(lengths)
        output, (h_n, c_n) = layer(leaves[0], tuple(leaves[1:]), lengths=given)
        result = {"output": output, "h_n": h_n, "c_n": c_n}[part]
        weights = torch.arange(1.0, result.numel() + 1, dtype=torch.float64).view(result.shape)
        found.append(torch.autograd.grad(result, [*leaves, *layer.parameters()], weights))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_what_wants_no_gradient_gets_none() -> None:
    layer = built("GRU", 4, 5)
    x, h0 = torch.randn(3, 2, 4), torch.randn(1, 2, 5)
    layer.weight_ih_l0.requires_grad_(False)
    layer(x, h0)[0].sum().backward()
    assert x.grad is h0.grad is layer.weight_ih_l0.grad is None
    assert layer.weight_hh_l0.grad is not None
    layer.requires_grad_(False)
    layer(x, h0.requires_grad_())[0].sum().backward()
    assert h0.grad is not None


@pytest.mark.parametrize("grad", [True, False])
def test_weights_that_change_between_calls_are_seen(grad: bool) -> None:
    layer, x = built("GRU", 4, 5), torch.randn(3, 2, 4)
    with torch.set_grad_enabled(grad):
        before = layer(x)[0]
        with torch.no_grad():
            layer.weight_hh_l0.mul_(2)
        in_place = layer(x)[0]
        layer.weight_ih_l0.data = torch.randn(15, 4)
        through_data = layer(x)[0]
        layer.backend = "eager"
        torch.testing.assert_close(through_data, layer(x)[0])
    assert not torch.equal(before, in_place)


def test_weights_that_change_before_the_backward_pass_are_refused() -> None:
    layer = built("GRU", 4, 5)
    output = layer(torch.randn(3, 2, 4))[0]
    with torch.no_grad():
        layer.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("kind", ALL)
def test_a_second_backward_pass_over_the_same_graph(kind: str) -> None:
    layer, x = built(kind, 4, 5, bidirectional=True), leaf(torch.randn(3, 2, 4))
    output = layer(x)[0]
    first, second = (
        torch.autograd.grad(output.sum(), [x, *layer.parameters()], retain_graph=True)
        for _ in range(2)
    )
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("where", ["x", "h0", "weight_ih_l0", "weight_hh_l0", "bias_hh_l0"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", [kind for kind in STANDARD if "projection" not in kind])
def test_what_is_no_number_goes_where_torch_has_it_go(kind: str, value: float, where: str) -> None:
    ours, theirs = twins(kind, 3, 19)
    ours.backend = "native"
    x, h = torch.randn(4, 9, 3), torch.randn(1, 9, 19)
    given = {"x": x, "h0": h}
    for layer in (ours, theirs):
        given |= {f"{layer is ours}{name}": p for name, p in layer.named_parameters()}
    with torch.no_grad():
        for name in [where] if where in ("x", "h0") else [f"True{where}", f"False{where}"]:
            given[name].view(-1)[4] = value
    hx = (h, torch.randn(1, 9, 19)) if kind == "LSTM" else h
    for mine, other in zip(tensors(ours(x, hx)), tensors(theirs(x, hx)), strict=True):
        assert torch.equal(mine.isnan(), other.isnan())
        assert torch.equal(mine.isposinf(), other.isposinf())
        assert torch.equal(mine.isneginf(), other.isneginf())


def seconds(layer: Any, x: Tensor, scale: float) -> float:
    """CPU time of a backward pass."""
    output = layer(x)[0]
    gradient = torch.zeros_like(output)
    gradient[-1] = scale
    start = time.thread_time()
    output.backward(gradient)
    return time.thread_time() - start


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_dying_gradients_cost_no_more_than_others(kind: str) -> None:
    layer, x = built(kind, 64, 64), torch.randn(200, 16, 64)
    pairs = [[seconds(layer, x, scale) for scale in (1.0, 1e-36)] for _ in range(9)]
    normal, dying = (sorted(each)[4] for each in zip(*pairs, strict=True))
    assert dying < 3 * normal


@pytest.mark.timeout(120)
def test_threads_of_python_call_one_layer_at_once(two_threads: None) -> None:
    layer, x = built("LSTM", 8, 33), torch.randn(20, 9, 8)
    expected = layer(x)[0]
    wrong: list[str] = []

    def call() -> None:
        for i in range(30):
            batch = 1 + i % 9
            output = layer(x[:, :batch])[0]
            output.sum().backward()
            if not torch.allclose(output, expected[:, :batch], atol=1e-6):
                wrong.append(f"{batch}")

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


FORK = """
import os, signal, sys, torch
from rnnkit_kernels.cpu import native
from tests.nn.test_native_layers import built
native.FEW = 0
torch.set_num_threads(2)
torch.manual_seed(0)
for batch in (3, 16):
    layer, x = built("GRU", 8, 33), torch.randn(9, batch, 8)

    def values():
        output = layer(x)[0]
        return [output, *torch.autograd.grad(output.sum(), list(layer.parameters()))]

    expected = values()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        same = all(torch.equal(a, b) for a, b in zip(values(), expected))
        os._exit(7 if same else 8)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert all(torch.equal(a, b) for a, b in zip(values(), expected))
"""


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_that_is_forked_after_two_threads_ran_runs_two_itself() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["7", "7"], done.stderr


class Examples(torch.utils.data.Dataset[Tensor]):
    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        output = self.layer(torch.full((5, 2, 4), float(index)))[0]
        output.sum().backward()
        return output.detach()


@pytest.mark.process
@pytest.mark.timeout(60)
def test_workers_of_a_data_loader_run_layers(two_threads: None) -> None:
    examples = Examples(built("LSTM", 4, 5))
    expected = [examples[i] for i in range(4)]
    loader = torch.utils.data.DataLoader(examples, batch_size=None, num_workers=2)
    for found, value in zip(loader, expected, strict=True):
        assert torch.equal(found, value)


THREADS = """
import os, torch
from rnnkit_kernels.cpu import native
from tests.nn.test_native_layers import built
native.FEW = 0
def count():
    return len(os.listdir("/proc/self/task"))
torch.set_num_threads(1)
layer, x = built("GRU", 8, 33), torch.randn(9, 16, 8)
before = count()
layer(x)[0].sum().backward()
alone = count()
torch.set_num_threads(2)
with torch.no_grad():
    layer(x)
print(alone - before, count() - alone)
"""


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_as_many_threads_run_as_torch_has() -> None:
    done = subprocess.run(
        [sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=100, check=True
    )
    own_of_autograd = 1  # a backward pass starts none of its own on a CPU, or one
    backward, second = map(int, done.stdout.split())
    assert backward <= own_of_autograd
    assert second == 1


SHORTAGE = """
import resource, torch
from tests.nn.test_native_layers import built
torch.set_num_threads(1)
layer = built("GRU", 64, 512).requires_grad_(False)
# Pre-activations of all steps have to be kept somewhere: 245 MB, beside an output of 82.
small, large = torch.randn(2, 3, 64), torch.randn(2000, 20, 64)
expected = layer(small)[0]
before = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
told = set()
for megabytes in range(20, 340, 40):
    resource.setrlimit(resource.RLIMIT_AS, (before + megabytes * 2**20, -1))
    try:
        layer(large)
    except torch.OutOfMemoryError as error:
        told.add("the engine" if "the native engine's room" in str(error) else "torch")
        assert "memory ran out in the forward pass of the gru layer in mode native" in str(error)
    assert torch.equal(layer(small)[0], expected)
print(*sorted(told), sep=",")
"""


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space")
def test_a_process_goes_on_where_memory_ran_out() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHORTAGE], capture_output=True, text=True, timeout=200
    )
    assert done.stdout.strip() == "the engine,torch", done.stderr


@pytest.mark.parametrize("shape", [(3, 0, 4), (0, 2, 4)])
def test_empty_inputs_are_torch_s(shape: tuple[int, ...]) -> None:
    ours, theirs = twins("GRU", 4, 5)
    x = torch.randn(shape)
    if shape[0] == 0:
        for layer in (ours, theirs):
            with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
                layer(x)
    else:
        for mine, other in zip(tensors(ours(x)), tensors(theirs(x)), strict=True):
            assert mine.shape == other.shape


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "GRU reset before", "LSTM with peepholes"])
def test_first_and_second_gradients(kind: str) -> None:
    torch.manual_seed(0)
    layer = built(kind, 2, 3, bidirectional=True, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters())

    def call(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(layer, given, (x,))[0]  # type: ignore[no-any-return]

    leaves = (x, *(leaf(p) for p in parameters.values()))
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)
