"""Output layers: each a distribution, its loss exact or honestly estimated; Huffman's tree."""

import heapq
import math
from bisect import bisect_right
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnnkit.nn.hierarchical_softmax import HierarchicalSoftmax
from rnnkit.nn.huffman import huffman_tree
from rnnkit.nn.sampled_softmax import SampledSoftmax
from rnnkit.nn.softmax import AdaptiveSoftmax, CountedOutputLayer, FullSoftmax, OutputLayer

HIDDEN, WORDS, ROWS, IGNORED = 6, 23, 11, -1

Make = Callable[[int], OutputLayer]
LAYERS: dict[str, Make] = {
    "full": lambda words: FullSoftmax(HIDDEN, words),
    "adaptive": lambda words: AdaptiveSoftmax(HIDDEN, words),
    "sampled": lambda words: SampledSoftmax(HIDDEN, words, 5),
    "hierarchical": lambda words: HierarchicalSoftmax(HIDDEN, words, zipf(words)),
}
EXACT = ("full", "adaptive", "hierarchical")


def zipf(words: int) -> Tensor:
    return (1000 / torch.arange(1, words + 1)).long()


def made(name: str, words: int = WORDS) -> OutputLayer:
    torch.manual_seed(words)
    return LAYERS[name](words).double()


def batch(words: int = WORDS, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Hidden states float64 (N, H), and targets of which every fourth does not count."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(rows, HIDDEN, generator=generator, dtype=torch.float64)
    target = torch.randint(words, (rows,), generator=generator)
    target[::4] = IGNORED
    return hidden, target


@pytest.mark.parametrize("words", [2, 3, WORDS, 1000])
@pytest.mark.parametrize("name", LAYERS)
def test_probabilities_sum_to_one_and_losses_are_theirs(name: str, words: int) -> None:
    layer, (hidden, target) = made(name, words), batch(words)
    log_p = layer.log_probabilities(hidden)
    assert log_p.shape == (ROWS, words)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(ROWS, dtype=torch.float64))
    expected = -log_p.gather(1, target.clamp_min(0).unsqueeze(1)).squeeze(1)
    expected[target == IGNORED] = 0
    losses = layer.negative_log_likelihood(hidden, target, IGNORED)
    torch.testing.assert_close(losses, expected)
    if name in EXACT:
        torch.testing.assert_close(layer.loss(hidden, target, IGNORED), expected.sum())
    torch.testing.assert_close(layer(hidden).log_softmax(1), log_p)
    steps = layer.log_probabilities(hidden.view(1, ROWS, HIDDEN))
    torch.testing.assert_close(steps, log_p[None])


@pytest.mark.parametrize("name", ["full", "sampled", "hierarchical"])
def test_the_only_word_is_certain(name: str) -> None:
    layer, (hidden, target) = made(name, 1), batch(1)
    hidden.requires_grad_()
    losses = layer.negative_log_likelihood(hidden, target, IGNORED)
    assert torch.equal(losses, torch.zeros(ROWS).double())
    assert torch.equal(layer.log_probabilities(hidden), torch.zeros(ROWS, 1).double())
    (gradient,) = torch.autograd.grad(layer.loss(hidden, target, IGNORED), hidden)
    assert torch.equal(gradient, torch.zeros_like(hidden))


