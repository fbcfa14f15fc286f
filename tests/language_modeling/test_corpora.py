import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnkit.data.registry import DataError
from rnnkit.language_modeling import python_docs
from rnnkit.language_modeling.corpora import Tokenizer, read_corpus


def write(folder: Path, **texts: str) -> str:
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="")
    return str(folder)


def test_each_line_ends_with_one_sentence_end() -> None:
    tokens = Tokenizer("word").tokenize(" the  cat\n\nsat . \n")
    assert tokens == ["the", "cat", "<eos>", "<eos>", "sat", ".", "<eos>"]


def test_a_last_line_without_a_line_end_is_a_line() -> None:
    assert Tokenizer("word").tokenize("a\nb") == ["a", "<eos>", "b", "<eos>"]


def test_other_line_separators_do_not_end_a_line() -> None:
    assert Tokenizer("word").tokenize("a\u2028b\x85c\r\n") == ["a", "b", "c", "<eos>"]


def test_marks_are_tokens_of_their_own_on_request() -> None:
    tokenizer = Tokenizer("word", lowercase=True, split_marks=True)
    assert tokenizer.tokenize_line("Print(x_1, 'Ä')") == [
        "print",
        "(",
        "x_1",
        ",",
        "'",
        "ä",
        "'",
        ")",
    ]


@given(st.text(max_size=50))
def test_characters_come_back_as_they_were(text: str) -> None:
    tokenizer = Tokenizer("character")
    assert tokenizer.detokenize(tokenizer.tokenize(text)) == text


@given(st.lists(st.lists(st.sampled_from(["a", "b", "<unk>"]), max_size=3), max_size=4))
def test_words_come_back_line_by_line(lines: list[list[str]]) -> None:
    text = "".join(" ".join(line) + "\n" for line in lines)
    tokenizer = Tokenizer("word")
    assert tokenizer.detokenize(tokenizer.tokenize(text)) == text


def test_any_folder_with_three_texts_is_a_corpus(tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path, train="a b\n", valid="b\n", test="c c\n"), "word")
    assert (corpus.train, corpus.valid, corpus.test) == (
        ["a", "b", "<eos>"],
        ["b", "<eos>"],
        ["c", "c", "<eos>"],
    )


def test_files_may_carry_the_name_of_the_corpus(tmp_path: Path) -> None:
    path = write(tmp_path, **{"ptb.train": "a", "ptb.valid": "b", "ptb.test": "c", "notes": "d"})
    assert read_corpus(path, "character").valid == ["b"]
    (upper := tmp_path / "upper").mkdir()
    path = write(upper, **{"Train": "a", "ptb.Dev": "b", "TEST": "c"})
    assert read_corpus(path, "character").valid == ["b"]


@pytest.mark.parametrize("as_file", [False, True])
def test_a_single_text_is_cut_90_5_5(tmp_path: Path, as_file: bool) -> None:
    text = "".join(chr(ord("a") + i % 26) for i in range(200))
    path = write(tmp_path, input=text)
    corpus = read_corpus(f"{path}/input.txt" if as_file else path, "character")
    assert (len(corpus.train), len(corpus.valid), len(corpus.test)) == (180, 10, 10)
    assert "".join(corpus.train + corpus.valid + corpus.test) == text


def test_lower_case_joins_words(tmp_path: Path) -> None:
    path = write(tmp_path, train="The the\n", valid="THE\n", test="the\n")
    assert set(read_corpus(path, "word", lowercase=True).train) == {"the", "<eos>"}
    assert set(read_corpus(path, "word").train) == {"The", "the", "<eos>"}


def test_words_always_have_unknown_and_sentence_end(tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path, train="a\n", valid="b\n", test="c\n"), "word")
    assert corpus.vocabulary().tokens == ("<eos>", "a", "<unk>")


def test_characters_have_unknown_only_where_one_is_needed(tmp_path: Path) -> None:
    known = read_corpus(write(tmp_path, train="aab\n", valid="b", test="a"), "character")
    assert known.vocabulary().tokens == ("a", "\n", "b")
    assert known.vocabulary(min_count=2).tokens == ("a", "\n", "<unk>")
    enough = read_corpus(write(tmp_path, train="aabb\n", valid="b", test="a"), "character")
    assert enough.vocabulary(min_count=2).tokens == ("a", "b", "\n")
    foreign = read_corpus(write(tmp_path, train="aab", valid="b", test="z"), "character")
    assert set(foreign.vocabulary().tokens) == {"a", "b", "\n", "<unk>"}


@pytest.mark.parametrize(("text", "tokens"), [("", 0), (" \n\n", 2)])
def test_an_empty_text_is_named(tmp_path: Path, text: str, tokens: int) -> None:
    path = write(tmp_path, train="a b\n", valid=text, test="a\n")
    with pytest.raises(DataError, match=rf"valid\.txt is empty: expected text, got {tokens} tok"):
        read_corpus(path, "word")


