"""The options that torch.nn lacks, in every form of call, against plain loops over steps and gates.

Zoneout is in evaluation here; what is drawn while training is tested in `test_zoneout.py` and
`test_weight_drop.py`.
"""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import rnnkit
from tests.conftest import NATIVE
from tests.nn import loops
from tests.nn.layers import CLASSES, assert_close, assert_equal, gradients, leaf, random_state
from tests.nn.layers import tensors as tensors_of

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "peephole": ("LSTM", {"peephole": True}),
    "peephole, projection": ("LSTM", {"peephole": True, "proj_size": 2}),
    "coupled": ("LSTM", {"coupled": True}),
    "coupled, peephole": ("LSTM", {"coupled": True, "peephole": True}),
    "coupled, projection": ("LSTM", {"coupled": True, "proj_size": 2}),
    "LSTM zoneout": ("LSTM", {"zoneout": 0.3}),
    "LSTM zoneout of h, c": ("LSTM", {"zoneout": (0.05, 0.5)}),
    "LSTM zoneout of c": ("LSTM", {"zoneout": (0.0, 0.4)}),
    "GRU zoneout": ("GRU", {"zoneout": 0.3}),
    "GRU reset before, zoneout": ("GRU", {"reset_after": False, "zoneout": 0.3}),
    "RNN zoneout": ("RNN", {"zoneout": 0.3}),
    "coupled, peephole, zoneout": ("LSTM", {"coupled": True, "peephole": True, "zoneout": 0.3}),
    "LSTM layer norm": ("LSTM", {"layer_norm": True}),
    "LSTM layer norm, projection": ("LSTM", {"layer_norm": True, "proj_size": 2}),
    "GRU layer norm": ("GRU", {"layer_norm": True}),
    "RNN layer norm": ("RNN", {"layer_norm": True, "nonlinearity": "relu"}),
    "coupled, peephole, layer norm, zoneout": (
        "LSTM",
        {"coupled": True, "peephole": True, "layer_norm": True, "zoneout": (0.2, 0.1)},
    ),
    "LSTM recompute": ("LSTM", {"recompute": True}),
    "LSTM recompute, projection": ("LSTM", {"recompute": True, "proj_size": 2}),
    "peephole, zoneout, recompute": ("LSTM", {"peephole": True, "zoneout": 0.3, "recompute": True}),
    "coupled, recompute": ("LSTM", {"coupled": True, "recompute": True}),
    "GRU recompute": ("GRU", {"recompute": True}),
    "GRU reset before, recompute": ("GRU", {"reset_after": False, "recompute": True}),
    "RNN recompute": ("RNN", {"recompute": True, "nonlinearity": "relu"}),
    "GRU zoneout, recompute": ("GRU", {"zoneout": 0.3, "recompute": True}),
    "LSTM weight drop": ("LSTM", {"weight_drop": 0.5}),
}
FORMS = ("dense", "lengths", "packed", "packed sorted")
STEPS = 4


def build(kind: str, **options: Any) -> Any:
    """A layer in float64 whose gains and shifts are not all ones and zeros."""
    name, extra = OPTIONS[kind]
    layer = CLASSES[name][0](3, 4, **extra, **{"dtype": torch.float64} | options).eval()
    with torch.no_grad():
        for parameter_name, parameter in layer.named_parameters():
            if parameter_name.startswith(("gain", "shift")):
                parameter.add_(torch.randn_like(parameter) / 4)
    return layer


def call(layer: Any, form: str, input: Tensor, hx: Any, lengths: list[int]) -> tuple[Tensor, Any]:
    """The layer's results for (T, B, D), or (B, T, D) with `batch_first`, in one form of call."""
    sizes = torch.tensor(lengths)
    if form == "dense":
        return layer(input, hx)
    if form == "lengths":
        return layer(input, hx, lengths=sizes)
    packed = pack_padded_sequence(
        input, sizes, layer.batch_first, enforce_sorted=form == "packed sorted"
    )
    output, last = layer(packed, hx)
    assert isinstance(output, PackedSequence)
    return pad_packed_sequence(output, layer.batch_first, total_length=STEPS)[0], last


