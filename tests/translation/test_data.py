import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule

from rnnkit.data.buckets import BatchLoader
from rnnkit.translation.data import (
    BEGIN,
    END,
    PADDING,
    UNKNOWN,
    Pairs,
    TranslationData,
    source_batch,
    tokenizers,
)
from tests.training.test_lightning_resume import Interruption, SaveAndInterrupt, trainer

NAMES = ("anna", "ben", "carla", "dora", "emil", "franz", "gerd")
FILLERS = ("", "und", "und dann", "und dann noch", "und dann noch ein mal")


def write_corpus(folder: Path, **texts: str) -> str:
    folder.mkdir(exist_ok=True)
    lines = [f"{name.title()} singt {filler}".strip() + "." for name in NAMES for filler in FILLERS]
    whole = {
        f"{split}.{language}": "".join(f"{line}\n" for line in lines[:count])
        for split, count in (("train", 35), ("valid", 7), ("test", 5))
        for language in ("de", "en")
    }
    for name, text in (whole | {k.replace("_", "."): v for k, v in texts.items()}).items():
        (folder / name).write_text(text.replace("singt", "sings") if name[-2:] == "en" else text)
    return str(folder)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    return write_corpus(tmp_path / "corpus")


def data(corpus: str, **arguments: Any) -> TranslationData:
    settings: dict[str, Any] = {"source": "de", "target": "en", "batch_tokens": 40}
    return TranslationData(corpus, **settings | {"eval_batch_size": 3} | arguments)


def test_sizes_of_the_vocabularies_are_there_before_training(corpus: str) -> None:
    module = data(corpus)
    assert module.source_vocabulary_size == len(module.source_tokenizer) == 4 + 7 + 6 + 1
    assert module.target_vocabulary_size == len(module.target_tokenizer)
    assert module.source_tokenizer.encode("singt sings")[1] == UNKNOWN
    assert module.target_tokenizer.encode("singt sings")[0] == UNKNOWN
    assert (module.source_language, module.target_language) == ("de", "en")