@pytest.mark.parametrize("name", LAYERS)
def test_rows_that_do_not_count_get_no_gradient(name: str) -> None:
    layer, (hidden, target) = made(name), batch()
    hidden = hidden.masked_fill((target == IGNORED).unsqueeze(1), math.nan).requires_grad_()
    torch.manual_seed(0)
    loss = layer.loss(hidden, target, IGNORED)
    gradients = torch.autograd.grad(loss, [hidden, *layer.parameters()])
    kept = target != IGNORED
    assert bool(loss.isfinite())
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert bool((gradients[0][~kept] == 0).all())
    assert bool((gradients[0][kept] != 0).any(1).all())


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rows", [0, 3])
def test_a_batch_in_which_nothing_counts(name: str, rows: int) -> None:
    layer, hidden = made(name), batch(rows=rows)[0].requires_grad_()
    target = torch.full((rows,), IGNORED)
    loss = layer.loss(hidden, target, IGNORED)
    assert float(loss.detach()) == 0
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert torch.equal(gradient, torch.zeros_like(hidden))
    assert layer.log_probabilities(hidden).shape == (rows, WORDS)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_exact(name: str) -> None:
    layer, (hidden, target) = made(name), batch()

    def loss(hidden: Tensor, *_: Tensor) -> Tensor:
        torch.manual_seed(0)  # the same words are drawn each time
        return layer.loss(hidden, target, IGNORED)

    def probabilities(hidden: Tensor, *_: Tensor) -> Tensor:
        return layer.log_probabilities(hidden)

    leaves = (hidden.requires_grad_(), *layer.parameters())
    assert torch.autograd.gradcheck(loss, leaves, fast_mode=True)
    assert torch.autograd.gradcheck(probabilities, leaves, fast_mode=True)


def test_full_is_pytorchs_own_and_can_be_tied() -> None:
    embedding = nn.Embedding(WORDS, HIDDEN).double()
    layer, (hidden, target) = made("full"), batch()
    assert isinstance(layer, FullSoftmax)
    layer.weight = embedding.weight
    logits = hidden @ embedding.weight.t() + layer.bias
    expected = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
    (gradient,) = torch.autograd.grad(expected, embedding.weight)
    layer.loss(hidden, target, IGNORED).backward()
    assert embedding.weight.grad is not None
    torch.testing.assert_close(embedding.weight.grad, gradient)
    torch.testing.assert_close(layer(hidden), logits)


@pytest.mark.parametrize("cutoffs", [None, [3, 10], [1, 2, 22]])
def test_adaptive_is_pytorchs_own(cutoffs: list[int] | None) -> None:
    torch.manual_seed(0)
    layer, (hidden, target) = AdaptiveSoftmax(HIDDEN, WORDS, cutoffs).double(), batch()
    own = nn.AdaptiveLogSoftmaxWithLoss(HIDDEN, WORDS, cutoffs or [4], head_bias=True).double()
    own.load_state_dict(layer.adaptive.state_dict())
    kept = target != IGNORED
    torch.testing.assert_close(
        layer.loss(hidden, target, IGNORED), own(hidden[kept], target[kept]).loss * kept.sum()
    )
    torch.testing.assert_close(layer.log_probabilities(hidden), own.log_prob(hidden))


