import pickle
import string
from pathlib import Path
from random import Random

import pytest
import torch

import rnnkit.tagging.words
from rnnkit.data.vocabulary import Vocabulary
from rnnkit.tagging.words import CASINGS, PADDING, SPECIAL, UNKNOWN_ID, WordEncoder, casing, padded

TEXT = [
    ["The", "tour", "of", "1843", "began", "."],
    ["the", "tour", "of", "Paris"],
    ["NASA", "said", "so"],
]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("lower", ["paris", "a", "don't", "e-mail", "straße"]),
        ("title", ["Paris", "A", "O'", "Émile", "Jean-luc"]),
        ("upper", ["PARIS", "U.S.", "ÉMILE", "X-Y"]),
        ("mixed", ["McDonald", "iPhone", "O'Neil", "東京", "سلام"]),
        ("number", ["7", "1,200", "-5", "10:30", "٣"]),
        ("digits", ["3rd", "B2B", "F-16"]),
        ("other", ["...", "$", "\u2014", "\x1b"]),
    ],
)
def test_casing_classes(kind: str, words: list[str]) -> None:
    assert {word: CASINGS[casing(word)] for word in words} == dict.fromkeys(words, kind)


def test_words_are_known_in_lower_case_with_zeros_for_digits() -> None:
    encoder = WordEncoder.train(TEXT)
    assert encoder.words.tokens[:5] == (*SPECIAL, "of", "the", "tour")  # the most frequent first
    assert {"0000", "paris", "nasa"} <= set(encoder.words.tokens)
    assert encoder.words.index(encoder.normalize("THE")) == 3
    assert encoder.words.index(encoder.normalize("2026")) == encoder.words.index("0000")
    cased = WordEncoder.train(TEXT, lowercase=False, normalize_digits=False)
    assert {"The", "the", "1843"} <= set(cased.words.tokens)
    assert cased.normalize("In 1999") == "In 1999"


def test_rare_words_are_unknown_unless_they_are_known_from_elsewhere() -> None:
    encoder = WordEncoder.train(TEXT, min_count=2, more_words=["nasa", "zebra", "tour", "zebra"])
    assert encoder.words.tokens == (*SPECIAL, "of", "the", "tour", "nasa", "zebra")
    assert encoder.words.index("paris") == UNKNOWN_ID
    assert encoder.characters.index("P") > UNKNOWN_ID  # characters are all kept
    with pytest.raises(ValueError, match="min_count of 1 or more, got 0"):
        WordEncoder.train(TEXT, min_count=0)


def drawn(sentences: int) -> list[list[str]]:
    random = Random(sentences)
    return [
        ["".join(random.choices(string.ascii_letters + "é1.", k=random.randint(1, 9)))
         for _ in range(random.randint(1, 12))]
        for _ in range(sentences)
    ]  # fmt: skip