def test_a_text_too_short_to_be_cut_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"input\.txt has 5 tokens, too few"):
        read_corpus(write(tmp_path, input="abcde"), "character")


def test_a_byte_that_is_no_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, train="a", valid="b", test="c")
    (tmp_path / "valid.txt").write_bytes(b"vingt\n" + "été".encode("latin1"))
    with pytest.raises(DataError, match=r"valid\.txt is no UTF-8: byte 0xe9 in line 2"):
        read_corpus(path, "word")


def test_a_missing_part_is_named_beside_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has train\.txt but lacks valid\.txt, test\.txt"):
        read_corpus(write(tmp_path, train="a"), "word")


def test_a_folder_without_corpus_files_says_what_a_corpus_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no corpus file but lacks.*a corpus is a folder with"):
        read_corpus(write(tmp_path, notes="a"), "word")


def test_two_files_for_one_part_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, train="a", **{"ptb.train": "b"})
    with pytest.raises(DataError, match=r"two files for train: ptb\.train\.txt and train\.txt"):
        read_corpus(path, "word")


def test_a_path_may_begin_with_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, train="a", valid="b", test="c")
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert read_corpus(f"~/{tmp_path.name}", "character").train == ["a"]


def test_a_python_without_its_docs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match=r"without pydoc_data\.topics"):
        read_corpus("python-docs", "word")


def test_an_unknown_corpus_is_answered_with_the_known_ones() -> None:
    known = "python-docs, ptb, wikitext2, tinyshakespeare"
    with pytest.raises(DataError, match=f"no corpus 'pbt': choose from {known}"):
        read_corpus("pbt", "word")


def test_a_dataset_for_another_task_is_refused() -> None:
    with pytest.raises(DataError, match="multi30k is a dataset for translation"):
        read_corpus("multi30k", "word")


def test_a_restricted_corpus_is_not_downloaded_behind_the_users_back(cache: Path) -> None:
    with pytest.raises(DataError, match="`rnnkit data get ptb --accept-licence`"):
        read_corpus("ptb", "word")


def test_python_docs_hold_out_whole_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*python_docs.TEST_TOPICS, *python_docs.VALID_TOPICS, "zebra", "ant"]
    texts = {name: f"text of {name}" for name in names}
    monkeypatch.setattr("pydoc_data.topics.topics", texts)
    train, valid, test = python_docs.topics()
    assert train == ["text of ant", "text of zebra"]
    assert valid == [f"text of {name}" for name in python_docs.VALID_TOPICS]
    assert test == [f"text of {name}" for name in python_docs.TEST_TOPICS]


def test_python_docs_hold_out_eight_topics_twice() -> None:
    _, valid, test = python_docs.topics()
    assert (len(valid), len(test)) == (8, 8)
    assert not set(python_docs.VALID_TOPICS) & set(python_docs.TEST_TOPICS)


def test_python_docs_have_unknown_for_words_seen_less_than_three_times() -> None:
    corpus = read_corpus("python-docs", "word")
    vocabulary = corpus.vocabulary()
    counts = {token: corpus.train.count(token) for token in vocabulary.tokens[-5:]}
    assert min(counts.values()) >= 3
    assert set(corpus.valid) | set(corpus.test) <= set(vocabulary.tokens)
    assert vocabulary == corpus.vocabulary(min_count=3)
    assert all(token == token.lower() for token in vocabulary.tokens)


def test_python_docs_can_be_read_by_the_character() -> None:
    corpus = read_corpus("python-docs", "character")
    assert "".join(corpus.test) == "".join(python_docs.topics()[2])


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "sizes", "vocabulary_size"),
    [
        ("ptb", (929_589, 73_760, 82_430), 10_000),
        ("wikitext2", (2_088_628, 217_646, 245_569), 33_278),
    ],
)
def test_real_corpora_have_the_published_counts(
    real_data: Path, name: str, sizes: tuple[int, int, int], vocabulary_size: int
) -> None:
    if not (real_data / name).is_dir():
        pytest.skip(f"RNNKIT_DATA_DIR holds no {name}")
    corpus = read_corpus(name, "word")
    assert (len(corpus.train), len(corpus.valid), len(corpus.test)) == sizes
    assert len(corpus.vocabulary()) == vocabulary_size


@pytest.mark.data
def test_tiny_shakespeare_has_65_characters(real_data: Path) -> None:
    if not (real_data / "tinyshakespeare").is_dir():
        pytest.skip("RNNKIT_DATA_DIR holds no tinyshakespeare")
    corpus = read_corpus("tinyshakespeare", "character")
    assert len(corpus.train) + len(corpus.valid) + len(corpus.test) == 1_115_394
    assert len(corpus.vocabulary()) == 65
