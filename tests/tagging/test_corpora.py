"""Tagged corpora: what is read alike, and what is refused, with the file and the line."""

import logging
from pathlib import Path

import pytest

import rnnkit.tagging.corpora
from rnnkit.data.registry import DataError
from rnnkit.data.schemes import SCHEMES, Scheme, convert, violations
from rnnkit.tagging.announcements import announcements
from rnnkit.tagging.corpora import TaggedCorpus, read_tagged, tagged_files

BIO = [
    "Ada B-PER|Lovelace I-PER|Alan B-PER|met O|in O|New B-LOC|York I-LOC|City I-LOC",
    "it O|rains O",
    "Paris B-LOC",
    "Ada B-PER|likes O|New B-LOC|York I-LOC|Rome B-LOC|Bo B-PER",
]
TAGS = [[token.split()[1] for token in sentence.split("|")] for sentence in BIO]


def write(path: Path, sentences: list[str]) -> None:
    path.write_text("\n\n".join(sentence.replace("|", "\n") for sentence in sentences) + "\n")


def corpus(folder: Path, **splits: list[str]) -> str:
    """A folder with these sentences, and Ada in Paris in the splits that are not given."""
    folder.mkdir(exist_ok=True)
    for name in ("train", "valid", "test"):
        write(folder / f"{name}.txt", splits.get(name, BIO[2:]))
    return str(folder)


def tags(texts: TaggedCorpus) -> list[list[str]]:
    return [sentence.tags for sentence in texts.train]


@pytest.mark.parametrize("target", SCHEMES)
@pytest.mark.parametrize("source", SCHEMES)
@pytest.mark.parametrize("named", [True, False])
def test_files_of_all_schemes_are_read_alike(
    source: Scheme, target: Scheme, named: bool, tmp_path: Path
) -> None:
    sentences = []
    for sentence, old in zip(BIO, TAGS, strict=True):
        words = [token.split()[0] for token in sentence.split("|")]
        new = convert(old, "BIO", source)
        sentences.append("|".join(f"{word} x {tag}" for word, tag in zip(words, new, strict=True)))
    folder = corpus(tmp_path, train=sentences, valid=sentences[2:], test=sentences[:1])
    texts = read_tagged(folder, target, file_scheme=source if named else None)
    assert tags(texts) == [convert(old, "BIO", target) for old in TAGS]
    assert [len(texts.train), len(texts.valid), len(texts.test)] == [4, 2, 1]
    assert texts.train[3].words == ["Ada", "likes", "New", "York", "Rome", "Bo"]
    assert texts.types == ["LOC", "PER"]


def test_columns_and_their_separator_are_chosen(tmp_path: Path) -> None:
    sentences = ["1\tNew York\tB-LOC\tx|2\tgrows\tO\ty"]
    folder = corpus(tmp_path, train=sentences, valid=sentences, test=sentences)
    texts = read_tagged(folder, "BIO", word_column=1, tag_column=2, separator="\t")
    assert texts.test[0].words == ["New York", "grows"]
    assert texts.test[0].tags == ["B-LOC", "O"]


def test_a_folder_may_hold_conllu_with_entities_in_misc(tmp_path: Path) -> None:
    rows = [("Ada", "PROPN", "NER=B-PER"), ("writes", "VERB", "_"), (".", "PUNCT", "NER=O")]
    text = "# sent_id = 1\n" + "".join(
        f"{n}\t{word}\t_\t{pos}\t_\t_\t_\t_\t_\t{misc}\n"
        for n, (word, pos, misc) in enumerate(rows, start=1)
    )
    for name in ("xx-ud-train.conllu", "xx-ud-dev.conllu", "xx-ud-test.conllu"):
        (tmp_path / name).write_text(text)
    texts = read_tagged(str(tmp_path), "BIO", tag_column="misc.NER")
    assert [each[:3] for each in texts.valid] == [(["Ada", "writes", "."], ["B-PER", "O", "O"], 2)]


def test_a_fault_is_told_with_its_line_past_lines_that_are_left_out(tmp_path: Path) -> None:
    rest = "\t".join("_" * 7)
    text = f"1-2\tdu\t{rest}\t_\n1\tde\t{rest}\t_\n1.1\tx\t{rest}\t_\n2\tle\t{rest}\tNER=I-A\n"
    for name in ("train.conllu", "dev.conllu", "test.conllu"):
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=r"train\.conllu, line 4: I-A follows O"):
        read_tagged(str(tmp_path), "BIO", file_scheme="BIO", tag_column="misc.NER")


