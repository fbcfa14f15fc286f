import pytest
import torch

from rnnkit.data.registry import DataError
from rnnkit.decoding import Hypothesis
from rnnkit.translation.unknown import SourceWords, read_dictionary
from rnnkit.translation.words import UNKNOWN, WordTokenizer

TOKENIZER = WordTokenizer.train(["der hund"], lowercase=True)

# Rows of what was written; columns der, Otto-Hund, its parts, the end and padding.
ATTENTION = torch.tensor(
    [
        [0.9, 0.0, 0.0, 0.0, 0.1, 0.0],
        [0.1, 0.2, 0.1, 0.1, 0.5, 0.0],  # most on the end
        [0.0, 0.1, 0.1, 0.8, 0.0, 0.0],
        [0.0, 0.4, 0.0, 0.0, 0.3, 0.3],
    ]
)


def hypothesis(*tokens: int) -> Hypothesis:
    return Hypothesis([*tokens], -1.0, -1.0, True, ATTENTION[: len(tokens)])


@pytest.mark.parametrize(
    ("dictionary", "expected"),
    [
        ({}, ["Otto", "Hund"]),
        ({"hund": "dog", "otto": "no", "Otto": "Otis"}, ["Otis", "dog"]),
        ({"der": "the"}, ["Otto", "Hund"]),
    ],
)
def test_the_word_with_most_attention_stands_for_each_unknown_one(
    dictionary: dict[str, str], expected: list[str]
) -> None:
    choose = SourceWords(TOKENIZER, dictionary)
    found = choose("der Otto-Hund", 4, hypothesis(5, UNKNOWN, UNKNOWN, 2))
    assert found == expected


def test_words_that_were_not_read_are_not_chosen() -> None:
    choose = SourceWords(TOKENIZER)
    assert choose("der Otto-Hund", 2, hypothesis(UNKNOWN, 5, UNKNOWN)) == ["der", "Otto"]
    assert choose("der", 1, hypothesis(5, 2)) == []


def test_a_dictionary_has_a_word_and_its_translation_a_line(tmp_path) -> None:
    path = tmp_path / "words.tsv"
    path.write_text("Hund\tdog\nHund\thound\n\n Haus \t the house\n", encoding="utf-8")
    assert read_dictionary(path) == {"Hund": "dog", "Haus": "the house"}


@pytest.mark.parametrize("line", ["Hund dog", "Hund\t", "\tdog", "Hund\tdog\t0.3"])
def test_another_line_is_told_with_its_number(tmp_path, line: str) -> None:
    path = tmp_path / "words.tsv"
    path.write_text(f"Haus\thouse\n{line}\n")
    with pytest.raises(DataError, match=r"line 2 of .*words.tsv is no entry .* a tab and a target"):
        read_dictionary(path)
