"""The floor: its kernels interpreted and compiled, its formula by hand-computed numbers."""

import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import floor, floor_kernels
from benchmarks.cases import DTYPES, Case
from rnnkit_kernels.cpu.library import library
from rnnkit_kernels.recurrence import exchange
from rnnkit_kernels.recurrence.plan import A100, H200, Device
from tests.conftest import HAS_GPU

CPU = torch.device("cpu")
SHAPE = Case("small", "", steps=10, batch=4, features=24, hidden=32)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module once more, its kernels made for the interpreter, as those of the package are."""
    if HAS_GPU:
        pytest.skip("interpreted: run with CUDA_VISIBLE_DEVICES= set to nothing")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    spec = importlib.util.spec_from_file_location(
        "benchmarks.interpreted_floor", floor_kernels.__file__
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def meet(monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Run cooperative launches with all programs at once."""
    from tests.kernels.concurrent import run_programs_concurrently

    def cooperate(kernel: Any, grid: Any, arguments: Any, constants: Any) -> None:
        run_programs_concurrently(kernel, grid, arguments, constants, **options)

    monkeypatch.setattr(exchange, "cooperate", cooperate)


@pytest.mark.process
@pytest.mark.parametrize("meeting", floor.MEETINGS)
@pytest.mark.parametrize("programs", [1, 4])
def test_an_empty_exchange_moves_every_value_to_every_program(
    meeting: str, programs: int, interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    meet(monkeypatch)
    first = torch.randn(16, 16 * programs)
    seconds, y, last = interpreted.run_exchange(meeting, first, 4)
    assert seconds > 0
    for step in range(4):
        expected = first / 2 + y[step].mean(1, keepdim=True) / 4
        torch.testing.assert_close(y[step + 1], expected)
    torch.testing.assert_close(last, y[3].mean(1).expand(programs, 16))


@pytest.mark.process
def test_rows_longer_than_a_tile_are_fetched_in_parts(
    interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 64 programs 63 are missing; what they should have published is there before."""
    blank = exchange.blank_exchange
    monkeypatch.setattr(exchange, "blank_exchange", lambda *given: blank(*given).zero_())
    meet(monkeypatch)
    launched: list[Any] = []
    together = exchange.cooperate

    def alone(kernel: Any, grid: Any, arguments: Any, constants: Any) -> None:
        launched.append(grid)
        together(kernel, (1, 1, 1), arguments, constants)

    monkeypatch.setattr(exchange, "cooperate", alone)
    first = torch.randn(16, 1024)
    _, y, last = interpreted.run_exchange("data", first, 2)
    assert launched == [(64, 1, 1)]
    torch.testing.assert_close(y[1, :, :16], first[:, :16] / 2 + first.mean(1)[:, None] / 4)
    torch.testing.assert_close(last[0], y[1].mean(1))


@pytest.mark.process
@pytest.mark.parametrize("meeting", floor.MEETINGS)
def test_an_exchange_with_a_missing_program_gives_up(
    meeting: str, interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    meet(monkeypatch, missing=(1, 0, 0))
    monkeypatch.setattr(exchange, "MAX_POLLS", 20)
    with pytest.raises(RuntimeError, match=f"4 programs that meet by {meeting} waited in vain"):
        interpreted.run_exchange(meeting, torch.randn(16, 64), 3)


def test_weights_are_read_at_every_step(interpreted: ModuleType) -> None:
    weight = torch.linalg.qr(torch.randn(32, 32))[0].contiguous()
    x, last = torch.randn(32, 16), torch.empty(2, 32, 16)
    interpreted.read_again[(2,)](weight, x, last, 5, **interpreted.options_of(SIDE=32))
    expected = torch.linalg.matrix_power(weight, 5) @ x
    torch.testing.assert_close(last, expected.expand(2, 32, 16), rtol=1e-4, atol=1e-4)


# In a process of its own, since here Triton interprets.
COMPILE = """
import json
import torch
import triton
from triton.backends.compiler import GPUTarget
from benchmarks import floor, floor_kernels
from rnnkit_kernels.audit import assembly
from rnnkit_kernels.audit.compilation import registers_and_stack, source_of

def compiled(kernel, pointers, **constants):
    options = floor_kernels.options_of(**constants)
    shapes = {name: options.pop(name) for name in constants}
    source = source_of(kernel, shapes, torch.bfloat16)
    for name, kind in pointers.items():
        source.signature[name] = kind
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)

def loads(found, name):
    return [("do" in o.around, o.in_loop, "isVolatile" in o.text, sorted(o.pointers()))
            for o in found if o.name == "tt." + name and o.operands]

def report(made):
    found = list(assembly.operations(made.asm["ttgir"]))
    rules = assembly._polls(found, len(loads(found, "load")), made.asm["ttgir"])
    return {
        "stack": registers_and_stack(made.asm["cubin"])[1],
        "shared": made.metadata.shared,
        "loads": loads(found, "load"), "stores": loads(found, "store"),
        "atomics": sum(o.name == "tt.atomic_rmw" and o.in_loop for o in found),
        "barriers": sum("barrier" in o.name and o.in_loop for o in found),
        "products": sum("dot" in o.name and o.in_loop for o in found),
        "staged": [o.in_loop for o in found if o.name == "ttg.local_alloc"],
        "layouts": [rule for rule in rules if "replicated" in rule or "two layouts" in rule],
        "poll_bits": assembly.poll_bits(made.asm["ptx"]),
        "instructions": assembly.tensor_core_instructions(made.asm["ptx"]),
    }

types = {"last": "*fp32", "counter": "*i32", "error": "*i32"}
found = {f"{meeting} {width}": report(compiled(floor_kernels.empty_exchange, types, WIDTH=width,
                                              MEETING=meeting))
         for meeting in floor.MEETINGS for width in (16, 2048)}
found["again"] = report(compiled(floor_kernels.read_again, {}, SIDE=256))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    root = Path(__file__).parents[2]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "kernels")])
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.process
def test_the_compiled_kernels_do_what_they_measure(compiled: dict[str, dict[str, Any]]) -> None:
    """Inside the loop: every tile loaded, one published; no registers spilled."""
    for name, kernel in compiled.items():
        assert kernel["stack"] == 0, name
        assert kernel["shared"] <= H200.shared_memory
    for meeting in floor.MEETINGS:
        for width, tiles in ((16, 1), (2048, 8)):
            kernel = compiled[f"{meeting} {width}"]
            polls = meeting == "data"
            in_loop = [load for load in kernel["loads"] if load[1]]
            # Polled tiles are all read before and all in the one loop that spins.
            looks = (False, True)[: 1 + polls]
            assert in_loop == [[spins, True, polls, ["y"]] for spins in looks for _ in range(tiles)]
            assert [store for store in kernel["stores"] if store[1]] == [
                [False, True, False, ["y"]]
            ]
            assert (kernel["atomics"], kernel["barriers"]) == ((0, 0) if polls else (2, 2))
            assert kernel["layouts"] == []
            assert kernel["poll_bits"] == ([{16: 32, 2048: 128}[width]] if polls else [])
    again = compiled["again"]
    # The weights are loaded and staged once, what they are multiplied by at every step.
    assert [load[1] for load in again["loads"]] == [False, False]
    assert again["staged"] == [False, True]
    assert again["shared"] > 256 * 256 * 2
    assert again["products"] > 0
    # Two rows of 64 for each of two groups of four warps, 16 columns of the weights at once.
    assert again["instructions"] == 2 * 256 // 16


