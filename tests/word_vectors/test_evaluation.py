import math

import pytest
import torch
from scipy.stats import spearmanr

from rnnkit.data.registry import DataError
from rnnkit.word_vectors import WordVectors, analogies, similarity
from rnnkit.word_vectors.evaluation import read_pairs, read_questions

QUESTIONS = """\
: capitals
Oslo Norway Rome Italy
Rome Italy Oslo Norway
Oslo Norway Bern Switzerland
: gram1-plural
cat cats dog dogs
"""


@pytest.fixture
def vectors() -> WordVectors:
    """A country is its capital and one more; a plural is its noun's opposite, and wrong."""
    rows = {
        "oslo": [1.0, 0, 0, 0], "norway": [1.0, 0, 0, 1], "rome": [0, 1.0, 0, 0],
        "italy": [0, 1.0, 0, 1], "cat": [0, 0, 1.0, 0], "cats": [0, 0, -1.0, 0],
        "dog": [0.5, 0, 1.0, 0], "dogs": [0.4, 0, 1.0, 0.1],
    }  # fmt: skip
    return WordVectors([*rows], torch.tensor([*rows.values()]))


@pytest.mark.parametrize("method", ["add", "mul"])
def test_questions_are_answered_by_groups_and_what_is_left_out_is_counted(
    vectors: WordVectors, method: str, tmp_path
) -> None:
    (tmp_path / "questions.txt").write_text(QUESTIONS)
    capitals, plurals = analogies(vectors, read_questions(tmp_path / "questions.txt"), method)  # type: ignore[arg-type]
    assert capitals == ("capitals", 2, 2, 3)
    assert capitals.accuracy == 1
    assert plurals.name == "gram1-plural"
    assert plurals[2:] == (1, 1)
    # Restricted, Italy is neither an answer nor asked for.
    (few, _) = analogies(vectors.first(3), read_questions(tmp_path / "questions.txt"))
    assert few == ("capitals", 0, 0, 3)
    assert math.isnan(few.accuracy)


def test_questions_keep_their_capitals_where_words_have_some(vectors: WordVectors) -> None:
    cased = WordVectors([word.capitalize() for word in vectors.words], vectors.vectors)
    asked = {"capitals": [("Oslo", "Norway", "Rome", "Italy"), ("oslo", "norway", "rome", "italy")]}
    assert analogies(cased, asked) == [("capitals", 1, 1, 2)]


def test_ratings_are_compared_by_spearmans_correlation(vectors: WordVectors, tmp_path) -> None:
    lines = ["# rated", "Word 1\tWord 2\tHuman (mean)", "Oslo\tNorway\t9", "Rome\tItaly\t8.5"]
    lines += ["cat\tcats\t1", "cat\tDog\t7", "oslo\tcat\t0.5", "oslo\tberlin\t4"]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines))
    pairs = read_pairs(tmp_path / "pairs.tsv")
    found = similarity(vectors, pairs)
    ids = [[vectors.ids[word.lower()] for word in pair[:2]] for pair in pairs[:-1]]
    cosines = [float(vectors.unit[a] @ vectors.unit[b]) for a, b in ids]
    assert found.rho == pytest.approx(spearmanr(cosines, [9, 8.5, 1, 7, 0.5]).statistic)
    assert found[1:] == (5, 6)
    assert math.isnan(similarity(vectors, pairs[:2]).rho)


def test_columns_lie_between_tabs_commas_or_blanks(tmp_path) -> None:
    for text in ("a\tb\t1.5\n", "a,b,1.5\n", "a b 1.5\n", "word1,word2,score\r\na,b,1.5\r\n"):
        (tmp_path / "pairs").write_text(text)
        assert read_pairs(tmp_path / "pairs") == [("a", "b", 1.5)]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a b\n", "line 1 .* got 'a b'"),
        ("a b 1\nc d e\n", "line 2"),
        ("# none\n", "holds no pair"),
        ("a b 1\nc d nan\n", "line 2"),
    ],
)
def test_files_that_hold_no_pairs_are_refused(text: str, match: str, tmp_path) -> None:
    (tmp_path / "pairs").write_text(text)
    with pytest.raises(DataError, match=match):
        read_pairs(tmp_path / "pairs")


@pytest.mark.parametrize(
    ("text", "match"), [("a b c\n", "4 words in line 1"), ("\n", "no question")]
)
def test_files_that_hold_no_questions_are_refused(text: str, match: str, tmp_path) -> None:
    (tmp_path / "questions").write_text(text)
    with pytest.raises(DataError, match=match):
        read_questions(tmp_path / "questions")
