"""`resets=`: sequences that begin anew in the middle, against a loop over steps."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, vmap
from torch.nn.utils.rnn import pack_padded_sequence

import rnnkit
from rnnkit_kernels import layers, resets
from rnnkit_kernels.dispatch.choice import Decision
from tests.conftest import needs_engine
from tests.kernels.layers import assert_as_exact
from tests.nn import loops
from tests.nn.layers import (
    ALL,
    STANDARD,
    assert_close,
    assert_equal,
    cast,
    gradients,
    leaf,
    random_state,
    tensors,
)

STEPS, BATCH = 6, 5
BACKENDS = ["auto", "torch", "eager", pytest.param("native", marks=needs_engine)]
LENGTHS = [4, 6, 0, 1, 5]
KINDS = ALL | {
    "LSTM normalised": ("LSTM", {"layer_norm": True}),
    "LSTM with zoneout": ("LSTM", {"zoneout": (0.3, 0.1)}),
    "GRU with zoneout": ("GRU", {"zoneout": 0.3}),
}


def patterns() -> dict[str, Tensor]:
    none = torch.zeros(STEPS, BATCH, dtype=torch.bool)
    first, last, one = none.clone(), none.clone(), none.clone()
    first[0], last[-1], one[2, 3] = True, True, True
    generator = torch.Generator().manual_seed(0)
    random = torch.rand(STEPS, BATCH, generator=generator) < 0.3
    every = {"none": none, "all": ~none, "first": first, "last": last, "one": one}
    return every | {"random": random, "often": torch.rand(STEPS, BATCH, generator=generator) < 0.7}


PATTERNS = patterns()


def make(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    name, extra = KINDS[kind]
    options = {"dtype": torch.float64, **extra, **options}
    if options.get("backend") not in (None, "auto") and extra.get("layer_norm"):
        pytest.skip("layer normalisation runs by its definition alone")
    return getattr(rnnkit, name)(3, 4, **options).eval()


def reset_state(layer: Any) -> Any:
    """A state for all sequences: as hx, without the batch."""
    state = random_state(layer, 1)
    return tuple(v[:, 0] for v in state) if isinstance(state, tuple) else state[:, 0]


def outcome(layer: Any, run: Any, *given: Any) -> tuple[Any, list[Tensor]]:
    """Results of `run` and their gradients by what is given and by the parameters."""
    given = tuple(leaf(value) for value in given)
    result = run(layer, *given)
    leaves = [t for value in given for t in tensors(value)] + list(layer.parameters())
    return result, gradients(result, leaves)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """No value may be read, as in a trace or while a graph is captured."""
    monkeypatch.setattr(resets, "_may_read", lambda values: False)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN tanh"])
def test_every_backend_equals_a_loop_over_steps(
    kind: str, backend: str, pattern: str, lengths: list[int] | None
) -> None:
    check_against_loop(kind, backend, pattern, lengths)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"LSTM", "GRU", "RNN tanh"}))
def test_every_kind_equals_a_loop_over_steps(kind: str, lengths: list[int] | None) -> None:
    for backend in ("auto", "eager") if kind != "LSTM normalised" else ("auto",):
        check_against_loop(kind, backend, "random", lengths)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("backend", ["eager", pytest.param("native", marks=needs_engine)])
def test_so_does_the_layout_whose_shapes_depend_on_no_value(
    backend: str, pattern: str, lengths: list[int] | None
) -> None:
    for kind in ("LSTM", "GRU reset before"):
        check_against_loop(kind, backend, pattern, lengths)


def check_against_loop(kind: str, backend: str, pattern: str, lengths: list[int] | None) -> None:
    where = PATTERNS[pattern]
    steps = None if lengths is None else torch.tensor(lengths)
    each = [STEPS] * BATCH if lengths is None else lengths

    def ours(layer: Any, x: Tensor, hx: Any, anew: Any) -> Any:
        return layer(x, hx, lengths=steps, resets=where, hx_reset=anew)

    def loop(layer: Any, x: Tensor, hx: Any, anew: Any) -> Any:
        output, last = loops.run(layer, x, hx, each, where, anew)
        # Every leaf takes part, also where no sequence is reset.
        leaves = [t for value in (x, hx, anew) for t in tensors(value)] + list(layer.parameters())
        return output + sum(value.sum() * 0 for value in leaves), last

    for options in ({"num_layers": 2, "bidirectional": True}, {}):
        layer = make(kind, backend=backend, **options)
        x = torch.randn(STEPS, BATCH, 3, dtype=torch.float64)
        hx, anew = random_state(layer, BATCH), reset_state(layer)
        found, expected = outcome(layer, ours, x, hx, anew), outcome(layer, loop, x, hx, anew)
        assert_close(found[0], expected[0])
        assert_close(found[1], expected[1])


@pytest.mark.parametrize("kind", STANDARD)
def test_single_precision_follows_the_tolerance_rule(kind: str) -> None:
    double = make(kind, num_layers=2, bidirectional=True)
    layer = copy.deepcopy(double).float()
    x, hx = torch.randn(STEPS, BATCH, 3), cast(random_state(double, BATCH), layer)

    def loop(layer: Any, x: Tensor, hx: Any) -> Any:
        return loops.run(layer, x, hx, LENGTHS, PATTERNS["random"])

    def ours(layer: Any, x: Tensor, hx: Any) -> Any:
        return layer(x, hx, lengths=torch.tensor(LENGTHS), resets=PATTERNS["random"])

    low = [*tensors(outcome(layer, ours, x, hx)[0]), *outcome(layer, ours, x, hx)[1]]
    plain = [*tensors(outcome(layer, loop, x, hx)[0]), *outcome(layer, loop, x, hx)[1]]
    exact = outcome(layer.double(), loop, cast(x, double), cast(hx, double))
    assert_as_exact(low, plain, [*tensors(exact[0]), *exact[1]], torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_what_is_reset_leaks_neither_forward_nor_back(kind: str, backend: str) -> None:
    layer = make(kind, backend=backend)
    x = torch.randn(STEPS, BATCH, 3, dtype=torch.float64)
    hx = leaf(random_state(layer, BATCH))
    where = PATTERNS["first"] | PATTERNS["one"]
    broken = tuple(torch.full_like(v, float("nan")) for v in tensors(hx))
    broken = leaf(broken if len(broken) > 1 else broken[0])
    output, last = layer(x, broken, resets=where)
    assert_equal(output, layer(x, resets=where)[0])
    found = gradients((output, last), tensors(broken))
    assert all(torch.equal(value, torch.zeros_like(value)) for value in found)
    # Nothing before the reset in sequence 3 has a gradient of what follows it.
    x.requires_grad_()
    (slope,) = torch.autograd.grad(layer(x, hx, resets=where)[0][2:, 3].sum(), x)
    assert not slope[:2].any()
    assert slope[2:, 3].all()


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("kind", STANDARD)
def test_one_step_starts_from_the_reset_state(kind: str, both: bool) -> None:
    """As an agent acts: one step, without gradients."""
    layer = make(kind, num_layers=2, bidirectional=both)
    x, state = torch.randn(1, BATCH, 3, dtype=torch.float64), random_state(layer, BATCH)
    where = PATTERNS["often"][:1]
    zeros = tuple(torch.zeros_like(value) for value in tensors(state))
    none = zeros if len(zeros) > 1 else zeros[0]
    for hx, anew in ((state, reset_state(layer)), (state, None), (None, reset_state(layer))):
        with torch.no_grad():
            found = layer(x, hx, resets=where, hx_reset=anew)
            start = none if hx is None else hx
            assert_close(found, loops.run(layer, x, start, [1] * BATCH, where, anew))


def test_batch_first_and_an_empty_batch() -> None:
    layer = make("GRU", num_layers=2, bidirectional=True)
    x, hx = torch.randn(STEPS, BATCH, 3, dtype=torch.float64), random_state(layer, BATCH)
    where = PATTERNS["random"]
    output, h_n = layer(x, hx, resets=where)
    layer.batch_first = True
    turned, last = layer(x.transpose(0, 1), hx, resets=where.t())
    assert_equal((turned.transpose(0, 1).contiguous(), last), (output, h_n))
    none = layer(x.transpose(0, 1)[:0], resets=where.t()[:0])[0]
    assert none.shape == (0, STEPS, 8)


@pytest.mark.parametrize("backend", ["eager", pytest.param("native", marks=needs_engine)])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "LSTM with zoneout"])
def test_masks_depend_on_step_and_sequence_not_on_the_segment(
    kind: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make(kind, num_layers=2, dropout=0.4, bidirectional=True, backend=backend).train()
    x, hx = torch.randn(STEPS, BATCH, 3, dtype=torch.float64), random_state(layer, BATCH)
    steps = torch.tensor(LENGTHS)

    def run(layer: Any, x: Tensor, hx: Any) -> Any:
        torch.manual_seed(7)
        return layer(x, hx, lengths=steps, resets=PATTERNS["random"])

    segments = outcome(layer, run, x, hx)
    monkeypatch.setattr(resets, "_may_read", lambda values: False)
    padded = outcome(layer, run, x, hx)
    monkeypatch.setattr(resets, "by_definition", lambda extras: True)
    monkeypatch.setattr(layers, "choose", lambda *given: Decision("reference", ""))
    stepwise = outcome(layer, run, x, hx)  # whose rows are those of the call without resets
    for found in (segments, padded):
        assert_close(found[0], stepwise[0])
        assert_close(found[1], stepwise[1])
    assert not torch.equal(stepwise[0][0], run(layer.eval(), x, hx)[0])


@pytest.mark.compiler
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "lengths"),
    [
        ("LSTM", None),
        ("LSTM with zoneout", LENGTHS),
        ("LSTM with projection", None),
        ("GRU reset before", LENGTHS),
        ("LSTM normalised", LENGTHS),
    ],
)
def test_one_graph_serves_every_pattern(kind: str, lengths: list[int] | None) -> None:
    torch._dynamo.reset()
    # A graph of what runs by its definition is as long as the input.
    layer = make(kind, num_layers=1 if kind == "LSTM normalised" else 2, bidirectional=True)
    steps = None if lengths is None else torch.tensor(lengths)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    x = torch.randn(STEPS, BATCH, 3, dtype=torch.float64)
    hx, anew = random_state(layer, BATCH), reset_state(layer)
    for pattern in ("random", "none", "all"):

        def run(layer: Any, x: Tensor, hx: Any, anew: Any, pattern: str = pattern) -> Any:
            return layer(x, hx, lengths=steps, resets=PATTERNS[pattern], hx_reset=anew)

        expected, found = (outcome(model, run, x, hx, anew) for model in (layer, compiled))
        assert_close(found[0], expected[0])
        assert_close(found[1], expected[1])


@pytest.mark.parametrize("kind", ["LSTM", "GRU reset before", "LSTM normalised"])
def test_vmap_over_resets_and_inputs(kind: str) -> None:
    layer = make(kind, num_layers=2, bidirectional=True)
    x = torch.randn(3, STEPS, BATCH, 3, dtype=torch.float64)
    where = torch.stack([PATTERNS[name] for name in ("random", "often", "none")])
    parameters = dict(layer.named_parameters())

    def run(x: Tensor, where: Tensor) -> Tensor:
        options = {"resets": where, "lengths": torch.tensor(LENGTHS)}
        return functional_call(layer, parameters, (x,), options)[0]  # type: ignore[no-any-return]

    assert_close(
        vmap(run)(x, where), torch.stack([run(*pair) for pair in zip(x, where, strict=True)])
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_second_derivatives(kind: str, backend: str) -> None:
    layer = make(kind, bidirectional=True, backend=backend)
    x = torch.randn(STEPS, BATCH, 3, dtype=torch.float64, requires_grad=True)
    hx, anew = leaf(random_state(layer, BATCH)), leaf(reset_state(layer))
    given = [x, *tensors(hx), *tensors(anew)]

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        x, *states = given
        many = len(states) > 2
        hx = tuple(states[:2]) if many else states[0]
        anew = tuple(states[2:]) if many else states[1]
        result = layer(x, hx, resets=PATTERNS["random"], hx_reset=anew)
        return tuple(tensors(result))

    torch.autograd.gradcheck(run, given, fast_mode=True)
    torch.autograd.gradgradcheck(run, given, fast_mode=True)


def test_what_does_not_fit_is_named() -> None:
    layer = make("LSTM")
    x, where = torch.randn(STEPS, BATCH, 3, dtype=torch.float64), PATTERNS["one"]
    zeros = torch.zeros(1, 4, dtype=torch.float64)
    packed = pack_padded_sequence(x, torch.tensor([6, 5, 4, 3, 2]))
    cases: list[tuple[type[Exception], str, Any, dict[str, Any]]] = [
        (ValueError, "resets go with a padded input", packed, {"resets": where}),
        (ValueError, "resets need a batched 3-D input", x[:, 0], {"resets": where[:, 0]}),
        (ValueError, r"got torch.int64: resets.bool\(\)", x, {"resets": where.long()}),
        (ValueError, r"\(6, 5\), got \(5, 6\)", x, {"resets": where.t()}),
        (ValueError, "there are no resets", x, {"hx_reset": (zeros, zeros)}),
        (TypeError, "a tensor of booleans, got list", x, {"resets": where.tolist()}),
        (RuntimeError, "hx_reset to be a pair", x, {"resets": where, "hx_reset": zeros}),
        (
            RuntimeError,
            r"hx_reset\[1\] size \(1, 4\), got \[1, 5, 4\]",
            x,
            {"resets": where, "hx_reset": (zeros, zeros[:, None].expand(1, 5, 4))},
        ),
        (
            RuntimeError,
            "hx_reset torch.float32",
            x,
            {"resets": where, "hx_reset": (zeros, zeros.float())},
        ),
    ]
    for error, message, input, options in cases:
        with pytest.raises(error, match=message):
            layer(input, **options)
    with pytest.raises(TypeError, match="GRU: expected hx_reset to be one tensor h_0, got tuple"):
        make("GRU")(x, resets=where, hx_reset=(zeros, zeros))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", ["LSTM", "GRU reset before"])
def test_a_jit_trace_takes_other_numbers_of_steps_and_sequences(kind: str) -> None:
    layer = make(kind, num_layers=2, bidirectional=True)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, where: Tensor, lengths: Tensor) -> Any:
            return self.layer(x, resets=where, lengths=lengths)[0]

    def given(steps: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.randn(steps, batch, 3, dtype=torch.float64)
        return x, torch.rand(steps, batch) < 0.3, torch.randint(0, steps + 1, (batch,))

    for first in ((6, 4), (1, 4)):
        traced = torch.jit.trace(Model(), given(*first))
        for steps, batch in ((6, 7), (9, 3), (1, 2)):
            arguments = given(steps, batch)
            assert_close(traced(*arguments), Model()(*arguments))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "LSTM with projection"])
def test_autocast_gives_the_dtypes_of_a_call_without_resets(kind: str) -> None:
    layer, x = make(kind, dtype=torch.float32), torch.randn(STEPS, BATCH, 3)
    for lengths in (None, torch.tensor(LENGTHS)):
        with torch.autocast("cpu", torch.bfloat16):
            expected = [value.dtype for value in tensors(layer(x, lengths=lengths))]
            for where in PATTERNS.values():
                found = tensors(layer(x, lengths=lengths, resets=where))
                assert [value.dtype for value in found] == expected


@pytest.mark.compiler
def test_an_empty_batch_compiles() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(make("LSTM"), fullgraph=True, backend="aot_eager")
    none = torch.zeros(STEPS, 0, dtype=torch.bool)
    output, (h_n, _) = compiled(torch.randn(STEPS, 0, 3, dtype=torch.float64), resets=none)
    assert (output.shape, h_n.shape) == ((STEPS, 0, 4), (1, 0, 4))


def test_tensors_without_values_give_shapes() -> None:
    layer, where = make("GRU", num_layers=2, bidirectional=True), PATTERNS["random"]
    x = torch.randn(STEPS, BATCH, 3, dtype=torch.float64)
    on_meta = copy.deepcopy(layer).to("meta")
    assert on_meta(x.to("meta"), resets=where.to("meta"))[0].shape == (STEPS, BATCH, 8)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = copy.deepcopy(layer)
        assert fake(mode.from_tensor(x), resets=mode.from_tensor(where))[0].shape == (6, 5, 8)