CONSTANTS: dict[str, Any] = {
    "gemm": {"bf16": 1e15, "tf32": 1e15, "fp32": 1e10, "fp16": 1e15},
    "copy": 1e11,
    "reread": 2e11,
    "exchange": {
        "counter": {"1": 1e-6, "32": 1.5e-6, "64": 2e-6, "128": 3e-6},
        "data": {"1": 0.8e-6, "32": 1e-6, "64": 1.4e-6, "128": 3.5e-6},
    },
}
MEDIUM = Case("medium", "", steps=100, batch=16, features=100, hidden=650)
# 41 programs by data as flag: 1 µs + 9 / 32 of 0.4 µs.
MEETING = 1.1125e-6


@pytest.mark.parametrize(
    ("programs", "expected"), [(1, 0.8), (32, 1.0), (48, 1.2), (96, 2.45), (128, 3.5), (130, 3.5)]
)
def test_the_exchange_is_interpolated(programs: int, expected: float) -> None:
    table = CONSTANTS["exchange"]["data"]
    assert floor.interpolated(table, programs) == pytest.approx(expected * 1e-6)


@pytest.mark.parametrize(
    ("changes", "dtype", "expected"),
    [
        ({}, "bf16", 100 * MEETING),
        # Layers side by side; two directions too, unless they are stacked.
        ({"layers": 3}, "bf16", 102 * MEETING),
        ({"directions": 2}, "bf16", 100 * MEETING),
        ({"layers": 3, "directions": 2}, "bf16", 300 * MEETING),
        ({"steps": 200}, "bf16", 200 * MEETING),
        # 128 programs, by counter; in TF32 of 8 units, for 16 would not fit.
        ({"hidden": 2048}, "bf16", 100 * 3e-6),
        ({"hidden": 1024}, "tf32", 100 * 3e-6),
        # One program holds 4 × 64 × 64 weights of two bytes, and meets no one.
        ({"hidden": 64}, "bf16", 100 * 32768 / 2e11),
        # 2 × 1,600 rows × 4 gates × 650 × 650, and once more for W_ih of the second layer.
        ({}, "fp32", 5.408e9 / 1e10),
        ({"layers": 2}, "fp32", 3 * 5.408e9 / 1e10),
    ],
)
def test_the_loop_on_a_gpu(changes: dict[str, Any], dtype: str, expected: float) -> None:
    case = replace(MEDIUM, **changes)
    given = (case, "lstm", dtype)
    assert floor.loop_seconds(*given, "inference", CONSTANTS, H200) == pytest.approx(expected)
    assert floor.loop_seconds(*given, "train", CONSTANTS, H200) == pytest.approx(2 * expected)


