"""On a real GPU: parity, waits, graphs, memory; `PYTHONPATH=.:kernels pytest -m gpu tests/kernels`.

Needs torch, triton, numpy and pytest. Most of its minutes go into compiling, so tests share
kernels: one depends on the cell, H, the dtype, the mode and on whether lengths differ, but not on
T, B or the direction.
"""

import copy
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnkit_kernels.wavefront
from rnnkit_kernels import functional
from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.dispatch import choice
from rnnkit_kernels.ops import planned as ops_planned
from rnnkit_kernels.ops.context import recurrent_precision
from rnnkit_kernels.ops.recurrence import recurrence
from rnnkit_kernels.ops.stack import stack
from rnnkit_kernels.recurrence import backward, exchange, forward, plan
from rnnkit_kernels.recurrence.rows import Rows
from rnnkit_kernels.recurrence.wavefront import wavefront_plan
from tests.kernels import layers
from tests.kernels.layers import (
    Layer,
    assert_as_exact,
    assert_as_exact_as_a_plain_loop,
    random_layer,
)

pytestmark = [pytest.mark.gpu, pytest.mark.process, pytest.mark.compiler]

ROOT = Path(__file__).parents[2]
DEVICE = torch.device("cuda")
MEETINGS = ("data", "counter")
MODES = (*MEETINGS, "resident", "launch")
PRECISIONS = {
    "bf16": (torch.bfloat16, "ieee"),
    "fp16": (torch.float16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "fp32": (torch.float32, "ieee"),
}
HIDDEN, BATCH = 40, 19  # three programs a group, two tiles of sequences


@contextmanager
def computed_in(name: str) -> Iterator[torch.dtype]:
    """Set torch's flags for a key of PRECISIONS, and give its dtype."""
    dtype, products = PRECISIONS[name]
    # Attributes of a module that monkeypatch can't restore.
    flags = (torch.backends.cudnn.rnn, torch.backends.cuda.matmul)
    before, band = [flag.fp32_precision for flag in flags], layers.BAND  # type: ignore[attr-defined]
    try:
        for flag in flags:
            flag.fp32_precision = products  # type: ignore[attr-defined]
        if products == "tf32":
            # Ten bits of a mantissa, not 23; whether cuBLAS takes TF32 for the plain loop is open.
            layers.BAND = band * 2**13
        yield dtype
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.fp32_precision = value  # type: ignore[attr-defined]
        layers.BAND = band


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Exact products; what waits in vain raises, and soon."""
    monkeypatch.setenv("RNNKIT_CHECK", "1")
    monkeypatch.setattr(exchange, "MAX_POLLS", 2**22)
    with computed_in("fp32"):
        yield


def on_device(layer: Layer) -> Layer:
    """The layer, all its tensors on DEVICE."""
    inputs = [None if t is None else t.detach().to(DEVICE) for t in layer.inputs]
    gradients = [t.to(DEVICE) for t in layer.gradients]
    return Layer(layer.cell, inputs, layer.rows.to(DEVICE), layer.reverse, gradients)


def of_steps(layer: Layer, steps: int, batch: int) -> Layer:
    """A dense layer of the same weights over so many steps of so many sequences."""
    x, *weights, h0, c0, zoneout = layer.inputs
    assert x is not None
    assert h0 is not None

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=x.dtype, device=x.device)

    width = h0.shape[-1]
    states = [draw(batch, width), None if c0 is None else draw(batch, width)]
    inputs = [draw(steps, batch, x.shape[-1]), *weights, *states, zoneout]
    gradients = [draw(steps, batch, width), *(draw(batch, width) for _ in layer.gradients[1:])]
    return Layer(layer.cell, inputs, Rows(steps, batch), layer.reverse, gradients).to(x.dtype)


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


# The first programs that meet run in a process of their own, which can be ended. What compiles
# there is not launched, for compiling may take longer than a test should wait for a hang.
FIRST = """
import torch
from rnnkit_kernels.recurrence import exchange
from tests.kernels.layers import random_layer
from tests.kernels.test_gpu import BATCH, HIDDEN, MEETINGS, on_device

def compile_only(kernel, grid, arguments, options):
    kernel.warmup(*arguments, grid=grid, **options, launch_cooperative_grid=True)

exchange.MAX_POLLS = 2**22
layer = on_device(random_layer("lstm", hidden=HIDDEN, batch=BATCH)).to(torch.bfloat16)
expected = layer.run("launch")
launch, exchange.cooperate = exchange.cooperate, compile_only
for mode in MEETINGS:
    layer.run(mode)
torch.cuda.synchronize()
print("compiled", flush=True)
exchange.cooperate = launch
for mode in MEETINGS:
    for a, b in zip(layer.run(mode), expected):
        assert (a - b).abs().max() <= 0.05 * b.abs().max(), mode
print("met", flush=True)
"""
TO_COMPILE, TO_MEET = 300.0, 20.0  # seconds


def environment() -> dict[str, str]:
    """For a process that imports this package and these tests."""
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "RNNKIT_CHECK": "1"}


def problem_of(script: str) -> str:
    """What is wrong with the process that says "compiled" and then "met"; "" if nothing is."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", script],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said: list[str] = []
    deadline = time.monotonic() + TO_COMPILE
    try:
        while "met" not in said:
            ready, _, _ = select.select([process.stdout], [], [], deadline - time.monotonic())
            if not ready:
                return f"the first programs that meet hang after {said}"
            line = process.stdout.readline()
            if not line:
                return "the first programs that meet fail:\n" + "\n".join(said[-20:])
            said.append(line.rstrip())
            if said[-1] == "compiled":
                deadline = time.monotonic() + TO_MEET
        return ""
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def first_meeting() -> str:
    return problem_of(FIRST)


