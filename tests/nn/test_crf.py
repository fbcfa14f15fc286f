"""The CRF against all its paths, one by one, and against pytorch-crf."""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchcrf
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap

import rnnkit
from rnnkit.nn import CRF, Constraints, crf, tag_paths

T, B, K = 5, 4, 5
WEIGHTS = ("start_transitions", "end_transitions", "transitions")
# pytorch-crf's own, which lets masks follow where(), warns of uint8.
pytestmark = pytest.mark.filterwarnings("ignore:where received a uint8")

MASKS = {
    "none": None,
    "prefix": torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0]]),
    "holes": torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 1, 0]]),
}
# Scores next to each other take the scaled recursion, those far apart the one on logarithms.
SPREADS = {"close": 1.0, "apart": 300.0}


def build(spread: str = "close", tags: int = K, **options: Any) -> CRF:
    """A CRF in float64 whose scores need the recursion that `spread` names."""
    model = CRF(tags, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
        model.start_transitions[0] -= 700.0 * (spread == "apart")
    return model


def mask_of(name: str) -> Tensor | None:
    mask = MASKS[name]
    return None if mask is None else mask.bool()


def scheme() -> Constraints:
    """Tag 1 only after 0 or 1, as I after B; 2 and 4 neither begin nor end, 3 leads nowhere."""
    start = torch.tensor([True, False, False, True, False])
    end = torch.tensor([True, True, False, False, False])
    moves = torch.ones(K, K, dtype=torch.bool)
    moves[2:, 1] = False
    moves[3] = False
    return Constraints(start, end, moves)


def paths_and_scores(model: CRF, emissions: Tensor, constrained: bool) -> tuple[Tensor, Tensor]:
    """All paths through emissions (n, K) and their scores, term by term; the allowed ones only."""
    paths, scores = [], []
    allowed = model.constraints if constrained else None
    for path in itertools.product(range(model.num_tags), repeat=len(emissions)):
        if allowed is not None:
            pairs = itertools.pairwise(path)
            fits = allowed.start[path[0]] and allowed.end[path[-1]]
            if not (fits and all(allowed.transitions[pair] for pair in pairs)):
                continue
        paths.append(path)
    found = torch.tensor(paths)
    scores = model.start_transitions[found[:, 0]] + model.end_transitions[found[:, -1]]
    for t in range(len(emissions)):
        scores = scores + emissions[t, found[:, t]]
        if t > 0:
            scores = scores + model.transitions[found[:, t - 1], found[:, t]]
    return found, scores.detach()


def sentence(emissions: Tensor, mask: Tensor | None, b: int) -> tuple[Tensor, Tensor]:
    """The real steps of sentence b and where they are."""
    where = torch.arange(len(emissions)) if mask is None else mask[:, b].nonzero()[:, 0]
    return emissions[where, b], where


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("masked", MASKS)
def test_everything_equals_a_sum_over_all_paths(
    masked: str, spread: str, constrained: bool
) -> None:
    constraints = scheme() if constrained else None
    model = build(spread, constraints=constraints, constrain_training=constrained)
    emissions, mask = torch.randn(T, B, K, dtype=torch.float64), mask_of(masked)
    log_z, marginals = model.log_partition(emissions, mask), model.marginals(emissions, mask)
    best, ranked = model.decode(emissions, mask), model.k_best(emissions, 40, mask)
    for b in range(B):
        own, where = sentence(emissions, mask, b)
        paths, scores = paths_and_scores(model, own, constrained)
        torch.testing.assert_close(log_z[b], scores.logsumexp(0))
        shares = scores.softmax(0)
        expected = torch.zeros(T, K, dtype=torch.float64)
        for i, t in enumerate(where):
            expected[t].index_add_(0, paths[:, i], shares)
        torch.testing.assert_close(marginals[:, b], expected, rtol=0, atol=1e-12)
        order = scores.argsort(descending=True)[:40]
        assert best[b] == paths[order[0]].tolist()
        assert [path for path, _ in ranked[b]] == paths[order].tolist()
        values = torch.tensor([value for _, value in ranked[b]], dtype=torch.float64)
        torch.testing.assert_close(values, scores[order])


@pytest.mark.parametrize("spread", SPREADS)
def test_random_masks_leave_a_sum_over_all_paths_and_the_best_of_them(spread: str) -> None:
    sentences = 300
    start, end, moves = scheme()
    first_tags = Constraints(start[:3], end[:3], moves[:3, :3])
    model = build(spread, tags=3, constraints=first_tags)
    emissions = torch.randn(T, sentences, 3, dtype=torch.float64)
    mask = torch.rand(T, sentences) < 0.6
    mask[0] = True
    assert len({tuple(column) for column in mask.t().tolist()}) == 2 ** (T - 1)
    log_z, best = model.log_partition(emissions, mask), model.decode(emissions, mask)
    for b in range(sentences):
        own, _ = sentence(emissions, mask, b)
        torch.testing.assert_close(log_z[b], paths_and_scores(model, own, False)[1].logsumexp(0))
        paths, scores = paths_and_scores(model, own, True)
        assert best[b] == paths[scores.argmax()].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("masked", ["none", "prefix"])
def test_likelihoods_gradients_and_paths_are_those_of_pytorch_crf(
    masked: str, batch_first: bool, spread: str, dtype: torch.dtype
) -> None:
    ours = build(spread, batch_first=batch_first).to(dtype)
    theirs = torchcrf.CRF(K, batch_first=batch_first).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    emissions, tags = torch.randn(T, B, K, dtype=dtype), torch.randint(K, (T, B))
    mask = mask_of(masked)
    if batch_first:
        emissions, tags = emissions.transpose(0, 1), tags.t()
        mask = None if mask is None else mask.t()
    emissions.requires_grad_()
    factors = {"none": torch.randn(B, dtype=dtype), "sum": None, "mean": None, "token_mean": None}
    for reduction, factor in factors.items():
        found = []
        for model in (ours, theirs):
            likelihood = model(emissions, tags, mask, reduction)
            leaves = [emissions, *(getattr(model, name) for name in WEIGHTS)]
            found.append((likelihood, *torch.autograd.grad(likelihood, leaves, factor)))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)
    assert ours.decode(emissions, mask) == theirs.decode(emissions, mask)
    if mask is not None:
        likelihood = ours(emissions, tags, mask.to(torch.uint8))
        assert torch.equal(likelihood, ours(emissions, tags, mask))


