"""TaggingData: batches of tagged sentences, and what a checkpoint keeps of them."""

import pickle
from collections import Counter
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]

from rnnkit.cli import main
from rnnkit.data.buckets import BatchLoader, SentenceBuckets
from rnnkit.data.registry import DataError
from rnnkit.data.schemes import tag_names
from rnnkit.tagging.data import UNSEEN, TaggedSentences, TaggingData
from rnnkit.tagging.words import UNKNOWN_ID
from rnnkit.training.shipped import path_of

NAMES = {"PER": ["Ada", "Alan", "Bo"], "LOC": ["Paris", "New York", "Rome"]}


def sentences(number: int, seed: int) -> list[str]:
    """Names between words of lower case, in BIO."""
    random = Random(seed)
    made = []
    for _ in range(number):
        rows = [
            f"{random.choice(['the', 'a', 'sees', 'in'])} O" for _ in range(random.randint(0, 9))
        ]
        kind = random.choice(sorted(NAMES))
        first, *rest = random.choice(NAMES[kind]).split()
        rows += [f"{first} B-{kind}", *(f"{word} I-{kind}" for word in rest)]
        made.append("\n".join(rows))
    return made


def write(folder: Path, **splits: list[str]) -> str:
    folder.mkdir(exist_ok=True)
    for seed, (name, number) in enumerate((("train", 41), ("valid", 7), ("test", 5))):
        text = splits.get(name, sentences(number, seed))
        (folder / f"{name}.txt").write_text("\n\n".join(text) + "\n")
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("corpus"))


def make(folder: str, **changes: Any) -> TaggingData:
    return TaggingData(folder, **{"batch_size": 8, "eval_batch_size": 3, **changes})


def read(batch: TaggedSentences, data: TaggingData) -> list[list[tuple[str, str]]]:
    """Words, by their characters, and tags of the sentences of a batch."""
    inside = batch.sentences
    characters = data.encoder.characters
    found = []
    for b, length in enumerate(inside.lengths.tolist()):
        columns = inside.spelling[:length, b].tolist()
        words = [
            "".join(characters.decode(inside.characters[: inside.character_lengths[u], u]))
            for u in columns
        ]
        tags = [data.tags[i] for i in batch.target[:length, b].tolist()]
        assert batch.target[length:, b].eq(0).all()
        assert tags == batch.references[b]
        found.append(list(zip(words, tags, strict=True)))
    return found


def of_file(folder: str, name: str) -> list[list[tuple[str, str]]]:
    blocks = (Path(folder) / f"{name}.txt").read_text().strip().split("\n\n")
    return [[tuple(row.split()) for row in block.split("\n")] for block in blocks]  # type: ignore[misc]


def test_an_epoch_has_every_training_sentence_once_with_its_tags(folder: str) -> None:
    data = make(folder, scheme="BIO")
    loader = data.train_dataloader()
    expected = Counter(map(tuple, of_file(folder, "train")))
    for _ in range(2):
        batches = [read(batch, data) for batch in loader]
        assert len(batches) == len(loader) == 6
        assert max(map(len, batches)) <= 8
        assert Counter(tuple(sentence) for batch in batches for sentence in batch) == expected


def test_validation_and_test_keep_the_order_of_their_files(folder: str) -> None:
    data = make(folder, scheme="BIO")
    for name, loader in (("valid", data.val_dataloader()), ("test", data.test_dataloader())):
        found = [sentence for batch in loader for sentence in read(batch, data)]
        assert found == of_file(folder, name)


def test_tags_are_those_of_the_models_scheme(folder: str) -> None:
    data = make(folder, scheme="BIOES")
    assert data.tags == tag_names(["LOC", "PER"], "BIOES")
    written = {tag for batch in data.train_dataloader() for row in batch.references for tag in row}
    assert written == {"O", "S-PER", "S-LOC", "B-LOC", "E-LOC"}


def test_words_that_occur_once_are_marked(tmp_path: Path) -> None:
    text = ["Ada B-PER\nmet O\nPARIS O\n1843 O", "ada O\nParis B-LOC\nso O\n1990 O"]
    data = make(write(tmp_path, train=text, valid=text, test=text))
    (batch,) = data.train_dataloader()
    rare = {
        word
        for b, sentence in enumerate(read(batch, data))
        for t, (word, _) in enumerate(sentence)
        if batch.rare[t, b]
    }
    assert rare == {"met", "so"}  # the others once in each case, or with each digit
    assert batch.rare.dtype == torch.bool
    data = make(write(tmp_path, train=[*text, "met O"], valid=text, test=text), min_count=2)
    words = torch.cat([batch.sentences.words.flatten() for batch in data.train_dataloader()])
    assert int((words == UNKNOWN_ID).sum()) == 1


