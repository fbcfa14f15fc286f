"""Wrong arguments and wrong calls: torch's exception type, and a message that names the values."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnkit
from tests.nn.layers import ALL, CLASSES, build

Call = Callable[[Any], Any]


def raised(function: Callable[[], Any]) -> BaseException:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def assert_refused_alike(call: Callable[[int], Any], *mentioned: object) -> None:
    """`call(1)`, torch's, and `call(0)`, ours, raise one type; ours mentions every value."""
    expected, error = raised(lambda: call(1)), raised(lambda: call(0))
    assert type(error) is type(expected), f"{error!r} where torch raises {expected!r}"
    for value in mentioned:
        # Whole numbers only: a 3 inside a 32 isn't named.
        assert re.search(rf"(?<![\w.]){re.escape(str(value))}(?![\w.]*\w)", str(error)), (
            f"{value!r} is not in {str(error)!r}"
        )


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    ("options", "mentioned"),
    [
        ({"input_size": 0}, ("input_size", 0)),
        ({"input_size": -7}, ("input_size", -7)),
        ({"input_size": 2.0}, ("input_size", "int", "float")),
        ({"input_size": "3"}, ("input_size", "int", "str")),
        ({"input_size": None}, ("input_size", "int", "NoneType")),
        ({"hidden_size": 0}, ("hidden_size", 0)),
        ({"hidden_size": -2}, ("hidden_size", -2)),
        ({"hidden_size": 4.0}, ("hidden_size", "int", "float")),
        ({"num_layers": 0}, ("num_layers", 0)),
        ({"num_layers": -1}, ("num_layers", -1)),
        ({"num_layers": 1.0}, ("num_layers", "int", "float")),
        ({"num_layers": "2"}, ("num_layers", "int", "str")),
        ({"bias": 1}, ("bias", "bool", "int")),
        ({"bias": None}, ("bias", "bool", "NoneType")),
        ({"batch_first": 1}, ("batch_first", "bool", "int")),
        ({"dropout": -0.1}, ("dropout", -0.1, 0, 1)),
        ({"dropout": 1.5}, ("dropout", 1.5, 0, 1)),
        ({"dropout": True}, ("dropout", True)),
        ({"dropout": "0.5"}, ("dropout", "'0.5'")),
        ({"dropout": "much"}, ("dropout", "'much'")),
        ({"dropout": None}, ("dropout", "NoneType")),
        ({"dropout": float("nan")}, ("dropout", "nan")),
        ({"dtype": torch.int64}, ()),
        ({"dtype": "float"}, ()),
        ({"device": "nowhere"}, ()),
        ({"unknown": 1}, ("'unknown'",)),
    ],
    ids=str,
)
def test_a_wrong_constructor_argument_is_refused_as_by_torch(
    name: str, options: dict[str, Any], mentioned: tuple[object, ...]
) -> None:
    arguments = {"input_size": 3, "hidden_size": 4} | options
    assert_refused_alike(lambda which: CLASSES[name][which](**arguments), *mentioned)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("sizes", [(), (3,)])
def test_missing_sizes_are_refused_as_by_torch(name: str, sizes: tuple[int, ...]) -> None:
    assert_refused_alike(lambda which: CLASSES[name][which](*sizes), "'hidden_size'")


@pytest.mark.parametrize(
    ("proj_size", "mentioned"), [(-1, (-1,)), (4, (4,)), (5, (5, 4)), (2.0, ("float",))]
)
def test_a_wrong_projection_is_refused_as_by_torch(
    proj_size: Any, mentioned: tuple[object, ...]
) -> None:
    assert_refused_alike(
        lambda which: CLASSES["LSTM"][which](3, 4, proj_size=proj_size), *mentioned
    )


@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("name", ["GRU", "RNN"])
def test_only_the_lstm_takes_a_projection(name: str, proj_size: int) -> None:
    assert_refused_alike(
        lambda which: CLASSES[name][which](3, 4, proj_size=proj_size), "proj_size", "LSTM"
    )


@pytest.mark.parametrize("nonlinearity", ["elu", None, 1])
def test_an_unknown_nonlinearity_is_refused_as_by_torch(nonlinearity: Any) -> None:
    assert_refused_alike(
        lambda which: CLASSES["RNN"][which](3, 4, nonlinearity=nonlinearity),
        f"'{nonlinearity}'",
        "'tanh'",
        "'relu'",
    )


