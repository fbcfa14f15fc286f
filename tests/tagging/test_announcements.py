import hashlib
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from seqeval.metrics import f1_score

from rnnkit.tagging.announcements import Splits, announcements
from rnnkit.tagging.columns import Sentence, read_columns

TYPES = {"PER", "ORG", "LOC", "DATE"}


@pytest.fixture(scope="module")
def splits() -> Splits:
    return announcements()


@pytest.fixture(scope="module")
def training_tags(splits: Splits) -> dict[str, Counter[str]]:
    return tags_of_words(splits[0])


def spans(sentence: Sentence) -> list[tuple[str, list[str]]]:
    """Type and words of each entity, by B tags alone: the tags are tested to be whole."""
    found: list[tuple[str, list[str]]] = []
    for word, tag in zip(sentence.words, sentence.tags, strict=True):
        if tag.startswith("B-"):
            found.append((tag[2:], [word]))
        elif tag.startswith("I-"):
            found[-1][1].append(word)
    return found


def tags_of_words(sentences: list[Sentence]) -> dict[str, Counter[str]]:
    tags: dict[str, Counter[str]] = defaultdict(Counter)
    for sentence in sentences:
        for word, tag in zip(sentence.words, sentence.tags, strict=True):
            tags[word][tag] += 1
    return tags


def test_the_splits_have_their_sizes(splits: Splits) -> None:
    assert [len(part) for part in splits] == [4_000, 400, 400]
    assert [sum(len(spans(sentence)) for sentence in part) for part in splits] == [
        10_464,
        1_060,
        1_040,
    ]


def test_the_corpus_is_the_same_on_every_machine_and_every_time(splits: Splits) -> None:
    # The sum was taken of sentences that did not tell lines left out; no line is.
    written = repr(splits).replace(", left_out=()", "")
    assert hashlib.sha256(written.encode()).hexdigest()[:16] == "816f20475ce5cb6c"
    assert announcements() == splits


def test_no_sentence_occurs_twice_in_whatever_case(splits: Splits) -> None:
    texts = [" ".join(sentence.words).lower() for part in splits for sentence in part]
    assert len(set(texts)) == len(texts)


def test_the_tags_are_whole_bio(splits: Splits) -> None:
    for part in splits:
        for sentence in part:
            for before, tag in zip(["O", *sentence.tags], sentence.tags, strict=False):
                assert tag == "O" or tag[2:] in TYPES
                assert not tag.startswith("I-") or before[2:] == tag[2:]
        assert {kind for sentence in part for kind, _ in spans(sentence)} == TYPES


def test_a_file_of_the_sentences_reads_back(splits: Splits, tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    for part in splits:
        path.write_text(
            "".join(
                "".join(f"{word} {tag}\n" for word, tag in zip(s.words, s.tags, strict=True)) + "\n"
                for s in part
            )
        )
        assert read_columns(path) == part


def test_entities_have_one_to_four_words(splits: Splits) -> None:
    for part in splits:
        lengths = Counter(len(words) for sentence in part for _, words in spans(sentence))
        assert set(lengths) == {1, 2, 3, 4}
        assert min(lengths.values()) >= 10


def test_looking_words_up_scores_what_the_docstring_says(
    splits: Splits, training_tags: dict[str, Counter[str]]
) -> None:
    usual = {
        word: min(seen, key=lambda tag, seen=seen: (-seen[tag], tag))
        for word, seen in training_tags.items()
    }
    scores = [
        100
        * f1_score(
            [sentence.tags for sentence in part],
            [[usual.get(word, "O") for word in sentence.words] for sentence in part],
        )
        for part in splits[1:]
    ]
    assert scores == pytest.approx([59.2, 60.7], abs=0.06)


def test_a_part_of_the_names_never_occurs_in_training(splits: Splits) -> None:
    train, *others = splits
    known = {word for sentence in train for word in sentence.words}
    shares = []
    for part in others:
        names = [words for s in part for kind, words in spans(s) if kind != "DATE"]
        shares.append(sum(not known.issuperset(words) for words in names) / len(names))
    assert shares == pytest.approx([0.15, 0.14], abs=0.005)


@pytest.mark.parametrize(
    ("word", "types"),
    [
        ("Chelsea", {"PER", "LOC", "ORG"}),
        ("Washington", {"PER", "LOC", "ORG"}),
        ("Ford", {"PER", "LOC", "ORG"}),
        ("Jordan", {"PER", "LOC", "ORG"}),
        ("April", {"PER", "DATE"}),
        ("May", {"DATE", ""}),
        ("Mark", {"PER", ""}),
        ("Reading", {"LOC", ""}),
        ("2000", {"DATE", ""}),
    ],
)
def test_the_words_around_it_tell_what_a_word_is(
    training_tags: dict[str, Counter[str]], word: str, types: set[str]
) -> None:
    assert {tag[2:] for tag in training_tags[word]} >= types


def test_entities_of_one_type_stand_side_by_side(splits: Splits) -> None:
    for part in splits:
        touching = Counter(
            tag[2:]
            for sentence in part
            for before, tag in zip(sentence.tags, sentence.tags[1:], strict=False)
            if tag.startswith("B-") and before[2:] == tag[2:]
        )
        assert touching["ORG"] >= 5
        assert touching["LOC"] >= 1


def test_some_sentences_hold_no_entity(splits: Splits) -> None:
    for part in splits:
        assert 0.1 < sum(set(sentence.tags) == {"O"} for sentence in part) / len(part) < 0.2


def test_capitals_are_rarely_missing_and_rarely_everywhere(splits: Splits) -> None:
    for part in splits:
        names = [words for s in part for kind, words in spans(s) if kind != "DATE"]
        lower = sum(words[0].islower() for words in names) / len(names)
        upper = sum(" ".join(sentence.words).isupper() for sentence in part) / len(part)
        assert 0.005 < lower < 0.04
        assert 0.005 < upper < 0.04
        assert not any(sentence.words[0][0].islower() for sentence in part)
