import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rnnkit.data.registry import DataError
from rnnkit.language_modeling.data import LanguageModelingData, Window
from rnnkit.language_modeling.windows import IGNORED


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text(f"the {split} cat sat\non the mat\n" * 5)
    return str(tmp_path)


def data(corpus: str, **arguments: Any) -> LanguageModelingData:
    return LanguageModelingData(corpus, **{"batch_size": 2, "eval_batch_size": 2} | arguments)


def test_vocabulary_and_its_size_are_there_before_training(corpus: str) -> None:
    module = data(corpus)
    assert module.vocabulary_size == len(module.vocabulary) == 8
    assert module.vocabulary.decode([module.start_index]) == ["<eos>"]
    assert module.vocabulary.decode(module.train_tokens[:5]) == [
        "the",
        "train",
        "cat",
        "sat",
        "<eos>",
    ]


def test_words_of_the_other_texts_alone_are_unknown(corpus: str) -> None:
    module = data(corpus)
    assert module.vocabulary.decode(module.test_tokens[:3]) == ["the", "<unk>", "cat"]


def test_the_share_of_unknown_tokens_of_each_text_is_told_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = {"train": "a b\n" * 5 + "a c\n", "valid": "a b\n" * 5, "test": "a z\n" * 5}
    for split, text in texts.items():
        (tmp_path / f"{split}.txt").write_text(text)
    with caplog.at_level(logging.WARNING):
        module = data(str(tmp_path), min_count=2)
    assert module.unknown_shares == {"train": 1 / 18, "valid": 0.0, "test": 1 / 3}
    (record,) = caplog.records
    expected = f"<unk> stands for in {tmp_path}: 5.6 % of train, 33.3 % of test."
    assert expected in record.getMessage()


def test_unknown_words_that_a_text_has_itself_count_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("a <unk>\n" * 5)
    with caplog.at_level(logging.WARNING):
        assert data(str(tmp_path)).unknown_shares["test"] == 1 / 3
    assert "33.3 % of valid," in caplog.text


def test_nothing_is_said_where_no_token_is_unknown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("a b\n" * 5)
    with caplog.at_level(logging.WARNING):
        for level in ("word", "character"):
            assert not any(data(str(tmp_path), level=level).unknown_shares.values())
    assert not caplog.records


def test_a_batch_is_a_window_of_time_major_ids(corpus: str) -> None:
    window = next(iter(data(corpus, window=7).train_dataloader()))
    assert isinstance(window, Window)
    assert window.position == 0
    assert window.input.shape == window.target.shape == (7, 2)
    assert torch.equal(window.target[:-1], window.input[1:])


def test_the_first_input_of_an_evaluation_is_the_sentence_end(corpus: str) -> None:
    module = data(corpus)
    window = next(iter(module.val_dataloader()[0]))
    assert int(window.input[0, 0]) == module.start_index
    assert int(window.target[0, 0]) == int(module.valid_tokens[0])


def test_evaluation_has_its_own_batch_size_and_window(corpus: str) -> None:
    module = data(corpus, window=4, eval_batch_size=3, eval_window=5)
    assert next(iter(module.train_dataloader())).input.shape == (4, 2)
    assert next(iter(module.val_dataloader()[0])).input.shape == (5, 3)
    assert next(iter(module.test_dataloader())).input.shape == (5, 3)
    assert next(iter(data(corpus, window=4).val_dataloader()[0])).input.shape == (4, 2)


def test_characters_start_after_a_line_end(corpus: str) -> None:
    module = LanguageModelingData(corpus, level="character", batch_size=2)
    assert module.vocabulary.decode([module.start_index]) == ["\n"]
    assert "".join(module.vocabulary.decode(module.train_tokens[:9])) == "the train"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 24}, "batch_size 24 needs 48 tokens or more, 2 a stream, the text has 45"),
        ({"eval_batch_size": 46}, "batch_size 46 needs .* the text has 45"),
        ({"batch_size": 0}, "1 or more, got 0"),
        ({"eval_batch_size": -1}, "1 or more, got -1"),
        ({"window": 0}, "1 step or more, got 0"),
        ({"eval_window": 0}, "1 step or more, got 0"),
        ({"min_count": 0}, "1 or more, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused_at_once(
    corpus: str, arguments: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        data(corpus, **arguments)


def test_a_missing_corpus_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no corpus"):
        LanguageModelingData(str(tmp_path / "nowhere"))


def test_state_is_plain_data_and_fits_the_same_data(corpus: str) -> None:
    state = data(corpus).state_dict()
    assert state == {
        "vocabulary": list(data(corpus).vocabulary.tokens),
        "level": "word",
        "lowercase": False,
        "split_marks": False,
    }
    data(corpus).load_state_dict(state)


def test_the_state_of_another_vocabulary_is_refused(corpus: str) -> None:
    state = data(corpus).state_dict()
    del state["vocabulary"][1]
    with pytest.raises(ValueError, match="7 and 8 tokens, first difference at id 1"):
        data(corpus).load_state_dict(state)


def test_devices_share_the_streams_and_score_every_token_once(corpus: str) -> None:
    whole = data(corpus, batch_size=4, eval_batch_size=4)
    parts = []
    for rank in range(2):
        part = data(corpus, batch_size=4, eval_batch_size=4)
        part.trainer = SimpleNamespace(global_rank=rank, world_size=2, limit_train_batches=1.0)
        parts.append(part)
    for split in ("train", "val", "test"):
        loaders = [getattr(module, f"{split}_dataloader")() for module in (whole, *parts)]
        if split == "val":
            loaders = [validation for (validation,) in loaders]
        for all_streams, *shares in zip(*loaders, strict=True):
            assert torch.equal(all_streams.input, torch.cat([s.input for s in shares], dim=1))
            assert torch.equal(all_streams.target, torch.cat([s.target for s in shares], dim=1))


def test_further_validation_texts_come_after_the_validation_text(corpus: str) -> None:
    module = data(corpus, also_validate_on=["train", "test"])
    assert module.validation_stages == ["val", "train_eval", "test"]
    texts = (module.valid_tokens, module.train_tokens, module.test_tokens)
    for loader, text in zip(module.val_dataloader(), texts, strict=True):
        targets = torch.cat([window.target for window in loader]).t().flatten()
        assert torch.equal(targets[targets != IGNORED], text)


def test_at_most_80_000_training_tokens_are_scored_as_a_validation_text(tmp_path: Path) -> None:
    for name, count in (("train", 81_000), ("valid", 60), ("test", 60)):
        (tmp_path / f"{name}.txt").write_text("a b " * (count // 2))
    module = data(str(tmp_path), also_validate_on=["train"])
    _, loader = module.val_dataloader()
    assert sum(int((window.target != IGNORED).sum()) for window in loader) == 80_000


def test_python_docs_train_without_any_file(cache: Path) -> None:
    module = LanguageModelingData(batch_size=16, window=32)
    assert module.vocabulary_size > 1000
    assert next(iter(module.train_dataloader())).input.shape == (32, 16)
    assert not cache.exists()
