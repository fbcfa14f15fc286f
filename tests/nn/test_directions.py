import pytest
import torch

from rnnkit.nn.directions import Directions

FORWARD, BACKWARD = torch.tensor([2.0, 3.0]), torch.tensor([5.0, -1.0])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("concat", [2.0, 3.0, 5.0, -1.0]),
        ("sum", [7.0, 2.0]),
        ("product", [10.0, -3.0]),
        ("learned", [2 * 0.5 + 5 * 3, 3 * -1.0 - 1 * 0.25]),
        ("learned_matrix", [2 * 0.5 - 3 + 5 * 2 - 0.25, 3 * 3 - 1 * 4.0]),
    ],
)
def test_directions_are_combined_by_their_formula(kind, expected):
    directions = Directions(kind, 2)
    if kind == "learned":
        with torch.no_grad():
            directions.weight.copy_(torch.tensor([[0.5, -1.0], [3.0, 0.25]]))
    if kind == "learned_matrix":  # U beside V
        with torch.no_grad():
            weight = torch.tensor([[0.5, -1.0, 2.0, 0.25], [0.0, 3.0, 0.0, 4.0]])
            directions.weight.copy_(weight)
    output = torch.cat([FORWARD, BACKWARD]).expand(4, 3, 4)
    found = directions(output)
    assert found.shape == (4, 3, directions.output_size)
    torch.testing.assert_close(found, torch.tensor(expected).expand_as(found))
    assert kind in repr(directions)


def test_learned_weights_begin_as_a_sum_and_are_learned():
    output = torch.randn(3, 2, 8)
    learned = Directions("learned", 4)
    torch.testing.assert_close(learned(output), Directions("sum", 4)(output))
    learned(output).sum().backward()
    forward, backward = output.sum((0, 1)).chunk(2)
    torch.testing.assert_close(learned.weight.grad, torch.stack([forward, backward]))
    matrices = Directions("learned_matrix", 4)
    torch.testing.assert_close(matrices(output), Directions("sum", 4)(output))
    assert [weight.shape for weight in matrices.parameters()] == [(4, 8)]
    for kind in ("concat", "sum", "product"):
        assert not list(Directions(kind, 4).parameters())


def test_an_unknown_kind_is_refused():
    with pytest.raises(
        ValueError, match="concat, sum, product, learned, learned_matrix, got 'mean'"
    ):
        Directions("mean", 2)
