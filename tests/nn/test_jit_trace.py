"""torch.jit.trace: a program for other sequences than it was made with, as torch.nn's layers give.

What an engine computes past torch's dispatcher would stand in a trace as a constant.
"""

import io
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnkit
from tests.conftest import needs_engine
from tests.nn.layers import ALL, STANDARD, assert_close, build, gradients, tensors
from tests.nn.test_imports import run

pytestmark = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
MADE_WITH = [4, 2, 3]
# Equal lengths; more sequences of fewer steps, and fewer of more.
OTHERS = [[4, 4, 4], [3, 1, 2, 2], [6, 2]]
BACKENDS = ["torch", "eager", "auto", pytest.param("native", marks=needs_engine)]


class Model(nn.Module):
    def __init__(self, layer: nn.Module, form: str) -> None:
        super().__init__()
        self.layer = layer
        self.form = form

    def forward(self, input: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        if self.form == "lengths":
            output, last = self.layer(input, lengths=lengths)
        elif self.form == "packed":
            packed = pack_padded_sequence(input, lengths, enforce_sorted=False)
            output, last = self.layer(packed)
            output = pad_packed_sequence(output)[0]
        else:
            output, last = self.layer(input)
        return (output, *tensors(last))


def example(lengths: list[int]) -> tuple[Tensor, Tensor]:
    return torch.randn(max(lengths), len(lengths), 3, dtype=torch.float64), torch.tensor(lengths)


def assert_traced_as_eager(model: Model, others: list[list[int]]) -> None:
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            traced = torch.jit.trace(model, example(MADE_WITH))
        for lengths in (MADE_WITH, *others):
            given = example(lengths)
            results = traced(*given), model(*given)
            assert_close(*results)
            # Whatever grad mode it was made in, it may be trained.
            leaves = list(model.parameters())
            assert_close(*(gradients(result, leaves) for result in results))


@pytest.mark.parametrize("form", ["dense", "packed", "lengths"])
@pytest.mark.parametrize("kind", ALL)
def test_a_trace_takes_other_sequences(kind: str, form: str) -> None:
    layer = build(kind, 3, 4, bidirectional=True, dtype=torch.float64)
    assert_traced_as_eager(Model(layer, form), OTHERS)


@pytest.mark.parametrize("form", ["dense", "packed", "lengths"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_is_traced(backend: str, form: str) -> None:
    layer = build("GRU", 3, 4, backend=backend, dtype=torch.float64)
    assert_traced_as_eager(Model(layer, form), OTHERS)


@pytest.mark.parametrize("form", ["dense", "packed", "lengths"])
def test_zoneout_is_traced_in_evaluation(form: str) -> None:
    layer = build("LSTM", 3, 4, zoneout=0.3, dtype=torch.float64).eval()
    assert_traced_as_eager(Model(layer, form), OTHERS)


@pytest.mark.parametrize("form", ["dense", "packed"])
@pytest.mark.parametrize("kind", STANDARD)
def test_a_saved_trace_of_what_torch_has_runs_without_rnnkit(kind: str, form: str) -> None:
    traced = torch.jit.trace(Model(build(kind, 3, 4, dtype=torch.float64), form), example([4, 2]))
    assert "rnnkit::" not in str(traced.inlined_graph)


@pytest.mark.slow
@pytest.mark.process
def test_a_saved_trace_of_what_torch_lacks_runs_where_rnnkit_is_imported(tmp_path: Any) -> None:
    model = Model(build("GRU reset before", 3, 4, dtype=torch.float64), "packed")
    torch.jit.trace(model, example(MADE_WITH)).save(str(tmp_path / "model.pt"))
    given = example([6, 5, 1])
    torch.save((*given, model(*given)), tmp_path / "expected.pt")
    code = f"""
    import rnnkit, torch
    x, lengths, expected = torch.load("{tmp_path}/expected.pt")
    for a, b in zip(torch.jit.load("{tmp_path}/model.pt")(x, lengths), expected, strict=True):
        torch.testing.assert_close(a, b)
    print("the same")
    """
    assert run(code).strip() == "the same"


def test_lengths_are_checked_in_a_trace_too() -> None:
    model = Model(rnnkit.GRU(3, 4, dtype=torch.float64), "lengths")
    traced = torch.jit.trace(model, example(MADE_WITH))
    x, _ = example(MADE_WITH)
    assert_close(traced(x, torch.tensor([0, 4, 0])), model(x, torch.tensor([0, 4, 0])))
    for wrong in ([4, 5, 1], [4, -1, 1]):
        with pytest.raises(RuntimeError, match="out of range"):
            traced(x, torch.tensor(wrong))


def test_a_definition_is_traced_for_its_number_of_steps_alone() -> None:
    layer = rnnkit.LSTM(3, 4, bidirectional=True, layer_norm=True, dtype=torch.float64)
    for form in ("dense", "lengths"):
        model = Model(layer, form)
        assert_traced_as_eager(model, [[4, 4], [1, 4, 2, 3]])
        traced = torch.jit.trace(model, example(MADE_WITH))
        for lengths in ([3, 1, 2], [5, 2, 1], [1]):
            with pytest.raises(RuntimeError, match="invalid for input of size"):
                traced(*example(lengths))
    with pytest.raises(RuntimeError, match="trace it over a padded batch with lengths="):
        torch.jit.trace(Model(layer, "packed"), example(MADE_WITH))


@pytest.mark.filterwarnings("default::torch.jit.TracerWarning")
@pytest.mark.parametrize("form", ["dense", "packed"])
def test_there_are_no_more_warnings_than_of_torchs_layer(form: str) -> None:
    numbers = []
    for layer_class in (rnnkit.GRU, nn.GRU):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.jit.trace(Model(layer_class(3, 4).double(), form), example(MADE_WITH))
        numbers.append(sum(w.category is torch.jit.TracerWarning for w in caught))
    assert numbers[0] <= numbers[1]


def test_a_trace_in_memory_is_the_one_that_is_saved() -> None:
    model = Model(rnnkit.LSTM(3, 4, dtype=torch.float64).eval(), "packed")
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, example(MADE_WITH)), buffer)
    buffer.seek(0)
    given = example([2, 4])
    assert_close(torch.jit.load(buffer)(*given), model(*given))
