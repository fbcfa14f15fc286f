"""The CRF's partition function: loops and kernels against all paths, and the rule for errors."""

import itertools
import json
import math
import os
import re
import subprocess
import sys
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from rnnkit_kernels import functional
from rnnkit_kernels.crf.log_partition import MAX_TAGS, definition, partition
from tests.kernels.layers import assert_as_exact

# The interpreter takes logarithms of zero, as the kernels do for tags that only fill a tile.
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
STEPS, LENGTHS = 6, torch.tensor([6, 1, 3, 5])


def plain_loop(
    emissions: Tensor, transitions: Tensor, start: Tensor, end: Tensor, lengths: Tensor
) -> Tensor:
    """What pytorch-crf computes, in the dtypes as they come."""
    alpha = start + emissions[0]
    for t in range(1, len(emissions)):
        scores = alpha.unsqueeze(2) + transitions + emissions[t].unsqueeze(1)
        alpha = torch.where((t < lengths).unsqueeze(1), scores.logsumexp(1), alpha)
    return (alpha + end).logsumexp(1)


class Problem(NamedTuple):
    """What `functional.crf` takes, and what arrives at its result."""

    emissions: Tensor
    transitions: Tensor
    start: Tensor
    end: Tensor
    lengths: Tensor
    gradient: Tensor

    def run(self, backend: str) -> list[Tensor]:
        """Log Z and the gradients; "definition" and "plain" are functions, no backends."""
        leaves = [tensor.detach().clone().requires_grad_() for tensor in self[:4]]
        if backend in ("definition", "plain"):
            log_z = {"definition": definition, "plain": plain_loop}[backend](*leaves, self.lengths)
        else:
            log_z = functional.crf(*leaves, self.lengths, backend=backend)  # type: ignore[arg-type]
        return [log_z.detach(), *torch.autograd.grad(log_z, leaves, self.gradient.to(log_z.dtype))]

    def double(self) -> "Problem":
        """All in float64, and all gradients."""
        given = (tensor.double() for tensor in self[:4])
        return Problem(*given, self.lengths, self.gradient.double())

    def to(self, device: str) -> "Problem":
        return Problem(*(tensor.to(device) for tensor in self))


def random_problem(
    tags: int,
    dtype: torch.dtype = torch.float32,
    size: float = 2.0,
    lengths: Tensor = LENGTHS,
    steps: int = STEPS,
) -> Problem:
    generator = torch.Generator().manual_seed(tags)

    def draw(*shape: int) -> Tensor:
        return size * torch.randn(shape, generator=generator)

    emissions = draw(steps, len(lengths), tags).to(dtype)
    weights = draw(tags, tags), draw(tags), draw(tags)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    weights = tuple(weight.to(exact) for weight in weights)
    return Problem(emissions, *weights, lengths, draw(len(lengths)).to(exact))


def assert_as_exact_as_a_plain_loop(problem: Problem, backend: str) -> None:
    """Error against float64 ≤ 2 × that of a plain loop in the same dtypes, and a small band."""
    found, plain = problem.run(backend), problem.run("plain")
    exact = problem.double().run("definition")
    low, full = problem.emissions.dtype, problem.transitions.dtype
    assert_as_exact(found[1:2], plain[1:2], exact[1:2], low)
    for results in (found, plain, exact):
        del results[1]
    assert_as_exact(found, plain, exact, full)


@pytest.fixture
def kernels() -> ModuleType:
    from rnnkit_kernels.crf import (
        kernels as crf_kernels,  # once conftest.py has said how its kernels are to run
    )

    return crf_kernels


@pytest.mark.parametrize("backend", ["definition", "torch", "triton"])
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_the_sum_is_that_over_all_paths(size: float, backend: str) -> None:
    tags = 3
    problem = random_problem(tags, size=size)
    log_z, d_emissions, d_transitions, d_start, d_end = problem.run(backend)
    exact = problem.double()
    expected = [torch.zeros_like(tensor) for tensor in exact[:4]]
    for b, length in enumerate(LENGTHS.tolist()):
        paths = torch.tensor(list(itertools.product(range(tags), repeat=length)))
        scores = exact.start[paths[:, 0]] + exact.end[paths[:, -1]]
        for t in range(length):
            scores = scores + exact.emissions[t, b, paths[:, t]]
            if t:
                scores = scores + exact.transitions[paths[:, t - 1], paths[:, t]]
        torch.testing.assert_close(log_z[b].double(), scores.logsumexp(0), rtol=1e-5, atol=1e-5)
        shares = scores.softmax(0) * exact.gradient[b]
        for t in range(length):
            expected[0][t, b].index_add_(0, paths[:, t], shares)
            if t:
                pair = paths[:, t - 1] * tags + paths[:, t]
                expected[1].view(-1).index_add_(0, pair, shares)
        expected[2].index_add_(0, paths[:, 0], shares)
        expected[3].index_add_(0, paths[:, -1], shares)
    found = (d_emissions, d_transitions, d_start, d_end)
    for a, c in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), c, rtol=1e-4, atol=1e-4 * size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tags", [1, 2, 9, 17, 33])
