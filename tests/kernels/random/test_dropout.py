"""Dropout by counters: its words, its mask in every storage, derivatives, traces and kernels."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from types import ModuleType

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import triton
import triton.language as tl
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.nn.utils.rnn import pack_padded_sequence

from rnnkit_kernels.lengths import packed_rows
from rnnkit_kernels.random.dropout import _operator, dropout
from rnnkit_kernels.random.philox import keep, threshold
from rnnkit_kernels.random.philox import philox as philox_words
from rnnkit_kernels.recurrence.rows import Rows
from rnnkit_kernels.resets import Segments, find_segments

STEPS, BATCH, FEATURES, LAYER = 6, 4, 21, 3
LENGTHS = torch.tensor([2, 6, 1, 5])
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
STORAGES = ("dense", "packed", "padded", "segments")
# Where sequences of the last storage begin anew.
RESETS = torch.tensor(
    [[0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0] * 4]
)
# Random123's known answers for philox4x32-10: counter, key, words.
KNOWN = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@dataclass
class Stored:
    """(T, B, F) in some storage; `x` goes in, `back` restores the shape of what comes out."""

    storage: str
    x: Tensor
    rows: Rows
    order: Tensor | None
    segments: Segments | None = None

    @property
    def begins(self) -> Tensor | None:
        return None if self.segments is None else self.segments.begins

    def drop(self, probability: float = 0.4, seed: Tensor | None = None) -> Tensor:
        seed = seed_of() if seed is None else seed
        return dropout(self.x, probability, seed, LAYER, self.rows, self.order, self.begins)

    def back(self, y: Tensor) -> Tensor:
        """(T, B, F) in the original order, zero past each length."""
        inside = torch.arange(STEPS)[:, None] < LENGTHS
        if self.segments is not None:
            return self.segments.unpack(y)
        if self.order is None:
            return y.masked_fill(~inside[..., None], 0)
        there = inside[:, self.order]
        full = y.new_zeros(STEPS, BATCH, FEATURES)
        full[there] = y if self.storage == "packed" else y.view_as(full)[there]
        return full[:, self.order.argsort()]


def stored(storage: str, dtype: torch.dtype = torch.float32) -> Stored:
    x = torch.randn(STEPS, BATCH, FEATURES, generator=torch.Generator().manual_seed(0)).to(dtype)
    if storage == "dense":
        return Stored(storage, x, Rows(STEPS, BATCH), None)
    if storage == "segments":
        segments = find_segments(RESETS.bool(), LENGTHS, on_host=True)
        assert segments is not None
        rows = packed_rows(segments.batch_sizes, len(segments.sequence))
        return Stored(storage, segments.pack(x), rows, segments.sequence, segments)
    lengths, order = LENGTHS.sort(descending=True)
    packed = pack_padded_sequence(x[:, order], lengths)
    sizes = packed.batch_sizes
    if storage == "packed":
        rows = Rows(STEPS, BATCH, sizes, sizes.cumsum(0) - sizes)
        return Stored(storage, packed.data, rows, order)
    rows = Rows(STEPS, BATCH, sizes, torch.arange(STEPS) * BATCH)
    return Stored(storage, x[:, order].flatten(0, 1), rows, order)


def seed_of(value: int = -0x123456789ABCDEF) -> Tensor:
    return torch.tensor([value])


def mask(probability: float, seed: int = 7, layer: int = LAYER, steps: int = STEPS) -> Tensor:
    """What dense storage keeps, (T, B, F)."""
    ones = torch.ones(steps, BATCH, FEATURES)
    return dropout(ones, probability, seed_of(seed), layer, Rows(steps, BATCH)) != 0


def integers(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.fixture
def kernels() -> ModuleType:
    from rnnkit_kernels.random import kernels  # once conftest.py has said how they are to run

    return kernels


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_words_are_those_of_random123(counter: str, key: str, words: str) -> None:
    low, high = (torch.tensor(word) for word in integers(key))
    drawn = philox_words(tuple(torch.tensor([word]) for word in integers(counter)), (low, high))
    assert [int(word) for word in drawn] == integers(words)


def test_words_equal_those_of_exact_integers() -> None:
    generator = torch.Generator().manual_seed(0)
    counter = torch.randint(0, 2**32, (4, 500), generator=generator)
    counter[:, :4] = torch.tensor([0, 1, 2**31, 2**32 - 1])
    key = torch.randint(0, 2**32, (2,), generator=generator)
    drawn = torch.stack(philox_words(counter.unbind(), (key[0], key[1])), -1)
    for words, (a, b, c, d) in zip(drawn.tolist(), counter.t().tolist(), strict=True):
        k, m = key.tolist()
        for _ in range(10):
            p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
            a, b, c, d = q >> 32 ^ b ^ k, q % 2**32, p >> 32 ^ d ^ m, p % 2**32
            k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
        assert words == [a, b, c, d]


def test_an_element_takes_the_word_of_its_counter() -> None:
    kept = mask(0.3, seed=0x299F31D0A4093822)
    key = (torch.tensor(0xA4093822), torch.tensor(0x299F31D0))
    for t, b, feature in [(0, 0, 0), (2, 1, 7), (3, 2, 14), (5, 3, 20)]:
        counter = tuple(torch.tensor([i]) for i in (feature // 4, b, t, LAYER))
        word = int(philox_words(counter, key)[feature % 4])
        assert bool(kept[t, b, feature]) == (word >= int(0.3 * 2**32))


@pytest.mark.parametrize("storage", ["packed", "padded", "segments"])
def test_every_storage_drops_the_same_elements(storage: str) -> None:
    dense, other = stored("dense"), stored(storage)
    assert torch.equal(dense.back(dense.drop()), other.back(other.drop()))
    assert not torch.equal(other.drop(), dropout(other.x, 0.4, seed_of(), LAYER, other.rows))


def test_share_kept_and_scale() -> None:
    x = torch.ones(50, 40, 99)
    for p in (0.1, 0.5, 0.9):
        y = dropout(x, p, seed_of(), 0, Rows(50, 40))
        deviation = (p * (1 - p) / x.numel()) ** 0.5
        assert abs(float((y == 0).double().mean()) - p) < 5 * deviation
        assert set(y.unique().tolist()) == {0.0, float(torch.tensor(1 / (1 - p)))}


def test_probabilities_of_zero_and_one() -> None:
    case = stored("dense")
    assert case.drop(0.0) is case.x
    x = case.x.masked_fill(case.x > 1, float("nan")).requires_grad_()
    y = dropout(x, 1, seed_of(), LAYER, case.rows)
    assert torch.equal(y, torch.zeros_like(y))
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.zeros_like(x))


def test_what_the_mask_depends_on() -> None:
    kept = mask(0.5)
    assert torch.equal(kept, mask(0.5))
    assert torch.equal(kept[:4], mask(0.5, steps=4))  # the others don't matter
    others = [
        mask(0.5, seed=8),
        mask(0.5, seed=7 + 2**32),
        mask(0.5, seed=7 - 2**63),
        mask(0.5, layer=LAYER + 1),
    ]
    rows = [*kept.flatten(0, 1), *(row for other in others for row in other.flatten(0, 1))]
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_share_the_mask_and_keep_their_own(dtype: torch.dtype) -> None:
    case = stored("packed", dtype)
    y = case.drop(0.3)
    assert y.dtype == dtype
    kept = stored("packed").drop(0.3) != 0
    assert torch.equal(y, torch.where(kept, case.x * (1 / 0.7), 0))


def test_an_empty_batch_and_a_strided_input() -> None:
    empty = torch.empty(STEPS, 0, FEATURES)
    assert dropout(empty, 0.5, seed_of(), 0, Rows(STEPS, 0)).shape == empty.shape
    case = stored("dense")
    strided = case.x.transpose(0, 1).contiguous().transpose(0, 1)
    y = dropout(strided, 0.4, seed_of(), LAYER, case.rows)
    assert torch.equal(y, case.drop())
    assert y.is_contiguous()


def test_wrong_arguments_are_named() -> None:
    case = stored("dense")
    for probability in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="probability has to be between 0 and 1"):
            case.drop(probability)
    for seed in (torch.tensor([1.0]), torch.tensor([1, 2])):
        with pytest.raises(ValueError, match="the seed must be one int64"):
            case.drop(0.5, seed)


@pytest.mark.parametrize("storage", STORAGES)
def test_operator_passes_opcheck(storage: str) -> None:
    case = stored(storage)
    others = (0.5, seed_of(), LAYER, case.rows.batch, case.rows.offsets, case.order, case.begins)
    torch.library.opcheck(_operator, (case.x.requires_grad_(), *others))
    torch.library.opcheck(_operator, (case.x.detach().half().mT.contiguous().mT, *others))


@pytest.mark.parametrize("storage", STORAGES)
def test_first_and_second_gradients_are_exact(storage: str) -> None:
    case = stored(storage, torch.float64)

    def run(x: Tensor) -> Tensor:
        return replace(case, x=x).drop()

    x = case.x.requires_grad_()
    torch.autograd.gradcheck(run, x, fast_mode=True)
    torch.autograd.gradgradcheck(run, x, fast_mode=True)
    torch.autograd.gradgradcheck(lambda x: run(x).sin(), x, fast_mode=True)


def test_a_seed_drawn_before_the_backward_pass_is_an_error() -> None:
    case, seed = stored("dense"), seed_of()
    case.x.requires_grad_()
    y = case.drop(0.5, seed)
    seed.random_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("storage", STORAGES)
def test_transforms_by_their_values(storage: str) -> None:
    case = stored(storage, torch.float64)

    def run(x: Tensor, seed: Tensor | None = None) -> Tensor:
        return replace(case, x=x).drop(0.5, seed)

    factor = torch.where(case.drop(0.5) != 0, 2.0, 0.0).double()
    tangent = torch.randn_like(case.x)
    for got in jvp(run, (case.x,), (tangent,)), _dual(run, case.x, tangent):
        assert torch.equal(got[0], run(case.x))
        assert torch.equal(got[1], tangent * factor)
    batch = torch.randn(3, *case.x.shape, dtype=torch.float64)
    assert torch.equal(vmap(run)(batch), batch * factor)
    gradient = vmap(grad(lambda x: run(x).square().sum()))(batch)
    assert torch.equal(gradient, 2 * batch * factor**2)
    seeds = torch.arange(3)[:, None]
    each = torch.stack([run(case.x, seed) for seed in seeds])
    assert torch.equal(vmap(run, (None, 0))(case.x, seeds), each)
    x = case.x.requires_grad_()
    y = run(x)
    (several,) = torch.autograd.grad(y, x, batch.view(3, *y.shape), is_grads_batched=True)
    assert torch.equal(several, batch * factor)


def _dual(run: object, x: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    assert callable(run)
    with forward_ad.dual_level():
        y, got = forward_ad.unpack_dual(run(forward_ad.make_dual(x, tangent)))
        assert got is not None
        return y, got


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("storage", "compiler", "dynamic"),
    [
        *((storage, "aot_eager", dynamic) for storage in STORAGES for dynamic in (False, True)),
        ("packed", "inductor", False),
    ],
)
def test_a_compiled_function_draws_from_the_seeds_value(
    storage: str, compiler: str, dynamic: bool
) -> None:
    case, seed = stored(storage), seed_of()

    def step(x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        y = replace(case, x=x).drop(0.5, seed)
        return y, y.square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=compiler, dynamic=dynamic)
    seen = []
    for _ in range(2):
        x = case.x.clone().requires_grad_()
        expected, loss = step(x, seed)
        (gradient,) = torch.autograd.grad(loss, x)
        y, loss = compiled(x, seed)
        assert torch.equal(y, expected)
        assert torch.equal(torch.autograd.grad(loss, x)[0], gradient)
        seen.append(y.detach())
        seed += 1
    assert not torch.equal(seen[0], seen[1])


def tile(  # type: ignore[no-untyped-def]
    out,
    seed,
    order,
    layer,
    steps,
    threshold,
    unit,
    key: tl.constexpr,
    keep: tl.constexpr,
    units: tl.constexpr,
    sequences: tl.constexpr,
):
    """One (units × sequences) tile in a time loop, as in a recurrence; out (T, units, B)."""
    low, high = key(tl.load(seed))
    lane = tl.arange(0, sequences)[None, :]
    row = tl.arange(0, units)[:, None]
    for t in range(steps):
        kept = keep(low, high, layer, t, tl.load(order + lane), unit + row, threshold)
        tl.store(out + (t * units + row) * sequences + lane, kept.to(tl.int8))


@pytest.mark.parametrize("probability", [1e-10, 0.3, 0.5, 0.75, 1.0])
def test_a_tile_in_triton_equals_the_definition(kernels: ModuleType, probability: float) -> None:
    generator = torch.Generator().manual_seed(0)
    units, sequences, steps = 8, 16, 3
    for seed, layer, unit in [(0, 0, 0), (-1, 1, 36), (2**40 + 3, 2**20, 1001)]:
        order = torch.randint(0, 2**31, (sequences,), generator=generator)
        out = torch.empty(steps, units, sequences, dtype=torch.int8)
        triton.jit(tile)[(1,)](
            out,
            seed_of(seed),
            order,
            layer,
            steps,
            threshold(probability),
            unit,
            kernels.key,
            kernels.keep,
            units,
            sequences,
        )
        step = torch.arange(steps)[:, None, None]
        kept = keep(probability, seed_of(seed), layer, step, order[:, None], unit + units)
        assert torch.equal(out.bool(), kept[..., unit:].transpose(1, 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("storage", STORAGES[:3])  # of segments the definition draws
def test_the_kernel_equals_the_definition(
    kernels: ModuleType, storage: str, dtype: torch.dtype
) -> None:
    case = stored(storage, dtype)
    # bfloat16: the interpreter doesn't round, so only a power of two comes out right.
    for p in (0.5, 1.0) if dtype == torch.bfloat16 else (0.1, 0.5, 1.0):
        places = (case.rows.batch, case.rows.offsets, case.order)
        y = kernels.dropout(case.x, p, seed_of(), LAYER, *places)
        assert y.dtype == dtype
        assert torch.equal(y, case.drop(p))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 700, 3), (2, 3, 600), (5, 3, 64), (4, 0, 8)])
def test_the_kernel_covers_every_width(kernels: ModuleType, shape: tuple[int, int, int]) -> None:
    x = torch.ones(shape)
    y = kernels.dropout(x, 0.2, seed_of(), LAYER, shape[1], None, None)
    assert torch.equal(y, dropout(x, 0.2, seed_of(), LAYER, Rows(*shape[:2])))


COMPILE = """
import itertools
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from rnnkit_kernels.random.kernels import dropout_tile

