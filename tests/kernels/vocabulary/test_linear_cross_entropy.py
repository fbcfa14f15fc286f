"""Cross-entropy of a linear layer: against PyTorch's own, by rows and in interpreted kernels."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Literal

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.nn import functional as F

from rnnkit_kernels.cpu import products
from rnnkit_kernels.functional import linear_cross_entropy
from rnnkit_kernels.vocabulary import linear_cross_entropy as module
from tests.kernels.concurrent import exact_bfloat16_dot
from tests.kernels.layers import assert_as_exact

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
IGNORED = -1
BACKENDS = ("torch", "triton")
REDUCTIONS = ("sum", "none")


@pytest.fixture
def tiles() -> ModuleType:
    from rnnkit_kernels.vocabulary import (
        tiles as vocabulary_tiles,  # once conftest.py has said how kernels are to run
    )

    return vocabulary_tiles


@pytest.fixture(autouse=True)
def _exact_bfloat16() -> Iterator[None]:
    if torch.cuda.is_available():
        yield
        return
    with exact_bfloat16_dot():
        yield


def random_inputs(
    rows: int = 37,
    hidden: int = 21,
    words: int = 150,
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
) -> list[Tensor]:
    """hidden, weight, bias unless left out, target with ignored rows, gradients of the losses."""
    generator = torch.Generator().manual_seed(rows + words)
    draw = [
        torch.randn(rows, hidden, generator=generator),
        torch.randn(words, hidden, generator=generator) * 0.5,
        *[torch.randn(words, generator=generator)] * bias,
    ]
    target = torch.randint(words, (rows,), generator=generator)
    target[::5] = IGNORED
    gradient = torch.rand(rows, generator=generator) + 0.5
    return [*(tensor.to(dtype) for tensor in draw), target, gradient]


def results(inputs: list[Tensor], reduction: str, backend: str | None) -> list[Tensor]:
    """Loss and gradients by a backend, or by PyTorch's own functions."""
    *leaves, target, gradient = inputs
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    layer = (*leaves, None)[:3]
    if backend is None:
        logits = F.linear(*layer)
        wide = logits.double() if logits.dtype == torch.float64 else logits.float()
        loss = F.cross_entropy(wide, target, ignore_index=IGNORED, reduction=reduction)
    else:
        options = {"ignore_index": IGNORED, "reduction": reduction, "backend": backend}
        loss = linear_cross_entropy(*layer, target, **options)  # type: ignore[arg-type]
    arrived = gradient[0] if reduction == "sum" else gradient
    made = torch.autograd.grad(loss, leaves, arrived.to(loss.device, loss.dtype))
    return [loss.detach().to(leaves[0].dtype), *made]