@pytest.mark.parametrize("sentences", [1, 7])
def test_every_word_lands_where_it_belongs_and_the_rest_is_padding(sentences: int) -> None:
    text = drawn(sentences)
    text[0] += text[-1][:1] * 2  # the same word in several places
    encoder = WordEncoder.train(text[: sentences // 2 + 1])
    batch = encoder.encode(text)
    assert batch.lengths.tolist() == [len(sentence) for sentence in text]
    assert batch.words.shape == batch.casing.shape == batch.spelling.shape == batch.mask.shape
    assert batch.words.dtype == batch.characters.dtype == batch.spelling.dtype == torch.int64
    assert len(batch.words) == max(map(len, text))
    for b, sentence in enumerate(text):
        for t, word in enumerate(sentence):
            column = batch.spelling[t, b]
            length = int(batch.character_lengths[column])
            assert batch.words[t, b] == encoder.words.index(word.lower().replace("1", "0"))
            assert CASINGS[batch.casing[t, b]] == CASINGS[casing(word)]
            ids = [encoder.characters.index(character) for character in word]
            assert batch.characters[:length, column].tolist() == ids
            assert batch.characters[length:, column].eq(PADDING).all()
        assert batch.mask[:, b].tolist() == [t < len(sentence) for t in range(len(batch.words))]
        for part in (batch.words, batch.casing, batch.spelling):
            assert part[len(sentence) :, b].eq(0).all()


def test_each_distinct_word_is_read_once() -> None:
    batch = WordEncoder.train(TEXT).encode([["The", "tour", "the", "The"], ["tour", "tour"]])
    assert batch.characters.shape == (4, 3)  # The, tour, the
    assert batch.spelling.T.tolist() == [[0, 1, 2, 0], [1, 1, 0, 0]]
    assert batch.words[0, 0] == batch.words[2, 0]  # The and the are one in the vocabulary
    assert batch.character_lengths.tolist() == [3, 4, 3]


def test_of_a_long_word_both_ends_are_read() -> None:
    alphabet = Vocabulary([*SPECIAL, *"abcxyz"])
    encoder = WordEncoder(Vocabulary(SPECIAL), alphabet, max_word_length=5)

    def read(word: str) -> str:
        batch = encoder.encode([[word]])
        assert batch.character_lengths.item() == len(batch.characters)
        return "".join(alphabet.decode(batch.characters[:, 0]))

    assert read("abcyz") == "abcyz"
    assert read("abcxyz") == "abcyz"
    assert read("abc" + "x" * 10_000 + "yz") == "abcyz"
    with pytest.raises(ValueError, match="max_word_length of 2 or more, got 1"):
        WordEncoder(Vocabulary(SPECIAL), alphabet, max_word_length=1)


def test_no_word_of_a_text_is_taken_for_padding() -> None:
    encoder = WordEncoder.train([["<pad>", "<unk>", "<eos>"]])
    words = encoder.encode([["<pad>", "<unk>", "nowhere"]]).words[:, 0]
    assert words[0] > UNKNOWN_ID
    assert words[1:].tolist() == [UNKNOWN_ID, UNKNOWN_ID]


def test_what_cannot_be_encoded_is_refused() -> None:
    encoder = WordEncoder.train(TEXT)
    with pytest.raises(ValueError, match="1 sentence or more, got 0"):
        encoder.encode([])
    with pytest.raises(ValueError, match="1 word or more in sentence 1, got 0"):
        encoder.encode([["a"], []])
    with pytest.raises(ValueError, match="1 character or more in a word, got 0"):
        encoder.encode([["a", ""]])


def test_what_is_remembered_of_words_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    text = drawn(7)
    expected = WordEncoder.train(text).encode(text)
    monkeypatch.setattr(rnnkit.tagging.words, "_MOST_KEPT", 3)
    encoder = WordEncoder.train(text)
    for found, part in zip(encoder.encode(text), expected, strict=True):
        assert torch.equal(found, part)
    assert len(encoder._seen) <= 3


def test_the_lengths_of_a_batch_stay_on_the_cpu() -> None:
    batch = WordEncoder.train(TEXT).encode(TEXT).to(torch.device("meta"))
    on_device = [batch.words, batch.casing, batch.spelling, batch.characters]
    assert {part.device.type for part in on_device} == {"meta"}
    assert batch.lengths.device.type == batch.character_lengths.device.type == "cpu"


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({}, None),
        ({"min_count": 2}, "words: 12 and 5 tokens, the same up to id 4"),
        ({"lowercase": False}, "words: 12 and 13 tokens"),
        ({"max_word_length": 7}, "max_word_length 40 and 7"),
    ],
)
def test_an_encoder_comes_back_from_plain_data_and_tells_how_another_differs(
    changes: dict[str, int], difference: str | None, tmp_path: Path
) -> None:
    encoder = WordEncoder.train(TEXT)
    torch.save(encoder.state_dict(), tmp_path / "encoder.pt")
    loaded = WordEncoder.from_state_dict(torch.load(tmp_path / "encoder.pt", weights_only=True))
    found = loaded.difference(WordEncoder.train(TEXT, **changes))  # type: ignore[arg-type]
    assert found is None if difference is None else str(found).startswith(difference)
    for one, other in zip(loaded.encode(TEXT), encoder.encode(TEXT), strict=True):
        assert torch.equal(one, other)


def test_an_encoder_tells_other_digits_and_other_characters() -> None:
    text = [["a", "b"]]
    encoder = WordEncoder.train(text)
    assert encoder.difference(WordEncoder.train(text, normalize_digits=False)) == (
        "normalize_digits True and False"
    )
    other = WordEncoder.train([["A", "b"]])
    assert str(encoder.difference(other)).startswith("characters: 4 and 4 tokens")


def test_an_encoder_can_be_sent_to_another_process() -> None:
    encoder = WordEncoder.train(TEXT)
    encoder.encode(TEXT)
    sent = pickle.loads(pickle.dumps(encoder))
    assert sent.difference(encoder) is None
    assert torch.equal(sent.encode(TEXT).characters, encoder.encode(TEXT).characters)


def test_rows_are_padded_into_columns() -> None:
    assert padded([[1, 2, 3], [4]]).tolist() == [[1, 4], [2, 0], [3, 0]]