@pytest.mark.parametrize("level", ["word", "character", "bpe"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_batch_holds_ids_time_first_with_their_special_tokens(
    corpus: str, level: str, split: str
) -> None:
    module = data(corpus, level=level, bpe_size=280, batch_tokens=150)
    for batch in getattr(module, f"{split}_dataloader")():
        assert isinstance(batch, Pairs)
        (steps, size), (target_steps, target_size) = batch.source.shape, batch.target.shape
        assert size == target_size == len(batch.references)
        assert batch.source_lengths.shape == batch.target_lengths.shape == (size,)
        assert {tensor.dtype for tensor in batch[:4]} == {torch.int64}
        assert (steps, target_steps) == (
            int(batch.source_lengths.max()),
            int(batch.target_lengths.max()) + 1,
        )
        for row, (length, targets, reference) in enumerate(
            zip(batch.source_lengths, batch.target_lengths, batch.references, strict=True)
        ):
            source, target = batch.source[:, row].tolist(), batch.target[:, row].tolist()
            words = module.source_tokenizer.encode(reference.replace("sings", "singt"))
            assert source == [*words, END] + [PADDING] * (steps - int(length))
            assert target == [
                *(BEGIN, *module.target_tokenizer.encode(reference), END),
                *[PADDING] * (target_steps - 1 - int(targets)),
            ]
            assert module.target_tokenizer.decode(target) == reference


def test_training_batches_keep_to_the_budget_and_hold_every_pair_once(corpus: str) -> None:
    module = data(corpus, batch_tokens=24)
    loader = module.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) > 10
    assert max(max(b.source.numel(), b.target.numel()) for b in batches) == 24
    seen = sorted(line for batch in batches for line in batch.references)
    assert seen == sorted(Path(corpus, "train.en").read_text().splitlines())


@pytest.mark.parametrize(("split", "name"), [("val", "valid"), ("test", "test")])
def test_evaluation_keeps_the_order_and_every_line_of_the_file(
    corpus: str, split: str, name: str
) -> None:
    module = data(corpus, max_length=3)  # long pairs leave training only
    batches = list(getattr(module, f"{split}_dataloader")())
    assert max(len(batch.references) for batch in batches) <= 3
    references = [line for batch in batches for line in batch.references]
    assert references == Path(corpus, f"{name}.en").read_text().splitlines()


def test_an_empty_line_of_the_test_is_a_row_like_the_others(tmp_path: Path) -> None:
    path = write_corpus(tmp_path, test_de="Anna singt.\n\n", test_en="Anna sings.\nBen sings.\n")
    (batch,) = data(path).test_dataloader()
    assert batch.source[:, 1].tolist() == [END, *[PADDING] * 3]
    assert batch.source_lengths.tolist() == [4, 1]
    assert batch.references == ["Anna sings.", "Ben sings."]


def test_long_training_pairs_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_corpus(
        tmp_path, train_de="a b c\na b c d\na\n\nb\n", train_en="a\nb\na b c d\nc\nx y z\n"
    )
    with caplog.at_level(logging.WARNING):
        module = data(path, max_length=3)
    assert (module.empty_pairs, module.long_pairs) == (1, 2)
    assert "2 of 4 training pairs" in caplog.text
    seen = [line for batch in module.train_dataloader() for line in batch.references]
    assert sorted(seen) == ["a", "x y z"]
    assert data(path, max_length=4).long_pairs == 0
    parts = {split: f"{path}/{split}" for split in ("train", "valid", "test")}
    caplog.clear()
    TranslationData(source="de", target="en", max_length=3, **parts)
    assert f"2 of 4 training pairs of {path}/train have more" in caplog.text
    with pytest.raises(ValueError, match="all 35 training pairs have more than 2 tokens on a side"):
        data(write_corpus(tmp_path / "longer"), max_length=2)


def test_sources_and_references_are_the_lines_of_the_files(tmp_path: Path) -> None:
    texts = {"test_de": "Anna  singt\nX\n", "test_en": "Anna,  ÉTÉ \nY\n"}
    path = write_corpus(tmp_path, **texts)
    for lowercase in (False, True):
        module = data(path, lowercase=lowercase)
        (batch,) = module.test_dataloader()
        assert batch.references == ["Anna,  ÉTÉ ", "Y"]
        assert batch.sources == ["Anna  singt", "X"]
    assert not any(token != token.lower() for token in module.source_tokenizer.vocabulary.tokens)


def test_a_line_of_blanks_is_read_as_an_empty_one_at_every_level(tmp_path: Path) -> None:
    path = write_corpus(tmp_path, test_de=" \t\nAnna\n", test_en="a\nb\n")
    for level in ("word", "character", "bpe"):
        module = data(path, level=level, bpe_size=280, batch_tokens=150)
        (batch,) = module.test_dataloader()
        assert batch.source_lengths[0] == 1


def test_characters_of_a_line_are_tokens_that_come_back(corpus: str) -> None:
    module = data(corpus, level="character", batch_tokens=60)
    for batch in module.test_dataloader():
        assert batch.target_lengths.tolist() == [len(line) + 1 for line in batch.references]
        decoded = [module.target_tokenizer.decode(ids.tolist()) for ids in batch.target.t()]
        assert decoded == batch.references


def test_level_word_is_told_where_no_blanks_part_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_corpus(
        tmp_path, train_de="我们今天去公园。\n他喜欢吃苹果 OK。\n", train_en="a b\nc d\n"
    )
    data(path)
    assert caplog.text.count("without blanks between words") == 1
    assert "Note: de is written" in caplog.text
    caplog.clear()
    data(path, level="character")
    assert not caplog.text


@pytest.mark.parametrize(
    ("stage", "note"),
    [
        ("fit", "Note: 25.00% of the validation text's source tokens and 0.00% of its target "),
        ("validate", "Note: 25.00% of the validation text's source tokens and 0.00% of its target"),
        ("test", "Note: 40.00% of the test text's source tokens and 50.00% of its target tokens "),
        ("predict", None),
    ],
)
def test_the_share_of_unknown_tokens_is_told_for_the_text_that_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stage: str, note: str | None
) -> None:
    path = write_corpus(
        tmp_path,
        valid_de="Anna sings.\nBen\n", valid_en="Anna sings.\nBen\n",
        test_de="Qu Anna Qu.\nBen\n", test_en="Qu\nBen\n",
    )  # fmt: skip
    module = data(path)
    with caplog.at_level(logging.WARNING):
        module.setup(stage)
    assert [record.getMessage().startswith(note or "?") for record in caplog.records] == (
        [True] if note else []
    )
    if note:
        assert "are unknown to the model and read as <unk> (min_count 1)." in caplog.text
    caplog.clear()
    data(path, level="bpe", bpe_size=280, batch_tokens=150).setup(stage)
    assert not caplog.records


