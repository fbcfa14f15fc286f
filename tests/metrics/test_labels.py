import itertools
import random
import warnings

import pytest
import torch
from sklearn.metrics import accuracy_score, classification_report

from rnnkit.metrics import LabelScores

LABELS = ["NN", "VB", "$", ".", "O", "Größe"]

TARGET = [["DT", "NN", "VB"], ["NN", "."], ["FW"]]
PREDS = [["DT", "NN", "NN"], ["VB", "."], ["NN"]]


def corpus(count, seed=0):
    """Labels of a text and of a prediction that is often right, some in one of both only."""
    drawn = random.Random(seed)
    target = [drawn.choices(LABELS[:-1], k=drawn.randint(0, 9)) for _ in range(count)]
    preds = [
        [drawn.choice(LABELS[1:]) if drawn.random() < 0.3 else tag for tag in row] for row in target
    ]
    return preds, target


def counted(preds, target):
    metric = LabelScores()
    metric.update(preds, target)
    return metric


def rows(table):
    """Label, precision, recall, F1 and count of each line of a table."""
    return {name: list(map(float, found)) for name, *found in map(str.split, table)}


@pytest.mark.parametrize("count", [1, 3, 300])
def test_scores_are_scikit_learns(count):
    preds, target = corpus(count, seed=count)
    found, there = ([*itertools.chain(*rows)] for rows in (preds, target))
    assert found != there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = classification_report(there, found, output_dict=True, zero_division=0)
    metric = counted(preds, target)
    scores = {name: float(value) for name, value in metric.compute().items()}
    expected = {
        "accuracy": accuracy_score(there, found),
        "f1_macro": report["macro avg"]["f1-score"],
    }
    assert scores == pytest.approx(expected, rel=1e-12)
    labels = sorted({*found, *there})
    lines = rows(metric.table().splitlines()[3:])
    assert list(lines) == labels
    for label in labels:
        names = ("precision", "recall", "f1-score")
        figures = [*(100 * report[label][name] for name in names), report[label]["support"]]
        assert lines[label] == pytest.approx(figures, abs=0.005)
    names, counts = metric.confusion()
    assert names == labels
    for (row, there_), (column, found_) in itertools.product(enumerate(labels), repeat=2):
        pairs = zip(there, found, strict=True)
        assert counts[row, column] == sum(pair == (there_, found_) for pair in pairs)


def test_the_table_has_a_line_for_each_label():
    assert counted(PREDS, TARGET).table() == (
        "processed 6 tokens; right: 3.\n"
        "accuracy:  50.00%; macro F1:  48.00\n"
        "                   precision  recall      F1  in the text\n"
        "                .     100.00  100.00  100.00            1\n"
        "               DT     100.00  100.00  100.00            1\n"
        "               FW       0.00    0.00    0.00            1\n"
        "               NN      33.33   50.00   40.00            2\n"
        "               VB       0.00    0.00    0.00            1"
    )


def test_nothing_counted_is_zero():
    metric = counted([[]], [[]])
    assert {name: float(value) for name, value in metric.compute().items()} == {
        "accuracy": 0.0,
        "f1_macro": 0.0,
    }
    assert metric.table().startswith("processed 0 tokens; right: 0.")


def test_sentences_that_do_not_belong_together_are_refused_and_not_counted():
    metric = counted(PREDS, TARGET)
    with pytest.raises(ValueError, match="predicted tags of 3 sentences, got those of 2"):
        metric.update(PREDS[:2], TARGET)
    with pytest.raises(ValueError, match="each of the 2 tokens of sentence 1, got 3"):
        metric.update([["A"], ["A"] * 3], [["A"], ["A"] * 2])
    assert metric.table() == counted(PREDS, TARGET).table()


def count_in_one_of_two(rank, address):
    """Counts the sentences of one process, each with labels of its own."""
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=2)
    metric, alone = LabelScores(), counted(PREDS, TARGET)
    alone.sync_on_compute = False
    part = slice(0, 1) if rank == 0 else slice(1, 3)
    metric.update(PREDS[part], TARGET[part])
    assert metric.compute() == alone.compute()
    assert metric.table() == alone.table()
    assert metric.confusion()[1].equal(alone.confusion()[1])
    torch.distributed.destroy_process_group()


@pytest.mark.process
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_count_as_one(tmp_path):
    address = (tmp_path / "meeting").as_uri()
    torch.multiprocessing.start_processes(
        count_in_one_of_two, (address,), nprocs=2, start_method="fork"
    )