@pytest.mark.parametrize("name", CLASSES)
def test_an_unknown_backend_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"auto, triton, native, torch, .*, got 'nonsense'"):
        CLASSES[name][0](3, 4, backend="nonsense")


@pytest.mark.parametrize(
    ("options", "expected", "message"),
    [
        ({"zoneout": -0.1}, ValueError, r"zoneout .* \[0, 1\].*keep its state, got -0\.1"),
        ({"zoneout": 1.5}, ValueError, r"zoneout .* \[0, 1\].*keep its state, got 1\.5"),
        ({"zoneout": float("nan")}, ValueError, "zoneout .*got nan"),
        ({"zoneout": "0.5"}, TypeError, "zoneout should be a number, got: str"),
        ({"zoneout": True}, TypeError, "zoneout should be a number, got: bool"),
        ({"zoneout": None}, TypeError, "zoneout should be a number, got: NoneType"),
        ({"weight_drop": -1}, ValueError, r"weight_drop .*\[0, 1\].*zeroed, got -1"),
        ({"weight_drop": 1.01}, ValueError, r"weight_drop .*\[0, 1\].*zeroed, got 1\.01"),
        ({"weight_drop": float("nan")}, ValueError, "weight_drop .*got nan"),
        ({"weight_drop": "a"}, TypeError, "weight_drop should be a number, got: str"),
        ({"weight_drop": True}, TypeError, "weight_drop should be a number, got: bool"),
        ({"weight_drop": (0.1, 0.2)}, TypeError, "weight_drop should be a number, got: tuple"),
        ({"layer_norm": 1}, TypeError, "layer_norm should be of type bool, got: int"),
        ({"recompute": None}, TypeError, "recompute should be of type bool, got: NoneType"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", CLASSES)
def test_a_wrong_option_that_torch_lacks_is_refused(
    name: str, options: dict[str, Any], expected: type[Exception], message: str
) -> None:
    with pytest.raises(expected, match=message):
        CLASSES[name][0](3, 4, **options)


@pytest.mark.parametrize(
    ("name", "options", "expected", "message"),
    [
        ("LSTM", {"peephole": 1}, TypeError, "peephole should be of type bool, got: int"),
        ("LSTM", {"coupled": "yes"}, TypeError, "coupled should be of type bool, got: str"),
        ("LSTM", {"zoneout": (0.1, 1.2)}, ValueError, r"zoneout of c .*got 1\.2"),
        ("LSTM", {"zoneout": (-0.1, 0.2)}, ValueError, r"zoneout of h .*got -0\.1"),
        ("LSTM", {"zoneout": (0.1, None)}, TypeError, "zoneout of c .*got: NoneType"),
        ("LSTM", {"zoneout": (0.1,)}, TypeError, r"a pair \(h, c\), got: tuple of 1"),
        ("LSTM", {"zoneout": [0.1] * 3}, TypeError, r"a pair \(h, c\), got: list of 3"),
        ("GRU", {"zoneout": (0.1, 0.2)}, TypeError, "one number, got: tuple of 2"),
        ("RNN", {"zoneout": [0.1]}, TypeError, "one number, got: list of 1"),
        ("GRU", {"peephole": True}, TypeError, "'peephole'"),
        ("RNN", {"coupled": True}, TypeError, "'coupled'"),
    ],
    ids=str,
)
def test_an_option_of_one_layer_alone_is_refused_elsewhere_and_otherwise(
    name: str, options: dict[str, Any], expected: type[Exception], message: str
) -> None:
    with pytest.raises(expected, match=message):
        CLASSES[name][0](3, 4, **options)


def state(layer: Any, *shape: int, **options: Any) -> Any:
    """h0, and for an LSTM c0, of this shape."""
    first = torch.zeros(*shape, **options)
    return (first, first.clone()) if type(layer).__name__ == "LSTM" else first


def zeros(*shape: int, **options: Any) -> torch.Tensor:
    return torch.zeros(*shape, **options)


def packed(*shape: int, lengths: tuple[int, ...] = (5, 3), **options: Any) -> PackedSequence:
    return pack_padded_sequence(
        torch.zeros(*shape, **options), torch.tensor(lengths), enforce_sorted=False
    )


# Layers take 3 features, have 4 units, 2 layers and 2 directions: 4 rows of state.
WRONG_CALLS: dict[str, tuple[Call, tuple[object, ...]]] = {
    "width": (lambda layer: layer(zeros(5, 2, 7)), (3, 7)),
    "no width": (lambda layer: layer(zeros(5, 2, 0)), (3, 0)),
    "unbatched width": (lambda layer: layer(zeros(5, 7)), (3, 7)),
    "packed width": (lambda layer: layer(packed(5, 2, 7)), (3, 7)),
    "1-D": (lambda layer: layer(zeros(3)), ("2D", "3D", "1D")),
    "0-D": (lambda layer: layer(zeros(())), ("2D", "3D", "0D")),
    "4-D": (lambda layer: layer(zeros(1, 5, 2, 3)), ("2D", "3D", "4D")),
    "packed 4-D": (lambda layer: layer(packed(5, 2, 3, 3)), (2, 3)),
    "packed 2-D": (lambda layer: layer(packed(5, 2)), (2, 1)),
    "integers": (lambda layer: layer(zeros(5, 2, 3, dtype=torch.int64)), ("torch.int64",)),
    "booleans": (lambda layer: layer(zeros(5, 2, 3, dtype=torch.bool)), ("torch.bool",)),
    "double": (
        lambda layer: layer(zeros(5, 2, 3, dtype=torch.float64)),
        ("torch.float64", "torch.float32"),
    ),
    "half": (
        lambda layer: layer(zeros(5, 2, 3, dtype=torch.float16)),
        ("torch.float16", "torch.float32"),
    ),
    "no steps": (lambda layer: layer(zeros(0, 2, 3)), (0,)),
    "no steps, unbatched": (lambda layer: layer(zeros(0, 3)), (0,)),
    "no steps, no sequences": (lambda layer: layer(zeros(0, 0, 3)), (0,)),
    "state of other sequences": (
        lambda layer: layer(zeros(5, 2, 3), state(layer, 4, 9, 4)),
        ("(4, 2, 4)", "[4, 9, 4]"),
    ),
    "state to be broadcast": (
        lambda layer: layer(zeros(5, 2, 3), state(layer, 4, 1, 4)),
        ("(4, 2, 4)", "[4, 1, 4]"),
    ),
    "state of other layers": (
        lambda layer: layer(zeros(5, 2, 3), state(layer, 2, 2, 4)),
        ("(4, 2, 4)", "[2, 2, 4]"),
    ),
    "state of other units": (
        lambda layer: layer(zeros(5, 2, 3), state(layer, 4, 2, 5)),
        ("(4, 2, 4)", "[4, 2, 5]"),
    ),
    "2-D state": (lambda layer: layer(zeros(5, 2, 3), state(layer, 4, 4)), ("3-D", "2-D")),
    "4-D state": (lambda layer: layer(zeros(5, 2, 3), state(layer, 1, 4, 2, 4)), ("3-D", "4-D")),
    "3-D state, unbatched": (
        lambda layer: layer(zeros(5, 3), state(layer, 4, 1, 4)),
        ("2-D", "3-D"),
    ),
    "units of the state, unbatched": (
        lambda layer: layer(zeros(5, 3), state(layer, 4, 9)),
        (4, 9),
    ),
    "layers of the state, unbatched": (
        lambda layer: layer(zeros(5, 3), state(layer, 7, 4)),
        (4, 7),
    ),
    "state too small for packed": (
        lambda layer: layer(packed(5, 2, 3, lengths=(3, 5)), state(layer, 4, 1, 4)),
        ("(4, 2, 4)", "[4, 1, 4]"),
    ),
    "double state": (
        lambda layer: layer(zeros(5, 2, 3), state(layer, 4, 2, 4, dtype=torch.float64)),
        ("torch.float32", "torch.float64"),
    ),
    "integer state": (
        lambda layer: layer(zeros(5, 2, 3), state(layer, 4, 2, 4, dtype=torch.int64)),
        ("torch.float32", "torch.int64"),
    ),
    "state on another device": (
        lambda layer: layer(zeros(5, 2, 3), state(layer, 4, 2, 4, device="meta")),
        ("cpu", "meta"),
    ),
    "input on another device": (
        lambda layer: layer(zeros(5, 2, 3, device="meta")),
        ("cpu", "meta"),
    ),
    "packed on another device": (
        lambda layer: layer(PackedSequence(zeros(8, 3, device="meta"), torch.tensor([2, 2, 1]))),
        ("cpu", "meta"),
    ),
    "parameters on another device": (
        lambda layer: layer.to("meta")(zeros(5, 2, 3)),
        ("cpu", "meta"),
    ),
    "no input": (lambda layer: layer(), ("'input'",)),
}


@pytest.mark.parametrize("wrong", WRONG_CALLS)
@pytest.mark.parametrize("name", CLASSES)
def test_a_wrong_call_is_refused_as_by_torch(name: str, wrong: str) -> None:
    call, mentioned = WRONG_CALLS[wrong]
    assert_refused_alike(
        lambda which: call(CLASSES[name][which](3, 4, 2, bidirectional=True)), *mentioned
    )


LSTM_STATES: dict[str, tuple[Call, tuple[object, ...]]] = {
    "h0 as wide as c0": (
        lambda layer: layer(zeros(5, 2, 3), (zeros(1, 2, 4), zeros(1, 2, 4))),
        ("(1, 2, 2)", "[1, 2, 4]"),
    ),
    "c0 as narrow as h0": (
        lambda layer: layer(zeros(5, 2, 3), (zeros(1, 2, 2), zeros(1, 2, 2))),
        ("(1, 2, 4)", "[1, 2, 2]"),
    ),
    "c0 of other sequences": (
        lambda layer: layer(zeros(5, 2, 3), (zeros(1, 2, 2), zeros(1, 9, 4))),
        ("(1, 2, 4)", "[1, 9, 4]"),
    ),
    "2-D c0": (
        lambda layer: layer(zeros(5, 2, 3), (zeros(1, 2, 2), zeros(2, 4))),
        ("3-D", "2-D"),
    ),
    "unbatched, 3-D c0": (
        lambda layer: layer(zeros(5, 3), (zeros(1, 2), zeros(1, 1, 4))),
        ("2-D", "3-D"),
    ),
    "double c0": (
        lambda layer: layer(zeros(5, 2, 3), (zeros(1, 2, 2), zeros(1, 2, 4, dtype=torch.float64))),
        ("torch.float32", "torch.float64"),
    ),
    "c0 on another device": (
        lambda layer: layer(zeros(5, 2, 3), (zeros(1, 2, 2), zeros(1, 2, 4, device="meta"))),
        ("cpu", "meta"),
    ),
    "one tensor": (lambda layer: layer(zeros(5, 2, 3), zeros(2, 2, 2)), ("pair", "Tensor")),
    "three states": (
        lambda layer: layer(zeros(5, 2, 3), (zeros(1, 2, 2), zeros(1, 2, 4), zeros(1, 2, 4))),
        ("pair", 3),
    ),
}


@pytest.mark.parametrize("wrong", LSTM_STATES)
def test_a_wrong_pair_of_states_is_refused_as_by_torch(wrong: str) -> None:
    call, mentioned = LSTM_STATES[wrong]
    assert_refused_alike(lambda which: call(CLASSES["LSTM"][which](3, 4, proj_size=2)), *mentioned)


def test_the_state_is_layers_first_also_with_batch_first() -> None:
    for name in CLASSES:
        layers = [CLASSES[name][which](3, 4, 2, batch_first=True) for which in (0, 1)]
        assert_refused_alike(
            lambda which, layers=layers: layers[which](
                zeros(5, 7, 3), state(layers[which], 5, 2, 4)
            ),
            "(2, 5, 4)",
            "[5, 2, 4]",
            "batch_first=True",
        )


# Where torch stumbles (IndexError, AttributeError, a silently cut state), a clear refusal.
STUMBLES: dict[str, tuple[str, Call, type[Exception], str]] = {
    "list as input": ("GRU", lambda layer: layer([1, 2]), TypeError, "a tensor or a Packed.*list"),
    "None as input": ("LSTM", lambda layer: layer(None), TypeError, "a tensor or.*NoneType"),
    "tuple as h0": (
        "GRU",
        lambda layer: layer(zeros(5, 2, 3), (zeros(1, 2, 4),)),
        TypeError,
        "hx to be one tensor h_0, got tuple",
    ),
    "list as h0": (
        "RNN",
        lambda layer: layer(zeros(5, 2, 3), [zeros(1, 2, 4)]),
        TypeError,
        "hx to be one tensor h_0, got list",
    ),
    "numbers as pair": (
        "LSTM",
        lambda layer: layer(zeros(5, 2, 3), [1, 2]),
        TypeError,
        "pair.*int, int",
    ),
    "Nones as pair": (
        "LSTM",
        lambda layer: layer(zeros(5, 2, 3), (None, None)),
        TypeError,
        "pair.*NoneType, NoneType",
    ),
    "text as pair": ("LSTM", lambda layer: layer(zeros(5, 2, 3), "hc"), TypeError, "pair.*str"),
    "number as pair": ("LSTM", lambda layer: layer(zeros(5, 2, 3), 1), TypeError, "pair.*int"),
    "one state": (
        "LSTM",
        lambda layer: layer(zeros(5, 2, 3), (zeros(1, 2, 4),)),
        RuntimeError,
        r"pair.*Tensor \(1 of 2\)",
    ),
    "packed, 2-D pair": (
        "LSTM",
        lambda layer: layer(packed(5, 2, 3), (zeros(1, 4), zeros(1, 4))),
        RuntimeError,
        "3-D but got 2-D and 2-D",
    ),
    "packed, state of more sequences": (
        "GRU",
        lambda layer: layer(packed(5, 2, 3, lengths=(3, 5)), zeros(1, 9, 4)),
        RuntimeError,
        r"\(1, 2, 4\), got \[1, 9, 4\]",
    ),
    "packed double": (
        "LSTM",
        lambda layer: layer(packed(5, 2, 3, dtype=torch.float64)),
        ValueError,
        r"torch\.float64.*torch\.float32",
    ),
    "packed integers": (
        "LSTM",
        lambda layer: layer(packed(5, 2, 3, dtype=torch.int64)),
        ValueError,
        r"torch\.int64.*torch\.float32",
    ),
}


@pytest.mark.parametrize("wrong", STUMBLES)
def test_a_call_on_which_torch_stumbles_is_refused_clearly(wrong: str) -> None:
    name, call, expected, message = STUMBLES[wrong]
    with pytest.raises(expected, match=message):
        call(CLASSES[name][0](3, 4))


@pytest.mark.parametrize("wrong", WRONG_CALLS)
def test_the_reset_before_gru_refuses_what_the_gru_refuses(wrong: str) -> None:
    # It runs on another engine: nothing may slip through, or fail in a matrix product.
    call, mentioned = WRONG_CALLS[wrong]
    layers = [
        rnnkit.GRU(3, 4, 2, bidirectional=True, reset_after=False),
        nn.GRU(3, 4, 2, bidirectional=True),
    ]
    assert_refused_alike(lambda which: call(layers[which]), *mentioned)


@pytest.mark.parametrize("kind", ALL)
def test_a_layer_on_meta_computes_shapes_and_refuses_other_dtypes(kind: str) -> None:
    layer = build(kind, 3, 4, num_layers=2, device="meta")
    output = layer(zeros(5, 2, 3, device="meta"))[0]
    assert output.shape == (5, 2, layer.proj_size or 4)
    assert output.is_meta
    with pytest.raises(ValueError, match=r"torch\.float64.*torch\.float32"):
        layer(zeros(5, 2, 3, device="meta", dtype=torch.float64))


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("module", [rnnkit, rnnkit.compat])
def test_an_unknown_argument_is_told_by_the_name_of_the_class(module: Any, name: str) -> None:
    layer = getattr(module, name)(3, 4)
    with pytest.raises(TypeError, match=rf"^{name}\.forward\(\) got an unexpected .* 'mask'"):
        layer(torch.randn(5, 2, 3), mask=None)
    with pytest.raises(TypeError, match=rf"^{name}\.forward\(\) missing 1 required .* 'input'"):
        layer()