def test_a_built_in_corpus_has_its_sentences(tmp_path: Path) -> None:
    train, valid, test = announcements()
    texts = read_tagged("announcements", "BIO")
    assert [texts.train, texts.valid, texts.test] == [train, valid, test]
    assert [each.words for each in read_tagged("announcements", "BILOU").test] == [
        each.words for each in test
    ]


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "valid.txt", "test.txt"),
        ("eng.train", "eng.testa", "eng.testb"),
        ("Train.conll", "Dev.conll", "TEST.conll"),
        ("de-train.conll.tsv", "de-dev.conll.tsv", "de-test.conll.tsv"),
        ("my_train.bio", "my_val.bio", "my_test.bio"),
    ],
)
def test_files_are_found_by_a_part_of_their_names(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in (*names, "README.md", "trainer.log", "contest.txt"):
        (tmp_path / name).touch()
    (tmp_path / "train").mkdir()
    found = tagged_files(str(tmp_path))
    assert {split: path.name for split, path in found.items()} == dict(
        zip(("train", "valid", "test"), names, strict=True)
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train.txt", "train.conll", "dev.txt", "test.txt"],
            "two files for train: train.conll and train.txt: name",
        ),
        (["dev.txt", "testa", "train", "test"], "two files for valid: dev.txt and testa"),
        (["dev.txt", "test.txt"], "has dev.txt, test.txt but lacks train: a tagged corpus is a"),
        ([], "has no file but lacks train, valid, test"),
        (["train-dev.txt", "test.txt"], "a file for train and valid at once: train-dev.txt"),
    ],
)
def test_a_folder_without_one_file_a_split_is_refused(
    names: list[str], message: str, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=message):
        tagged_files(str(tmp_path))


def test_a_corpus_that_is_not_there_or_for_another_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no tagged corpus 'nowhere': choose from announcements, c"
    ):
        read_tagged("nowhere", "BIO")
    with pytest.raises(DataError, match="ptb is a dataset for language modelling, not for tagging"):
        read_tagged("ptb", "BIO")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="no tagged corpus"):
        read_tagged(str(tmp_path / "file"), "BIO")


FAULTS = {
    "another number of columns": (
        "Ada x B-PER|met O",
        r"expected 3 .* line 1 of .*got 2 in line 2",
    ),
    "a tag of no scheme": (
        "a O|b X-PER|c O",
        r"valid.txt, line 2: 'X-PER' is no tag of any scheme",
    ),
    "a tag without its type": ("a O|b B-", r"valid.txt, line 2: 'B-' is no tag of any scheme"),
    "a type that training lacks": (
        "Paris B-LOC|in O|ACME B-ORG",
        r"valid.txt, line 3: no training tag has the type ORG, .*its types are LOC, PER",
    ),
}