def test_short_sentences_and_long_words_are_in_the_batches(tmp_path: Path) -> None:
    word = "y" * 10_000
    text = ["Paris B-LOC", f"{word} B-PER\nsleeps O"]
    data = make(write(tmp_path, train=text, valid=text, test=text))
    (batch,) = data.test_dataloader()
    assert batch.references == [["U-LOC"], ["U-PER", "O"]]
    assert batch.sentences.lengths.tolist() == [1, 2]
    assert batch.sentences.character_lengths.max() == 40
    assert len(batch.sentences.characters) == 40


def test_vectors_belong_to_their_words_and_make_further_words_known(
    folder: str, tmp_path: Path
) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text("Rome 1 2\nzebra 3 4\n1990 5 6\n2000 7 8\nrome 9 9\n<unk> 0.5 0.25\n")
    data = make(folder, vectors=str(path))
    assert data.vectors is not None
    ids, rows = data.vectors
    words = data.encoder.words
    assert words.decode(ids) == ["rome", "zebra", "0000", "<unk>"]
    assert rows.tolist() == [[1, 2], [3, 4], [5, 6], [0.5, 0.25]]
    assert data.vocabulary_size == len(make(folder).encoder.words) + 2
    assert words.index("zebra") > UNKNOWN_ID
    cased = make(folder, vectors=str(path), lowercase=False, normalize_digits=False).vectors
    assert cased is not None
    assert cased[1].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 9], [0.5, 0.25]]
    limited = make(folder, vectors=str(path), vectors_limit=2).vectors
    assert limited is not None
    assert len(limited[0]) == 2
    assert make(folder).vectors is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "expected a batch size of 1 or more, got 0"),
        ({"eval_batch_size": 0}, "1 or more, got 0"),
        ({"min_count": 0}, "min_count of 1 or more, got 0"),
        ({"max_word_length": 1}, "max_word_length of 2 or more, got 1"),
        ({"vectors": "nowhere.txt"}, "nowhere.txt"),
        ({"scheme": "IOB"}, "expected a scheme of IOB1, BIO, BILOU, BIOES, got 'IOB'"),
    ],
)
def test_a_bad_argument_is_told_before_training(
    folder: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, DataError), match=message):
        make(folder, **changes)