def test_a_state_dict_is_that_of_pytorch_crf() -> None:
    shapes = {name: value.shape for name, value in torchcrf.CRF(K).state_dict().items()}
    for model in (CRF(K), CRF(K, constraints=scheme(), constrain_training=True)):
        assert {name: value.shape for name, value in model.state_dict().items()} == shapes
        assert all(value.abs().max() <= 0.1 for value in model.parameters())
        assert all(value.abs().max() > 0.01 for value in model.parameters())
    assert repr(CRF(K)) == repr(torchcrf.CRF(K))
    assert repr(model) == "CRF(num_tags=5, constrained, constrain_training=True)"
    copied = copy.deepcopy(model)
    assert copied.constraints is not None
    assert all(torch.equal(*pair) for pair in zip(copied.constraints, scheme(), strict=True))


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("masked", MASKS)
def test_likelihoods_are_differentiable_twice(masked: str, spread: str) -> None:
    model, mask = build(spread), mask_of(masked)
    tags = torch.randint(K, (T, B))
    emissions = torch.randn(T, B, K, dtype=torch.float64, requires_grad=True)
    weights = [getattr(model, name).detach().requires_grad_() for name in WEIGHTS]

    def run(emissions: Tensor, *weights: Tensor) -> Any:
        given = dict(zip(WEIGHTS, weights, strict=True))
        return functional_call(model, given, (emissions, tags, mask, "none"))

    inputs = (emissions, *weights)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("spread", SPREADS)