@pytest.mark.parametrize("scheme", [None, "BIO"])
@pytest.mark.parametrize("fix", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_makes_no_sense_is_told_with_file_and_line(
    fault: str, fix: bool, scheme: Scheme | None, tmp_path: Path
) -> None:
    sentence, message = FAULTS[fault]
    folder = corpus(tmp_path, valid=[sentence])
    with pytest.raises(DataError, match=message) as caught:
        read_tagged(folder, "BILOU", file_scheme=scheme, fix=fix)
    assert "valid.txt" in str(caught.value)


BROKEN = ["Ada I-PER|Lovelace I-PER|met O|Bo B-PER", "in O|Paris I-LOC|Rome I-LOC|Ada I-PER"]


def test_a_broken_scheme_is_refused_with_its_first_line(tmp_path: Path) -> None:
    folder = corpus(tmp_path, train=[*BIO, BROKEN[1]])
    with pytest.raises(DataError, match=r"train.txt, line 23: I-LOC follows O: .*fix: true reads"):
        read_tagged(folder, "BILOU", file_scheme="BIO")
    with pytest.raises(DataError) as caught:
        read_tagged(folder, "BILOU", fix=True)
    lines = str(caught.value).splitlines()
    assert "fit no scheme" in lines[0]
    assert "(file_scheme)" in lines[0]
    assert [line.partition(" ")[0] for line in lines[1:]] == list(SCHEMES)
    assert lines[2].endswith("train.txt, line 23: I-LOC follows O: BIO begins an entity with B-LOC")
    assert "BIO is broken 2 times" in lines[2]


def test_a_broken_scheme_is_repaired_as_conlleval_reads_it_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = corpus(tmp_path, train=[*BIO, *BROKEN], test=BROKEN)
    with caplog.at_level(logging.WARNING):
        texts = read_tagged(folder, "BIO", file_scheme="BIO", fix=True)
    assert tags(texts) == [
        *TAGS,
        ["B-PER", "I-PER", "O", "B-PER"],
        ["O", "B-LOC", "I-LOC", "B-PER"],
    ]
    broken = sum(len(violations([t.split()[1] for t in s.split("|")], "BIO")) for s in BROKEN)
    assert broken == 3
    (record,) = caplog.records
    assert f"tags of {folder} break BIO, {2 * broken} in all" in record.getMessage()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        read_tagged(corpus(tmp_path), "BIO", fix=True)
    assert not caplog.records


def test_sentences_of_one_token_and_words_of_any_length_are_kept(tmp_path: Path) -> None:
    word = "x" * 10_000
    texts = read_tagged(corpus(tmp_path, train=["Paris B-LOC", f"{word} B-PER"]), "BILOU")
    assert [sentence.words for sentence in texts.train] == [["Paris"], [word]]
    assert tags(texts) == [["U-LOC"], ["U-PER"]]


@pytest.mark.parametrize("content", ["", "\n\n", "-DOCSTART- -X- O\n\n"])
def test_an_empty_file_is_refused(content: str, tmp_path: Path) -> None:
    folder = corpus(tmp_path)
    (tmp_path / "test.txt").write_text(content)
    with pytest.raises(DataError, match=r"test\.txt"):
        read_tagged(folder, "BIO")


def test_a_corpus_without_an_entity_is_refused(tmp_path: Path) -> None:
    nothing = ["a O|b O"]
    folder = corpus(tmp_path, train=nothing)
    with pytest.raises(DataError, match=r"train\.txt holds no entity: every tag is O"):
        read_tagged(folder, "BIO")
    folder = corpus(tmp_path, train=nothing, valid=nothing, test=nothing)
    for scheme in ("BIO", "labels"):
        with pytest.raises(
            DataError, match=r"no entity: every tag is O; if another column .* --data\.tag_column"
        ):
            read_tagged(folder, scheme)


POS = ["the DT|dog NN|ran VBD", "dogs NNS|ran VBD|. ."]


def test_tags_of_no_entities_form_are_labels_and_that_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = corpus(tmp_path, train=POS, valid=POS[1:], test=POS[:1])
    texts = read_tagged(folder, "BILOU")
    assert tags(texts) == [["DT", "NN", "VBD"], ["NNS", "VBD", "."]]
    assert (texts.types, texts.scheme) == ([".", "DT", "NN", "NNS", "VBD"], "labels")
    (record,) = caplog.records
    assert record.getMessage() == (
        f"Note: none of the 5 tags of {folder} (VBD, DT, NN, NNS, .) has the form of an entity's, "
        "as B-PER has: they are labels of words, scored by accuracy and macro F1 (scheme labels)."
    )
    caplog.clear()
    for scheme, file_scheme in (("labels", None), ("BIO", "labels"), ("labels", "labels")):
        assert read_tagged(folder, scheme, file_scheme=file_scheme) == texts
    assert not caplog.records  # who asks for labels need not be told


@pytest.mark.parametrize("scheme", ["BIO", "labels"])
def test_one_label_for_all_words_is_refused(tmp_path: Path, scheme: Scheme) -> None:
    # As the last column of Universal NER has, whose tags stand in the third.
    one = ["Ada B-PER _|met O _", "Paris B-LOC _"]
    with pytest.raises(
        DataError, match=r"train\.txt gives each word the label _.* --data\.tag_column$"
    ):
        read_tagged(corpus(tmp_path, train=one, valid=one, test=one), scheme)


def test_bare_letters_are_labels_and_o_is_one_of_them(tmp_path: Path) -> None:
    bare = ["a B|b I|c O", "d O|e B"]
    texts = read_tagged(corpus(tmp_path, train=bare, valid=bare, test=bare), "BILOU")
    assert (texts.types, texts.scheme) == (["B", "I", "O"], "labels")
    assert tags(texts) == [["B", "I", "O"], ["O", "B"]]


def test_entities_are_read_as_labels_where_that_is_asked(tmp_path: Path) -> None:
    folder = corpus(tmp_path, train=[*BIO, BROKEN[1]])
    for scheme, file_scheme in (("labels", None), ("BIO", "labels")):
        texts = read_tagged(folder, scheme, file_scheme=file_scheme)
        assert tags(texts) == [*TAGS, ["O", "I-LOC", "I-LOC", "I-PER"]]
        assert texts.types == ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
    with pytest.raises(ValueError, match=r"scheme labels leaves .* and file_scheme BIO reads ent"):
        read_tagged(folder, "labels", file_scheme="BIO")


def test_a_label_among_entities_is_refused_with_its_line_and_a_way_on(tmp_path: Path) -> None:
    folder = corpus(tmp_path, valid=["Paris B-LOC|in IN"])
    with pytest.raises(
        DataError,
        match=r"valid\.txt, line 2: 'IN' is no tag of any scheme: .* --data\.file_scheme labels ",
    ):
        read_tagged(folder, "BIO")


def test_an_unseen_type_is_refused_or_missed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sentences = ["Paris B-LOC|in O|ACME B-ORG|Inc I-ORG", "Jazz B-MISC", "Bo B-PER"]
    folder = corpus(tmp_path, test=sentences)
    with pytest.raises(DataError, match=r"test.txt, line 3: .* type ORG,.*--data.unseen_types mis"):
        read_tagged(folder, "BIO")
    texts = read_tagged(folder, "BILOU", unseen_types="missed")
    assert texts.types == ["LOC", "PER"]
    assert [sentence.tags for sentence in texts.test] == [
        ["U-LOC", "O", "B-ORG", "L-ORG"], ["U-MISC"], ["U-PER"]
    ]  # fmt: skip
    (record,) = caplog.records
    assert record.getMessage() == (
        f"Note: {tmp_path / 'test.txt'} has a type that no training tag has (MISC, ORG) on 3 of 6 "
        "words, in 2 of 3 sentences: they are scored as missed, and the loss leaves these words "
        "out, or with output crf the sentences."
    )
    with pytest.raises(ValueError, match="unseen_types error or missed, got 'skip'"):
        read_tagged(folder, "BIO", unseen_types="skip")  # type: ignore[arg-type]


def test_an_unseen_label_is_refused_or_missed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = corpus(tmp_path, train=POS, valid=["rats NNS|, ,"], test=POS)
    with pytest.raises(DataError, match=r"valid.txt, line 2: no training tag has the label ,, "):
        read_tagged(folder, "labels")
    assert read_tagged(folder, "labels", unseen_types="missed").valid[0].tags == ["NNS", ","]
    assert "has a label that no training tag has (,) on 1 of 2 words, in 1 of 1" in caplog.text


def test_a_known_corpus_has_its_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus(tmp_path, train=BIO)
    names = {"eng.train": "train.txt", "eng.testa": "valid.txt", "eng.testb": "test.txt"}
    files = {name: tmp_path / file for name, file in names.items()}
    monkeypatch.setattr(rnnkit.tagging.corpora.storage, "fetch", lambda name: files)
    with pytest.raises(
        DataError,
        match=r"train file of conll2003 is not the known one: expected 14,041 sentences with "
        r"23,499 entities, got 4 with 8",
    ):
        read_tagged("conll2003", "BILOU")
    counts = {"train": (4, 8), "valid": (2, 5), "test": (2, 5)}
    monkeypatch.setitem(rnnkit.tagging.corpora._KNOWN, "conll2003", counts)
    assert len(read_tagged("conll2003", "BILOU").train) == 4
    monkeypatch.setitem(rnnkit.tagging.corpora._KNOWN, "conll2003", {**counts, "test": (3, 5)})
    with pytest.raises(DataError, match=r"test file of conll2003 .*expected 3 .*, got 2 with 5"):
        read_tagged("conll2003", "BIO")


def test_another_column_of_a_known_corpus_has_its_sentences_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["EU NNP B-NP B-ORG|rejects VBZ B-VP O|German JJ B-NP B-MISC"]
    corpus(tmp_path, train=rows, valid=rows, test=rows)
    files = {name: tmp_path / f"{name}.txt" for name in ("train", "valid", "test")}
    monkeypatch.setattr(rnnkit.tagging.corpora.storage, "fetch", lambda name: files)
    counts = dict.fromkeys(files, (1, 2))
    monkeypatch.setitem(rnnkit.tagging.corpora._KNOWN, "conll2003", counts)
    assert read_tagged("conll2003", "BIO").types == ["MISC", "ORG"]
    assert read_tagged("conll2003", "BIO", tag_column=1).types == ["JJ", "NNP", "VBZ"]
    assert read_tagged("conll2003", "BIO", tag_column=2).types == ["NP", "VP"]
    assert read_tagged("conll2003", "labels").types == ["B-MISC", "B-ORG", "O"]
    monkeypatch.setitem(rnnkit.tagging.corpora._KNOWN, "conll2003", {**counts, "test": (3, 2)})
    with pytest.raises(DataError, match=r"test file .*: expected 3 sentences, got 1$"):
        read_tagged("conll2003", "BIO", tag_column=1)


@pytest.mark.data
def test_conll2003_has_the_counts_of_its_paper(real_data: Path) -> None:
    if not (real_data / "conll2003").is_dir():
        pytest.skip("RNNKIT_DATA_DIR has no conll2003")
    texts = read_tagged("conll2003", "BILOU")  # which checks the counts
    assert texts.types == ["LOC", "MISC", "ORG", "PER"]
    assert sum(len(sentence.words) for sentence in texts.train) == 203_621