def test_vocabularies_come_from_the_training_text_alone(tmp_path: Path) -> None:
    path = write_corpus(tmp_path, test_de="Zebra zebra\n", test_en="Zebra zebra\n")
    (batch,) = data(path).test_dataloader()
    assert batch.source[:, 0].tolist() == [UNKNOWN, UNKNOWN, END]
    state = data(path, level="bpe", bpe_size=400).state_dict()
    assert state == data(write_corpus(tmp_path / "other"), level="bpe", bpe_size=400).state_dict()


def test_min_count_makes_rare_words_unknown(corpus: str) -> None:
    assert data(corpus, min_count=8).source_vocabulary_size == 4 + 5  # singt . und dann noch
    with pytest.raises(ValueError, match="min_count of 1 or more, got 0"):
        data(corpus, min_count=0)


def test_lines_to_translate_become_a_batch_with_a_row_each(corpus: str) -> None:
    tokenizer = data(corpus).source_tokenizer
    lines = ["Anna singt.", "", "Quark", "Anna"]
    source, lengths = source_batch(tokenizer.encode_lines(lines))
    anna = tokenizer.encode("Anna")
    assert source.t().tolist() == [
        [*tokenizer.encode("Anna singt."), END],
        [END, PADDING, PADDING, PADDING],
        [UNKNOWN, END, PADDING, PADDING],
        [*anna, END, PADDING, PADDING],
    ]
    assert lengths.tolist() == [4, 1, 2, 2]
    assert source.dtype == lengths.dtype == torch.int64
    with pytest.raises(ValueError, match="1 line or more, got 0"):
        source_batch([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_tokens": 6}, "longest pair has 10 tokens .* batch_tokens is 6"),
        ({"eval_batch_size": 0}, "1 or more, got 0"),
        ({"max_length": 0}, "max_length of 1 or more, got 0"),
        ({"level": "bpe", "bpe_size": 9}, "260 or more .*, got 9"),
        ({"level": "words"}, "level word, character, bpe, got 'words'"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(
    corpus: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        data(corpus, **arguments)


@pytest.mark.parametrize("level", ["word", "character", "bpe"])
def test_state_is_plain_data_from_which_tokenizers_can_be_made(corpus: str, level: str) -> None:
    module = data(corpus, level=level, bpe_size=280, lowercase=True)
    state = json.loads(json.dumps(module.state_dict()))
    assert (state["source_language"], state["target_language"]) == ("de", "en")
    data(corpus, level=level, bpe_size=280, lowercase=True).load_state_dict(state)
    source, target = tokenizers(state)
    assert source.encode("ANNA singt") == module.source_tokenizer.encode("anna singt")
    assert target.decode(module.target_tokenizer.encode("Ben sings.")) == "ben sings."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_count": 8}, "source vocabulary .* 18 and 9 tokens, the same up to id 8"),
        ({"level": "bpe"}, "level word and bpe"),
        ({"lowercase": True}, "lowercase False and True"),
        (
            {"source": "en", "target": "de"},
            r"source vocabulary \(de to en\) is not that of corpus .* \(en to de\): 18 and 18 tok",
        ),
    ],
)
def test_the_state_of_other_vocabularies_is_refused(
    corpus: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        data(corpus, **arguments, batch_tokens=150).load_state_dict(data(corpus).state_dict())


def test_the_state_of_another_target_vocabulary_is_refused(corpus: str, tmp_path: Path) -> None:
    other = write_corpus(tmp_path / "other", train_en="Anna sings.\n" * 35)
    with pytest.raises(ValueError, match=r"target vocabulary .* 7 and 18 tokens"):
        data(corpus).load_state_dict(data(other).state_dict())


def test_devices_share_every_batch(corpus: str) -> None:
    parts = []
    for rank in range(2):
        part = data(corpus, eval_batch_size=4)
        part.trainer = SimpleNamespace(
            global_rank=rank,
            world_size=2,
            limit_train_batches=1.0,
            fit_loop=trainer().fit_loop,
        )
        parts.append(part)
    for split in ("train", "val", "test"):
        loaders = [
            getattr(module, f"{split}_dataloader")()
            for module in (data(corpus, eval_batch_size=4), *parts)
        ]
        for whole, *shares in zip(*loaders, strict=True):
            assert sorted(whole.references) == sorted(s for x in shares for s in x.references)
            assert sum(int(x.target_lengths.sum()) for x in shares) == whole.target_lengths.sum()


def test_only_the_source_lengths_stay_on_the_cpu(corpus: str) -> None:
    module = data(corpus)
    batch = next(iter(module.train_dataloader()))
    moved = module.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert [tensor.device.type for tensor in moved[:4]] == ["meta", "cpu", "meta", "meta"]
    assert moved.references == batch.references


@pytest.mark.parametrize(("corpus", "largest"), [("dates", 11), ("numbers", 7)])
def test_built_in_corpora_train_without_any_file(cache: Path, corpus: str, largest: int) -> None:
    module = TranslationData(corpus)
    batch = next(iter(module.train_dataloader()))
    assert int(batch.target_lengths.max()) <= largest  # one token a digit, and the end
    assert module.target_vocabulary_size <= 4 + 20  # digits with and without a joiner, hyphen
    for loader in (module.val_dataloader(), module.test_dataloader()):
        for held_out in loader:
            assert not (held_out.source == UNKNOWN).any()
            assert not (held_out.target == UNKNOWN).any()
            decoded = [module.target_tokenizer.decode(ids.tolist()) for ids in held_out.target.t()]
            assert decoded == held_out.references
    assert not cache.exists()


# With Lightning -----------------------------------------------------------------------------


class Recorder(LightningModule):
    """Keeps the references of every batch that it trains on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, tuple[str, ...]]] = []

    def training_step(self, batch: Pairs, batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, tuple(batch.references)))
        return (self.weight * batch.target_lengths.sum()).sum()

    def validation_step(self, batch: Pairs, batch_idx: int) -> None:
        assert isinstance(batch, Pairs)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


@pytest.mark.training
@pytest.mark.parametrize("options", [{}, {"limit_train_batches": 2}], ids=["whole", "limited"])
@pytest.mark.parametrize(
    ("hook", "steps"),
    [
        ("on_train_batch_end", 1),
        ("on_train_batch_end", "epoch"),
        ("on_train_batch_end", "epoch + 1"),
        ("on_train_epoch_end", "epoch"),
        ("on_validation_end", "epoch"),
    ],
)
def test_an_interrupted_run_goes_on_with_the_next_batch(
    corpus: str, tmp_path: Path, hook: str, steps: int | str, options: dict[str, int]
) -> None:
    unbroken = Recorder()
    trainer(**options).fit(unbroken, data(corpus))
    epoch = options.get("limit_train_batches", len(data(corpus).train_dataloader()))
    assert len(unbroken.seen) == 3 * epoch
    assert len(set(unbroken.seen)) == len(unbroken.seen)
    assert unbroken.seen[0][1] != unbroken.seen[epoch][1]
    path = tmp_path / "interrupted.ckpt"
    stop = {"epoch": epoch, "epoch + 1": epoch + 1}.get(str(steps), steps)
    first, second = Recorder(), Recorder()
    with pytest.raises(Interruption):
        trainer(SaveAndInterrupt(path, hook, int(stop)), **options).fit(first, data(corpus))
    resumed = trainer(**options)
    resumed.fit(second, data(corpus), ckpt_path=path, weights_only=True)
    assert first.seen + second.seen == unbroken.seen
    assert isinstance(resumed.train_dataloader, BatchLoader)  # Lightning put no sampler in


@pytest.mark.training
def test_a_checkpoint_of_other_vocabularies_is_refused(corpus: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    first = trainer(limit_train_batches=1)
    first.fit(Recorder(), data(corpus))
    first.save_checkpoint(path)
    with pytest.raises(ValueError, match=r"source vocabulary .* 18 and 9 tokens"):
        trainer().validate(
            Recorder(), datamodule=data(corpus, min_count=8), ckpt_path=path, weights_only=True
        )


@pytest.mark.data
def test_multi30k_keeps_its_vocabulary_sizes_and_number_of_batches(real_data: Path) -> None:
    if not (real_data / "multi30k").is_dir():
        pytest.skip("RNNKIT_DATA_DIR holds no multi30k")
    module = TranslationData("multi30k", lowercase=True, min_count=2)
    assert (module.source_vocabulary_size, module.target_vocabulary_size) == (7_895, 5_910)
    assert module.long_pairs == module.empty_pairs == 0
    batches = list(module.train_dataloader())
    assert len(batches) == 116
    assert max(max(b.source.numel(), b.target.numel()) for b in batches) <= 4000
    assert sum(len(b.references) for b in batches) == 29_000
    assert sum(len(b.references) for b in module.test_dataloader()) == 1_000