@pytest.fixture
def meets(first_meeting: str) -> None:
    """For tests of programs that wait for each other: not where the first did so in vain."""
    if first_meeting:
        pytest.skip(first_meeting.splitlines()[0])


def test_programs_meet(first_meeting: str) -> None:
    assert first_meeting == ""


def parity_cases() -> list[tuple[str, str, str, bool]]:
    """(cell, mode, precision, ragged): every cell in every mode, lstm in every precision too."""
    found = []
    for i, cell in enumerate(CELLS):
        for j, mode in enumerate(MODES):
            # IEEE products have no tensor cores, so nothing is held on chip for others to meet.
            names = [name for name in PRECISIONS if name != "fp32" or mode not in MEETINGS]
            for k, precision in enumerate(names):
                if (cell, precision) == ("lstm", "bf16"):  # which the tests below share
                    found += [(cell, mode, precision, ragged) for ragged in (False, True)]
                elif cell == "lstm":
                    found.append((cell, mode, precision, (j + k) % 2 == 0))
                elif k == (i + j) % len(names):
                    found.append((cell, mode, precision, (i + j // 2) % 2 == 0))
    return found


@pytest.mark.parametrize(("cell", "mode", "precision", "ragged"), parity_cases())
def test_results_and_gradients_match_the_definition(
    cell: str, mode: str, precision: str, ragged: bool, request: pytest.FixtureRequest
) -> None:
    if mode in MEETINGS:
        request.getfixturevalue("meets")
    hidden = 24 if (mode, precision) == ("resident", "fp32") else HIDDEN
    with computed_in(precision) as dtype:
        for storage in ("packed", "padded") if ragged else ("dense",):
            for reverse in (False, True):
                layer = random_layer(cell, storage, reverse, hidden, batch=BATCH)
                assert_as_exact_as_a_plain_loop(on_device(layer), mode, dtype)


@pytest.mark.parametrize(
    ("cell", "mode", "precision"),
    [
        ("lstm", "data", "bf16"),
        ("gru_reset_before", "counter", "bf16"),
        ("gru", "resident", "fp16"),
    ],
)
def test_zoneout(cell: str, mode: str, precision: str, meets: None) -> None:
    layer = random_layer(cell, "padded", hidden=HIDDEN, batch=BATCH, zoneout=True)
    with computed_in(precision) as dtype:
        assert_as_exact_as_a_plain_loop(on_device(layer), mode, dtype)


@pytest.mark.parametrize("mode", ["data", "resident"])
def test_what_is_not_kept_changes_nothing(mode: str, meets: None) -> None:
    layer = on_device(random_layer("lstm", hidden=HIDDEN, batch=BATCH)).to(torch.bfloat16)
    plain, exact = layer.run("reference"), layer.to(torch.float64).run("reference")
    assert_as_exact(layer.run(mode, recompute=True), plain, exact, torch.bfloat16)
    given = (*layer.operator_inputs(), "lstm", False, mode, False, False)
    assert_as_exact([recurrence(*given)[0]], plain[:1], exact[:1], torch.bfloat16)


# T, B, D, H, layers, directions, ragged: the benchmarks' cases, T cut to 64.
SHAPES = {
    "persistent-1024": (64, 32, 1024, 1024, 1, 1, False),
    "flashrnn-768": (64, 16, 768, 768, 1, 1, False),
    "ptb-small": (20, 20, 200, 200, 2, 1, False),
    "ptb-medium": (35, 20, 650, 650, 2, 1, False),
    "translation-encoder": (25, 128, 256, 512, 1, 2, True),
    "persistent-1024 alone": (64, 1, 1024, 1024, 1, 1, False),
    "persistent-1024 many": (64, 256, 1024, 1024, 1, 1, False),
    "awd": (64, 80, 400, 1150, 3, 1, False),
    "ptb-large": (35, 20, 1500, 1500, 2, 1, False),
    "tagger": (32, 32, 100, 200, 1, 2, True),
    "odd": (64, 12, 300, 300, 1, 1, False),
    "odd many": (64, 130, 500, 500, 1, 1, False),
    "small-h-trap": (64, 62, 168, 168, 1, 1, False),
    "characters": (10, 480, 30, 50, 1, 2, True),
    "many-rows": (64, 4096, 64, 64, 1, 1, False),
    "long": (64, 4, 512, 512, 1, 1, False),
}
OF_GRU = ("persistent-1024", "ptb-small", "translation-encoder", "ptb-large", "characters")


def cudnn_cases() -> list[tuple[str, str, str]]:
    """(cell, shape, precision): every shape, with the precisions in turn."""
    names = list(PRECISIONS)[:3]
    found = [("lstm", shape, names[i % 3]) for i, shape in enumerate(SHAPES)]
    return found + [("gru", shape, names[(i + 1) % 3]) for i, shape in enumerate(OF_GRU)]


def results_and_gradients(
    call: Callable[..., tuple[Tensor, ...]],
    x: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    arriving: list[Tensor],
) -> list[Tensor]:
    """What `call` gives, and the gradients of everything that goes in."""
    given = [tensor.detach().requires_grad_() for tensor in (x, *states)]
    results = call(given[0], given[1:])
    arriving = [gradient.to(x.dtype) for gradient in arriving]
    return [*results, *torch.autograd.grad(results, [*given, *weights], arriving)]


def through_torch(
    layer: Any, batch_sizes: Tensor | None, x: Tensor, states: list[Tensor]
) -> tuple[Tensor, ...]:
    """cuDNN, or in float64 whatever torch takes."""
    packed = x if batch_sizes is None else PackedSequence(x, batch_sizes)
    y, last = layer(packed, tuple(states) if len(states) > 1 else states[0])
    return (y if batch_sizes is None else y.data, *(last if len(states) > 1 else (last,)))


def through_kernels(
    layer: Any, batch_sizes: Tensor | None, x: Tensor, states: list[Tensor]
) -> tuple[Tensor, ...]:
    """The Triton kernels on torch's weights."""
    options = {
        "num_layers": layer.num_layers,
        "bidirectional": layer.bidirectional,
        "batch_sizes": batch_sizes,
        "backend": "triton",
    }
    y, last = functional.recurrent(
        layer.mode.lower(), x, tuple(states), list(layer.parameters()), **options
    )
    return (y, *last)


def compare_with_torch(
    cell: str, shape: tuple[int, int, int, int, int, int, bool], dtype: torch.dtype
) -> None:
    """Error against float64 ≤ 2 × that of torch's own layer, plus the band."""
    steps, batch, features, hidden, count, directions, ragged = shape
    torch.manual_seed(0)
    kind = torch.nn.LSTM if cell == "lstm" else torch.nn.GRU
    layer: Any = kind(features, hidden, count, bidirectional=directions == 2)
    layer = layer.to(DEVICE, dtype)
    exact = copy.deepcopy(layer).double()
    x = torch.randn(steps, batch, features)
    batch_sizes = None
    if ragged:
        lengths = torch.randint(1, steps + 1, (batch,)).sort(descending=True).values
        lengths[0] = steps
        x, batch_sizes, _, _ = pack_padded_sequence(x, lengths)
    width = (count * directions, batch, hidden)
    states = [torch.randn(width) for _ in range(1 + (cell == "lstm"))]
    arriving = [torch.randn(*x.shape[:-1], directions * hidden), *map(torch.randn_like, states)]
    # Rounded before they are compared: all three see the same numbers.
    x, *states = (tensor.to(DEVICE, dtype) for tensor in (x, *states))
    arriving = [tensor.to(DEVICE, dtype) for tensor in arriving]

    def run(call: Any, module: Any, kind: torch.dtype) -> list[Tensor]:
        tensors = x.to(kind), [state.to(kind) for state in states], list(module.parameters())
        return results_and_gradients(
            lambda *given: call(module, batch_sizes, *given), *tensors, arriving
        )

    plain = run(through_torch, layer, dtype)
    truth = run(through_torch, exact, torch.float64)
    assert_as_exact(run(through_kernels, layer, dtype), plain, truth, dtype)


@pytest.mark.parametrize(("cell", "shape", "precision"), cudnn_cases())
def test_layers_are_as_exact_as_cudnn(
    cell: str,
    shape: str,
    precision: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through the door that users take, stacked layers as a wavefront where one fits."""
    stacks = 0

    def counted(*given: Any) -> Any:
        nonlocal stacks
        stacks += 1
        return stack(*given)

    monkeypatch.setattr(rnnkit_kernels.wavefront, "stack", counted)
    _, batch, _, hidden, count, directions, _ = SHAPES[shape]
    flows, device = False, plan.Device.of(DEVICE)
    with computed_in(precision) as dtype:
        products = recurrent_precision()
        found = plan.plan(CELLS[cell], hidden, dtype, device, products, batch=batch)
        assert isinstance(found, plan.Plan)
        if found.mode in MEETINGS:
            request.getfixturevalue("meets")
            given = (CELLS[cell], hidden, count, dtype, device, products, found.mode)
            flows = count > 1 and directions == 1 and isinstance(wavefront_plan(*given), plan.Plan)
        compare_with_torch(cell, SHAPES[shape], dtype)
    assert stacks == flows


def capture(step: Callable[[], Any]) -> tuple[Any, Any]:
    """A CUDA graph of `step`, and where its results will lie."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


@pytest.mark.parametrize("mode", MODES)
def test_a_captured_graph_sees_new_weights(
    mode: str, meets: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing about the weights is cached, and nothing waits for the host, backward included."""
    monkeypatch.delenv("RNNKIT_CHECK")  # which lets the host read the error word
    layer = on_device(random_layer("lstm", hidden=HIDDEN, batch=BATCH)).to(torch.bfloat16)
    graph, found = capture(lambda: layer.run(mode))
    seen = []
    for _ in range(2):
        with torch.no_grad():
            for weight in layer.leaves()[1:5]:
                weight.mul_(0.5)
        graph.replay()
        assert_equal(found, layer.run(mode))
        seen.append(found[0].clone())
    assert not torch.equal(*seen)


def two_layers() -> Callable[[Tensor], list[Tensor]]:
    """An LSTM with dropout between two layers: its results and gradients for a seed."""
    torch.manual_seed(0)
    layer = torch.nn.LSTM(7, HIDDEN, 2).to(DEVICE, torch.bfloat16)
    x = torch.randn(5, BATCH, 7).to(DEVICE, torch.bfloat16)
    h0, c0 = torch.randn(2, 2, BATCH, HIDDEN).to(DEVICE, torch.bfloat16)
    weights = list(layer.parameters())

    def run(seed: Tensor) -> list[Tensor]:
        options: Any = {"num_layers": 2, "dropout": 0.4, "training": True, "backend": "triton"}
        results = functional.lstm(x, (h0, c0), weights, seed=seed, **options)
        loss = torch.stack([result.square().sum() for result in results]).sum()
        return [*results, *torch.autograd.grad(loss, weights)]

    return run


def plan_as(patch: pytest.MonkeyPatch, mode: str) -> None:
    """Let layers run in `mode` instead of the rule's."""

    def planned(*given: Any, **options: Any) -> Any:
        return plan.plan(*given, **{**options, "mode": mode})

    patch.setattr(choice, "plan", planned)


@pytest.mark.parametrize("mode", MODES)
def test_a_captured_graph_draws_new_masks(
    mode: str, meets: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With programs that meet the two layers are a wavefront, and draw inside it."""
    monkeypatch.delenv("RNNKIT_CHECK")
    plan_as(monkeypatch, mode)
    run = two_layers()

    def step() -> tuple[Tensor, list[Tensor]]:
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), device=DEVICE)
        return seed, run(seed)

    graph, (seed, found) = capture(step)
    seen = []
    for _ in range(2):
        graph.replay()
        assert_equal(found, run(seed.clone()))
        seen.append((int(seed), found[0].clone()))
    assert seen[0][0] != seen[1][0]
    assert not torch.equal(seen[0][1], seen[1][1])


def test_every_mode_draws_the_same_masks(meets: None) -> None:
    run, seed = two_layers(), torch.tensor([2**40 + 5], device=DEVICE)
    found = []
    for mode in MODES:
        with pytest.MonkeyPatch.context() as patch:
            plan_as(patch, mode)
            found.append(run(seed)[0].float())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0.03)


@pytest.mark.parametrize("mode", MODES)
def test_two_runs_agree_bitwise(mode: str, meets: None) -> None:
    layer = random_layer("lstm", "packed", hidden=HIDDEN, batch=BATCH)
    low = on_device(layer).to(torch.bfloat16)
    assert_equal(low.run(mode), low.run(mode))


@pytest.mark.parametrize("mode", ["data", "resident", "launch"])
def test_no_step_count_or_batch_size_compiles_anew(mode: str, meets: None) -> None:
    def compiled() -> int:
        kernels = [forward.stepping_forward, backward.stepping_backward]
        kernels += [forward.resident_forward, backward.resident_backward]
        caches = [cache for kernel in kernels for cache in kernel.device_caches.values()]
        return sum(len(cache[0]) for cache in caches)

    layer = on_device(random_layer("lstm", hidden=HIDDEN, batch=BATCH)).to(torch.bfloat16)
    layer.run(mode)
    before = compiled()
    for steps in (1, 16, 35, 64, 70):
        for batch in (1, 16, 35, 64, 70):
            of_steps(layer, steps, batch).run(mode)
    assert compiled() == before > 0


@pytest.mark.parametrize("mode", MEETINGS)
def test_polls_used_up_are_an_error(
    mode: str, meets: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No poll is allowed, so that no program waits; in either pass, and once only."""
    layer = on_device(random_layer("lstm", hidden=HIDDEN, batch=BATCH)).to(torch.bfloat16)
    given = (*layer.operator_inputs(), "lstm", False, mode, True, False)
    expected, y = layer.run(mode), recurrence(*given)[0]
    with monkeypatch.context() as patch:
        patch.setattr(exchange, "MAX_POLLS", 0)
        with pytest.raises(RuntimeError, match="waited for each other in vain"):
            recurrence(*given)
        with pytest.raises(RuntimeError, match="waited for each other in vain"):
            torch.autograd.grad(y.sum(), layer.leaves())
    assert_equal(layer.run(mode), expected)


def test_a_grid_that_does_not_fit_falls_back_to_one_launch_a_step(
    meets: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,500 programs at once, were it for the plan; the driver knows better."""
    refusals: list[str] = []

    def cooperate(*given: Any) -> None:
        try:
            launch(*given)
        except RuntimeError as error:
            refusals.append(str(error))
            raise

    def planned(*given: Any) -> Any:
        found = plan.plan(*given)
        return replace(found, multiprocessors=10**6) if isinstance(found, plan.Plan) else found

    launch = exchange.cooperate
    monkeypatch.setattr(exchange, "cooperate", cooperate)
    monkeypatch.setattr(ops_planned, "plan", planned)
    monkeypatch.setattr(plan, "MANY_SEQUENCES", 10**6)  # or tiles were wider, and a new kernel
    layer = on_device(random_layer("lstm", hidden=HIDDEN, batch=BATCH)).to(torch.bfloat16)
    layer = of_steps(layer, 5, 16 * 500)
    assert_equal(layer.run("data"), layer.run("launch"))
    assert len(refusals) == 2


def test_counter_and_data_agree_over_many_repetitions(meets: None) -> None:
    """What PTX does not promise of narrow stores and wide volatile loads, this GPU has to show."""
    layer = on_device(random_layer("lstm", hidden=256, features=64)).to(torch.bfloat16)
    layer = of_steps(layer, 20, 16)
    expected = {mode: layer.run(mode) for mode in MEETINGS}
    differ = torch.zeros((), dtype=torch.bool, device=DEVICE)
    for i in range(int(os.environ.get("RNNKIT_REPETITIONS", "10000"))):
        mode = MEETINGS[i % 2]
        for a, b in zip(layer.run(mode), expected[mode], strict=True):
            differ |= (a != b).any()
    assert not differ
    assert_equal(*expected.values())


SANITIZED = """
import sys
import torch
from tests.kernels.layers import random_layer
from tests.kernels.test_gpu import BATCH, HIDDEN, on_device

layer = on_device(random_layer("lstm", hidden=HIDDEN, batch=BATCH)).to(torch.bfloat16)
for mode in sys.argv[1:]:
    layer.run(mode)
    torch.cuda.synchronize()
"""


def sanitizer() -> str | None:
    """Where compute-sanitizer is, if anywhere."""
    folders = [Path(triton.__file__).parent / "backends/nvidia/bin", Path("/usr/local/cuda/bin")]
    folders += [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME",) if name in os.environ]
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders)])
    return shutil.which("compute-sanitizer", path=path)


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_the_sanitizer_finds_nothing(tool: str, first_meeting: str) -> None:
    found = sanitizer()
    if found is None:
        pytest.skip("compute-sanitizer is not installed")
    modes = [mode for mode in MODES if not first_meeting or mode not in MEETINGS]
    # Our kernels only, whose names end so; memory that torch would keep for later calls hides reads
    # out of bounds.
    done = subprocess.run(
        [found, "--tool", tool, "--error-exitcode", "9", "--kernel-regex", "kns=ward",
         sys.executable, "-c", SANITIZED, *modes],
        cwd=ROOT,
        env={**environment(), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def test_lengths_on_the_gpu_are_never_read_by_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RNNKIT_CHECK")
    layer = torch.nn.GRU(16, 32, bidirectional=True, device=DEVICE)
    x = torch.randn(7, 5, 16, device=DEVICE)
    lengths = torch.tensor([3, 7, 0, 1, 7], device=DEVICE)
    h0 = torch.randn(2, 5, 32, device=DEVICE)
    weights = list(layer.parameters())
    options: Any = {"bidirectional": True, "lengths": lengths}
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
    import rnnkit

    layer = rnnkit.LSTM(16, 32, 2, bidirectional=True, device=DEVICE)
    x = torch.randn(7, 5, 16, device=DEVICE)
    lengths = torch.tensor([3, 7, 0, 1, 7], device=DEVICE)
    compiled = torch.compile(layer, fullgraph=True)
    for options in ({}, {"lengths": lengths}):
        y, y_compiled = layer(x, **options)[0], compiled(x, **options)[0]
        torch.testing.assert_close(y_compiled, y, rtol=1e-4, atol=1e-5)
        weights = list(layer.parameters())
        ours = torch.autograd.grad(y_compiled.square().sum(), weights)
        eager = torch.autograd.grad(y.square().sum(), weights)
        for a, b in zip(ours, eager, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
