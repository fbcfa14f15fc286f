"""The interpreter's programs side by side, and its bfloat16."""

import multiprocessing
import os
import signal
import threading
import time
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from tests.kernels.concurrent import exact_bfloat16_dot, run_programs_concurrently

pytestmark = pytest.mark.process


def sum_of_all(values, counter, steps, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """values (steps + 1, programs, BLOCK): each program adds up all blocks of the row before."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    lane = tl.arange(0, BLOCK)
    for step in range(steps):
        total = lane * 0
        for other in range(programs):
            total += tl.load(values + (step * programs + other) * BLOCK + lane)
        row = (step + 1) * programs + program
        tl.store(values + row * BLOCK + lane, total % 1009 + program)
        tl.debug_barrier()
        tl.atomic_add(counter, 1, sem="release", scope="gpu")
        while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < programs * (step + 1):
            pass


@pytest.mark.parametrize("programs", [1, 4, 16])
def test_programs_meet_at_a_counter(programs: int) -> None:
    steps, block = 20, 8
    values = torch.full((steps + 1, programs, block), -5, dtype=torch.int32)
    values[0] = torch.randint(1000, (programs, block))
    counter = torch.zeros(1, dtype=torch.int32)
    expected = values[0]
    run_programs_concurrently(
        triton.jit(sum_of_all),
        (programs,),
        (values, counter, steps),
        {"BLOCK": block, "num_warps": 4, "maxnreg": 255, "launch_cooperative_grid": True},
    )
    assert counter.item() == programs * steps
    for step in range(steps):
        expected = expected.sum(0) % 1009 + torch.arange(programs)[:, None]
        assert torch.equal(values[step + 1].long(), expected)


def product_by_flags(  # type: ignore[no-untyped-def]
    weight, h, steps, batch, H: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr
):
    """h (steps + 1, batch, H), all ones where not yet written: h[t + 1] = h[t] @ weight.T."""
    unit = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    k, lane = tl.arange(0, H), tl.arange(0, BLOCK_B)
    inside = (lane < batch)[None, :]
    w = tl.load(weight + unit[:, None] * H + k[None, :])
    if h.dtype.element_ty.primitive_bitwidth == 16:
        words = h.to(tl.pointer_type(tl.int16), bitcast=True)
    else:
        words = h.to(tl.pointer_type(tl.int32), bitcast=True)
    for step in range(steps):
        at = words + (step * batch + lane[None, :]) * H + k[:, None]
        bits = tl.load(at, mask=inside, other=0, volatile=True)
        while tl.min((bits != -1).to(tl.int32)) == 0:
            bits = tl.load(at, mask=inside, other=0, volatile=True)
        product = tl.dot(w, bits.to(h.dtype.element_ty, bitcast=True), input_precision="ieee")
        at = words + ((step + 1) * batch + lane[None, :]) * H + unit[:, None]
        bits = product.to(h.dtype.element_ty).to(words.dtype.element_ty, bitcast=True)
        tl.store(at, bits, mask=inside)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_data_is_its_own_flag(dtype: torch.dtype) -> None:
    steps, batch, hidden, block = 10, 5, 64, 16
    words = torch.int32 if dtype == torch.float32 else torch.int16
    weight = torch.nn.init.orthogonal_(torch.empty(hidden, hidden)).to(dtype)
    h = torch.full((steps + 1, batch, hidden), -1, dtype=words).view(dtype)
    h[0] = torch.randn(batch, hidden)
    with exact_bfloat16_dot():
        run_programs_concurrently(
            triton.jit(product_by_flags),
            (hidden // block,),
            (weight, h, steps, batch),
            {"H": hidden, "BLOCK_H": block, "BLOCK_B": 8},
        )
    atol = 1e-5 + 8 * torch.finfo(dtype).eps  # sums in another order, then a unit or two
    for step in range(steps):
        expected = (h[step].float() @ weight.float().T).to(dtype)
        torch.testing.assert_close(h[step + 1], expected, rtol=0, atol=atol)


def second_waits_for_ever(values):  # type: ignore[no-untyped-def]
    program = tl.program_id(0)
    tl.store(values + program, 1)
    while (program == 1) & (tl.load(values + 2, volatile=True) == 0):
        pass


def test_deadlock_ends_at_the_time_limit() -> None:
    values = torch.zeros(3)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"after 2 s .* ended: \(1, 0, 0\)$"):
        run_programs_concurrently(triton.jit(second_waits_for_ever), (2,), (values,), {}, timeout=2)
    assert time.monotonic() - start < 8
    assert multiprocessing.active_children() == []
    assert values.tolist() == [0, 0, 0]


def test_interrupt_leaves_nothing_running() -> None:
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        run_programs_concurrently(
            triton.jit(second_waits_for_ever), (2,), (torch.zeros(3),), {}, timeout=30
        )
    assert multiprocessing.active_children() == []


def second_raises(values):  # type: ignore[no-untyped-def]
    if tl.program_id(0) == 1:
        raise ValueError("the second program has had enough")
    while tl.load(values, volatile=True) == 0:
        pass


def second_dies(values):  # type: ignore[no-untyped-def]
    if tl.program_id(0) == 1:
        os._exit(3)
    while tl.load(values, volatile=True) == 0:
        pass


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (second_raises, r"(?s)^program \(1, 0, 0\).*second_raises.*ValueError: the second program"),
        (second_dies, r"^program \(1, 0, 0\), exit code 3"),
    ],
)
def test_failure_of_one_program_ends_all(function: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        run_programs_concurrently(triton.jit(function), (3,), (torch.zeros(1),), {}, timeout=30)
    assert multiprocessing.active_children() == []


def write_place(places):  # type: ignore[no-untyped-def]
    x, y, z = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    size_y, size_z = tl.num_programs(1), tl.num_programs(2)
    place = places + ((x * size_y + y) * size_z + z) * 2
    tl.store(place, x * 100 + y * 10 + z)
    tl.store(place + 1, tl.num_programs(0) * 100 + size_y * 10 + size_z)


@pytest.mark.parametrize("grid", [(3,), (2, 3), (2, 2, 3)])
def test_places_in_the_grid(grid: tuple[int, ...]) -> None:
    width, height, depth = (*grid, 1, 1)[:3]
    places = torch.zeros(width, height, depth, 2, dtype=torch.int32)
    run_programs_concurrently(triton.jit(write_place), grid, (places,), {})
    x, y, z = torch.meshgrid(*map(torch.arange, places.shape[:3]), indexing="ij")
    assert torch.equal(places[..., 0].long(), x * 100 + y * 10 + z)
    assert (places[..., 1] == width * 100 + height * 10 + depth).all()


def through_another_view(first, others, nothing, stride):  # type: ignore[no-untyped-def]
    last, _ = others
    if tl.program_id(0) == 0:
        tl.store(first + 2 * stride, 7)
    else:
        while tl.load(last, volatile=True) == 0:
            pass
        tl.store(last + 1, tl.load(last) + 1)


def test_views_of_one_storage_stay_views_of_one_storage() -> None:
    numbers = torch.zeros(8)
    every_second = numbers[::2]
    run_programs_concurrently(
        triton.jit(through_another_view),
        (2,),
        (every_second, (numbers[4:6], torch.empty(0, 3))),
        {"nothing": None, "stride": every_second.stride(0)},
    )
    assert numbers.tolist() == [0, 0, 0, 0, 7, 8, 0, 0]


def square(x, y, N: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    values = tl.load(x + at)
    torch.ones(2**20).exp_()
    tl.store(y + tl.program_id(0) * N * N + at, tl.dot(values, values, input_precision="ieee"))


def test_forks_after_threads_have_run() -> None:
    """Threads of torch and of numpy's BLAS, which the parent has and the programs would use."""
    x = torch.randn(256, 256, requires_grad=True)
    torch.autograd.grad((x @ x).exp().sum(), x)
    y = torch.zeros(3, 256, 256)
    triton.jit(square)[(1,)](x, y[2], N=256)
    run_programs_concurrently(triton.jit(square), (2,), (x, y), {"N": 256})
    assert torch.equal(y[0], y[2])
    assert torch.equal(y[1], y[2])


def cast(x, y, N: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, N)
    tl.store(y + at, tl.load(x + at).to(y.dtype.element_ty))


def assert_equal_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Bitwise, save that any NaN will do for another."""
    assert torch.equal(actual.isnan(), expected.isnan())
    actual, expected = actual.nan_to_num(), expected.nan_to_num()
    words = torch.int32 if actual.dtype == torch.float32 else torch.int16
    assert torch.equal(actual.view(words), expected.view(words))


def test_casts_between_float32_and_bfloat16() -> None:
    """Every upper half with lower halves around the tie: denormals, overflow, infinities, NaN."""
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x4000, 0xC000], dtype=torch.int32)
    x = (upper[:, None] | lower).flatten().view(torch.float32)
    y, wide = torch.zeros(x.numel(), dtype=torch.bfloat16), torch.zeros(x.numel())
    with exact_bfloat16_dot():
        triton.jit(cast)[(1,)](x, y, N=x.numel())
        triton.jit(cast)[(1,)](y, wide, N=x.numel())
    assert_equal_bits(y, x.to(torch.bfloat16))
    assert_equal_bits(wide, y.to(torch.float32))
    assert (y[y.isnan()].view(torch.int16) == 0x7FFF).all()


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (torch.int32, torch.bfloat16),
        (torch.float64, torch.bfloat16),
        (torch.float16, torch.bfloat16),
        (torch.bfloat16, torch.int32),
        (torch.bfloat16, torch.float64),
        (torch.bfloat16, torch.float16),
    ],
)
def test_other_casts_of_bfloat16(source: torch.dtype, target: torch.dtype) -> None:
    x = (torch.randn(64) * 1000).to(source)
    y = torch.zeros(64, dtype=target)
    with exact_bfloat16_dot():
        triton.jit(cast)[(1,)](x, y, N=64)
    assert torch.equal(y, x.to(target))


def batched_dot(  # type: ignore[no-untyped-def]
    a, b, c, BATCH: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION
):
    i, m, n, k = tl.arange(0, BATCH), tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    x = tl.load(a + (i[:, None, None] * M + m[None, :, None]) * K + k[None, None, :])
    y = tl.load(b + (i[:, None, None] * K + k[None, :, None]) * N + n[None, None, :])
    if BATCH == 1:
        x, y = tl.reshape(x, (M, K)), tl.reshape(y, (K, N))
        z = tl.full((M, N), 1.0, tl.float32)
    else:
        z = tl.full((BATCH, M, N), 1.0, tl.float32)
    z = tl.reshape(tl.dot(x, y, z, input_precision=PRECISION), (BATCH, M, N))
    tl.store(c + (i[:, None, None] * M + m[None, :, None]) * N + n[None, None, :], z)


@pytest.mark.parametrize("precision", [None, "tf32", "ieee"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dot(dtype: torch.dtype, batch: int, precision: str | None) -> None:
    a, b = torch.randn(batch, 16, 64).to(dtype), torch.randn(batch, 64, 8).to(dtype)
    c = torch.zeros(batch, 16, 8)
    sizes = {"BATCH": batch, "M": 16, "N": 8, "K": 64, "PRECISION": precision}
    with exact_bfloat16_dot():
        triton.jit(batched_dot)[(1,)](a, b, c, **sizes)
    torch.testing.assert_close(c, 1 + a.float() @ b.float(), rtol=0, atol=1e-4)


def calculate(x, y, out, N: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, N)
    a, b = tl.load(x + at), tl.load(y + at)
    tl.store(out + at, a + b)
    tl.store(out + N + at, -a * b)
    tl.store(out + 2 * N + at, a / b)
    tl.store(out + 3 * N + at, a * 1.5 - b)
    tl.store(out + 4 * N + at, tl.where(a > b, a, tl.abs(b)))
    tl.store(out + 5 * N + at, (a > b).to(tl.bfloat16))
    tl.store(out + 6 * N + at, tl.maximum(a, b))
    tl.store(out + 7 * N + at, tl.full((N,), 1.01, tl.bfloat16))


def test_arithmetic_of_bfloat16() -> None:
    x, y = torch.randn(2, 64).to(torch.bfloat16)
    out = torch.zeros(8, 64, dtype=torch.bfloat16)
    with exact_bfloat16_dot():
        triton.jit(calculate)[(1,)](x, y, out, N=64)
    expected = [x + y, -x * y, x / y, x * 1.5 - y, torch.where(x > y, x, y.abs())]
    expected += [(x > y).to(x.dtype), torch.maximum(x, y), torch.full_like(x, 1.01)]
    assert torch.equal(out, torch.stack(expected))


def test_interpreter_is_as_before() -> None:
    builder = interpreter.interpreter_builder
    before = dict(vars(builder))
    with exact_bfloat16_dot():
        assert vars(builder) != before
    assert vars(builder) == before
    run_programs_concurrently(
        triton.jit(write_place), (1,), (torch.zeros(2, dtype=torch.int32),), {}
    )
    assert vars(builder) == before