def test_marginals_are_the_gradient_of_the_partition_and_have_one_themselves(spread: str) -> None:
    model, mask = build(spread), mask_of("holes")
    emissions = torch.randn(T, B, K, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.log_partition(emissions, mask).sum(), emissions)
    torch.testing.assert_close(model.marginals(emissions, mask), gradient)
    assert mask is not None
    torch.testing.assert_close(gradient.sum(2), mask.double())
    assert torch.autograd.gradcheck(
        lambda e: model.marginals(e, mask), (emissions,), fast_mode=True
    )
    with torch.no_grad():
        assert not model.marginals(emissions, mask).requires_grad
    with torch.inference_mode():
        given, real = emissions.clone(), mask.clone()
        torch.testing.assert_close(model.marginals(given, real), gradient)
        assert model.decode(given, real) == model.decode(emissions, mask)
        loaded = CRF(K).double()  # as a server may make it
        loaded.load_state_dict(model.state_dict())
        assert loaded.transitions.is_inference()
        torch.testing.assert_close(loaded.marginals(given, real), gradient)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_padding_changes_nothing_and_gets_no_gradient(garbage: float, spread: str) -> None:
    model, mask, extra = build(spread), mask_of("prefix"), 3
    assert mask is not None
    emissions, tags = torch.randn(T, B, K, dtype=torch.float64), torch.randint(K, (T, B))
    tags = tags.masked_fill(~mask, -100)
    filled = emissions.masked_fill(~mask.unsqueeze(2), garbage)
    longer = torch.cat([filled, torch.full((extra, B, K), garbage, dtype=torch.float64)])
    more = torch.cat([tags, torch.full((extra, B), 10**6)])
    longer_mask = torch.cat([mask, torch.zeros(extra, B, dtype=torch.bool)])

    def results(emissions: Tensor, tags: Tensor, mask: Tensor) -> list[Tensor]:
        emissions = emissions.clone().requires_grad_()
        likelihood = model(emissions, tags, mask, "none")
        leaves = [emissions, *model.parameters()]
        return [likelihood, *torch.autograd.grad(likelihood.sum(), leaves)]

    expected = results(emissions, tags, mask)
    for given, path, real in ((filled, tags, mask), (longer, more, longer_mask)):
        found = results(given, path, real)
        assert not found[1][~real].any()
        found[1] = found[1][:T]
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
        assert model.decode(given, real) == model.decode(emissions, mask)
        assert model.k_best(given, 3, real) == model.k_best(emissions, 3, mask)
        marginals = model.marginals(given, real)
        assert not marginals[~real].any()
        torch.testing.assert_close(marginals[:T], model.marginals(emissions, mask))


def test_a_sentence_does_not_depend_on_its_batch() -> None:
    model, mask = build(), mask_of("holes")
    assert mask is not None
    emissions, tags = torch.randn(T, B, K, dtype=torch.float64), torch.randint(K, (T, B))
    likelihood = model(emissions, tags, mask, "none")
    paths, ranked = model.decode(emissions, mask), model.k_best(emissions, 3, mask)
    marginals = model.marginals(emissions, mask)
    for b in range(B):
        own, where = sentence(emissions, mask, b)
        alone = own.unsqueeze(1)
        torch.testing.assert_close(model(alone, tags[where, b : b + 1]), likelihood[b])
        assert model.decode(alone) == [paths[b]]
        assert model.k_best(alone, 3) == [ranked[b]]
        torch.testing.assert_close(model.marginals(alone)[:, 0], marginals[where, b])


def test_ten_thousand_random_paths_keep_the_constraints() -> None:
    start, end, moves = scheme()
    model = CRF(K, constraints=scheme())
    emissions, many = 5 * torch.randn(7, 10_000, K), 100
    paths = torch.tensor(model.decode(emissions))
    assert start[paths[:, 0]].all()
    assert end[paths[:, -1]].all()
    assert moves[paths[:, :-1], paths[:, 1:]].all()
    assert not moves[torch.tensor(CRF(K).decode(emissions)).unfold(1, 2, 1).unbind(2)].all()
    for ranked in model.k_best(emissions[:, :many], 5):
        assert len({tuple(path) for path, _ in ranked}) == 5
        for path, _ in ranked:
            assert start[path[0]]
            assert end[path[-1]]
            assert all(moves[pair] for pair in itertools.pairwise(path))
    marginals = model.marginals(emissions)
    assert not marginals[0][:, ~start].any()
    assert not marginals[-1][:, ~end].any()
    assert not marginals[..., 3].any()  # it may begin, but leads nowhere
    torch.testing.assert_close(marginals.sum(2), torch.ones(7, 10_000))


def test_constraints_act_in_training_on_demand_only() -> None:
    free, decoding = build(), build(constraints=scheme())
    training = build(constraints=scheme(), constrain_training=True)
    for model in (decoding, training):
        model.load_state_dict(free.state_dict())
    emissions = torch.randn(T, B, K, dtype=torch.float64)
    tags = torch.zeros(T, B, dtype=torch.long)
    assert torch.equal(decoding(emissions, tags), free(emissions, tags))
    assert (training(emissions, tags, None, "none") > free(emissions, tags, None, "none")).all()
    assert (training.log_partition(emissions) < decoding.log_partition(emissions)).all()
    assert torch.equal(decoding.marginals(emissions), training.marginals(emissions))


