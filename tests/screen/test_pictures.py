import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from rnnkit.metrics import EntityF1
from rnnkit.screen.pictures import draw_attention, draw_confusion

TYPES = ["LOC", "$x$", "PER", "O"]
COUNTS = torch.tensor([[1500, 0, 300, 200], [0, 0, 0, 0], [1, 0, 3, 0], [5, 0, 0, 0]])


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures = []
    save = Figure.savefig

    def remember(figure, *arguments, **options):
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    return figures


def test_a_confusion_has_counts_in_its_cells_and_shares_of_rows_as_colours(drawn, tmp_path):
    draw_confusion(TYPES, COUNTS, tmp_path / "confusion.png")
    axes = drawn[0].axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts if text.get_text()}
    assert cells == {(0, 0): "1,500", (2, 0): "300", (3, 0): "200", (0, 2): "1", (2, 2): "3",
                     (0, 3): "5"}  # fmt: skip
    shares = [[0.75, 0, 0.15, 0.1], [0, 0, 0, 0], [0.25, 0, 0.75, 0], [1, 0, 0, 0]]
    assert axes.images[0].get_array().tolist() == [pytest.approx(row) for row in shares]
    assert axes.images[0].get_clim() == (0, 1)
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("in the text", "predicted")
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["LOC", r"\$x\$", "PER", "O"]


@pytest.mark.parametrize("size", [1, 2, 5, 21])
@pytest.mark.parametrize("name", ["T", "ORG", "WORK_OF_ART"])
def test_a_confusion_of_few_or_many_types_is_legible(drawn, tmp_path, size, name):
    counts = torch.full((size, size), 1234)
    names = [f"{name}{number}" for number in range(size - 1)] + ["O"]
    draw_confusion(names, counts, tmp_path / "confusion.png")
    axes = drawn[0].axes[0]
    cell = axes.get_window_extent().width / size
    assert max(text.get_window_extent().width for text in axes.texts) < 0.9 * cell
    across = [label for label in axes.get_xticklabels() if label.get_rotation() == 0]
    assert all(label.get_window_extent().width < cell for label in across)
    picture = imread(tmp_path / "confusion.png")
    edges = [picture[0], picture[-1], picture[:, 0], picture[:, -1]]
    assert all((edge == 1).all() for edge in edges)  # nothing is cut off


def test_what_the_metric_returns_can_be_drawn(drawn, tmp_path):
    metric = EntityF1("BIO")
    metric.update([["B-PER", "B-LOC"], ["O"]], [["B-PER", "B-PER"], ["B-LOC"]])
    draw_confusion(*metric.confusion(), tmp_path / "confusion.png")
    assert drawn[0].axes[0].images[0].get_array().tolist() == [[0, 0, 1], [0.5, 0.5, 0], [0, 0, 0]]


def test_counts_of_another_size_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\(4, 4\) for 4 classes, O among them, got \(3, 4\)"):
        draw_confusion(TYPES, COUNTS[:3], tmp_path / "confusion.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("error")
def test_attention_names_its_tokens_as_text_that_a_font_has(drawn, tmp_path, monkeypatch):
    unseen = "\U0010fffd"  # of private use, in no font
    source, target = ["▁été", f"a{unseen}", "$x$", "￭."], ["<0xC3>", "\t\x1b", "<unk>"]
    draw_attention(source, target, torch.ones(3, 4) / 4, tmp_path / "attention.png")
    axes = drawn[0].axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "▁été", "aU+10FFFD", r"\$x\$", "."
    ]  # fmt: skip
    assert [label.get_text() for label in axes.get_yticklabels()] == ["<0xC3>", r"\t\x1b", "<unk>"]