def test_weights_that_are_read_slowly_rule() -> None:
    slow = {**CONSTANTS, "reread": 2e10}
    for cell, gates in (("lstm", 4), ("gru", 3)):
        found = floor.loop_seconds(MEDIUM, cell, "bf16", "forward", slow, H200)
        assert found == pytest.approx(100 * gates * 16 * 650 * 2 / 2e10)


def test_whether_one_program_holds_all_weights_depends_on_the_gpu() -> None:
    wide = replace(MEDIUM, hidden=144)
    found = [
        floor.loop_seconds(wide, "lstm", "bf16", "forward", CONSTANTS, gpu) for gpu in (H200, A100)
    ]
    nine = floor.interpolated(CONSTANTS["exchange"]["data"], 9)
    assert found == pytest.approx([100 * 4 * 144 * 144 * 2 / 2e11, 100 * nine])


def test_the_loop_on_a_cpu() -> None:
    """Reading W_hh of two layers rules for one sequence, arithmetic for 16."""
    for batch, expected in ((1, 200 * 4 * 650 * 650 * 4 / 1e11), (16, 5.408e9 * 3 / 1e12)):
        case = replace(MEDIUM, layers=2, batch=batch)
        constants = {"gemm": {"fp32": 1e12}, "copy": 1e11}
        found = floor.loop_seconds(case, "lstm", "fp32", "inference", constants, None)
        assert found == pytest.approx(expected)


