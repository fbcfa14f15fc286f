import pytest
import torch

from rnnkit.data.registry import DataError
from rnnkit.data.word2vec_format import write_vectors
from rnnkit.word_vectors import WordVectors


@pytest.fixture
def words() -> WordVectors:
    torch.manual_seed(0)
    return WordVectors(["king", "queen", "man", "woman", "child"], torch.randn(5, 4))


def test_neighbours_are_those_of_the_cosine(words: WordVectors) -> None:
    found = words.similar("king", 3)
    rows = words.vectors
    cosines = torch.nn.functional.cosine_similarity(rows[0], rows[1:])
    expected = sorted(zip(words.words[1:], cosines.tolist(), strict=True), key=lambda p: -p[1])
    assert [word for word, _ in found] == [word for word, _ in expected[:3]]
    assert [score for _, score in found] == pytest.approx([s for _, s in expected[:3]])
    assert len(words.similar("king", 99)) == 4  # all but itself


@pytest.mark.parametrize("method", ["add", "mul"])
def test_analogies_follow_their_formula(words: WordVectors, method: str) -> None:
    unit = words.vectors / words.vectors.norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    scores = {}
    for name in ("queen", "child"):
        row = cosines[words.ids[name]]
        king, woman, man = (float(row[words.ids[each]]) for each in ("king", "woman", "man"))
        scores[name] = king + woman - man
        if method == "mul":
            scores[name] = (king + 1) / 2 * (woman + 1) / 2 / ((man + 1) / 2 + 0.001)
    found = dict(words.analogy(["king", "woman"], ["man"], method=method))  # type: ignore[arg-type]
    assert found == pytest.approx(scores, rel=1e-5)
    with pytest.raises(ValueError, match="add or mul, got 'other'"):
        words.analogy(["king"], ["man"], method="other")  # type: ignore[arg-type]


def test_of_a_word_that_is_not_there_the_nearest_spellings_are_told(words: WordVectors) -> None:
    with pytest.raises(DataError, match=r"'kind' among 5 words: the nearest spellings are king"):
        words.similar("kind")
    with pytest.raises(DataError, match="no vector of 'King', but one of 'king'"):
        words.similar("King")
    with pytest.raises(DataError, match=r"'xyzzy' among 5 words$"):
        words.analogy(["king"], ["xyzzy"])


def test_words_and_vectors_belong_together(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"each of 2 words, got \(3, 4\)"):
        WordVectors(["a", "b"], torch.zeros(3, 4))
    with pytest.raises(ValueError, match="2 words are 1 different ones"):
        WordVectors(["a", "a"], torch.zeros(2, 4))
    write_vectors(tmp_path / "v.bin", ["a", "b", "c"], torch.eye(3), binary=True)
    read = WordVectors.read(tmp_path / "v.bin", limit=2)
    assert read.words == ["a", "b"]
    assert read.first(1).unit.tolist() == [[1.0, 0.0, 0.0]]
