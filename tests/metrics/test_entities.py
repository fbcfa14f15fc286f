import itertools
import pickle
import random
import warnings
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import classification_report
from seqeval.scheme import BILOU, IOBES
from torchmetrics import MetricCollection

from rnnkit.data.schemes import SCHEMES, entities, tag_names, to_tags
from rnnkit.metrics import EntityF1

TYPES = ["PER", "LOC", "GPE-loc", "O"]

TARGET = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "O"], ["O", "B-PER", "I-PER"]]
PREDS = [["B-PER", "I-PER", "O", "B-ORG"], ["B-ORG", "O"], ["B-PER", "B-PER", "O"]]
# One PER and the ORG are right, the LOC is called ORG, a PER has a wrong end, one was made up.


def corpus(count, scheme, seed=0):
    """Tags of a text, every second sentence valid, and of a prediction that is often right."""
    drawn = random.Random(f"{scheme} {seed}")
    names = tag_names(TYPES, scheme)
    target, preds = [], []
    for number in range(count):
        tags = drawn.choices(names, [4.0] + [1.0] * (len(names) - 1), k=drawn.randint(1, 12))
        if number % 2:
            tags = to_tags(entities(tags, scheme), len(tags), scheme)
        target.append(tags)
        preds.append([drawn.choice(names) if drawn.random() < 0.2 else tag for tag in tags])
    return preds, target


def counted(preds, target, scheme="BIO"):
    metric = EntityF1(scheme)
    metric.update(preds, target)
    return metric


def seqeval_scores(preds, target, scheme):
    peer = {"BILOU": BILOU, "BIOES": IOBES}.get(scheme)
    strict = {"mode": "strict", "scheme": peer} if peer else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = classification_report(target, preds, output_dict=True, zero_division=0, **strict)
    scores = {}
    for name, row in report.items():
        if name == "micro avg" or not name.endswith(" avg"):
            suffix = "" if name == "micro avg" else f"_{name}"
            scores[f"f1{suffix}"] = row["f1-score"]
            scores[f"precision{suffix}"] = row["precision"]
            scores[f"recall{suffix}"] = row["recall"]
    return scores


def conlleval(preds, target):
    """Figures by conlleval's definition, which follows the tags and never lists an entity.

    An entity is right if text and prediction begin it, with one type, and end it together.
    """
    text, found, right = Counter(), Counter(), Counter()
    tokens = same = 0
    for guessed, correct in zip(preds, target, strict=True):
        agreed = None
        before = ("O", ""), ("O", "")
        for tags in [*zip(correct, guessed, strict=True), ("O", "O")]:
            now = tuple(tuple(tag.partition("-")[::2]) for tag in tags)
            ends, begins = [], []
            for (old, old_type), (new, new_type) in zip(before, now, strict=True):
                other = new in ("B", "O") or old_type != new_type
                ends.append(old != "O" and other)
                begins.append(new != "O" and (old == "O" or other))
            if agreed and all(ends):
                right[agreed] += 1
            if any(ends):
                agreed = None
            if all(begins) and now[0][1] == now[1][1]:
                agreed = now[0][1]
            text[now[0][1]] += begins[0]
            found[now[1][1]] += begins[1]
            before = now
        tokens += len(correct)
        same += sum(map(str.__eq__, guessed, correct))
    return text, found, right, tokens, same