@pytest.mark.parametrize(
    ("proposal", "counts"),
    [("unigram", zipf(WORDS)), ("unigram", torch.arange(WORDS) % 2 + 1), ("log_uniform", None)],
)
def test_sampled_loss_by_its_definition(proposal: str, counts: Tensor | None) -> None:
    samples = 12
    torch.manual_seed(0)
    layer = SampledSoftmax(HIDDEN, WORDS, samples, proposal, counts).double()  # type: ignore[arg-type]
    hidden, target = batch()
    if counts is not None:
        q = [int(count) / int(counts.sum()) for count in counts]
    else:
        q = [math.log((k + 2) / (k + 1)) / math.log(WORDS + 1) for k in range(WORDS)]
    words = torch.arange(WORDS)
    torch.testing.assert_close(layer.proposal_probabilities(words), torch.tensor(q).double())
    torch.manual_seed(5)
    below = [sum(q[:k]) for k in range(WORDS)]
    drawn = {bisect_right(below, float(u)) - 1 for u in torch.rand(samples, dtype=torch.float64)}
    assert len(drawn) < samples  # one came up twice
    assert drawn & set(target.tolist())
    chance = [1 - (1 - each) ** samples for each in q]
    logits = layer(hidden).tolist()
    expected = 0.0
    for z, t in zip(logits, target.tolist(), strict=True):
        if t != IGNORED:
            shares = {w: math.exp(z[w]) / chance[w] for w in drawn | {t}}
            expected -= math.log(shares[t] / sum(shares.values()))
    torch.manual_seed(5)
    assert float(layer.loss(hidden, target, IGNORED)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("proposal", ["unigram", "log_uniform"])
def test_the_sampled_gradients_mean_approaches_the_full_one(proposal: str) -> None:
    """Distances of 0.3 to 0.4, 0.08 to 0.15 and 0.02 to 0.03 over seeds; 400 draws have a
    standard error of 0.03, 0.02 and 0.01.
    """
    torch.manual_seed(0)
    layer = SampledSoftmax(HIDDEN, WORDS, 1, proposal, zipf(WORDS)).double()  # type: ignore[arg-type]
    hidden, target = batch()
    leaf = hidden.requires_grad_()
    exact = layer.negative_log_likelihood(leaf, target, IGNORED).sum()
    (full,) = torch.autograd.grad(exact, leaf)
    distances = []
    for samples in (4, 16, 64):
        layer.samples = samples
        found = [
            torch.autograd.grad(layer.loss(leaf, target, IGNORED), leaf)[0] for _ in range(400)
        ]
        distances.append(float((torch.stack(found).mean(0) - full).norm() / full.norm()))
    assert distances[1] < 0.5 * distances[0]
    assert distances[2] < 0.5 * distances[1]
    assert distances[2] < 0.06
    layer.samples = 10**6  # every word comes up
    (gradient,) = torch.autograd.grad(layer.loss(leaf, target, IGNORED), leaf)
    torch.testing.assert_close(gradient, full)


def code_lengths(counts: list[int]) -> list[int]:
    """Of a plain Huffman code: the two lightest groups, and of these the shallowest, meet."""
    lengths = [0] * len(counts)
    groups = [(count, 0, [word]) for word, count in enumerate(counts)]
    heapq.heapify(groups)
    while len(groups) > 1:
        a, b = heapq.heappop(groups), heapq.heappop(groups)
        for word in a[2] + b[2]:
            lengths[word] += 1
        heapq.heappush(groups, (a[0] + b[0], max(a[1], b[1]) + 1, a[2] + b[2]))
    return lengths


@pytest.mark.parametrize("words", [1, 2, 3, 5, 64, 500])
@pytest.mark.parametrize("kind", ["zipf", "equal", "random", "doubling", "zeros"])
def test_huffmans_code_is_the_best(words: int, kind: str) -> None:
    counts = {
        "zipf": zipf(words),
        "equal": torch.ones(words, dtype=torch.int64),
        "random": torch.randint(50, (words,), generator=torch.Generator().manual_seed(0)),
        "doubling": 2 ** torch.arange(words).clamp_max(40),
        "zeros": torch.zeros(words, dtype=torch.int64),
    }[kind]
    lengths = (huffman_tree(counts).signs != 0).sum(1)
    reference = torch.tensor(code_lengths(counts.tolist()))
    assert int((lengths * counts).sum()) == int((reference * counts).sum())
    assert int(lengths.max()) == int(reference.max())
    if words > 1:
        assert float((0.5 ** lengths.double()).sum()) == 1  # every path ends in a word


def test_the_trees_tables_tell_one_tree() -> None:
    tree = huffman_tree(zipf(200))
    depth = [0]
    for node in range(1, 199):
        depth.append(depth[int(tree.above[node])] + 1)
    assert depth == sorted(depth)
    assert tuple(torch.tensor(depth).bincount().tolist()) == tree.levels
    taken = set()
    for nodes, signs in zip(tree.nodes.tolist(), tree.signs.tolist(), strict=True):
        length = sum(sign != 0 for sign in signs)
        assert all(sign == 0 for sign in signs[length:])
        assert depth[nodes[0]] == length - 1
        assert nodes[length - 1] == 0
        for below, above, side in zip(nodes, nodes[1:length], signs[1:length], strict=False):
            assert above == int(tree.above[below])
            assert side == int(tree.sides[below])
        taken.add((nodes[0], signs[0]))
    taken |= {(int(a), int(s)) for a, s in zip(tree.above[1:], tree.sides[1:], strict=True)}
    assert taken == {(node, side) for node in range(199) for side in (1, -1)}


@pytest.mark.parametrize("name", ["sampled", "hierarchical"])
def test_counts_travel_with_the_state(name: str) -> None:
    hidden, target = batch()
    counts = torch.arange(WORDS).flip(0) ** 3  # the last word was never seen
    found = []
    before = made(name)
    assert isinstance(before, CountedOutputLayer)
    before.set_counts(counts)
    after = made(name)
    after.load_state_dict(before.state_dict())
    unlike = made(name)
    unlike.load_state_dict({**before.state_dict(), "counts": zipf(WORDS)})
    for layer in (before, after, unlike):
        torch.manual_seed(0)
        found.append(float(layer.loss(hidden, target, IGNORED)))
    assert math.isfinite(found[0])
    assert found[0] == found[1] != found[2]


def test_a_cast_leaves_the_proposal_as_it_is() -> None:
    layer = made("sampled", 1000)
    assert isinstance(layer, SampledSoftmax)
    before = layer.proposal_probabilities(torch.arange(1000))
    layer.to(torch.bfloat16)
    assert torch.equal(layer.proposal_probabilities(torch.arange(1000)), before)
    loss = layer.loss(torch.randn(4, HIDDEN).bfloat16(), torch.tensor([0, 1, 999, 5]))
    assert loss.dtype == torch.float32


def test_errors_name_the_numbers() -> None:
    with pytest.raises(ValueError, match="vocabulary_size of 1 or more, got 0"):
        FullSoftmax(4, 0)
    with pytest.raises(ValueError, match="2 words, got 1"):
        AdaptiveSoftmax(4, 1)
    for cutoffs in ([], [0, 3], [3, 3], [10]):
        with pytest.raises(ValueError, match=f"at most 9, got {cutoffs}".replace("[", r"\[")):
            AdaptiveSoftmax(4, 10, cutoffs)
    with pytest.raises(ValueError, match="1 or more samples, got 0"):
        SampledSoftmax(4, 10, 0)
    with pytest.raises(ValueError, match="got 'uniform'"):
        SampledSoftmax(4, 10, 3, "uniform")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \(10,\), got \(9,\)"):
        HierarchicalSoftmax(4, 10, torch.ones(9, dtype=torch.int64))
    with pytest.raises(ValueError, match="counts of 0 or more, got -3"):
        HierarchicalSoftmax(4, 2, torch.tensor([5, -3]))
    with pytest.raises(ValueError, match=r"at least one word, got counts of shape \(0,\)"):
        huffman_tree(torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="counts of 0 or more, got -3"):
        huffman_tree(torch.tensor([5, -3]))


@pytest.mark.parametrize("name", LAYERS)
def test_errors_about_what_is_scored(name: str) -> None:
    layer, (hidden, target) = made(name), batch()
    with pytest.raises(RuntimeError, match=rf"shape \(N, {HIDDEN}\), got \({ROWS}, 5\)"):
        layer.loss(hidden[:, :5], target, IGNORED)
    with pytest.raises(ValueError, match=rf"shape \({ROWS},\), got \(3,\)"):
        layer.loss(hidden, target[:3], IGNORED)
    for word in (WORDS, -2):
        target[5] = word
        with pytest.raises(IndexError, match=f"target {word} of row 5 is out of range for {WORDS}"):
            layer.loss(hidden, target, IGNORED)