types = dict(
    x="*bf16", out="*bf16", seed="*i64", steps="*i64", offsets="*i64", order="*i64",
    layer="i32", batch="i32", rows="i32", threshold="i64", scale="fp64",
)
for capability, packed in itertools.product((80, 90, 100), (False, True)):
    constants = dict(FEATURES=1000, BLOCK_ROWS=4, BLOCK_FEATURES=512)
    if not packed:
        constants |= dict(steps=None, offsets=None, order=None)
    names = dropout_tile.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    source = ASTSource(
        dropout_tile,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n][0] == "*"},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    ptx = compiled.asm["ptx"]
    print(compiled.metadata.shared, "ld.global.v4.b32" in ptx, "st.global.v4.b32" in ptx)
parameters = dropout_tile.params
print([p.name for p in parameters if p.annotation_type == "i32" and not p.do_not_specialize])
"""


@pytest.mark.compiler
@pytest.mark.process
def test_the_kernel_compiles_to_wide_accesses_without_an_exchange() -> None:
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
    assert done.stdout.splitlines() == ["0 True True"] * 6 + ["[]"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("storage", STORAGES)
def test_a_gpu_equals_the_definition(storage: str, dtype: torch.dtype) -> None:
    case = stored(storage, dtype)
    ones = replace(case, x=torch.ones_like(case.x))
    rows = case.rows.to(torch.device("cuda"))
    order = None if case.order is None else case.order.cuda()
    begins = None if case.begins is None else case.begins.cuda()
    for p in (0.1, 0.5, 1.0):
        x = case.x.cuda().requires_grad_()
        y = dropout(x, p, seed_of().cuda(), LAYER, rows, order, begins)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(y.cpu(), case.drop(p))
        assert torch.equal(gradient.cpu(), ones.drop(p))


@pytest.mark.gpu
@pytest.mark.parametrize("storage", STORAGES)
def test_a_captured_graph_draws_anew(storage: str) -> None:
    case = stored(storage)
    rows = case.rows.to(torch.device("cuda"))
    order = None if case.order is None else case.order.cuda()
    x, seed = case.x.cuda(), seed_of(1).cuda()
    dropout(x, 0.5, seed, LAYER, rows, order)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = dropout(x, 0.5, seed, LAYER, rows, order)
    for value in (1, 2, 3):
        seed.fill_(value)
        graph.replay()
        assert torch.equal(y.cpu(), case.drop(0.5, seed_of(value)))
