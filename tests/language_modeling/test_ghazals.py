import pytest

from rnnkit.data.registry import DataError
from rnnkit.language_modeling import ghazals
from rnnkit.language_modeling.corpora import read_corpus


def divan(poems=495):
    return "\n".join(f"{i} first\n{i} second\n" for i in range(poems))


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.setenv("RNNKIT_DATA_DIR", str(tmp_path))
    (tmp_path / "hafez").mkdir()
    for name, content in (("plain", divan()), ("vocalised", divan().replace("s", "š"))):
        (tmp_path / "hafez" / f"ghazals_{name}.txt").write_text(content, encoding="utf-8")


def test_every_poem_is_in_one_part_and_whole():
    parts = ghazals.split(divan(), "x")
    numbers = []
    for part in parts:
        assert part.endswith("\n\n")
        poems = part.removesuffix("\n\n").split("\n\n")
        numbers.append([int(poem.split()[0]) for poem in poems])
        for number, poem in zip(numbers[-1], poems, strict=True):
            assert poem == f"{number} first\n{number} second"
    assert [len(part) for part in numbers] == [446, 25, 24]
    assert sorted(number for part in numbers for number in part) == list(range(495))
    # Held out from all over the divan, which is ordered by rhyme.
    assert numbers[1][:3] == [9, 29, 49]
    assert numbers[2][-1] == 479


def test_a_text_put_together_otherwise_is_refused():
    with pytest.raises(DataError, match=r"expected 495 ghazals in some\.txt, .* got 494 blocks"):
        ghazals.split(divan(494), "some.txt")
    with pytest.raises(DataError, match="got 1 blocks"):
        ghazals.split(divan().replace("\n\n", "\n"), "some.txt")


def test_the_two_texts_have_names(texts):
    plain, vocalised = (read_corpus(name, "character") for name in ("hafez", "hafez-vocalised"))
    assert "".join(plain.train).startswith("0 first\n0 second\n\n1 first\n")
    assert "".join(vocalised.test).startswith("19 firšt\n19 šecond\n\n39 ")
    with pytest.raises(DataError, match=r"choose from .*tinyshakespeare, hafez, hafez-vocalised"):
        read_corpus("hafiz", "character")


@pytest.mark.data
def test_the_real_ghazals_have_couplets_and_no_new_character_in_the_test(real_data):
    sizes = {"hafez": (46, 273_182), "hafez-vocalised": (63, 294_299)}
    for name, (size, characters) in sizes.items():
        corpus = read_corpus(name, "character")
        assert len(corpus.vocabulary()) == size  # <unk> is not among them
        for part in (corpus.train, corpus.valid, corpus.test):
            poems = "".join(part).removesuffix("\n\n").split("\n\n")
            assert all(len(poem.split("\n")) % 2 == 0 for poem in poems)
        assert len(corpus.train) + len(corpus.valid) + len(corpus.test) == characters
