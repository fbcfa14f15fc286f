"""TranslationData: pairs of lines as padded batches of similar length."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rnnkit.data.buckets import Batches, BatchLoader, InOrder, TokenBuckets
from rnnkit.data.fingerprint import fingerprint
from rnnkit.data.splits import called, named_files
from rnnkit.metrics.scripts import count_without_blanks
from rnnkit.screen.terminal import visible
from rnnkit.translation.corpora import read_parallel
from rnnkit.translation.pairs import Pair
from rnnkit.translation.tokenizers import (
    LineTokenizer,
    difference,
    encode_lines,
    from_state_dict,
    train_tokenizer,
)
from rnnkit.translation.words import BEGIN, END, PADDING, UNKNOWN, Level

__all__ = [
    "BEGIN",
    "END",
    "PADDING",
    "UNKNOWN",
    "Pairs",
    "TranslationData",
    "source_batch",
    "tokenizers",
]

_log = logging.getLogger(__name__)


class Pairs(NamedTuple):
    """One batch of translation, time first.

    Attributes:
        source: Source ids, int64 (S, B): the tokens and `END`, then `PADDING`.
        source_lengths: Their numbers with `END`, int64 (B,), at least 1; they stay on the CPU.
        target: Target ids, int64 (T, B): `BEGIN`, the tokens and `END`, then `PADDING`.
        target_lengths: Number of targets of each pair, int64 (B,): the tokens and `END`.
        references: The B target lines as the file has them, upper case and all.
        sources: The B source lines as the file has them.
    """

    source: Tensor
    source_lengths: Tensor
    target: Tensor
    target_lengths: Tensor
    references: list[str]
    sources: list[str]


def source_batch(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and lengths of B lines to translate, as in `Pairs`.

    Args:
        rows: Ids of each line, without special ones; a line without any becomes `END` alone.

    Returns:
        int64 (S, B) and (B,).

    Raises:
        ValueError: There is no line.
    """
    if not rows:
        raise ValueError("expected 1 line or more, got 0")
    return _pad([[*ids, END] for ids in rows])


