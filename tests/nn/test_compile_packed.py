"""torch.compile around a layer whose sequences are packed: what the same program gives in eager."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from tests.conftest import needs_engine
from tests.nn.layers import (
    ALL,
    STANDARD,
    assert_close,
    assert_equal,
    build,
    gradients,
    leaf,
    random_state,
    tensors,
    twins,
)
from tests.nn.test_imports import run

pytestmark = pytest.mark.compiler
OPTIONS: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64}
LENGTHS = torch.tensor([6, 2, 4])
# To compile takes a second: two kinds in every run, the others where time is no matter.
KINDS = [
    kind if kind in ("LSTM", "GRU reset before") else pytest.param(kind, marks=pytest.mark.slow)
    for kind in ALL
]


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


class Packs(nn.Module):
    """Packs, runs and unpacks, as people write it."""

    def __init__(self, layer: nn.Module, enforce_sorted: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self.enforce_sorted = enforce_sorted

    def forward(self, input: Tensor, lengths: Tensor, hx: Any) -> Any:
        packed = pack_padded_sequence(input, lengths, enforce_sorted=self.enforce_sorted)
        output, last = self.layer(packed, hx)
        return *pad_packed_sequence(output), last


def assert_trains_as_eager(model: Packs, compiler: str, lengths: Tensor, **how: Any) -> None:
    compiled = torch.compile(model, backend=compiler, **how)
    longest, batch = int(lengths.max()), len(lengths)
    input = torch.randn(longest, batch, 3, dtype=next(model.parameters()).dtype)
    hx = random_state(model.layer, batch)
    results, found = [], []
    for call in (model, compiled):
        x, h = leaf(input), leaf(hx)
        results.append(call(x, lengths, h))
        found.append(gradients(results[-1], [x, *tensors(h), *model.parameters()]))
    assert results[1][0].shape[:2] == (longest, batch)
    assert_close(*results)
    assert_close(*found)


@pytest.mark.parametrize("compiler", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_packs_trains_as_eager_does(kind: str, compiler: str) -> None:
    assert_trains_as_eager(Packs(build(kind, 3, 4, **OPTIONS)), compiler, LENGTHS)


@pytest.mark.slow
@pytest.mark.parametrize("enforce_sorted", [False, True])
@pytest.mark.parametrize("backend", ["torch", "eager", pytest.param("native", marks=needs_engine)])
def test_every_backend_takes_packed_sequences(backend: str, enforce_sorted: bool) -> None:
    lengths = LENGTHS.sort(descending=True)[0] if enforce_sorted else LENGTHS
    layer = build("GRU", 3, 4, **OPTIONS, backend=backend)
    assert_trains_as_eager(Packs(layer, enforce_sorted), "eager", lengths)


@pytest.mark.slow
def test_other_batches_follow_with_dynamic_shapes() -> None:
    model = Packs(build("GRU reset before", 3, 4, **OPTIONS))
    for lengths in ([6, 2, 4], [1, 3]):
        assert_trains_as_eager(model, "aot_eager", torch.tensor(lengths), dynamic=True)


@pytest.mark.process
@pytest.mark.slow
def test_inductor_takes_packed_sequences() -> None:
    assert_trains_as_eager(Packs(build("LSTM", 3, 4, **OPTIONS)), "inductor", LENGTHS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", STANDARD)
def test_the_compiled_model_gives_what_that_around_torch_gives(kind: str) -> None:
    ours, theirs = twins(kind, 3, 4, dtype=torch.float64)
    input, hx = torch.randn(6, 3, 3, dtype=torch.float64), random_state(ours, 3)
    found = [
        torch.compile(Packs(layer), backend="eager")(input, LENGTHS, hx) for layer in (ours, theirs)
    ]
    assert_close(*found)


@pytest.mark.parametrize("enforce_sorted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_takes_and_returns_packed_sequences(kind: str, enforce_sorted: bool) -> None:
    layer = build(kind, 3, 4, **OPTIONS)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    lengths = LENGTHS.sort(descending=True)[0] if enforce_sorted else LENGTHS
    input = torch.randn(6, 3, 3, dtype=torch.float64)
    packed = pack_padded_sequence(input, lengths, enforce_sorted=enforce_sorted)
    (output, last), (expected, other) = compiled(packed), layer(packed)
    assert type(output) is PackedSequence
    assert_equal(output[1:], expected[1:])
    assert_close((output.data, last), (expected.data, other))


@pytest.mark.process
@pytest.mark.slow
def test_the_kernels_take_packed_sequences() -> None:
    # Triton reads TRITON_INTERPRET where a kernel is decorated: a fresh interpreter.
    code = """
    from tests.nn.layers import build
    from tests.nn.test_compile_packed import LENGTHS, Packs, assert_trains_as_eager

    for kind in ("LSTM", "GRU reset before"):
        layer = build(kind, 3, 4, bidirectional=True, backend="triton")
        assert_trains_as_eager(Packs(layer), "aot_eager", LENGTHS)
        print(kind)
    """
    assert len(run(code, TRITON_INTERPRET="1").splitlines()) == 2