def assert_as_exact_as_plain(inputs: list[Tensor], reduction: str, backend: str) -> None:
    *leaves, target, gradient = inputs
    exact = results([*(leaf.double() for leaf in leaves), target, gradient], reduction, None)
    plain = results(inputs, reduction, None)
    assert_as_exact(results(inputs, reduction, backend), plain, exact, leaves[0].dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_by_rows_equals_pytorchs_own(
    dtype: torch.dtype, reduction: str, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FEWEST_ROWS", 8)
    assert_as_exact_as_plain(random_inputs(dtype=dtype, bias=bias), reduction, "torch")


@pytest.fixture
def multiply_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Have oneDNN or torch.mm multiply, whatever the processor."""
    mkldnn = torch.backends.mkldnn

    def choose(onednn: bool) -> None:
        if onednn and not mkldnn.is_available():  # type: ignore[no-untyped-call]
            pytest.skip("needs oneDNN")
        monkeypatch.setattr(products, "mkl_is_slow", lambda: onednn)

    return choose


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_by_rows_in_either_library(
    reduction: str,
    bias: bool,
    onednn: bool,
    multiply_by: Callable[[bool], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    multiply_by(onednn)
    calls = []
    own = module.by_onednn
    monkeypatch.setattr(module, "by_onednn", lambda *given: calls.append(1) or own(*given))
    monkeypatch.setattr(module, "_FEWEST_ROWS", 8)
    inputs = random_inputs(bias=bias)
    assert_as_exact_as_plain(inputs, reduction, "torch")
    assert bool(calls) == onednn
    calls.clear()
    with torch.backends.mkldnn.flags(enabled=False):
        results(inputs, reduction, "torch")
    assert not calls


@pytest.mark.parametrize("onednn", [False, True])
def test_matrices_that_do_not_lie_in_one_piece(
    onednn: bool, multiply_by: Callable[[bool], None]
) -> None:
    multiply_by(onednn)
    hidden, weight, bias, target, gradient = random_inputs(hidden=22, words=150)
    for given in (
        [hidden.t().contiguous().t(), weight.t().contiguous().t(), bias[:1].expand(150)],
        [hidden[:, ::2], weight[:, ::2], torch.stack([bias, -bias], 1)[:, 0]],
    ):
        inputs = [*given, target, gradient]
        assert_as_exact_as_plain(inputs, "none", "torch")
        made, again = (results(inputs, "none", "torch") for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
        assert made[2].is_contiguous()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(1, 3, 2), (5, 1, 1), (256, 4, 9), (257, 4, 9), (600, 3, 700)])
def test_by_rows_of_any_number(shape: tuple[int, int, int], reduction: str) -> None:
    assert_as_exact_as_plain(random_inputs(*shape), reduction, "torch")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_the_kernels_equal_pytorchs_own(
    tiles: ModuleType,
    dtype: torch.dtype,
    reduction: str,
    bias: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Bands of one tile: three of 150 words, or two where tiles are wide.
    monkeypatch.setattr(tiles, "BAND", 1)
    assert_as_exact_as_plain(random_inputs(dtype=dtype, bias=bias), reduction, "triton")


@pytest.mark.parametrize(
    "shape", [(1, 3, 2), (5, 1, 1), (70, 17, 64), (64, 16, 65), (200, 40, 400)]
)
def test_the_kernels_at_the_edges_of_tiles(tiles: ModuleType, shape: tuple[int, int, int]) -> None:
    assert_as_exact_as_plain(random_inputs(*shape), "none", "triton")


def test_stretches_of_the_vocabulary_make_no_difference(
    tiles: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weight, bias, target, _ = random_inputs(9, 16, 700)
    target = target.clamp_min(0)
    found = []
    for programs in (1, 2, 3, 100):
        monkeypatch.setattr(tiles, "_multiprocessors", lambda _, n=programs: n)
        found.append(tiles.losses(hidden, weight, bias, target)[0])
    exact = F.cross_entropy((hidden @ weight.t() + bias).double(), target, reduction="none")
    for losses in found:
        torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_rows_or_none_that_count(backend: str, reduction: str, tiles: ModuleType) -> None:
    for rows in (0, 3):
        hidden, weight, bias, _, gradient = random_inputs(rows, 4, 6)
        target = torch.full((rows,), IGNORED)
        made = results([hidden, weight, bias, target, gradient[:rows]], "none", backend)
        assert made[0].shape == (rows,)
        if reduction == "sum":
            made = results([hidden, weight, bias, target, torch.ones(1)], "sum", backend)
            assert made[0].shape == ()
        assert all(torch.equal(tensor, torch.zeros_like(tensor)) for tensor in made)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_what_ignored_rows_hold_changes_nothing(
    backend: str, reduction: str, tiles: ModuleType
) -> None:
    inputs = random_inputs()
    changed = inputs[0].masked_fill((inputs[3] == IGNORED).unsqueeze(1), float("nan"))
    before = results(inputs, reduction, backend)
    after = results([changed, *inputs[1:]], reduction, backend)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert bool((after[1][inputs[3] == IGNORED] == 0).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_logits_and_forbidden_words(backend: str, tiles: ModuleType) -> None:
    hidden, weight, bias, target, gradient = random_inputs(words=300)
    hidden, bias, target = hidden * 30, bias.clone(), target.clone()
    bias[:130] = -float("inf")  # a whole tile of the kernels, the first they come to
    target[(target >= 0) & (target < 130)] = 135
    inputs = [hidden, weight, bias, target, gradient]
    assert float(F.linear(hidden, weight, bias).max()) > 100  # exp overflows
    assert all(bool(tensor.isfinite().all()) for tensor in results(inputs, "sum", backend))
    assert_as_exact_as_plain(inputs, "none", backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_not_a_number_stays_one(backend: str, tiles: ModuleType) -> None:
    hidden, weight, bias, target, _ = random_inputs()
    hidden[1, 0] = float("nan")
    options = {"ignore_index": IGNORED, "reduction": "none", "backend": backend}
    losses = linear_cross_entropy(hidden, weight, bias, target, **options)  # type: ignore[arg-type]
    assert losses.isnan().nonzero().tolist() == [[1]]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_first_and_second_gradients_are_exact(reduction: str, bias: bool) -> None:
    *leaves, target, _ = random_inputs(6, 3, 5, torch.float64, bias)

    def run(*leaves: Tensor) -> Tensor:
        layer = (*leaves, None)[:3]
        options = {"ignore_index": IGNORED, "reduction": reduction}
        return linear_cross_entropy(*layer, target, **options)  # type: ignore[arg-type]

    leaves = [leaf.requires_grad_() for leaf in leaves]
    torch.autograd.gradcheck(run, leaves, fast_mode=True)
    torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


def test_inputs_and_saved_gradients_are_left_as_they_were() -> None:
    *leaves, target, _ = random_inputs()
    before = [leaf.clone() for leaf in leaves]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    loss = linear_cross_entropy(*leaves, target, ignore_index=IGNORED)
    first = torch.autograd.grad(loss, leaves, torch.tensor(3.0), retain_graph=True)
    second = torch.autograd.grad(loss, leaves, torch.tensor(3.0))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, leaves, strict=True))


def test_small_gradients_of_float16_survive_a_scaled_loss() -> None:
    hidden, weight, bias, target, _ = random_inputs(9, 4, 30)
    bias[3] = -14.0  # softmax below the smallest float16
    target = target.clamp_min(4)
    layer = [tensor.half().requires_grad_() for tensor in (hidden, weight, bias)]
    loss = linear_cross_entropy(*layer, target)
    (d_bias,) = torch.autograd.grad(loss, layer[2], torch.tensor(1024.0))
    logits = F.linear(*(tensor.detach().double() for tensor in layer))
    exact = 1024 * logits.softmax(1)[:, 3].sum()
    assert exact > 0
    assert abs(float(d_bias[3]) / float(exact) - 1) < 0.02


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_autocast_computes_as_pytorchs_own_does(reduction: str) -> None:
    inputs = random_inputs(200, 21, 150)
    exact = results([*(t.double() for t in inputs[:3]), *inputs[3:]], reduction, None)
    with torch.autocast("cpu", torch.bfloat16):
        plain, ours = (results(inputs, reduction, backend) for backend in (None, "torch"))
    for i, (a, b, c) in enumerate(zip(ours, plain, exact, strict=True)):
        assert a.dtype == b.dtype == torch.float32
        error, allowed = (a - c).abs().max(), 2 * (b - c).abs().max()
        band = 8 * torch.finfo(torch.bfloat16).eps * c.abs().max()
        assert 0 < error <= allowed + band, f"result {i}: {error} > {allowed} + {band}"


@pytest.mark.parametrize(
    ("summed", "dtype", "bias"),
    [(True, torch.float32, True), (True, torch.float16, False), (False, torch.float32, False)],
)
def test_operators_pass_opcheck(summed: bool, dtype: torch.dtype, bias: bool) -> None:
    *leaves, target, _ = random_inputs(7, 4, 9, dtype, bias)
    layer = (*(leaf.requires_grad_() for leaf in leaves), None)[:3]
    given = (*layer, target, IGNORED, summed, "torch")
    # What traces backward passes is slow: `test_a_compiled_function_gives_the_same` runs it.
    quick = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(module.operator, (*given, True), test_utils=quick)
    made = [tensor.detach() for tensor in module.operator(*given, True)[1:]]
    arrived = torch.ones(() if summed else 7)
    given = (arrived, *layer, target, *made, IGNORED, summed, "torch")
    torch.library.opcheck(module.backward_operator, given, test_utils=quick)


@pytest.mark.compiler
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_function_gives_the_same(
    dynamic: bool, reduction: Literal["sum", "none"]
) -> None:
    *leaves, target, _ = random_inputs()

    def run(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        options = {"ignore_index": IGNORED, "reduction": reduction}
        return linear_cross_entropy(hidden.tanh(), weight, bias, target, **options).sum()

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    expected, loss = run(*leaves), compiled(*leaves)
    assert torch.equal(loss, expected)
    made, wanted = (torch.autograd.grad(value, leaves) for value in (loss, expected))
    assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))


def test_transforms_by_their_values() -> None:
    hidden, weight, bias, target, _ = random_inputs(6, 3, 5, torch.float64)

    def run(hidden: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, bias, target, ignore_index=IGNORED)

    leaf = hidden.clone().requires_grad_()
    (expected,) = torch.autograd.grad(run(leaf), leaf)
    torch.testing.assert_close(grad(run)(hidden), expected)
    torch.testing.assert_close(vmap(grad(run))(hidden[None])[0], expected)
    tangent = torch.randn_like(hidden)
    torch.testing.assert_close(jvp(run, (hidden,), (tangent,))[1], (expected * tangent).sum())
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(run(forward_ad.make_dual(hidden, tangent)))
        torch.testing.assert_close(dual.tangent, (expected * tangent).sum())


def test_the_logits_are_never_held_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FEWEST_ROWS", 128)
    leaves = [torch.randn(2048, 8), torch.randn(2000, 8), torch.randn(2000)]
    target = torch.randint(2000, (2048,))

    def peak(run: object) -> int:
        """Bytes of tensors at most alive at one time, beyond those that are before."""
        assert callable(run)
        tensors = [leaf.clone().requires_grad_() for leaf in leaves]
        with torch.profiler.profile(profile_memory=True) as profiler:
            run(*tensors).backward()
        alive = most = 0
        for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
            if event.name() == "[memory]":
                alive += event.nbytes()
                most = max(most, alive)
        return most

    ours = peak(lambda h, w, b: linear_cross_entropy(h, w, b, target))
    plain = peak(lambda h, w, b: F.cross_entropy(F.linear(h, w, b), target, reduction="sum"))
    logits = 4 * 2048 * 2000
    assert plain >= 2 * logits
    assert ours <= logits / 4


def test_errors_name_the_numbers() -> None:
    hidden, weight, bias, target, _ = random_inputs(6, 3, 5)
    with pytest.raises(RuntimeError, match=r"of one H, got \(6, 3\) and \(5, 2\)"):
        linear_cross_entropy(hidden, weight[:, :2], bias, target)
    with pytest.raises(RuntimeError, match=r"of shape \(5,\), one a row of weight, got \(4,\)"):
        linear_cross_entropy(hidden, weight, bias[:4], target)
    with pytest.raises(ValueError, match=r"shape \(6,\), got \(5,\)"):
        linear_cross_entropy(hidden, weight, bias, target[:5])
    with pytest.raises(RuntimeError, match=r"dtype torch.int64, got torch.int32"):
        linear_cross_entropy(hidden, weight, bias, target.int())
    with pytest.raises(RuntimeError, match=r"got torch.float64, torch.float32 and torch.float32"):
        linear_cross_entropy(hidden.double(), weight, bias, target)
    for word, reduction in ((5, "sum"), (-3, "none")):
        wrong = target.clone()
        wrong[2] = word
        with pytest.raises(IndexError, match=f"target {word} of row 2 is out of range for 5 words"):
            linear_cross_entropy(
                hidden, weight, bias, wrong, ignore_index=IGNORED, reduction=reduction
            )  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="got 'mean'"):
        linear_cross_entropy(hidden, weight, bias, target, reduction="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 'counter'"):
        linear_cross_entropy(hidden, weight, bias, target, backend="counter")
    with pytest.raises(RuntimeError, match="no float64"):
        linear_cross_entropy(
            *(t.double() for t in (hidden, weight, bias)), target, backend="triton"
        )


def test_the_kernels_without_a_gpu_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    hidden, weight, bias, target, _ = random_inputs(6, 3, 5)
    with pytest.raises(RuntimeError, match="needs a GPU, and hidden is on cpu"):
        linear_cross_entropy(hidden, weight, bias, target, backend="triton")


COMPILE = """
import itertools
from dataclasses import asdict

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rnnkit_kernels.audit.compilation import registers_and_stack
from rnnkit_kernels.vocabulary.tiles import gradients_of_band, sums_of_stretches, tiles_of

POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}
OF_INPUTS = ("hidden", "weight", "bias", "band")
cases = [((torch.bfloat16, "ieee"), c, 650) for c in (80, 90, 100)]
cases += [((torch.bfloat16, "ieee"), 80, 200), ((torch.float32, "tf32"), 90, 200)]
cases += [((torch.float32, "ieee"), 80, 650)]
for (dtype, precision), capability, hidden in cases:
    for kernel in (sums_of_stretches, gradients_of_band):
        constants = {**asdict(tiles_of(dtype, precision)), "HIDDEN": hidden}
        options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
        signature = {}
        for parameter in kernel.params:
            name = parameter.name
            if parameter.do_not_specialize:
                signature[name] = parameter.annotation_type
            elif name in constants:
                signature[name] = "constexpr"
            elif name == "target":
                signature[name] = "*i64"
            else:
                signature[name] = POINTERS[dtype] if name in OF_INPUTS else "*fp32"
        at = {name: i for i, name in enumerate(kernel.arg_names)}
        pointers = [name for name, kind in signature.items() if kind[0] == "*"]
        compiled = triton.compile(
            ASTSource(
                kernel,
                signature,
                {(at[name],): value for name, value in constants.items()},
                {(at[name],): [["tt.divisibility", 16]] for name in pointers},
            ),
            target=GPUTarget("cuda", capability, 32),
            options=options,
        )
        _, stack = registers_and_stack(compiled.asm["cubin"])
        fits = compiled.metadata.shared <= 100 * 1024  # of 163 KB on the smallest
        cores = "mma" in compiled.asm["ptx"]
        print(capability, hidden, precision, stack, fits, cores or precision == "ieee")
        if precision == "ieee" and dtype == torch.bfloat16:
            assert cores
for kernel in (sums_of_stretches, gradients_of_band):
    print([p.name for p in kernel.params if p.annotation_type and not p.do_not_specialize])
"""


@pytest.mark.compiler
@pytest.mark.process
@pytest.mark.slow
def test_the_kernels_compile_without_spills_and_once_for_all_sizes() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *compiled, first, second = done.stdout.splitlines()
    assert len(compiled) == 12
    for line in compiled:
        assert line.split()[3:] == ["0", "True", "True"], line
    assert (first, second) == ("[]", "[]")


GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", GPU_DTYPES)
def test_a_gpu_equals_pytorchs_own(dtype: torch.dtype, reduction: str, backend: str) -> None:
    for shape in ((700, 200, 10000), (64, 650, 33278), (1, 3, 2)):
        inputs = [tensor.cuda() for tensor in random_inputs(*shape, dtype=dtype)]
        assert_as_exact_as_plain(inputs, reduction, backend)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", GPU_DTYPES)
def test_two_runs_on_a_gpu_agree_bitwise(dtype: torch.dtype) -> None:
    inputs = [tensor.cuda() for tensor in random_inputs(700, 200, 10000, dtype)]
    first, second = (results(inputs, "none", "triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.gpu
def test_kernels_compile_once_for_all_sizes() -> None:
    from rnnkit_kernels.vocabulary import tiles as vocabulary_tiles

    kernel = vocabulary_tiles.sums_of_stretches
    kernel.device_caches.clear()
    for rows, words in ((1, 2), (16, 64), (35, 1), (700, 10000)):
        inputs = [tensor.cuda() for tensor in random_inputs(rows, 24, words)]
        results(inputs, "none", "triton")
    (cache,) = (caches[0] for caches in kernel.device_caches.values())
    assert len(cache) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_captured_graph_gives_the_same(backend: str) -> None:
    *leaves, target, _ = (tensor.cuda() for tensor in random_inputs(70, 24, 300))
    layer = [leaf.requires_grad_() for leaf in leaves]

    def step() -> list[Tensor]:
        loss = linear_cross_entropy(*layer, target, ignore_index=IGNORED, backend=backend)  # type: ignore[call-overload]
        return [loss, *torch.autograd.grad(loss, layer)]

    expected = [tensor.clone() for tensor in step()]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = step()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_what_torch_jit_has_traced_without_gradients_may_be_trained() -> None:
    def run(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, None, target)

    hidden, weight = random_inputs(6, 3, 5)[:2]
    with torch.no_grad():
        traced = torch.jit.trace(run, (hidden, weight, torch.randint(5, (6,))))
    leaves = [torch.randn(9, 3, requires_grad=True), weight.clone().requires_grad_()]
    target = torch.randint(5, (9,))
    found, expected = (
        (loss, *torch.autograd.grad(loss, leaves))
        for loss in (traced(*leaves, target), run(*leaves, target))
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
