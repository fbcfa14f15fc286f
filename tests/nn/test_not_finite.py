"""NaN and infinity in the input: they go where they must, and nowhere else."""

import pytest
import torch

from tests.nn.layers import ALL, BACKENDS, STANDARD, build, leaf, tensors, twins

pytestmark = pytest.mark.timeout(60)
VALUES = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("kind", STANDARD)
def test_they_give_what_torch_gives(kind: str, value: float, backend: str) -> None:
    ours, theirs = twins(kind, 3, 5, num_layers=2, bidirectional=True, backend=backend)
    input = torch.randn(6, 4, 3)
    input[2, 1, 0] = value
    for mine, other in zip(tensors(ours(input)), tensors(theirs(input)), strict=True):
        assert torch.equal(mine.isnan(), other.isnan())
        if backend == "torch":
            assert torch.equal(mine.nan_to_num(), other.nan_to_num())
        else:
            torch.testing.assert_close(mine, other, equal_nan=True)


@pytest.mark.parametrize("kind", ALL)
def test_nan_reaches_every_later_step_of_its_own_sequence_only(kind: str) -> None:
    layer = build(kind, 3, 5, num_layers=2)
    input = torch.randn(6, 4, 3)
    clean = layer(input)[0]
    input[2, 1] = float("nan")
    x = leaf(input)
    output, last = layer(x)
    assert output[2:, 1].isnan().all()
    assert all(state[:, 1].isnan().all() for state in tensors(last))
    assert torch.equal(output[:2], clean[:2])
    others = [0, 2, 3]
    torch.testing.assert_close(output[:, others], clean[:, others])
    output[:, others].sum().backward()
    assert x.grad[:, others].isfinite().all()
    assert x.grad[:, others].abs().max() > 0


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("kind", ALL)
def test_a_backward_pass_over_them_ends(kind: str, value: float) -> None:
    layer = build(kind, 3, 5, num_layers=2, bidirectional=True)
    input = torch.randn(6, 4, 3)
    input[2, 1, 0] = value
    x = leaf(input)
    layer(x, lengths=torch.tensor([6, 3, 1, 0]))[0].sum().backward()
    assert x.grad[:, 0].isfinite().all()
    assert x.grad[:, 0].abs().max() > 0