def test_the_kernels_are_as_exact_as_a_plain_loop(tags: int, dtype: torch.dtype) -> None:
    assert_as_exact_as_a_plain_loop(random_problem(tags, dtype), "triton")


@pytest.mark.parametrize("size", [0.3, 2.0, 50.0, 1e4])
def test_the_loops_are_as_exact_as_a_plain_loop(size: float) -> None:
    assert_as_exact_as_a_plain_loop(random_problem(9, size=size), "torch")


def test_large_scores_are_as_exact_in_the_kernels() -> None:
    assert_as_exact_as_a_plain_loop(random_problem(9, size=1e4), "triton")


def test_the_scaled_loop_runs_only_where_no_term_can_vanish() -> None:
    """Near the limit the paths that matter least still count: relative errors are what is seen."""
    for size, scaled in ((12.0, True), (40.0, False)):
        problem = random_problem(9, size=1.0)
        emissions = problem.emissions.clone()
        emissions[..., 0] -= size
        transitions = problem.transitions.clone()
        transitions[0] -= size
        given = problem._replace(emissions=emissions, transitions=transitions)
        _, _, scales = partition(*given[:5], "torch")
        assert bool(scales.all()) == scaled
        assert bool(scales.any()) == scaled
        found, exact = given.run("torch"), given.double().run("definition")
        for a, c in zip(found, exact, strict=True):
            counts = c.abs() > 1e-30
            assert counts.any()
            torch.testing.assert_close(a[counts].double(), c[counts], rtol=5e-5, atol=0.0)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_what_is_forbidden_gets_zeros_and_no_nan(backend: str) -> None:
    """A tag that nothing reaches or leaves, a step without tags, an end without a start."""
    problem = random_problem(5)
    transitions, emissions = problem.transitions.clone(), problem.emissions.clone()
    transitions[2], transitions[:, 2] = -math.inf, -math.inf
    emissions[2, 3] = -math.inf
    emissions[0, 0, 4] = -math.inf
    problem = problem._replace(transitions=transitions, emissions=emissions)
    found, expected = problem.run(backend), problem.double().run("definition")
    assert found[0][3] == -math.inf
    assert not found[1][:, 3].any()
    assert not found[2][2].any()
    assert not found[2][:, 2].any()
    for a, c in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), c, rtol=1e-5, atol=1e-5)
        assert a[a != -math.inf].isfinite().all()


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_nan_stays_in_its_sentence_and_padding_is_never_read(backend: str) -> None:
    problem = random_problem(5)
    clean = problem.run(backend)
    beyond = (torch.arange(STEPS)[:, None] >= LENGTHS).unsqueeze(2)
    for garbage in (math.nan, math.inf, -math.inf):
        dirty = problem._replace(emissions=problem.emissions.masked_fill(beyond, garbage))
        for a, b in zip(dirty.run(backend), clean, strict=True):
            assert torch.equal(a, b)
    emissions = problem.emissions.clone()
    emissions[2, 0, 1] = math.nan
    log_z, d_emissions, *_ = problem._replace(emissions=emissions).run(backend)
    assert log_z[0].isnan()
    torch.testing.assert_close(log_z[1:], clean[0][1:])
    torch.testing.assert_close(d_emissions[:, 1:], clean[1][:, 1:])