def test_the_loop_on_a_cpu_by_what_the_engine_measured() -> None:
    """W_hh of 6.76 MB lies between 2^22 and 2^23 bytes; of 16 bits the engine knows nothing."""
    read = {str(2**22): 4e11, str(2**23): 2e11}
    engine = {"peak": {"fp32": 2e12}, "read": read}
    constants = {"gemm": {"fp32": 1e12, "bf16": 1e12}, "copy": 1e11, **engine}
    weights = 4 * 650 * 650 * 4
    rate = 4e11 - (weights - 2**22) / 2**22 * 2e11
    for batch, expected in ((1, 100 * weights / rate), (16, 5.408e9 / 2e12)):
        given = (replace(MEDIUM, batch=batch), "lstm", "fp32")
        for mode, passes in (("inference", 1), ("train", 2)):
            found = floor.loop_seconds(*given, mode, constants, None)
            assert found == pytest.approx(passes * expected)
    # Held to an older instruction set, the engine measures less than torch's product.
    held = {**constants, "gemm": {"fp32": 4e12}}
    many = replace(MEDIUM, batch=160)
    found = floor.loop_seconds(many, "lstm", "fp32", "inference", held, None)
    assert found == pytest.approx(5.408e10 / 4e12)
    single = replace(MEDIUM, batch=1)
    assert floor.loop_seconds(single, "lstm", "bf16", "inference", constants, None) == (
        pytest.approx(100 * weights / 2 / 1e11)
    )


def test_with_a_peak_no_product_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "product_seconds", lambda *given: pytest.fail("timed"))
    constants = {**CONSTANTS, "peak": {"fp32": 1e11}, "read": {"8192": 1e12}}
    found = floor.seconds(MEDIUM, "lstm", "fp32", "train", constants, CPU)
    loop = floor.loop_seconds(MEDIUM, "lstm", "fp32", "train", constants, None)
    # W_ih's product, dx and dW_ih are as large as each other; dW_hh is 6.5 times as large.
    assert found == pytest.approx(loop + 2 * 1600 * 100 * 2600 * (3 + 6.5) / 1e11)


def test_products_apart_from_the_loop() -> None:
    ragged = Case("", "", steps=4, batch=3, features=5, hidden=7, layers=2, ragged=True)
    rows = sum(ragged.lengths())
    assert rows < 12
    one_way = [(rows, 5, 21), (rows, 21, 5), (21, rows, 5), (21, rows, 7), *[(21, rows, 7)] * 2]
    assert floor.products_apart(ragged, "gru", "train") == one_way
    assert floor.products_apart(ragged, "gru", "forward") == one_way[:1]
    both = replace(ragged, directions=2)
    found = floor.products_apart(both, "gru", "train")
    assert found[:2] == [(rows, 5, 42), (rows, 14, 42)]
    assert found[2:4] == [(rows, 42, 5), (rows, 42, 14)]
    assert found[4:] == [(42, rows, 5), (42, rows, 14), *[(21, rows, 7)] * 4]


def test_the_floor_is_loop_and_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same shape is timed once and counted as often as it occurs."""
    timed = []

    def planted(*given: Any) -> float:
        timed.append(given)
        return 1.0

    monkeypatch.setattr(floor, "product_seconds", planted)
    case = replace(MEDIUM, layers=3)
    found = floor.seconds(case, "lstm", "fp32", "train", CONSTANTS, CPU)
    loop = floor.loop_seconds(case, "lstm", "fp32", "train", CONSTANTS, None)
    assert found == pytest.approx(loop + 1 + 1 + 3 + 3)
    # dW_ih above the first layer has the shape of dW_hh.
    assert timed == [
        (*shape, "fp32", CPU)
        for shape in ((1600, 100, 2600), (1600, 2600, 100), (2600, 1600, 100), (2600, 1600, 650))
    ]


def test_products_are_timed_at_the_precision_that_the_name_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matmul = torch.backends.cuda.matmul
    found: list[tuple[torch.dtype, str]] = []

    def planted(call: Callable[[], torch.Tensor], device: torch.device) -> float:
        out = call()
        assert out.shape == (3, 5)
        found.append((out.dtype, matmul.fp32_precision))
        return 1.0

    monkeypatch.setattr(floor, "fastest_of", planted)
    for dtype in DTYPES:
        assert floor.product_seconds(3, 4, 5, dtype, CPU) == 1.0
    # On a CPU float32 is timed in oneDNN as well.
    assert list(dict.fromkeys(found)) == list(DTYPES.values())
    assert len(found) == len(DTYPES) + 2 * torch.backends.mkldnn.is_available()


def test_a_step_is_the_difference_of_many_and_few_over_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The launch, planted at a millisecond, cancels; the fastest of several counts."""
    late = itertools.cycle([3e-4, 0.0, 2e-4, 1e-4, 5e-4])

    def exchanged(meeting: str, first: torch.Tensor, steps: int) -> tuple[float, None, None]:
        assert (meeting, first.shape, first.dtype) == ("data", (16, 128), torch.bfloat16)
        return 1e-3 + steps * 2e-6 + next(late), None, None

    monkeypatch.setattr(floor_kernels, "run_exchange", exchanged)
    assert floor_kernels.step_seconds("data", 8, CPU) == pytest.approx(2e-6)

    launches: list[tuple[int, torch.Tensor, int]] = []

    class Kernel:
        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            def launch(weight: Any, x: Any, last: Any, steps: int, **options: Any) -> None:
                assert x.shape == (options["SIDE"], 16)
                launches.append((grid[0], weight.float(), steps))

            return launch

    def timed(call: Callable[[], object], device: torch.device) -> float:
        call()
        return 1e-3 + launches[-1][2] * 1e-6 + next(late)

    monkeypatch.setattr(floor_kernels, "read_again", Kernel())
    monkeypatch.setattr(floor_kernels, "timed", timed)
    assert floor_kernels.reread_rate(CPU) == pytest.approx(256 * 256 * 2 / 1e-6)
    programs, weight, _ = launches[0]
    assert programs == H200.multiprocessors
    torch.testing.assert_close(weight @ weight.T, torch.eye(256), rtol=0, atol=0.02)


