"""What a layer returns may be changed in place before the backward pass, as torch's GRU allows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnkit
from tests.conftest import needs_engine
from tests.nn.layers import (
    ALL,
    CLASSES,
    assert_close,
    build,
    differentiable,
    gradients,
    tensors,
    twins,
)

LENGTHS = torch.tensor([4, 2, 3])
FORMS = ["batched", "batch first", "unbatched", "packed", "lengths"]
OPTIONS = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64}


def dropped(value: Tensor, inplace: bool) -> Tensor:
    torch.manual_seed(5)
    return nn.functional.dropout(value, 0.5, inplace=inplace)


def halved(value: Tensor, inplace: bool) -> Tensor:
    return value.mul_(0.5) if inplace else value * 0.5


def rectified(value: Tensor, inplace: bool) -> Tensor:
    return nn.functional.relu(value, inplace=inplace)


def cleared(value: Tensor, inplace: bool) -> Tensor:
    """Without the first row."""
    if not inplace:
        return torch.cat([torch.zeros_like(value[:1]), value[1:]])
    value[0].zero_()
    return value


CHANGES = [dropped, halved, rectified, cleared]


def trained(
    layer: Any, form: str, change: Callable[[Tensor, bool], Tensor], inplace: bool
) -> list[Tensor]:
    """Results of which each was changed, and gradients."""
    dtype = next(layer.parameters()).dtype
    generator = torch.Generator().manual_seed(1)
    shape = {"unbatched": (4, 3), "batch first": (3, 4, 3)}.get(form, (4, 3, 3))
    layer.batch_first = form == "batch first"
    x = torch.randn(shape, generator=generator, dtype=dtype, requires_grad=True)
    torch.manual_seed(2)  # zoneout
    if form == "packed":
        result = layer(pack_padded_sequence(x, LENGTHS, enforce_sorted=False))
    else:
        result = layer(x, lengths=LENGTHS) if form == "lengths" else layer(x)
    output, last = result
    data = output.data if isinstance(output, PackedSequence) else output
    results = [change(value, inplace) for value in (data, *tensors(last))]
    return [*results, *gradients(results, [x, *layer.parameters()])]


@pytest.mark.parametrize(
    ("form", "change"),
    [*(("batched", change) for change in CHANGES), *((form, halved) for form in FORMS[1:])],
)
@pytest.mark.parametrize("kind", ALL)
def test_gradients_are_those_of_the_program_that_copies(
    kind: str, form: str, change: Callable[[Tensor, bool], Tensor]
) -> None:
    layer = build(kind, 3, 4, **OPTIONS)
    assert_close(trained(layer, form, change, True), trained(layer, form, change, False))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "backend", ["eager", "torch", pytest.param("native", marks=needs_engine), "auto"]
)
@pytest.mark.parametrize("kind", ["GRU", "RNN tanh", "LSTM with projection"])
def test_every_backend_gives_what_torch_gives(kind: str, backend: str, form: str) -> None:
    ours, theirs = twins(kind, 3, 4, backend=backend, dtype=torch.float64)
    if form == "lengths":
        mine, others = (trained(ours, form, halved, inplace) for inplace in (True, False))
    else:
        mine, others = (trained(layer, form, halved, True) for layer in (ours, theirs))
    assert_close(mine, others)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("options", [{"zoneout": 0.3}, {"layer_norm": True}, {"weight_drop": 0.3}])
def test_options_do_not_matter(kind: str, options: dict[str, Any]) -> None:
    layer = build(kind, 3, 4, **OPTIONS, **options)
    for form in FORMS:
        assert_close(trained(layer, form, halved, True), trained(layer, form, halved, False))


@pytest.mark.parametrize("kind", ["GRU", "GRU reset before", "LSTM with peepholes"])
def test_it_works_under_autocast(kind: str) -> None:
    layer = build(kind, 3, 4)
    for form in ("batched", "packed", "lengths"):
        with torch.autocast("cpu", torch.bfloat16):
            found = [trained(layer, form, halved, inplace) for inplace in (True, False)]
        assert_close(*found)


@pytest.mark.compiler
@pytest.mark.parametrize("inside", [True, False])
def test_it_works_in_and_around_a_compiled_layer(inside: bool) -> None:
    torch._dynamo.reset()
    layer = rnnkit.GRU(3, 4, reset_after=False, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)

    def program(model: Any) -> Any:
        output, last = model(x)
        return output.mul_(2), last.mul_(3)

    if inside:
        compiled = torch.compile(lambda: program(layer), backend="aot_eager", fullgraph=True)
        found = compiled()
    else:
        found = program(torch.compile(layer, backend="aot_eager", fullgraph=True))
    leaves = list(layer.parameters())
    results = [(value, gradients(value, leaves)) for value in (found, program(layer))]
    assert_close(*results)


@pytest.mark.parametrize("name", CLASSES)
def test_only_what_the_caller_gets_is_changed(name: str) -> None:
    """A later call reads its own memory, and without gradients nothing is copied."""
    layer = CLASSES[name][0](3, 4)
    x = torch.randn(5, 2, 3)
    before = [value.detach().clone() for value in differentiable(layer(x))]
    with torch.no_grad():
        for value in differentiable(layer(x)):
            value.mul_(0)
        assert_close(differentiable(layer(x)), before)
