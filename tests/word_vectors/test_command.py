import pytest
import torch

from rnnkit.cli import main
from rnnkit.data.vectors import read_vectors
from rnnkit.data.word2vec_format import write_vectors

WORDS = ["king", "queen", "man", "woman"]
ROWS = torch.tensor([[1.0, 0, 1, 0.1], [1.0, 0, -1, 0], [0, 1.0, 1, 0], [0, 1.0, -1, 0]])


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_vectors(tmp_path / "words.bin", WORDS, ROWS, binary=True)
    return "words.bin"


def test_neighbours_are_printed_with_their_cosines(path, capsys):
    assert main(["words", "similar", path, "king", "man", "-n", "2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "king:"
    assert printed[1].split() == ["man", "0.499"]
    assert len(printed) == 6


@pytest.mark.parametrize("terms", [["king - man + woman"], ["king", "-", "man", "+", "woman"]])
@pytest.mark.parametrize("method", ["add", "mul"])
def test_analogies_are_read_as_they_are_written(path, terms, method, capsys):
    assert main(["words", "analogy", path, *terms, "-n", "1", "--method", method]) == 0
    assert capsys.readouterr().out.split()[0] == "queen"


def test_an_evaluation_says_what_is_left_out(path, capsys, tmp_path):
    (tmp_path / "questions.txt").write_text(
        ": family\nman king woman queen\nking queen man woman\n: rest\nman king boy prince\n"
    )
    (tmp_path / "pairs.txt").write_text("king queen 8\nman woman 7\nking woman 2\nboy girl 9\n")
    files = ["--questions", "questions.txt", "--pairs", "pairs.txt"]
    assert main(["words", "evaluate", path, *files]) == 0
    printed = capsys.readouterr().out
    assert "read in lower case" in printed
    assert "family   100.0%         2         0" in printed
    assert "rest          –         0         1" in printed
    assert "all      100.0%         2         1" in printed
    assert "of all 3 questions 66.7% are answered right" in printed
    assert "pairs.txt: Spearman's ρ" in printed
    assert "over 3 of 4 pairs" in printed
    assert main(["words", "evaluate", path, *files, "--first", "3"]) == 0
    assert "among 3 words" in capsys.readouterr().out


def test_formats_are_converted_bit_for_bit(path, capsys):
    assert main(["words", "export", path, "words.txt"]) == 0
    assert "4 vectors of 4 numbers, in word2vec's text format" in capsys.readouterr().out
    assert main(["words", "export", "words.txt", "again.bin", "--first", "2"]) == 0
    words, rows = read_vectors("again.bin")
    assert words == WORDS[:2]
    assert torch.equal(rows, ROWS[:2])


def test_a_plane_of_words_is_drawn(path, capsys, tmp_path):
    assert main(["words", "plot", path, "man", "woman", "king", "queen", "--arrows"]) == 0
    assert "% of the variance" in capsys.readouterr().out
    assert (tmp_path / "words.png").read_bytes().startswith(b"\x89PNG")
    assert main(["words", "plot", path, "man", "woman", "king", "--arrows"]) == 1
    assert "pairs of words, got 3 words" in capsys.readouterr().err
    assert main(["words", "plot", path, "man", "man", "king", "queen"]) == 1
    assert "three different words or more, got 3 among 4" in capsys.readouterr().err


def test_vectors_are_made_from_a_text(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "\n".join(f"The {animal} eats {food}" for animal in ("cat", "dog", "cow")
                     for food in ("fish", "meat", "grass") for _ in range(3))  # fmt: skip
    (tmp_path / "text.txt").write_text(text)
    options = ["--out", "vectors.txt", "--dimensions", "3", "--lower"]
    assert main(["words", "ppmi", "text.txt", *options]) == 0
    printed = capsys.readouterr().out
    assert "8 words are kept, 108 of the text's" in printed
    words, rows = read_vectors("vectors.txt")
    assert words[:2] == ["eats", "the"]
    assert rows.shape == (8, 3)
    assert main(["words", "ppmi", "text.txt", "--out", "v.txt", "--dimensions", "8"]) == 1
    assert "from 1 to 7 for 8 words, got 8" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n\n")
    assert main(["words", "ppmi", "empty.txt", "--out", "v.txt"]) == 1
    assert "empty.txt holds no word" in capsys.readouterr().err
    assert main(["words", "ppmi", "text.txt", "--out", "v.txt", "--min-count", "99"]) == 1
    assert "lower min_count" in capsys.readouterr().err


def test_numbers_of_parameters_are_those_of_both_matrices(tmp_path, capsys):
    write_vectors(
        tmp_path / "v.bin", [str(i) for i in range(10_000)], torch.zeros(10_000, 300), True
    )
    assert main(["words", "info", str(tmp_path / "v.bin")]) == 0
    printed = capsys.readouterr().out
    assert "10,000 words, 300 dimensions" in printed
    assert "6,000,000 in the two matrices" in printed


@pytest.mark.parametrize(
    ("arguments", "status", "match"),
    [
        (["similar", "words.bin", "kind"], 1, "the nearest spellings are king"),
        (["similar", "nowhere.bin", "king"], 1, "nowhere.bin"),
        (["analogy", "words.bin", "-", "man"], 1, "king - man + woman"),
        (["similar", "words.bin", "king", "-n", "0"], 2, "1 or more, got 0"),
        (["evaluate", "words.bin", "--first", "-5"], 2, "1 or more, got -5"),
        (["other"], 2, "other"),
        ([], 2, "COMMAND"),
    ],
)
def test_what_cannot_be_used_is_told(path, arguments, status, match, capsys):
    assert main(["words", *arguments]) == status
    assert match in capsys.readouterr().err