def test_a_gpu_is_measured_up_to_its_multiprocessors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "product_seconds", lambda *given: 2.0)
    monkeypatch.setattr(floor, "copy_rate", lambda device: 3.0)
    monkeypatch.setattr(floor_kernels, "reread_rate", lambda device: 4.0)
    monkeypatch.setattr(
        floor_kernels, "step_seconds", lambda meeting, programs, device: programs / 10
    )
    monkeypatch.setattr(Device, "of", lambda device: A100)
    said: list[str] = []
    constants = floor.measure(torch.device("cuda"), said.append)
    assert json.loads(json.dumps(constants)) == constants
    table = {"1": 0.1, "8": 0.8, "16": 1.6, "32": 3.2, "64": 6.4}
    assert constants == {
        "gemm": dict.fromkeys(DTYPES, 8192.0**3),
        "copy": 3.0,
        "reread": 4.0,
        "exchange": {"counter": table, "data": table},
    }
    assert len(said) == len(set(said)) == len(DTYPES) + 2 + 2 * 5


@pytest.mark.slow
def test_a_cpu_is_measured_and_no_layer_is_faster() -> None:
    said: list[str] = []
    constants = floor.measure(CPU, said.append)
    assert json.loads(json.dumps(constants)) == constants
    engine = {"peak", "read"} if library() is not None else set()
    assert set(constants) == {"gemm", "copy"} | engine
    assert set(constants["gemm"]) == set(DTYPES)
    assert all(
        math.isfinite(v) and v > 1e6 for v in (*constants["gemm"].values(), constants["copy"])
    )
    assert len(said) == len(DTYPES) + 1 + len(engine)
    if engine:
        assert constants["peak"]["fp32"] > 1e8
        assert {int(size) for size in constants["read"]} <= set(floor.BYTES)
        assert min(constants["read"].values()) > 1e7
    layer = torch.nn.LSTM(SHAPE.features, SHAPE.hidden)
    x = torch.randn(SHAPE.steps, SHAPE.batch, SHAPE.features, requires_grad=True)
    for mode in ("inference", "train"):
        samples = []
        for _ in range(5):
            begin = time.perf_counter()
            with torch.set_grad_enabled(mode == "train"):
                y = layer(x)[0]
            if mode == "train":
                torch.autograd.grad(y.sum(), [x, *layer.parameters()])
            samples.append(time.perf_counter() - begin)
        found = floor.seconds(SHAPE, "lstm", "fp32", mode, constants, CPU)
        assert 0 < found < min(samples)