def test_what_a_checkpoint_keeps_is_plain_and_fits_the_same_data_only(
    folder: str, tmp_path: Path
) -> None:
    data = make(folder)
    torch.save(data.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    make(folder).load_state_dict(state)
    for changes, message in (
        ({"scheme": "BIOES"}, r"scheme BILOU and BIOES; use the corpus, scheme"),
        ({"min_count": 30}, r"words: \d+ and \d+ tokens"),
        ({"max_word_length": 9}, "max_word_length 40 and 9"),
    ):
        with pytest.raises(ValueError, match=message):
            make(folder, **changes).load_state_dict(state)
    text = [row.replace("-LOC", "-GPE") for row in sentences(41, 0)]
    other = write(tmp_path / "other", train=text, valid=text, test=text)
    with pytest.raises(ValueError, match=r"tags O, B-LOC, .* and O, B-GPE"):
        make(other).load_state_dict(state)
    bio = make(folder, scheme="BIO").state_dict()
    with pytest.raises(ValueError, match="scheme BIO and IOB1"):  # whose tags are the same
        make(folder, scheme="IOB1").load_state_dict(bio)


def test_the_lengths_stay_on_the_cpu_and_all_else_moves(folder: str) -> None:
    data = make(folder)
    batch = next(iter(data.val_dataloader()))
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    inside = moved.sentences
    parts = (moved.target, moved.rare, inside.words, inside.casing, inside.characters)
    assert {part.device.type for part in parts} == {"meta"}
    assert inside.lengths.device.type == inside.character_lengths.device.type == "cpu"
    assert moved.references == batch.references


def test_data_can_be_sent_to_another_process(folder: str) -> None:
    data = make(folder)
    sent = pickle.loads(pickle.dumps(data))
    for one, other in zip(sent.train_dataloader(), data.train_dataloader(), strict=True):
        assert torch.equal(one.sentences.words, other.sentences.words)
        assert torch.equal(one.target, other.target)


def test_buckets_of_sentences_are_full_and_of_similar_length() -> None:
    random = Random(0)
    lengths = [random.randint(1, 60) for _ in range(1000)]
    buckets = SentenceBuckets(lengths, 16, seed=3)
    drawn = buckets.epoch(0)
    assert len(drawn) == len(buckets) == 63
    assert sorted(i for batch in drawn for i in batch) == list(range(1000))
    assert {len(batch) for batch in drawn} <= {13, 14, 15, 16}
    padding = sum(len(b) * max(lengths[i] for i in b) for b in drawn) / sum(lengths) - 1
    assert padding < 0.1
    assert drawn == SentenceBuckets(lengths, 16, seed=3).epoch(0)
    assert drawn != buckets.epoch(1)
    assert drawn != SentenceBuckets(lengths, 16, seed=4).epoch(0)
    with pytest.raises(ValueError, match="1 sentence or more, got 0"):
        SentenceBuckets([], 16)
    with pytest.raises(ValueError, match="batch size of 1 or more, got 0"):
        SentenceBuckets(lengths, 0)


def trainer(rank: int = 0, limit: int | float = 1.0, processed: int = 0) -> Any:
    progress = SimpleNamespace(current=SimpleNamespace(processed=processed))
    return SimpleNamespace(
        global_rank=rank, world_size=2, limit_train_batches=limit,
        fit_loop=SimpleNamespace(epoch_progress=progress),
    )  # fmt: skip


def test_a_trainers_processes_share_the_batches_and_go_on_from_its_epoch() -> None:
    buckets = SentenceBuckets([3] * 40, 8)
    shares = [
        list(BatchLoader.for_trainer(buckets, list, trainer(rank, processed=2), True))
        for rank in (0, 1)
    ]
    for whole, first, second in zip(buckets.epoch(2), *shares, strict=True):
        assert (first, second) == (whole[::2], whole[1::2])
    assert list(BatchLoader.for_trainer(buckets, list, None, True)) == buckets.epoch(0)
    others = BatchLoader.for_trainer(buckets, list, trainer(1, processed=2), False)
    assert list(others) == [batch[1::2] for batch in buckets.epoch(0)]  # no epochs of training


@pytest.mark.parametrize(("limit", "batches"), [(2, 2), (0.5, 2), (1.0, 5), (9, 5)])
def test_an_epoch_ends_where_the_trainer_ends_it(limit: int | float, batches: int) -> None:
    loader = BatchLoader.for_trainer(SentenceBuckets([3] * 40, 8), list, trainer(0, limit), True)
    iterator = iter(loader)
    for _ in range(batches - 1):
        next(iterator)
    assert loader.state_dict()["epoch"] == 0
    next(iterator)
    state = loader.state_dict()
    assert (state["epoch"], state["position"], state["batches"]) == (1, 0, 5)


FIT = [
    *("fit", "-c", "tagging/announcements", "--trainer.fast_dev_run", "1"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--model.hidden_size", "8", "--model.embedding_size", "8", "--data.corpus"),
]


def table(folder: Path, text: str) -> str:
    """A folder of three files with the same text."""
    folder.mkdir()
    for name in ("train", "valid", "test"):
        (folder / f"{name}.txt").write_text(text)
    return str(folder)


@pytest.mark.training
def test_options_for_columns_are_taken_as_a_shell_hands_them_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    tabs = table(tmp_path / "tabs", "New York\tB-LOC\nin\tO\n")
    assert main([*FIT, tabs, "--data.separator", r"\t"]) == 0
    assert "Note:" not in caplog.text
    named = table(tmp_path / "named", "no\tstring\tner\n7\tAda\tB-PER\n8\tNew York\tO\n")
    columns = ("--data.word_column", "string", "--data.tag_column", "ner")
    assert main([*FIT, named, *columns, "--data.sentence_column", "no"]) == 0
    assert "string names the tokens, ner the tags, and no begins the sentences" in caplog.text
    assert main([*FIT, tabs, "--data.tag_column", "null"]) == 1
    assert (
        "tag_column is null, and without tags there is nothing to learn" in capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["tagging/announcements", "tagging/conll2003", "tagging/pos"])
def test_every_configuration_of_taggers_reads_the_words_of_conllu(
    tmp_path: Path, name: str
) -> None:
    for part in ("train", "valid", "test"):
        rows = [f"{id_}{6 * chr(9)}\n" for id_ in ("1\tdogs\tdog\tNOUN", "2\trun\trun\tVERB")]
        (tmp_path / f"{part}.conllu").write_text("".join(rows))
    arguments = yaml.safe_load(Path(path_of(name)).read_text())["data"]["init_args"]
    data = TaggingData(**arguments | {"corpus": str(tmp_path), "tag_column": "upos"})
    assert data.encoder.words.tokens[2:] == ("dogs", "run")


def test_a_tag_that_no_training_sentence_has_keeps_its_name_and_has_no_id(tmp_path: Path) -> None:
    text = ["in O\nACME U-ORG", "Ada U-PER"]
    folder = write(tmp_path, train=["a O\nBo U-PER"], valid=text, test=text)
    data = make(folder, unseen_types="missed")
    assert data.tags == tag_names(["PER"], "BILOU")
    (batch,) = data.val_dataloader()
    assert batch.references == [["O", "U-ORG"], ["U-PER"]]
    assert batch.target.t().tolist() == [[0, UNSEEN], [data.tags.index("U-PER"), 0]]


def test_labels_are_the_tags_whatever_the_scheme(tmp_path: Path) -> None:
    text = ["the DT\ndog NN", "runs VBZ"]
    data = make(write(tmp_path, train=text, valid=text, test=text))
    assert (data.scheme, data.tags) == ("labels", ["DT", "NN", "VBZ"])
    (batch,) = data.test_dataloader()
    assert batch.target.t().tolist() == [[0, 1], [2, 0]]
    with pytest.raises(ValueError, match="scheme labels and BILOU"):
        make(write(tmp_path / "names")).load_state_dict(data.state_dict())