def test_memory_is_written_whole(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever `torch.empty` holds must not show: fill it with NaN."""
    problem = random_problem(5)
    clean, empty = problem.run("triton"), torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        tensor = empty(*args, **kwargs)
        return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

    def poisoned_like(other: Tensor, **kwargs: Any) -> Tensor:
        return poisoned(other.shape, dtype=other.dtype)

    def poisoned_new(self: Tensor, *shape: Any, **kwargs: Any) -> Tensor:
        return poisoned(*shape, dtype=kwargs.get("dtype", self.dtype))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", poisoned)
        patch.setattr(torch, "empty_like", poisoned_like)
        patch.setattr(Tensor, "new_empty", poisoned_new)
        dirty = problem.run("triton")
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)


def test_the_kernels_are_differentiable_twice_through_the_definition() -> None:
    problem = random_problem(4)
    found = []
    for backend in ("triton", "definition"):
        leaves = [tensor.clone().requires_grad_() for tensor in problem[:4]]
        if backend == "triton":
            log_z = functional.crf(*leaves, LENGTHS, backend="triton")
        else:
            log_z = definition(*leaves, LENGTHS)
        first = torch.autograd.grad(log_z.square().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_the_operator_keeps_torchs_rules_for_operators() -> None:
    problem = random_problem(3)
    rules = ("test_schema", "test_autograd_registration", "test_faketensor")
    for engine in ("torch", "triton"):
        leaves = [tensor.clone().requires_grad_() for tensor in problem[:4]]
        torch.library.opcheck(partition, (*leaves, LENGTHS, engine), test_utils=rules)


def test_lengths_and_backends_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(4)
    with pytest.raises(ValueError, match="between 1 and the input's 6 steps, got 0 for sequence 1"):
        functional.crf(*problem[:4], torch.tensor([6, 0, 3, 5]))
    with pytest.raises(ValueError, match="got 7 for sequence 0"):
        functional.crf(*problem[:4], torch.tensor([7, 1, 3, 5]))
    with pytest.raises(ValueError, match="one of auto, triton, torch, got 'eager'"):
        functional.crf(*problem[:5], backend="eager")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=f"between {MAX_TAGS} tags in registers, not between 65"):
        random_problem(MAX_TAGS + 1).run("triton")
    with pytest.raises(RuntimeError, match=r"computes in float32, and an input is torch\.float64"):
        problem.double().run("triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(RuntimeError, match="needs a GPU, and the emissions are on cpu"):
        problem.run("triton")


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_shapes_that_do_not_fit_are_refused_before_anything_is_read(backend: Any) -> None:
    emissions, transitions, start, end, lengths, _ = random_problem(4)
    for moves, first, final in (
        (torch.randn(5, 5), start, end),
        (torch.randn(3, 3), start, end),
        (torch.randn(4, 1), start, end),
        (transitions, torch.randn(1), end),
        (transitions, start, torch.randn(5)),
    ):
        got = re.escape(f"got {(*moves.shape,)}, {(*first.shape,)} and {(*final.shape,)}")
        with pytest.raises(RuntimeError, match=rf"for emissions of 4 tags, {got}"):
            functional.crf(emissions, moves, first, final, lengths, backend=backend)
    for shape in ((6, 4), (0, 4, 4), (6, 4, 0)):
        with pytest.raises(RuntimeError, match=rf"one tag or more, got \({shape[0]}, "):
            functional.crf(torch.zeros(shape), transitions, start, end, lengths, backend=backend)


COMPILE = """
import json
from rnnkit_kernels.audit.cases import crf_cases
from rnnkit_kernels.audit.compilation import compile_crf
from rnnkit_kernels.crf import kernels as crf_kernels
cases = [("sm_80", 64, "fp32"), ("sm_90", 32, "bf16"), ("sm_100", 50, "fp16")]
kernels = (crf_kernels.partition_forward, crf_kernels.partition_backward)
integers = [(p.name, p.do_not_specialize) for k in kernels for p in k.params
            if p.name in ("batch", "steps")]
rows = [[*case, [vars(r) for r in found]] for case, found in map(compile_crf, cases)]
print(json.dumps({"rows": rows, "integers": integers, "all": crf_cases()}))
"""


@pytest.mark.compiler
@pytest.mark.process
def test_compiled_kernels_neither_spill_nor_depend_on_a_step_count_or_a_batch_size() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["integers"] == [["batch", True], ["batch", True], ["steps", True]]
    for *case, resources in found["rows"]:
        assert [one["kernel"] for one in resources] == ["partition_forward", "partition_backward"]
        for one in resources:
            assert one["faults"] == [], (case, one)
            assert one["stack"] == 0, (case, one)
    # What the audit compiles: every tile on every target.
    assert {(target, tags) for target, tags, _ in found["all"]} == set(
        itertools.product(("sm_80", "sm_90", "sm_100"), (9, 32, 50, MAX_TAGS))
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tags", [1, 9, 33, MAX_TAGS])
def test_a_gpu_is_as_exact_as_a_plain_loop_and_repeats_itself(
    tags: int, dtype: torch.dtype
) -> None:
    problem = random_problem(tags, dtype).to("cuda")
    assert_as_exact_as_a_plain_loop(problem, "triton")
    for a, b in zip(problem.run("auto"), problem.run("triton"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
def test_a_captured_graph_sees_new_lengths() -> None:
    problem = random_problem(9).to("cuda")
    leaves = [tensor.clone().requires_grad_() for tensor in problem[:4]]

    def step() -> list[Tensor]:
        log_z = functional.crf(*leaves, problem.lengths)
        return [log_z.detach(), *torch.autograd.grad(log_z, leaves, problem.gradient)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for lengths in ([6, 1, 3, 5], [2, 6, 6, 1]):
        problem.lengths.copy_(torch.tensor(lengths))
        graph.replay()
        for a, b in zip(captured, problem.run("triton"), strict=True):
            assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("masked", [False, True])
def test_training_of_a_layer_never_makes_the_host_wait(masked: bool) -> None:
    """Not for the lengths, nor to know whether its mask has holes."""
    from rnnkit.nn import CRF

    problem = random_problem(9)
    model, tags = CRF(9), torch.randint(9, (STEPS, len(LENGTHS)))
    mask = torch.arange(STEPS)[:, None] < LENGTHS
    mask[1, 0] = False

    def run(device: str, watched: bool = False) -> list[Tensor]:
        emissions = problem.emissions.to(device).requires_grad_()
        given = (emissions, tags.to(device), mask.to(device) if masked else None)
        model.to(device)
        torch.cuda.set_sync_debug_mode("error" if watched else "default")
        try:
            loss = -model(*given, reduction="token_mean")
            gradients = torch.autograd.grad(loss, [emissions, *model.parameters()])
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return [loss.detach(), *gradients]

    expected = run("cpu")
    run("cuda")  # compiles
    for a, b in zip(run("cuda", watched=True), expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-5)
