"""The layers as modules: copies, files, text, dtypes, and parameters that others replace."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

import rnnkit
from tests.nn.layers import (
    ALL,
    BACKENDS,
    CLASSES,
    STANDARD,
    assert_as_torch,
    assert_equal,
    build,
    cast,
    gradients,
    random_state,
    tensors,
    twins,
)

OPTIONS = {"num_layers": 2, "bidirectional": True}


@pytest.mark.parametrize("through", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("kind", ALL)
def test_a_copy_computes_the_same_and_shares_nothing(kind: str, through: str) -> None:
    layer = build(kind, 3, 5, **OPTIONS, backend="torch").eval()
    input = torch.randn(4, 2, 3)
    expected = layer(input)
    if through == "deepcopy":
        other = copy.deepcopy(layer)
    elif through == "pickle":
        other = pickle.loads(pickle.dumps(layer))
    else:
        buffer = io.BytesIO()
        torch.save(layer, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    assert type(other) is type(layer)
    assert repr(other) == repr(layer)
    assert not other.training
    assert other.backend == "torch"
    assert_equal(other(input), expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    assert_equal(layer(input), expected)
    assert not torch.equal(other(input)[0], expected[0])


@pytest.mark.parametrize("kind", ALL)
def test_a_state_dict_survives_a_file_that_holds_only_weights(kind: str) -> None:
    layer, other = build(kind, 3, 5, **OPTIONS), build(kind, 3, 5, **OPTIONS)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    input = torch.randn(4, 2, 3)
    assert_equal(other(input), layer(input))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", STANDARD)
def test_loaded_parameters_are_the_ones_that_run(kind: str, assign: bool, backend: str) -> None:
    ours, theirs = twins(kind, 3, 5, **OPTIONS, backend=backend)
    input = torch.randn(4, 2, 3)
    ours(input)  # nothing may be remembered from here
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=assign)

    def run(layer: Any) -> Any:
        result = layer(cast(input, layer))
        return result, gradients(result, list(layer.parameters()))

    assert_as_torch(ours, theirs, run)


@pytest.mark.parametrize("kind", STANDARD)
def test_a_state_dict_of_another_size_is_refused_as_by_torch(kind: str) -> None:
    for layer, other in zip(twins(kind, 3, 5), twins(kind, 3, 6), strict=True):
        with pytest.raises(RuntimeError, match="size mismatch for weight_ih_l0"):
            layer.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2},
        {"bias": False},
        {"batch_first": True},
        {"num_layers": 2, "dropout": 0.5},
        {"bidirectional": True},
        {"num_layers": 3, "bias": False, "batch_first": True, "bidirectional": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", STANDARD)
def test_it_prints_as_torchs(kind: str, options: dict[str, Any]) -> None:
    ours, theirs = twins(kind, 3, 5, **options)
    assert repr(ours) == repr(theirs)
    assert str(nn.Sequential(ours)) == str(nn.Sequential(theirs))


def test_it_prints_what_torch_lacks() -> None:
    assert repr(rnnkit.LSTM(3, 5, backend="torch")) == "LSTM(3, 5, backend='torch')"
    assert repr(rnnkit.GRU(3, 5, reset_after=False)) == "GRU(3, 5, reset_after=False)"
    both = rnnkit.GRU(3, 5, 2, reset_after=False, backend="triton")
    assert repr(both) == "GRU(3, 5, num_layers=2, reset_after=False, backend='triton')"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", STANDARD)
def test_other_dtypes_give_the_bits_of_torch(kind: str, dtype: torch.dtype) -> None:
    ours, theirs = twins(kind, 3, 5, **OPTIONS, backend="torch")
    converted = ours.to(dtype), theirs.to(dtype)
    built = twins(kind, 3, 5, **OPTIONS, backend="torch", dtype=dtype)
    input, hx = torch.randn(4, 2, 3, dtype=dtype), random_state(ours, 2)
    for pair in (converted, built):
        assert all(parameter.dtype == dtype for parameter in pair[0].parameters())
        result, expected = (layer(input, hx) for layer in pair)
        assert_equal(result, expected)
        assert_equal(*(gradients(layer(input, hx), list(layer.parameters())) for layer in pair))


@pytest.mark.parametrize("kind", ALL)
def test_the_methods_that_convert_say_what_they_do(kind: str) -> None:
    for method, dtype in (
        ("double", torch.float64),
        ("half", torch.float16),
        ("bfloat16", torch.bfloat16),
    ):
        layer = getattr(build(kind, 3, 5), method)()
        output = layer(torch.randn(4, 2, 3, dtype=dtype))[0]
        assert output.dtype == dtype
        assert output.isfinite().all()


@pytest.mark.parametrize("kind", ALL)
def test_it_is_built_on_a_device_and_materialised_from_meta(kind: str) -> None:
    layer = build(kind, 3, 5, device="meta", dtype=torch.float64)
    assert all(p.is_meta and p.dtype == torch.float64 for p in layer.parameters())
    layer = layer.to_empty(device="cpu")
    torch.manual_seed(0)
    layer.reset_parameters()
    torch.manual_seed(0)
    other = build(kind, 3, 5, dtype=torch.float64)
    assert_equal(list(layer.parameters()), list(other.parameters()))
    with torch.device("meta"):
        assert next(build(kind, 3, 5).parameters()).is_meta


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", STANDARD)
def test_functional_call_runs_the_parameters_it_is_given(kind: str, backend: str) -> None:
    ours, theirs = twins(kind, 3, 5, **OPTIONS, backend=backend)
    input = torch.randn(4, 2, 3)
    given = {name: torch.randn_like(p) for name, p in ours.named_parameters()}
    before = ours(input)

    def run(layer: Any) -> Any:
        own = {name: cast(value, layer) for name, value in given.items()}
        result = functional_call(layer, own, (cast(input, layer),))
        return result, gradients(result, list(own.values()))

    assert_as_torch(ours, theirs, run)
    assert_equal(ours(input), before)


@pytest.mark.parametrize("kind", ALL)
def test_weight_norm_on_the_recurrent_weight(kind: str) -> None:
    layer = build(kind, 3, 5, dtype=torch.float64)
    input = torch.randn(4, 2, 3, dtype=torch.float64)
    expected = layer(input)[0]
    parametrizations.weight_norm(layer, "weight_hh_l0")
    assert "weight_hh_l0" not in dict(layer.named_parameters())
    torch.testing.assert_close(layer(input)[0], expected)
    magnitude = layer.parametrizations.weight_hh_l0.original0
    with torch.no_grad():
        magnitude.mul_(2)
    plain = build(kind, 3, 5, dtype=torch.float64)
    state = {name: p.detach() for name, p in layer.named_parameters() if "." not in name}
    plain.load_state_dict(state | {"weight_hh_l0": layer.weight_hh_l0.detach()})
    assert not torch.allclose(layer(input)[0], expected)
    torch.testing.assert_close(layer(input)[0], plain(input)[0])
    layer(input)[0].sum().backward()
    assert magnitude.grad.abs().max() > 0


@pytest.mark.parametrize("kind", ALL)
def test_a_tied_weight_collects_both_gradients(kind: str) -> None:
    first, second = (build(kind, 5, 5, dtype=torch.float64) for _ in range(2))
    input = torch.randn(4, 2, 5, dtype=torch.float64)
    apart = [gradients(layer(input), [layer.weight_ih_l0])[0] for layer in (first, second)]
    second.weight_ih_l0 = first.weight_ih_l0
    second.load_state_dict(first.state_dict())
    model = nn.ModuleList([first, second])
    assert len(list(model.parameters())) == 2 * len(list(first.parameters())) - 1
    found = gradients((first(input), first(input)), [first.weight_ih_l0])[0]
    tied = gradients((first(input), second(input)), [first.weight_ih_l0])[0]
    torch.testing.assert_close(tied, found)
    assert not torch.allclose(tied, apart[0])


@pytest.mark.parametrize("kind", ALL)
def test_frozen_parameters_get_no_gradient(kind: str) -> None:
    layer = build(kind, 3, 5, **OPTIONS)
    layer.weight_hh_l0.requires_grad_(False)
    layer(torch.randn(4, 2, 3))[0].sum().backward()
    assert layer.weight_hh_l0.grad is None
    assert layer.weight_ih_l0.grad.abs().max() > 0
    layer.requires_grad_(False)
    assert not layer(torch.randn(4, 2, 3))[0].requires_grad


@pytest.mark.parametrize("kind", ALL)
def test_an_optimiser_step_changes_the_output_and_inference_mode_works(kind: str) -> None:
    torch.manual_seed(0)
    layer = build(kind, 3, 5)
    optimiser = torch.optim.SGD(layer.parameters(), lr=1e-4)  # h of residual cells grows with t
    input = torch.randn(4, 2, 3)
    before = layer(input)[0]
    before.square().sum().backward()
    optimiser.step()
    with torch.inference_mode():
        after = layer(input)[0]
    assert after.square().sum() < before.square().sum()
    assert not after.requires_grad


@pytest.mark.parametrize("name", CLASSES)
def test_it_is_no_torch_layer_and_keeps_flatten_parameters(name: str) -> None:
    layer = CLASSES[name][0](3, 5)
    assert not isinstance(layer, nn.RNNBase)
    input = torch.randn(4, 2, 3)
    expected = layer(input)
    assert layer.flatten_parameters() is None
    assert_equal(layer(input), expected)


@pytest.mark.parametrize("kind", ALL)
def test_the_call_changes_neither_its_input_nor_the_module(kind: str) -> None:
    layer = build(kind, 3, 5, **OPTIONS)
    input, hx = torch.randn(4, 2, 3), random_state(layer, 2)
    copies = [value.clone() for value in (input, *tensors(hx))]
    attributes = set(vars(layer))
    output, last = layer(input, hx)
    assert_equal([input, *tensors(hx)], copies)
    assert set(vars(layer)) == attributes
    with torch.no_grad():
        for value in (output, *tensors(last)):
            value.zero_()  # the results are the caller's: no state aliases another
    assert_equal([input, *tensors(hx)], copies)