def assert_is_the_loop(layer: Any, form: str, lengths: list[int]) -> None:
    input = torch.randn(STEPS, len(lengths), 3, dtype=torch.float64)
    x, h = leaf(input), leaf(random_state(layer, len(lengths)))
    leaves = [x, *tensors_of(h), *layer.parameters()]
    given = x.transpose(0, 1) if layer.batch_first else x
    output, last = call(layer, form, given, h, lengths)
    result = output.transpose(0, 1) if layer.batch_first else output, last
    expected = loops.run(layer, x, h, lengths)
    assert_close(result, expected, rtol=1e-11, atol=1e-12)
    assert_close(gradients(result, leaves), gradients(expected, leaves), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", OPTIONS)
def test_two_layers_both_ways_compute_the_equations(kind: str, form: str) -> None:
    layer = build(kind, num_layers=2, bidirectional=True)
    lengths = {"dense": [4, 4, 4], "packed sorted": [4, 3, 1]}.get(form, [3, 1, 4])
    assert_is_the_loop(layer, form, lengths)


@pytest.mark.parametrize("form", ["dense", "packed"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_the_batch_may_come_first_and_biases_be_left_out(kind: str, form: str) -> None:
    layer = build(kind, batch_first=True, bias=False)
    assert_is_the_loop(layer, form, [4, 4] if form == "dense" else [2, 4])


@st.composite
def combinations(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A layer and options that go together."""
    name = draw(st.sampled_from(sorted(CLASSES)))
    options: dict[str, Any] = {
        "bidirectional": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "zoneout": draw(st.sampled_from([0.0, 0.25, 1.0])),
    }
    if name == "LSTM":
        options |= {"peephole": draw(st.booleans()), "coupled": draw(st.booleans())}
        if draw(st.booleans()):
            options |= {"zoneout": 0.0, "proj_size": 3}
    if name == "GRU":
        options["reset_after"] = draw(st.booleans())
    free = ["recompute"] if options.get("reset_after") is False else ["recompute", "layer_norm"]
    option = draw(st.sampled_from([None, *free]))
    return name, options | ({option: True} if option else {})


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(case=combinations(), form=st.sampled_from(FORMS[:3]))
def test_options_combine(case: tuple[str, dict[str, Any]], form: str) -> None:
    torch.manual_seed(0)
    name, options = case
    layer = CLASSES[name][0](3, 4, **options, dtype=torch.float64).eval()
    assert_is_the_loop(layer, form, [4, 4] if form == "dense" else [2, 4])


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_engine_is_not_torchs_unless_torch_can_do_it(kind: str) -> None:
    layer = build(kind)
    engine = rnnkit.explain(layer, torch.randn(5, 2, 3, dtype=torch.float64)).decision.engine
    loop, plain = ("native", "native") if NATIVE else ("eager", "torch")
    expected = "reference" if layer.layer_norm else plain if layer.weight_drop else loop
    assert engine == expected


@pytest.mark.parametrize("kind", OPTIONS)
def test_cpu_autocast_computes_in_bfloat16(kind: str) -> None:
    layer = build(kind, dtype=torch.float32, num_layers=2)
    input = torch.randn(5, 2, 3)
    expected = layer(input)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, last = layer(input)
    output.float().square().sum().backward()
    assert output.dtype == torch.bfloat16
    assert all(state.dtype == torch.bfloat16 for state in tensors_of(last))
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.05)
    for name, parameter in layer.named_parameters():
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", OPTIONS)
def test_copies_and_files_keep_the_options(kind: str) -> None:
    layer = build(kind, num_layers=2, bidirectional=True)
    input = torch.randn(4, 2, 3, dtype=torch.float64)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other = build(kind, num_layers=2, bidirectional=True)
    other.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    for found in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), other):
        assert repr(found) == repr(layer)
        assert_equal(found(input), layer(input))


@pytest.mark.parametrize("name", CLASSES)
def test_only_options_with_parameters_change_the_state_dict(name: str) -> None:
    options: dict[str, Any] = {"zoneout": 0.1, "weight_drop": 0.1, "recompute": True}
    made = []
    for given_options in (options, {}):
        torch.manual_seed(0)
        made.append(CLASSES[name][0](3, 4, 2, bidirectional=True, **given_options))
    torch.manual_seed(0)
    theirs = CLASSES[name][1](3, 4, 2, bidirectional=True)
    for layer in made:
        assert list(layer.state_dict()) == list(theirs.state_dict())
        assert_equal(list(layer.parameters()), list(theirs.parameters()))
        theirs.load_state_dict(layer.state_dict(), strict=True)


def test_parameters_of_a_layer_with_every_option_lie_in_the_kernels_order() -> None:
    layer = rnnkit.LSTM(
        3, 4, bidirectional=True, proj_size=2, peephole=True, layer_norm=True, weight_drop=0.1
    )
    shapes = {
        "weight_ih": (16, 3),
        "weight_hh": (16, 2),
        "bias_ih": (16,),
        "bias_hh": (16,),
        "weight_hr": (2, 4),
        "weight_c": (3, 4),
        "gain_ih": (16,),
        "shift_ih": (16,),
        "gain_hh": (16,),
        "shift_hh": (16,),
        "gain_c": (4,),
        "shift_c": (4,),
    }
    expected = {f"{n}_l0{d}": shape for d in ("", "_reverse") for n, shape in shapes.items()}
    found = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
    assert list(found.items()) == list(expected.items())
    assert [len(weights) for weights in layer.all_weights] == [12, 12]


def test_coupled_gates_have_three_blocks_of_rows_and_two_peepholes() -> None:
    layer = rnnkit.LSTM(3, 4, coupled=True, peephole=True)
    found = {name: tuple(value.shape) for name, value in layer.named_parameters()}
    assert found == {
        "weight_ih_l0": (12, 3),
        "weight_hh_l0": (12, 4),
        "bias_ih_l0": (12,),
        "bias_hh_l0": (12,),
        "weight_c_l0": (2, 4),
    }


@pytest.mark.parametrize("name", CLASSES)
def test_gains_start_at_one_and_shifts_at_zero(name: str) -> None:
    layer = CLASSES[name][0](3, 50, 2, layer_norm=True)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(9)
    layer.reset_parameters()
    for parameter_name, parameter in layer.named_parameters():
        if parameter_name.startswith("gain"):
            assert torch.equal(parameter, torch.ones_like(parameter))
        elif parameter_name.startswith("shift"):
            assert torch.equal(parameter, torch.zeros_like(parameter))
        else:
            assert 0.1 < parameter.abs().max() <= 50**-0.5
    assert ("gain_c_l1" in layer.state_dict()) == (name == "LSTM")


def test_it_prints_what_differs_from_the_defaults() -> None:
    every = rnnkit.LSTM(
        3, 5, peephole=True, coupled=True, zoneout=(0.1, 0.2), weight_drop=0.5, layer_norm=True
    )
    assert repr(every) == (
        "LSTM(3, 5, peephole=True, coupled=True, zoneout=(0.1, 0.2), weight_drop=0.5, "
        "layer_norm=True)"
    )
    assert repr(rnnkit.LSTM(3, 5, zoneout=[0.1, 0.1])) == "LSTM(3, 5, zoneout=0.1)"
    gru = rnnkit.GRU(3, 5, 2, reset_after=False, zoneout=1, recompute=True, backend="torch")
    assert repr(gru) == (
        "GRU(3, 5, num_layers=2, reset_after=False, zoneout=1.0, recompute=True, backend='torch')"
    )
    assert repr(rnnkit.RNN(3, 5, weight_drop=0.5)) == "RNN(3, 5, weight_drop=0.5)"


@pytest.mark.parametrize("name", CLASSES)
def test_options_are_given_by_name_alone(name: str) -> None:
    ours, theirs = CLASSES[name]
    most = (3, 4, 1, "tanh") if name == "RNN" else (3, 4, 1)
    arguments = (*most, True, False, 0.0, False, *([0, None, None] if name == "LSTM" else []))
    assert repr(ours(*arguments)) == repr(theirs(*arguments))
    extra = 0 if name == "LSTM" else 3
    with pytest.raises(TypeError, match="positional arguments"):
        ours(*arguments, *[None] * extra, True)


@pytest.mark.parametrize("name", CLASSES)
def test_options_that_are_off_leave_torchs_bits(name: str) -> None:
    off: dict[str, Any] = {
        "zoneout": 0,
        "weight_drop": 0.0,
        "layer_norm": False,
        "recompute": False,
    } | ({"peephole": False, "coupled": False, "zoneout": (0.0, 0)} if name == "LSTM" else {})
    layers = []
    for layer_class, options in zip(CLASSES[name], (off | {"backend": "torch"}, {}), strict=True):
        torch.manual_seed(0)
        layers.append(layer_class(3, 4, 2, dropout=0.5, **options))
    input = torch.randn(5, 2, 3)
    results, found = [], []
    for layer in layers:
        torch.manual_seed(1)
        results.append(layer(input))
        found.append(gradients(results[-1], list(layer.parameters())))
    assert_equal(*results)
    assert_equal(*found)
    assert repr(CLASSES[name][0](3, 4, 2, dropout=0.5, **off)) == repr(layers[1])


@pytest.mark.parametrize(
    ("plain", "options"),
    [
        ("coupled", {"coupled": True, "recompute": True}),
        ("GRU reset before, zoneout", {"reset_after": False, "zoneout": 0.3, "recompute": True}),
    ],
)
def test_recomputing_changes_no_bit_of_the_results(plain: str, options: dict[str, Any]) -> None:
    layer = build(plain, num_layers=2, bidirectional=True)
    other = CLASSES[OPTIONS[plain][0]][0](
        3, 4, 2, bidirectional=True, dtype=torch.float64, **options
    ).eval()
    other.load_state_dict(layer.state_dict())
    input, hx = torch.randn(5, 2, 3, dtype=torch.float64), random_state(layer, 2)
    result, again = layer(input, hx), other(input, hx)
    assert_equal(again, result)
    found, expected = (
        gradients(value, list(one.parameters())) for value, one in ((again, other), (result, layer))
    )
    assert_close(found, expected, rtol=1e-11, atol=1e-13)