def _pad(rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    padded = pad_sequence([torch.tensor(row) for row in rows], padding_value=PADDING)
    return padded, torch.tensor([len(row) for row in rows])


def tokenizers(state: Mapping[str, Any]) -> tuple[LineTokenizer, LineTokenizer]:
    """Source and target tokenizer of a checkpoint, from the state of its `TranslationData`."""
    return from_state_dict(state["source_tokenizer"]), from_state_dict(state["target_tokenizer"])


class _Split:
    """Pairs of a split, and their ids with special tokens."""

    def __init__(self, pairs: list[Pair], source: LineTokenizer, target: LineTokenizer) -> None:
        self.pairs = pairs
        self.sources = [[*ids, END] for ids in encode_lines(source, [line for line, _ in pairs])]
        self.targets = [
            [BEGIN, *ids, END] for ids in encode_lines(target, [line for _, line in pairs])
        ]

    def leave_out_long(self, max_length: int) -> int:
        """Leave out the pairs with more tokens on a side; returns how many."""
        kept = [
            i
            for i, (source, target) in enumerate(zip(self.sources, self.targets, strict=True))
            if len(source) - 1 <= max_length and len(target) - 2 <= max_length
        ]
        long_pairs = len(self.sources) - len(kept)
        self.sources = [self.sources[i] for i in kept]
        self.targets = [self.targets[i] for i in kept]
        self.pairs = [self.pairs[i] for i in kept]
        return long_pairs

    def unknown(self) -> tuple[float, float]:
        """Shares of source and target tokens, without begin and end, that are unknown."""
        read = sum(map(len, self.sources)) - len(self.sources)
        written = sum(map(len, self.targets)) - 2 * len(self.targets)
        counts = (sum(ids.count(UNKNOWN) for ids in side) for side in (self.sources, self.targets))
        return next(counts) / max(1, read), next(counts) / max(1, written)

    def collate(self, indices: list[int]) -> Pairs:
        """The batch of some pairs."""
        source, source_lengths = _pad([self.sources[i] for i in indices])
        target, target_lengths = _pad([self.targets[i] for i in indices])
        sources, references = zip(*(self.pairs[i] for i in indices), strict=True)
        return Pairs(
            source, source_lengths, target, target_lengths - 1, list(references), list(sources)
        )


class TranslationData(LightningDataModule):
    """Pairs of lines for translation, read when the object is made.

    Training batches hold pairs of similar length, shuffled anew each epoch; validation and test
    keep the order of their files and every pair. On W devices each has 1/W of the pairs of every
    batch: `batch_tokens` and `eval_batch_size` are totals over all devices.

    Args:
        corpus: dates or numbers, built in; multi30k; or the path of a folder with train.SRC,
            train.TGT and the same two for valid and test, plain or packed (.gz, .bz2, .xz). With
            train, valid and test it is not read.
        source: Language to translate from: the ending of its files. null: the usual one of a
            named corpus (english of dates, words of numbers, de of multi30k).
        target: Language to translate to. null: as for `source` (iso, digits, en).
        train: Path of the training files up to the language, PATH for PATH.SRC and PATH.TGT,
            instead of the corpus's; null: the corpus has them.
        valid: The same for validation.
        test: The same for the test.
        level: Whether tokens are words, with digits and marks split off; characters, blanks too;
            or byte-pair encodings (bpe).
        min_count: Tokens that are rarer in the training text become <unk>; for words and
            characters.
        bpe_size: Size of each side's vocabulary; for bpe.
        lowercase: Lower-case what the model reads and what it learns to write. How translations are
            compared with the references is the model's `lowercase`.
        batch_tokens: Most tokens of a training batch on either side, padding included.
        max_length: Training pairs with more tokens on either side are left out.
        eval_batch_size: Most pairs of a batch in validation and test; no effect on the scores.
        seed: Decides the order of the training pairs.

    Attributes:
        source_language: Name of the source language.
        target_language: Name of the target language.
        source_tokenizer: The tokenizer of source lines, made from the training text.
        target_tokenizer: That of target lines.
        source_vocabulary_size: Number of source ids.
        target_vocabulary_size: Number of target ids.
        empty_pairs: Training pairs left out because a side is empty.
        long_pairs: Training pairs left out by `max_length`.

    Raises:
        DataError: The corpus does not exist, lacks a file, or its files make no pairs.
        ValueError: A number is out of range.

    Example:
        >>> data = TranslationData("dates", batch_tokens=1000)
        >>> batch = next(iter(data.train_dataloader()))
        >>> bool((batch.target[0] == BEGIN).all())
        True
    """

    def __init__(
        self,
        corpus: str = "dates",
        source: str | None = None,
        target: str | None = None,
        train: str | None = None,
        valid: str | None = None,
        test: str | None = None,
        level: Level = "word",
        min_count: int = 1,
        bpe_size: int = 8000,
        lowercase: bool = False,
        batch_tokens: int = 4000,
        max_length: int = 100,
        eval_batch_size: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if max_length < 1:
            raise ValueError(f"expected max_length of 1 or more, got {max_length}")
        self.corpus = called(corpus, named_files(train, valid, test))
        self.batch_tokens = batch_tokens
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        texts = read_parallel(corpus, source, target, train=train, valid=valid, test=test)
        self.source_language, self.target_language = texts.source, texts.target
        self.empty_pairs = texts.empty_pairs

        self.min_count = min_count
        self.source_tokenizer, self.target_tokenizer = (
            train_tokenizer(
                level,
                [pair[side] for pair in texts.train],
                min_count=min_count,
                bpe_size=bpe_size,
                lowercase=lowercase,
            )
            for side in (0, 1)
        )
        for side, language in enumerate((texts.source, texts.target) if level == "word" else ()):
            without, letters = count_without_blanks(pair[side] for pair in texts.train)
            if 2 * without > letters:
                _log.warning(
                    "Note: %s is written without blanks between words, and level word takes all "
                    "between two marks for one: choose level character or bpe (--data.level).",
                    visible(language),
                )
        self.source_vocabulary_size = len(self.source_tokenizer)
        self.target_vocabulary_size = len(self.target_tokenizer)
        self._train, self._valid, self._test = (
            _Split(pairs, self.source_tokenizer, self.target_tokenizer)
            for pairs in (texts.train, texts.valid, texts.test)
        )
        self.long_pairs = self._train.leave_out_long(max_length)
        if not self._train.sources:
            raise ValueError(
                f"all {self.long_pairs} training pairs have more than {max_length} tokens on a "
                "side: raise max_length"
            )
        if self.long_pairs:
            _log.warning(
                "Note: %d of %d training pairs of %s have more than %d tokens on a side and are "
                "left out (max_length).",
                *(self.long_pairs, len(texts.train), visible(train or corpus), max_length),
            )
        self._fingerprint = fingerprint(zip(self._train.sources, self._train.targets, strict=True))
        # Made once here for their errors: a bad number is told before training starts.
        self.train_dataloader()
        self.val_dataloader()
        self.test_dataloader()

    def setup(self, stage: str) -> None:
        """Tell the share of unknown tokens of the texts that will be read, where there are any."""
        texts = {"training": self._train, "validation": self._valid, "test": self._test}
        read = {"fit": ("training", "validation"), "validate": ("validation",), "test": ("test",)}
        told = []
        for name in read.get(stage, ()):
            source, target = texts[name].unknown()
            if source or target:
                told.append(
                    f"{source:.2%} of the {name} text's source tokens and {target:.2%} of its "
                    "target tokens"
                )
        if told and (self.trainer is None or self.trainer.is_global_zero):
            _log.warning(
                "Note: %s are unknown to the model and read as <unk> (min_count %d).",
                *(", ".join(told), self.min_count),
            )

    def train_dataloader(self) -> BatchLoader[Pairs]:
        """Batches of the training pairs, this process's share of each."""
        batches = TokenBuckets(
            [len(ids) for ids in self._train.sources],
            [len(ids) for ids in self._train.targets],
            self.batch_tokens,
            self.seed,
        )
        return self._loader(batches, self._train, training=True)

    def val_dataloader(self) -> BatchLoader[Pairs]:
        """Batches of the validation pairs, this process's share of each."""
        return self._loader(InOrder(len(self._valid.sources), self.eval_batch_size), self._valid)

    def test_dataloader(self) -> BatchLoader[Pairs]:
        """Batches of the test pairs, this process's share of each."""
        return self._loader(InOrder(len(self._test.sources), self.eval_batch_size), self._test)

    def _loader(
        self, batches: Batches, split: _Split, training: bool = False
    ) -> BatchLoader[Pairs]:
        return BatchLoader.for_trainer(
            batches, split.collate, self.trainer, training, self._fingerprint
        )

    def transfer_batch_to_device(
        self, batch: Pairs, device: torch.device, dataloader_idx: int
    ) -> Pairs:
        """Move a batch, but for `source_lengths`: the host reads them."""
        tensors = (batch.source, batch.target, batch.target_lengths)
        source, target, lengths = (tensor.to(device, non_blocking=True) for tensor in tensors)
        return batch._replace(source=source, target=target, target_lengths=lengths)

    def __str__(self) -> str:
        # Lightning's own asks every batch for an attribute that a named tuple has not.
        return f"{type(self).__name__}({self.corpus!r})"

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to turn lines into ids and back, as plain data."""
        return {
            "source_language": self.source_language,
            "target_language": self.target_language,
            "source_tokenizer": self.source_tokenizer.state_dict(),
            "target_tokenizer": self.target_tokenizer.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a checkpoint was trained on the vocabularies of this data.

        Lightning calls this after it has loaded the model's weights. A model whose weights have
        the size of the vocabularies calls it earlier, from its own `on_load_checkpoint`.

        Raises:
            ValueError: It was not; the message has both sizes and the first difference.
        """
        here = self.source_tokenizer, self.target_tokenizer
        sides = zip(("source", "target"), tokenizers(state_dict), here, strict=True)
        for side, saved, own in sides:
            different = difference(saved, own)
            if different is not None:
                languages = f"{state_dict['source_language']} to {state_dict['target_language']}"
                raise ValueError(
                    f"the checkpoint's {side} vocabulary ({languages}) is not that of corpus "
                    f"{self.corpus!r} ({self.source_language} to {self.target_language}): "
                    f"{different}; use the corpus, direction, level, min_count or bpe_size, and "
                    "lowercase that it was trained with"
                )