def test_scores_of_a_small_text():
    scores = counted(PREDS, TARGET).compute()
    assert scores.pop("precision") == pytest.approx(2 / 5)
    assert scores.pop("recall") == pytest.approx(2 / 4)
    assert scores.pop("f1") == pytest.approx(4 / 9)
    assert {name: float(score) for name, score in scores.items()} == pytest.approx(
        {
            **{"precision_LOC": 0, "recall_LOC": 0, "f1_LOC": 0},
            **{"precision_ORG": 1 / 2, "recall_ORG": 1, "f1_ORG": 2 / 3},
            **{"precision_PER": 1 / 3, "recall_PER": 1 / 2, "f1_PER": 2 / 5},
        }
    )
    assert {score.dtype for score in scores.values()} == {torch.float64}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scores_are_seqevals(scheme):
    preds, target = corpus(10_000, scheme)
    scores = {
        name: float(value) for name, value in counted(preds, target, scheme).compute().items()
    }
    assert 0.1 < scores["f1"] < 0.9
    assert scores == pytest.approx(seqeval_scores(preds, target, scheme), rel=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scores_of_single_sentences_are_seqevals(scheme):
    # Where types are missing from one side or both, as they are in a single sentence.
    for pred, tags in zip(*corpus(300, scheme, seed=1), strict=True):
        metric = counted([pred], [tags], scheme)
        scores = {name: float(value) for name, value in metric.compute().items()}
        if len(scores) > 3:  # seqeval can't report on no entity at all
            assert scores == pytest.approx(seqeval_scores([pred], [tags], scheme)), (pred, tags)


@pytest.mark.parametrize("scheme", ["IOB1", "BIO"])
def test_the_table_has_conllevals_figures(scheme):
    preds, target = corpus(2_000, scheme)
    text, found, right, tokens, same = conlleval(preds, target)

    def line(correct, guessed, there):
        precision, recall = 100 * correct / guessed, 100 * correct / there
        f1 = 2 * precision * recall / (precision + recall)
        return f"precision: {precision:6.2f}%; recall: {recall:6.2f}%; FB1: {f1:6.2f}"

    sums = [sum(counts.values()) for counts in (right, found, text)]
    assert counted(preds, target, scheme).table().splitlines() == [
        f"processed {tokens} tokens with {sums[2]} phrases; found: {sums[1]} phrases; "
        f"correct: {sums[0]}.",
        f"accuracy: {100 * same / tokens:6.2f}%; {line(*sums)}",
        *(
            f"{kind:>17}: {line(right[kind], found[kind], text[kind])}  {found[kind]}"
            for kind in sorted(TYPES)
        ),
    ]


def test_the_table_is_printed_as_conlleval_prints_it():
    assert counted(PREDS, TARGET).table() == (
        "processed 9 tokens with 4 phrases; found: 5 phrases; correct: 2.\n"
        "accuracy:  66.67%; precision:  40.00%; recall:  50.00%; FB1:  44.44\n"
        "              LOC: precision:   0.00%; recall:   0.00%; FB1:   0.00  0\n"
        "              ORG: precision:  50.00%; recall: 100.00%; FB1:  66.67  2\n"
        "              PER: precision:  33.33%; recall:  50.00%; FB1:  40.00  3"
    )


def test_confusion_counts_boundaries_once_and_what_has_none_beside():
    types, counts = counted(PREDS, TARGET).confusion()
    assert types == ["LOC", "ORG", "PER", "O"]
    assert counts.tolist() == [
        [0, 1, 0, 0],  # the LOC, called ORG
        [0, 1, 0, 0],
        [0, 0, 1, 1],  # two PER, one found
        [0, 0, 2, 0],  # two PER predicted where none has these boundaries
    ]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_margins_of_the_confusion_are_what_the_scores_divide_by(scheme):
    preds, target = corpus(500, scheme)
    metric = counted(preds, target, scheme)
    types, counts = metric.confusion()
    assert types == [*sorted(TYPES), "O"]  # a type that is called O stays apart from no entity
    scores = metric.compute()
    for row, kind in enumerate(sorted(TYPES)):
        there = sum(one.type == kind for tags in target for one in entities(tags, scheme))
        found = sum(one.type == kind for tags in preds for one in entities(tags, scheme))
        assert counts[row].sum() == there
        assert counts[:, row].sum() == found
        assert scores[f"recall_{kind}"] == pytest.approx(float(counts[row, row]) / there)
        assert scores[f"precision_{kind}"] == pytest.approx(float(counts[row, row]) / found)
    assert counts[-1, -1] == 0


def test_what_has_nothing_to_divide_by_is_zero():
    metric = counted([["O", "O"], []], [["O", "O"], []])
    assert {name: float(value) for name, value in metric.compute().items()} == {
        "f1": 0.0,
        "precision": 0.0,
        "recall": 0.0,
    }
    assert metric.confusion()[0] == ["O"]
    assert metric.confusion()[1].tolist() == [[0]]
    assert metric.table().startswith("processed 2 tokens with 0 phrases")
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert EntityF1().compute()["f1"] == 0
    assert EntityF1().table().splitlines()[1].startswith("accuracy:   0.00%; precision:   0.00%")


@given(st.lists(st.integers(0, 9), max_size=5), st.integers(0, 20))
def test_cutting_a_text_into_batches_changes_nothing(sizes, seed):
    preds, target = corpus(sum(sizes), "BIO", seed)
    cut, forwarded = EntityF1(), EntityF1()
    for end, size in zip(itertools.accumulate(sizes), sizes, strict=True):
        cut.update(preds[end - size : end], target[end - size : end])
        forwarded(preds[end - size : end], target[end - size : end])
    whole = counted(preds, target)
    assert cut.table() == forwarded.table() == whole.table()
    if sizes:
        assert cut.compute() == forwarded.compute() == whole.compute()


def test_forward_returns_the_scores_of_the_batch():
    metric = counted(PREDS[:1], TARGET[:1])
    assert metric(PREDS[1:2], TARGET[1:2]) == counted(PREDS[1:2], TARGET[1:2]).compute()
    assert metric.compute() == counted(PREDS[:2], TARGET[:2]).compute()


def test_states_of_two_metrics_add_up():
    first, second, none = counted(PREDS[:1], TARGET[:1]), counted(PREDS[1:], TARGET[1:]), EntityF1()
    none.merge_state(second)
    first.merge_state(none)
    assert first.compute() == counted(PREDS, TARGET).compute()
    assert first.table() == counted(PREDS, TARGET).table()


def test_metrics_of_two_schemes_are_not_added():
    metric = counted([["O"]], [["O"]], "BIOES")
    metric.merge_state(counted([["O"]], [["O"]], "BILOU"))
    with pytest.raises(ValueError, match="counted as BILOU can't be added to BIOES's"):
        metric.compute()


def test_reset_forgets_every_type():
    metric = counted(PREDS, TARGET)
    metric.reset()
    metric.update([["B-LOC"]], [["B-LOC"]])
    assert set(metric.compute()) == {
        f"{score}{suffix}" for score in ("f1", "precision", "recall") for suffix in ("", "_LOC")
    }


def test_copies_count_on_their_own():
    metric = counted(PREDS[:2], TARGET[:2])
    for copied in (metric.clone(), pickle.loads(pickle.dumps(metric))):
        copied.update(PREDS[2:], TARGET[2:])
        assert copied.compute() == counted(PREDS, TARGET).compute()
        assert copied.scheme == "BIO"
    assert metric.compute() == counted(PREDS[:2], TARGET[:2]).compute()


def test_counts_survive_a_checkpoint_and_another_dtype():
    metric = EntityF1()
    metric.persistent(True)
    metric.update([["B-Größe"]] * 300, [["B-Größe"]] * 300)
    metric.set_dtype(torch.bfloat16)
    metric.update([["B-日本"]], [["O"]])
    loaded = EntityF1()
    loaded.load_state_dict(metric.state_dict())
    for each in (metric, loaded):
        assert each.confusion()[0] == ["Größe", "日本", "O"]
        assert each.confusion()[1].tolist() == [[300, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_a_collection_keeps_schemes_apart():
    metrics = MetricCollection({"strict": EntityF1("BIOES"), "lenient": EntityF1("BIO")})
    metrics.update([["O"]], [["O"]])  # both metrics have counted the same
    metrics.update([["B-PER"]], [["B-PER"]])  # in BIOES no entity
    scores = metrics.compute()
    assert scores["lenient_f1_PER"] == 1
    assert scores["strict_f1"] == 0
    assert "strict_f1_PER" not in scores


def test_sentences_that_do_not_belong_together_are_refused_and_not_counted():
    metric = counted(PREDS, TARGET)
    with pytest.raises(ValueError, match="predicted tags of 3 sentences, got those of 2"):
        metric.update(PREDS[:2], TARGET)
    with pytest.raises(ValueError, match="each of the 2 tokens of sentence 1, got 3"):
        metric.update([["O"], ["O"] * 3], [["O"], ["O"] * 2])
    for pair in ([["O"], ["O", "S-PER"]], [["O"], ["O", "O"]]), ([["O"]] * 2, [["O"], ["PER"]]):
        with pytest.raises(ValueError, match=r"sentence 1, tag [01]: '.*PER' is no tag of BIO"):
            metric.update(*pair)
    assert metric.table() == counted(PREDS, TARGET).table()


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ValueError, match="IOB1, BIO, BILOU, BIOES, got 'IOB2'"):
        EntityF1("IOB2")


SPLITS = {
    "each its own types": [[0], [1, 2]],
    "the first saw nothing": [[], [0, 1, 2]],
    "the second saw nothing": [[0, 1, 2], []],
    "neither saw anything": [[], []],
    "several updates each": [[0, 1], [2, 2, 2]],
}


def count_in_one_of_two(rank, address):
    """Counts the sentences of one process, and checks that both know the figures of all."""
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=2)
    for name, split in SPLITS.items():
        metric, alone = EntityF1(), EntityF1()
        alone.sync_on_compute = False
        for number in split[rank]:
            metric.update(PREDS[number : number + 1], TARGET[number : number + 1])
        for number in itertools.chain(*split):
            alone.update(PREDS[number : number + 1], TARGET[number : number + 1])
        for _ in range(2):  # what is gathered is given back
            metric._computed = None
            assert metric.compute() == alone.compute(), name
            assert metric.table() == alone.table(), name
            types, counts = metric.confusion()
            assert types == alone.confusion()[0], name
            assert counts.equal(alone.confusion()[1]), name
            assert len(metric.records) == len(split[rank]), name
    torch.distributed.destroy_process_group()


@pytest.mark.process
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_count_as_one(tmp_path):
    address = (tmp_path / "meeting").as_uri()
    # Forked: they need not import anything.
    torch.multiprocessing.start_processes(
        count_in_one_of_two, (address,), nprocs=2, start_method="fork"
    )