@pytest.mark.parametrize(
    ("tags", "holes", "message"),
    [
        ([0, 1, 2, 1, 0], False, "sentence 1, step 3: tag 2 goes to tag 1, which the constraints"),
        ([0, 2, 1, 0, 0], True, "sentence 1, step 3: tag 2 goes to tag 1, which the constraints"),
        ([2, 0, 0, 0, 0], False, "sentence 1, step 0: tag 2 comes first, which the constraints"),
        ([0, 0, 0, 0, 4], False, "sentence 1, step 4: tag 4 comes last, which the constraints"),
    ],
)
def test_a_path_that_breaks_a_constraint_is_named(
    tags: list[int], holes: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(constraints=scheme(), constrain_training=True)
    emissions = torch.randn(T, 2, K, dtype=torch.float64, requires_grad=True)
    both = torch.tensor([[0] * T, tags]).t()
    mask = torch.ones(T, 2, dtype=torch.bool)
    if holes:
        both[:, 1] = torch.tensor([tags[0], tags[1], -5, tags[2], tags[3]])
        mask[2, 1] = False
    with pytest.raises(ValueError, match=message):
        model(emissions, both, mask)
    # Where nobody may look, the path has no probability, and its gradient no NaN.
    monkeypatch.setattr(crf, "may_look", lambda tensor: False)
    monkeypatch.setattr(tag_paths, "may_look", lambda tensor: False)
    likelihood = model(emissions, both, mask, "none")
    assert likelihood[1] == -math.inf
    assert likelihood[0].isfinite()
    # Nor is it NaN where no other path has any.
    blocked = emissions.detach().index_fill(0, torch.tensor([0]), -math.inf)
    assert (model(blocked, both, mask, "none") == -math.inf).all()
    found = torch.autograd.grad(likelihood[0], [emissions, *model.parameters()])
    assert all(gradient.isfinite().all() for gradient in found)


def test_without_looking_results_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU and in a trace nobody asks whether a mask has holes."""
    model, tags = build(), torch.randint(K, (T, B))
    emissions = torch.randn(T, B, K, dtype=torch.float64)
    for name in MASKS:
        mask = mask_of(name)
        expected = model(emissions, tags, mask, "none"), model.decode(emissions, mask)
        with monkeypatch.context() as patch:
            patch.setattr(crf, "may_look", lambda tensor: False)
            patch.setattr(tag_paths, "may_look", lambda tensor: False)
            torch.testing.assert_close(model(emissions, tags, mask, "none"), expected[0])
            assert model.decode(emissions, mask) == expected[1]


@pytest.mark.parametrize("training", [False, True])
def test_what_is_forbidden_altogether_leaves_gradients_finite(training: bool) -> None:
    """A tag that nothing reaches, a step without any tag, a sentence without any path."""
    start, end, moves = scheme()
    moves[:, 4], moves[4] = False, False
    model = build(constraints=Constraints(start, end, moves), constrain_training=training)
    emissions = torch.randn(T, 2, K, dtype=torch.float64)
    emissions[:, 0, 2] = -math.inf
    emissions[3, 1] = -math.inf
    emissions.requires_grad_()
    log_z = model.log_partition(emissions)
    assert log_z[0].isfinite()
    assert log_z[1] == -math.inf
    leaves = [emissions, *model.parameters()]
    gradients = torch.autograd.grad(log_z.sum(), leaves, create_graph=True)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][:, 1].any()
    torch.testing.assert_close(gradients[0][:, 0].sum(1), torch.ones(T, dtype=torch.float64))
    squares = sum(gradient.square().sum() for gradient in gradients)
    assert all(g.isfinite().all() for g in torch.autograd.grad(squares, leaves))
    marginals = model.marginals(emissions)
    assert not marginals[:, 1].any()
    torch.testing.assert_close(marginals[:, 0].sum(1), torch.ones(T, dtype=torch.float64))
    with pytest.raises(ValueError, match="no path of 5 steps is allowed for sentence 1"):
        model.decode(emissions)


def test_contradicting_constraints_are_an_error_of_decoding() -> None:
    nowhere = Constraints(
        torch.tensor([True, False]), torch.tensor([False, True]), torch.eye(2) > 0
    )
    model = CRF(2, constraints=nowhere)
    for decode in (model.decode, lambda emissions: model.k_best(emissions, 3)):
        with pytest.raises(ValueError, match="no path of 4 steps is allowed for sentence 0"):
            decode(torch.randn(4, 3, 2))
    assert not model.marginals(torch.randn(4, 3, 2)).any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_an_error_of_decoding(value: float) -> None:
    model, mask = build(constraints=scheme()), mask_of("prefix")
    emissions = torch.randn(T, B, K, dtype=torch.float64)
    emissions[-1, 1] = value  # past the end of its sentence
    assert len(model.decode(emissions, mask)) == B
    emissions[2, 2, 0] = value
    for decode in (model.decode, lambda *given: model.k_best(given[0], 3, given[1])):
        with pytest.raises(FloatingPointError, match="tags of sentence 2 of the batch are NaN or"):
            decode(emissions, mask)


def test_equal_paths_come_in_the_order_of_their_last_tags() -> None:
    model = CRF(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    emissions = torch.zeros(3, 2, 3)
    expected = sorted(itertools.product(range(3), repeat=3), key=lambda path: path[::-1])
    for k in (1, 2, 5, 27, 40):
        ranked = model.k_best(emissions, k)
        assert ranked == [[(list(path), 0.0) for path in expected[:k]]] * 2
    assert model.decode(emissions) == [[0, 0, 0]] * 2


@pytest.mark.parametrize("shape", [(1, 3, 4), (6, 3, 1), (1, 2, 1), (4, 0, 3)])
def test_one_step_one_tag_and_no_sentence(shape: tuple[int, int, int]) -> None:
    model = build(tags=shape[2])
    emissions = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    tags = torch.zeros(shape[:2], dtype=torch.long)
    likelihood = model(emissions, tags, None, "none")
    for b in range(shape[1]):
        _, scores = paths_and_scores(model, emissions[:, b], False)
        torch.testing.assert_close(likelihood[b], scores[0] - scores.logsumexp(0))
    gradients = torch.autograd.grad(likelihood.sum(), [emissions, *model.parameters()])
    assert gradients[0].shape == shape
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert len(model.decode(emissions)) == shape[1]
    assert all(len(path) == shape[0] for path in model.decode(emissions))
    expected = min(shape[2] ** shape[0], 100)
    assert all(len(ranked) == expected for ranked in model.k_best(emissions, 100))


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_extreme_scores_are_as_exact_as_pytorch_crf_has_them(size: float) -> None:
    """In float32 against float64: no more than twice its error, and a band of eight ulps."""
    model, theirs = CRF(K), torchcrf.CRF(K)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_().mul_(size)
    theirs.load_state_dict(model.state_dict())
    exact = copy.deepcopy(model).double()
    scores, tags = size * torch.randn(T, B, K), torch.randint(K, (T, B))
    results = []
    for one, dtype in ((model, torch.float32), (theirs, torch.float32), (exact, torch.float64)):
        emissions = scores.to(dtype).requires_grad_()
        likelihood = one(emissions, tags, None, "none")
        leaves = [emissions, *(getattr(one, name) for name in WEIGHTS)]
        results.append((likelihood, *torch.autograd.grad(likelihood.sum(), leaves)))
    for found, plain, expected in zip(*results, strict=True):
        allowed = 2 * (plain - expected).abs().max()
        band = 8 * torch.finfo(torch.float32).eps * expected.abs().max()
        assert (found - expected).abs().max() <= allowed + band
    assert (results[2][0] < -size).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    model, mask = build().float(), mask_of("holes")
    tags = torch.randint(K, (T, B))
    low = torch.randn(T, B, K).to(dtype).requires_grad_()
    full = low.detach().float().requires_grad_()
    expected = model(full, tags, mask)
    (exact,) = torch.autograd.grad(expected, full)
    with torch.autocast("cpu", dtype):
        under = model(full, tags, mask)
        (gradient,) = torch.autograd.grad(under, full)
    assert torch.equal(under, expected)
    assert torch.equal(gradient, exact)
    found = model(low, tags, mask)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    (gradient,) = torch.autograd.grad(found, low)
    assert torch.equal(gradient, exact.to(dtype))
    assert torch.equal(model.marginals(low, mask), model.marginals(full, mask))
    assert model.decode(low, mask) == model.decode(full, mask)
    halves = copy.deepcopy(model).to(dtype)
    rounded = copy.deepcopy(halves).float()
    assert torch.equal(halves(low, tags, mask), rounded(full, tags, mask))


@pytest.mark.compiler
@pytest.mark.parametrize("dynamic", [False, True])
def test_likelihoods_are_traced_as_one_graph(dynamic: bool) -> None:
    model, tags = build(), torch.randint(K, (T, B))
    torch._dynamo.reset()

    def step(emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        return model(emissions, tags, mask, "token_mean")

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for name in ("prefix", "holes"):
        mask = mask_of(name)
        assert mask is not None
        found = []
        for run in (step, compiled):
            emissions = torch.ones(T, B, K, dtype=torch.float64, requires_grad=True)
            likelihood = run(emissions, tags, mask)
            leaves = [emissions, *model.parameters()]
            found.append((likelihood, *torch.autograd.grad(likelihood, leaves)))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)


def test_transforms_and_forward_mode_see_the_same_function() -> None:
    model, tags, mask = build(), torch.randint(K, (T, B)), mask_of("prefix")
    emissions = torch.randn(T, B, K, dtype=torch.float64)

    def run(emissions: Tensor) -> Any:
        return model(emissions, tags, mask)

    leaf = emissions.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(run(leaf), leaf)
    torch.testing.assert_close(grad(run)(emissions), gradient)
    direction = torch.randn_like(emissions)
    value, slope = jvp(run, (emissions,), (direction,))
    torch.testing.assert_close(value, run(emissions))
    torch.testing.assert_close(slope, (gradient * direction).sum())
    several = torch.stack([emissions, 2 * emissions])
    expected = torch.stack([run(one) for one in several])
    torch.testing.assert_close(vmap(run)(several), expected)


def call(
    tags: Tensor | None = None, mask: Tensor | None = None, steps: int = T, **options: Any
) -> Callable[[Any], Any]:
    def run(model: Any) -> Any:
        path = torch.zeros(steps, B, dtype=torch.long) if tags is None else tags
        return model(torch.randn(steps, B, K), path, mask, **options)

    return run


OFF = torch.ones(T, B, dtype=torch.bool).index_fill(1, torch.tensor([2]), False)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda model: model(torch.randn(T, K), torch.zeros(T, B)), ValueError, "dimension of 3"),
        (lambda model: model.decode(torch.randn(T, B, 4)), ValueError, "is 5, got 4"),
        (call(torch.zeros(T, 3).long()), ValueError, r"must match, got \(5, 4\) and \(5, 3\)"),
        (call(mask=torch.ones(4, B) > 0), ValueError, r"must match, got \(5, 4\) and \(4, 4\)"),
        (call(mask=OFF), ValueError, "mask of the first timestep must all be on"),
        (lambda model: model.decode(torch.randn(T, B, K), OFF), ValueError, "must all be on"),
        (call(mask=torch.ones(T, B)), RuntimeError, "bool"),
        (call(mask=torch.ones(T, B).long()), RuntimeError, "bool"),
        (call(reduction="avg"), ValueError, "invalid reduction: avg"),
        (call(torch.full((T, B), K)), IndexError, "out of "),
        (call(torch.zeros(T, B)), IndexError, "must be (long|integers)"),
        (call(steps=0), IndexError, " 0 "),
        (lambda model: type(model)(0), ValueError, "invalid number of tags: 0"),
        (lambda model: type(model)(2.5), TypeError, "float"),
    ],
)
def test_errors_are_those_of_pytorch_crf(
    wrong: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    for model in (torchcrf.CRF(K), CRF(K)):
        with pytest.raises(error, match=message):
            wrong(model)


def test_errors_of_what_pytorch_crf_does_not_have() -> None:
    tags = torch.zeros(T, B, dtype=torch.long)
    tags[3, 2] = -1
    with pytest.raises(IndexError, match="sentence 2, step 3: tag -1 is out of range for 5 tags"):
        CRF(K)(torch.randn(T, B, K), tags)
    with pytest.raises(ValueError, match="off for sentence 2"):
        CRF(K).decode(torch.randn(T, B, K), OFF)
    with pytest.raises(ValueError, match="at least one path, got k=0"):
        CRF(K).k_best(torch.randn(T, B, K), 0)
    with pytest.raises(ValueError, match="constrain_training needs constraints"):
        CRF(K, constrain_training=True)
    with pytest.raises(
        ValueError, match=r"constraints.start of shape \(6,\) for 6 tags, got \(5,\)"
    ):
        CRF(6, constraints=scheme())
    with pytest.raises(TypeError, match=r"constraints.end must be bool, got torch.int64"):
        CRF(K, constraints=scheme()._replace(end=torch.ones(K).long()))
    with pytest.raises(ValueError, match="one of auto, triton, torch, got 'eager'"):
        CRF(K, backend="eager")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match='backend="triton" needs a GPU, and the emissions are'):
        CRF(K, backend="triton")(torch.randn(T, B, K), tags.clamp(min=0))


def test_it_is_exported() -> None:
    assert rnnkit.CRF is CRF
    assert rnnkit.Constraints is Constraints
